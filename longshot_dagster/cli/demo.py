"""`longshot demo`: the whole loop on an example, with a scripted model; no keys, no account, nothing left running."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds.starting import new_build_name
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.repository import git
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.cli import serving
from longshot_dagster.cli.building import Order, run
from longshot_dagster.cli.following import interruptible
from longshot_dagster.cli.terminal import say, say_under, waiting
from longshot_dagster.core.endpoints import Endpoint, normalise_url
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.usage import REHEARSAL_MODEL
from longshot_dagster.testing.demo import Demo, prepare, prepare_many, verify

_INTRODUCTION = (
    "This is a rehearsal: a script plays the model. Everything else is real: planning rounds, sandboxes, agents, git, "
    "landing, checks, Dagster."
)

_LOOPBACK = (
    "Modal is played by a server on this machine: its own SDK makes the sandboxes, which are processes here, twenty at "
    "once. Nothing leaves this machine, and no account is needed."
)
_ENDING_S = 15.0
PROVIDERS = ("local", "modal-loopback")


def demo(look: bool, provider: str = "local") -> int:
    """Exit code of the example's build on one of PROVIDERS; `look` opens the UI on the last one instead."""
    person = settings.home(os.environ, settings.default_dotenv())
    home = Home(person.root / "demo")
    if look:
        return _look(home)
    _check_tools()
    _clear(home)
    if provider == "local":
        return _rehearsed(home, "local", prepare(home.root / "example"))
    with _loopback_modal(home):
        return _rehearsed(home, "modal", prepare_many(home.root / "example"))


def _rehearsed(home: Home, provider: str, example: Demo) -> int:
    # Nothing of the person's own settings but the one opt-in without which some hosts can run no sandbox at all.
    launch = {
        "sandbox_isolation": os.environ.get("SANDBOX_ISOLATION"),
        "sandbox_provider": provider,
        "harness": "builtin",
    }
    resolved = settings.resolve(launch, {"llm_model": REHEARSAL_MODEL}, {}, None, None)
    _, note = make_provider(resolved.settings, resolved.origins, home)
    say_under("", f"{_INTRODUCTION} Sandboxes: {note}")
    with interruptible(), _scripted_model(example, home) as endpoint:
        try:
            code = _build(home, example, endpoint, resolved)
        finally:
            with waiting("stopping Dagster and the gateway ..."):
                stack.stop(home)
                serving.tidied(home)
                Gateway(home).stop()
    if code == 0:
        code = _verified(example)
    say(f"the build in the Dagster UI: {_typed()} demo --look")
    # What needs a sandbox again finds no Modal once its server has gone.
    what = "status, logs, report and undo find" if provider == "local" else "status, logs and report find"
    say(f"{what} it after: export LONGSHOT_HOME={shlex.quote(str(home.root))}")
    return code


def _typed() -> str:
    """How a person gets this command again: after `make demo` it is on no PATH."""
    return "longshot" if shutil.which("longshot") or Path(sys.argv[0]).name != "longshot" else sys.argv[0]


def _build(home: Home, example: Demo, endpoint: Endpoint, resolved: settings.Resolved) -> int:
    Gateway(home).ensure((endpoint,))
    say("starting Dagster for the demo ...")
    with waiting("starting Dagster's code server, daemon and UI ..."):
        info = stack.ensure(home, (endpoint,), port=0, environ=_neutral(os.environ))
    say(f"watch it in the Dagster UI, this link logs in once: {UiAccess(home).link(info.port)}")
    order = Order(new_build_name("demo"), example.request, str(example.repository), None, resolved)
    return run(home, stack.api(home, info), order, stays=False)


def _verified(example: Demo) -> int:
    """The example's own unit and acceptance tests on a clean checkout of main, outside any sandbox: exit code 0 or 4."""
    with waiting("running the application's own tests on main ..."):
        green, output = verify(example.repository)
    if green:
        say("the application's own unit and acceptance tests pass on main")
        return 0
    say("the application's own tests do NOT pass on main:")
    for line in output.splitlines()[-15:]:
        say(f"  {line}")
    return 4


def _look(home: Home) -> int:
    if not home.builds.exists() or not any(home.builds.iterdir()):
        raise WrongUse(f"no demo has been built yet; `{_typed()} demo` builds it")
    return serving.up(detach=False, home=home)


def _check_tools() -> None:
    """Raises RepositoryError or WrongUse when this host lacks what the example's own checks are run with."""
    git.version()
    if shutil.which("make") is None:
        raise WrongUse("make is not installed, or not on PATH; the example's checks are `make` targets")


def _clear(home: Home) -> None:
    stack.stop(home)
    Gateway(home).stop()
    shutil.rmtree(home.root, ignore_errors=True)


def _neutral(environ: "os._Environ[str]") -> dict[str, str]:
    """Without the person's settings: the demo is the same demo everywhere."""
    names = (*settings.FIELDS, *settings.PROCESS_NAMES)
    return {name: value for name, value in environ.items() if name not in names}


@contextlib.contextmanager
def _loopback_modal(home: Home) -> Iterator[None]:
    """For this process and all it starts, Modal is a server of this machine; at the end it says what it has seen."""
    argv = [sys.executable, "-P", "-m", "longshot_dagster.testing.loopback_modal", "--home", str(home.root / "modal")]
    say_under("", _LOOPBACK)
    before = dict(os.environ)
    with _server([*argv, "--attended"], home, "loopback-modal") as server:
        for name in [name for name in os.environ if name.startswith("MODAL_")]:
            del os.environ[name]
        os.environ.update(server.told)
        try:
            yield
        finally:
            for name in server.told:
                del os.environ[name]
            os.environ.update({name: value for name, value in before.items() if name.startswith("MODAL_")})
    seen = server.last_words()
    say(
        f"the loopback Modal made {seen['made']} sandboxes for {seen['calls']} calls of the SDK, at most "
        f"{seen['most_at_once']} at once; {seen['left'] or 'none'} left over"
    )
    if unknown := [*seen["missing"], *seen["broken"]]:
        say(f"it could not answer: {', '.join(unknown)}")


@contextlib.contextmanager
def _scripted_model(example: Demo, home: Home) -> Iterator[Endpoint]:
    argv = [sys.executable, "-P", "-m", "longshot_dagster.testing.scripted_model", "--script", str(example.script)]
    with _server(argv, home, "scripted-model") as server:
        url = normalise_url(f"http://127.0.0.1:{server.told['port']}", "LLM_BASE_URL")
        yield Endpoint(name="scripted", url=url)


@dataclass
class _Server:
    """A process of the rehearsal; `told` is its first line, `rest` what it has said until its end."""

    told: dict[str, Any]
    rest: bytes = b""

    def last_words(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rest.splitlines()[-1])
        return found


@contextlib.contextmanager
def _server(argv: list[str], home: Home, name: str) -> Iterator[_Server]:
    """One that prints a line of JSON as soon as it serves, until the end of the block; raises LongshotError."""
    log = home.logs / f"{name}.log"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise LongshotError(f"the {name.replace('-', ' ')} does not start: {stack.tail(Path(log))}")
        server = _Server(json.loads(line))
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING_S)
        process.kill()
        process.wait()
        process.stdin.close()
        rest = process.stdout.read()
        process.stdout.close()
    server.rest = rest
