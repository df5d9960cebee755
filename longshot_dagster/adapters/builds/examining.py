"""Real looks at what a build needs of this machine and its model; each ends with what it began, and leaves nothing behind."""

import contextlib
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from longshot_dagster.adapters.gateway.gateway_client import Gateway, examine
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.host_facts import host_facts
from longshot_dagster.adapters.host.loopback import free_port
from longshot_dagster.adapters.repository.git import OLDEST, Git
from longshot_dagster.adapters.sandboxes.confinement import MAX_FILE_BYTES
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.workers.order_run import sandbox_for
from longshot_dagster.core.display import one_line
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import LongshotError, RepositoryError, WrongUse
from longshot_dagster.core.findings import Finding, fine, to_do
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.settings import Isolation
from longshot_dagster.version import __version__

MIN_FREE_BYTES = MAX_FILE_BYTES  # as much as a single file of one agent may have
OLDEST_INSIDE = (3, 9)  # Python of the worker in a sandbox
_PYTHONS = ((3, 11), (3, 14))
_SANDBOX_S = 60.0
_IN_A_SANDBOX = (
    "import platform, subprocess; print(platform.python_version(), flush=True); subprocess.run(['git', 'version'])"
)
_NOT_FOR_DATABASES = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "fuse.sshfs",
    "drvfs",
)  # SQLite's own documentation: locks fail there


# --- what is installed -----------------------------------------------------------------------------------------------


def examine_versions() -> list[Finding]:
    """Longshot, Python, git and Dagster."""
    host = host_facts()
    where = f"{platform.system()} {host.release} on {host.machine}" + (f", WSL{host.wsl}" if host.wsl else "")
    found = [fine("longshot", f"{__version__}, {where}")]
    python = platform.python_version()
    if _PYTHONS[0] <= sys.version_info[:2] < _PYTHONS[1]:
        found.append(fine("python", python))
    else:
        found.append(to_do("python", f"{python} is not supported", "install longshot with Python 3.11 to 3.13"))
    return [*found, _examine_git(), _examine_dagster()]


def _examine_git() -> Finding:
    remedy = f"install git {OLDEST[0]}.{OLDEST[1]} or newer"
    try:
        text = Git().run("version").text
    except RepositoryError as e:
        return to_do("git", str(e), remedy)
    number = re.search(r"(\d+)\.(\d+)", text)
    if number is None or (int(number[1]), int(number[2])) < OLDEST:
        return to_do("git", f"{one_line(text, 80)} is too old", remedy)
    return fine("git", one_line(text.removeprefix("git version "), 80))


def _examine_dagster() -> Finding:
    versions = {}
    for name in ("dagster", "dagster-webserver"):
        try:
            versions[name] = installed(name)
        except PackageNotFoundError:
            return to_do("dagster", f"{name} is not installed beside longshot", "install longshot again")
    if len(set(versions.values())) > 1:
        both = ", ".join(f"{name} {number}" for name, number in versions.items())
        return to_do("dagster", f"{both} do not belong together", "install longshot again")
    return fine("dagster", versions["dagster"])


# --- the home --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def leaving_no_folder(home: Home) -> Iterator[None]:
    """Folders of `home` that are made meanwhile, and are empty at the end, are removed again."""
    folders = [*reversed(home.root.parents), home.root]
    folders += [home.root / name for name in ("builds", "dagster", "gateway", "logs", "sandboxes", "ui")]
    missing = [f for f in folders if not f.exists()]
    try:
        yield
    finally:
        for folder in reversed(missing):
            with contextlib.suppress(OSError):
                folder.rmdir()


def examine_home(home: Home) -> list[Finding]:
    """Can everything that is kept be written, locked and found again, and is there room?"""
    try:
        found = [_examine_dagster_home(home), _examine_room("disk", home.root)]
        sockets = home.runtime
        home.leave_runtime()
    except WrongUse as e:
        return [to_do("home", str(e))]
    return [fine("home", str(home.root)), *found, fine("sockets", str(sockets))]


def _examine_dagster_home(home: Home) -> Finding:
    """What Dagster and the ledger do all day: a database that commits, a lock that excludes."""
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=home.dagster) as folder:
            with contextlib.closing(sqlite3.connect(Path(folder) / "probe.db")) as database:
                database.execute("create table probe (x)")
                database.commit()
            with claim(Path(folder) / "lock") as mine, claim(Path(folder) / "lock") as twice:
                excludes = mine and not twice
    except (OSError, sqlite3.Error) as e:
        return to_do(
            "dagster home",
            f"no database can be kept in {home.dagster}: {getattr(e, 'strerror', None) or e}",
            "set LONGSHOT_HOME to a folder on a disk of this machine",
        )
    if not excludes:
        return to_do(
            "dagster home",
            f"locks do not work in {home.dagster}",
            "set LONGSHOT_HOME to a folder on a disk of this machine",
        )
    kind = _file_system(home.root)
    if kind in _NOT_FOR_DATABASES or (kind == "9p" and host_facts().wsl):
        return to_do(
            "dagster home",
            f"{home.root} is on a {kind} file system, where SQLite is not safe",
            "set LONGSHOT_HOME to a folder on a disk of this machine (in WSL2 below your Linux home, not below /mnt)",
        )
    return fine("dagster home", "writable; locks and databases work")


