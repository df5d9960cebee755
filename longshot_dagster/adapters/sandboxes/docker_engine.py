"""The Docker Engine API, by Docker's own SDK: Docker, or podman's socket. The one module that imports the SDK.

DOCKER_HOST names it: `unix:///path`, or `tcp://host:port` without TLS (the far end of a tunnel); empty:
Docker's own socket of this host.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import socket
import tarfile
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any, cast

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge

MISSING = "Docker's SDK is not installed beside Longshot: pip install docker, or pipx inject longshot-dagster docker"
_DEFAULT_HOST = "unix:///var/run/docker.sock"
_TIMEOUT_S = 120
_SLOW_S = 1_800  # a pull, or a commit of much
_CONNECTIONS = 64
_NOT_REGULAR = 0x8F28_0000  # of Go's file modes: folder, link, pipe, socket, device, anything odd
_IS_FOLDER = 0x8000_0000
_TAR_EXTRA = 1 << 16


class Engine:
    """A connection to the engine; any number of threads may use it. Raises SandboxRefused when none answers."""

    def __init__(self) -> None:
        if importlib.util.find_spec("docker") is None:
            raise SandboxRefused(MISSING)
        host = os.environ.get("DOCKER_HOST") or _DEFAULT_HOST
        if not host.startswith(("unix://", "tcp://", "http://")) or os.environ.get("DOCKER_TLS_VERIFY"):
            raise SandboxRefused(
                "DOCKER_HOST must be unix:// or tcp:// without TLS; reach an engine elsewhere through a tunnel"
            )
        docker = _sdk()
        try:
            if host.startswith("unix://"):  # the SDK would leave a socket open
                with socket.socket(socket.AF_UNIX) as knock:
                    knock.connect(host.removeprefix("unix://"))
            self.client = docker.from_env(timeout=_TIMEOUT_S, max_pool_size=_CONNECTIONS, use_context=False)
        except (docker.errors.DockerException, OSError, ValueError) as e:
            raise SandboxRefused(
                f"no container engine answers at {one_line(host, 120)} ({one_line(e, 200)}); start one, or set DOCKER_HOST"
            ) from e
        self._base = f"{self.client.api.base_url}/v{self.client.api.api_version}"

    @property
    def api(self) -> Any:
        return self.client.api

    def close(self) -> None:
        self.client.close()

    # --- files -------------------------------------------------------------------------------------------------------

    def put(self, container: str, folder: str, archive: bytes) -> bool:
        """Unpack a tar archive in a folder of the container; False when there is no such folder. A folder stays a folder."""
        options = {"path": folder, "noOverwriteDirNonDir": "1"}
        with self._archive("PUT", container, options, archive) as answer:
            if answer.status_code == 404:
                return False
            if answer.status_code != 200:
                raise SandboxError(f"cannot write in {folder}: {one_line(answer.text, 300)}")
            return True

    def get(self, container: str, path: str, max_bytes: int) -> bytes:
        """Raises FileMissing for what is no regular file, TooLarge."""
        self._check(container, path, max_bytes)
        with self._archive("GET", container, {"path": path}) as answer:
            if answer.status_code != 200:
                raise FileMissing(f"cannot read {path}: {one_line(answer.text, 300)}")
            packed = _Bounded(answer.iter_content(1 << 16), max_bytes + _TAR_EXTRA)
            try:
                with tarfile.open(fileobj=cast(Any, packed), mode="r|") as archive:
                    member = archive.next()
                    if member is None or not member.isfile():
                        raise FileMissing(f"{path} is no file")
                    file = archive.extractfile(member)
                    data = file.read(max_bytes + 1) if file is not None else b""
            except (tarfile.TarError, OSError) as e:
                raise SandboxError(f"cannot read {path}: {one_line(e, 200)}") from e
        if len(data) > max_bytes:
            raise TooLarge(f"{path} is larger than {max_bytes:,} bytes")
        return data

    def _check(self, container: str, path: str, max_bytes: int) -> None:
        with self._archive("HEAD", container, {"path": path}) as answer:
            if answer.status_code != 200:
                raise FileMissing(f"there is no {path}")
            found = json.loads(b64decode(answer.headers.get("X-Docker-Container-Path-Stat", "")))
        if int(found["mode"]) & _NOT_REGULAR:
            raise FileMissing(f"{path} is no file")
        if int(found["size"]) > max_bytes:
            raise TooLarge(f"{path} is larger than {max_bytes:,} bytes")

    def _archive(self, method: str, container: str, params: Mapping[str, str], data: bytes | None = None) -> Any:
        url = f"{self._base}/containers/{container}/archive"
        return self.api.request(method, url, params=params, data=data, stream=True, timeout=_TIMEOUT_S)

    # --- commands ----------------------------------------------------------------------------------------------------

    def start(self, exec_id: str) -> "Talk":
        """Start a prepared command that says nothing before it is told something."""
        return Talk(self.api.exec_start(exec_id, socket=True))

    # --- images ------------------------------------------------------------------------------------------------------

    def pull(self, image: str) -> None:
        """Raises SandboxRefused."""
        docker = _sdk()
        patient = docker.from_env(timeout=_SLOW_S, use_context=False)
        try:
            patient.images.pull(image)
        except docker.errors.APIError as e:
            raise SandboxRefused(
                f"there is no image {image}, and none can be had: {one_line(e.explanation, 200)}"
            ) from e
        finally:
            patient.close()

    def commit(self, container: str, repository: str, tag: str) -> None:
        docker = _sdk()
        patient = docker.from_env(timeout=_SLOW_S, use_context=False)
        try:
            patient.api.commit(container, repository=repository, tag=tag, pause=False)
        finally:
            patient.close()


class Talk:
    """The connection of a running command: frames of its two streams, and its input."""

    def __init__(self, opened: Any) -> None:
        self._opened = opened  # what the SDK keeps of the answer goes with it
        self.socket: socket.socket = getattr(opened, "_sock", opened)
        self.socket.settimeout(None)
        self._held = bytearray()
        self._left = 0
        self._stream = 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if response := getattr(self._opened, "_response", None):
            response.close()
        self._opened.close()
        self.socket.close()

    def parsed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(1 or 2, what was said) for each piece in `data`, which follows what was parsed before. Raises SandboxError."""
        self._held += data
        while self._held:
            if self._left == 0:
                if len(self._held) < 8:
                    return
                self._stream, self._left = self._held[0], int.from_bytes(self._held[4:8], "big")
                if self._stream not in (1, 2) or any(self._held[1:4]):
                    raise SandboxError(
                        f"the engine says: {one_line(bytes(self._held[:300]).decode(errors='replace'), 200)}"
                    )
                del self._held[:8]
            piece = bytes(self._held[: self._left])
            del self._held[: len(piece)]
            self._left -= len(piece)
            if piece:
                yield self._stream, piece


