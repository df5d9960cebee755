"""The Modal SDK, imported when it is first needed (it costs a second of CPU), and what its errors mean to us."""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import SandboxError, SandboxGone, SandboxRefused

if TYPE_CHECKING:
    import modal

_NEEDS = (
    "SANDBOX_PROVIDER=modal needs MODAL_TOKEN_ID and MODAL_TOKEN_SECRET in the environment of Longshot's stack, or the "
    "~/.modal.toml that `modal token new` writes"
)
_MAX_LINE = 400


def check_credentials(environ: Mapping[str, str]) -> None:
    """Raises SandboxRefused, in one line, when the SDK would find no token; asks nobody."""
    if environ.get("MODAL_TOKEN_ID") and environ.get("MODAL_TOKEN_SECRET"):
        return
    if any(environ.get(name) for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")):
        raise SandboxRefused(f"{_NEEDS}; one of the two variables is set, the other is not")
    if not has_credentials(environ):
        raise SandboxRefused(_NEEDS)


def has_credentials(environ: Mapping[str, str]) -> bool:
    """Would the SDK find a token, in the environment or in its file?"""
    if environ.get("MODAL_TOKEN_ID") and environ.get("MODAL_TOKEN_SECRET"):
        return True
    return Path(environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml").expanduser().is_file()


def sdk() -> ModuleType:
    """The module `modal`."""
    import modal

    return modal


def client() -> "modal.Client":
    """One connection per process, server and token; it is closed when the process ends."""
    environ = os.environ
    return _client(
        environ.get("MODAL_SERVER_URL", ""),
        environ.get("MODAL_TOKEN_ID", ""),
        environ.get("MODAL_TOKEN_SECRET", ""),
        os.getpid(),
    )


@functools.lru_cache(maxsize=8)
def _client(server: str, token_id: str, token_secret: str, process: int) -> "modal.Client":
    import modal

    if token_id and token_secret:
        return modal.Client.from_credentials(token_id, token_secret)
    return modal.Client.from_env()


@contextlib.contextmanager
def speaking(doing: str) -> Iterator[None]:
    """Turns what the SDK raises inside into SandboxGone, SandboxRefused or SandboxError, in one line about `doing`."""
    import modal.exception as raised
    from grpclib.exceptions import GRPCError, StreamTerminatedError

    try:
        yield
    except (raised.NotFoundError, raised.SandboxTerminatedError, raised.SandboxTimeoutError, raised.ClientClosed) as e:
        raise SandboxGone(_line(doing, e)) from e
    except raised.ConflictError as e:  # is an InvalidError, and means that the sandbox is shutting down
        raise SandboxGone(_line(doing, e)) from e
    except (raised.AuthError, raised.PermissionDeniedError, raised.InvalidError, raised.AlreadyExistsError) as e:
        raise SandboxRefused(_line(doing, e)) from e
    except (raised.Error, GRPCError, StreamTerminatedError, OSError) as e:  # quota, outage: it may pass
        raise SandboxError(_line(doing, e)) from e


def _line(doing: str, e: Exception) -> str:
    return f"Modal cannot {doing}: {one_line(str(e) or type(e).__name__, _MAX_LINE)}"