def _file_system(folder: Path) -> str:
    """Its type, as /proc/mounts has it; empty where that is not known."""
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mounts = [(Path(parts[1]), parts[2]) for line in lines if len(parts := line.split()) > 2]
    around = [(len(where.parts), kind) for where, kind in mounts if folder.resolve().is_relative_to(where)]
    return max(around, default=(0, ""), key=lambda m: m[0])[1]


def _examine_room(subject: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        return to_do(
            subject,
            f"{_size(free)} free at {folder}, less than a single file of one agent may have ({_size(MIN_FREE_BYTES)})",
            "free some (`longshot clean` removes old builds), or set LONGSHOT_HOME to another disk",
        )
    return fine(subject, f"{_size(free)} free at {folder}")


def _size(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):,.0f} MiB"


# --- the stack -------------------------------------------------------------------------------------------------------


def examine_stack(home: Home, port: int) -> list[Finding]:
    """Does one run already, is it of this version, and is there a port for its UI?"""
    info = stack.running(home)
    if info is not None:
        if info.version != __version__:
            what = f"version {info.version} runs, this command is {__version__}"
            return [to_do("stack", what, "`longshot down`, then again; builds go on with `longshot resume`")]
        return [fine("stack", f"runs; UI {info.url}")]
    try:
        found = free_port(port)
    except LongshotError as e:
        return [to_do("port", str(e), "end what holds the ports of 127.0.0.1")]
    if port and found != port:
        return [fine("port", f"{port} is taken by another program; the UI would take {found}")]
    return [fine("port", f"{found} is free on 127.0.0.1")]


# --- sandboxes -------------------------------------------------------------------------------------------------------


def examine_sandbox(home: Home, resolved: Resolved) -> list[Finding]:
    """Make one, run a command in it, end it."""
    settings = resolved.settings
    try:
        provider, note = make_provider(settings, resolved.origins, home)
        began = time.monotonic()
        with sandbox_for(provider, settings, {"doctor": str(os.getpid())}, _SANDBOX_S) as sandbox:
            ran = sandbox.exec(["python3", "-I", "-c", _IN_A_SANDBOX], timeout_s=_SANDBOX_S)
        took = time.monotonic() - began
    except LongshotError as e:
        return [to_do("sandbox", str(e))]
    said = ran.stdout.decode("utf-8", "replace").split("\n")
    inside = re.match(r"(\d+)\.(\d+)", said[0])
    if ran.exit_code or inside is None or len(said) < 2 or not said[1].startswith("git version"):
        why = one_line(ran.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or said[0], 200)
        return [
            to_do(
                "sandbox",
                f"{note}: it starts, but python3 or git does not run in it: {why or f'exit code {ran.exit_code}'}",
                "install python3 and git below /usr, where sandboxes see them",
            )
        ]
    if (int(inside[1]), int(inside[2])) < OLDEST_INSIDE:
        return [to_do("sandbox", f"python3 inside is {inside[0]}", "install Python 3.9 or newer below /usr")]
    tools = f"python {one_line(said[0], 20)}, git {one_line(said[1].removeprefix('git version '), 40)}"
    found = [fine("sandbox", f"{note}; made, used and ended in {took:.1f} s; {tools}")]
    if settings.sandbox_isolation is not Isolation.NONE:
        found.append(fine("bubblewrap", _bubblewrap_version()))
    return found


def _bubblewrap_version() -> str:
    from longshot_dagster.adapters.sandboxes.confinement import bubblewrap

    binary = bubblewrap().binary
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{one_line(told, 40).removeprefix('bubblewrap ')} ({binary})"


# --- the model -------------------------------------------------------------------------------------------------------


def examine_endpoints(home: Home, endpoints: Sequence[Endpoint], model: str, api: Api = Api.CHAT) -> list[Finding]:
    """Ask each for its models and one short answer, by the gateway's own rules; and for one in `api`, an agent's language.

    Without `endpoints`, those are asked that the home's running gateway serves, if there is one.
    """
    try:
        if endpoints:
            answers = examine(home, endpoints, model, api)
        elif Gateway(home).alive():
            answers = Gateway(home).examine(model, api)
        else:
            return [
                to_do(
                    "endpoint",
                    "no model endpoint is configured",
                    "set LLM_BASE_URL and LLM_API_KEY, or LLM_ENDPOINTS (see .env.example)",
                )
            ]
    except LongshotError as e:
        return [to_do("endpoint", str(e))]
    found = []
    for answer in answers:
        if answer.problem:
            others = (
                f"; it lists {', '.join(answer.models[:5])}" if answer.models and model not in answer.models else ""
            )
            found.append(to_do("endpoint", f"{answer.problem}{one_line(others, 300)}", answer.remedy))
            continue
        listed = "" if model in answer.models else ", though it does not list it"
        also = f", and speaks {api.spoken}" if api is not Api.CHAT else ""
        found.append(fine("endpoint", f"{answer.label}: {model} answers in {answer.seconds:.1f} s{also}{listed}"))
    return found