@contextlib.contextmanager
def speaking(what: str) -> Iterator[None]:
    """Trouble with the engine as ours. Raises SandboxGone for a container that is not there, SandboxError."""
    docker, requests = _sdk(), importlib.import_module("requests")
    try:
        yield
    except docker.errors.NotFound as e:
        raise SandboxGone(f"cannot {what}: {one_line(e.explanation, 200)}") from e
    except docker.errors.APIError as e:
        if e.status_code == 409 and "is not running" in str(e.explanation):
            raise SandboxGone(f"cannot {what}: it is over") from e
        raise SandboxError(f"cannot {what}: {one_line(e.explanation or e, 300)}") from e
    except (docker.errors.DockerException, requests.RequestException, OSError) as e:
        raise SandboxError(f"cannot {what}: {one_line(e, 300)}") from e


def _sdk() -> Any:
    """It has no types, and need not be there."""
    return importlib.import_module("docker")


def status_of(error: BaseException | None) -> int:
    """The engine's answer that an error of ours stands for; 0: there was none."""
    return int(getattr(error, "status_code", 0) or 0)


def packed(*entries: tuple[str, int, bytes | None], uid: int, gid: int) -> bytes:
    """A tar archive; an entry is (path, mode, content), a folder has None."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, mode, content in entries:
            member = tarfile.TarInfo(path)
            member.mode, member.uid, member.gid = mode, uid, gid
            if content is None:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class _Bounded:
    """A file of what comes, which ends after so many bytes."""

    def __init__(self, pieces: Iterator[bytes], most: int) -> None:
        self._pieces = pieces
        self._left = most
        self._held = b""

    def read(self, size: int) -> bytes:
        while len(self._held) < size and self._left > 0:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._held += piece[: self._left]
            self._left -= len(piece)
        data, self._held = self._held[:size], self._held[size:]
        return data
