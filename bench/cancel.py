"""The cancel bench: how soon every worker hears that its build is cancelled, and how soon nothing of it is left.

    python bench/cancel.py [--workers 20] [--sandboxes local|fleet] [--how ui|interrupt|kill] [--keep]

bench/README.md says what happens and what the last line, one JSON object, means. Exit code 1: something was left behind.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from crashing.assignment import Mode
from crashing.installation import Installation, Repository
from fleeting import wire
from fleeting.endpoint import FleetModel, path_of
from fleeting.sandboxes import FleetProvider, installed_as_a_package

from longshot_dagster.adapters.host import processes
from longshot_dagster.adapters.stack import stack
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.usage import REHEARSAL_MODEL
from longshot_dagster.testing.answers import Answer, Asked, play
from longshot_dagster.testing.script import Action, Role

_SLEEP = ("sleep", "2718.5")  # what an agent does until it is cancelled
_LOOK_S = 0.1
_MODE: Mode = "disjoint"


class SleepyModel(FleetModel):
    """Has every agent write its file and then sleep."""

    def reply(self, asked: Asked) -> Answer:
        if asked.role is not Role.WORKER:
            return super().reply(asked)
        wanted = next(path_of(n) for n in range(1, 10_000) if path_of(n) in asked.text)
        write = Action.model_validate({"write": {"path": wanted, "content": "half\n"}})
        return play(asked, ((write,), (Action.model_validate({"bash": " ".join(_SLEEP)}),)), "", 0)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="longshot-cancel-"))
    try:
        figures = bench(given.sandboxes, given.workers, given.how, folder)
    finally:
        if given.keep:
            print(f"everything is kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["left"] == [] and figures["gone_s"] is not None else 1


def bench(sandboxes: str, workers: int, how: str, folder: Path) -> dict[str, Any]:
    """The figures of one cancelled build in `folder`, an empty one."""
    repository = Repository.made(folder, _MODE)
    with SleepyModel(workers) as model, _host(folder, repository.bare, sandboxes) as socket:
        installation = Installation(folder, _settings(folder, model.base_url, sandboxes, workers, socket), repository)
        command = installation.command("Sleep", "--repo", str(repository.bare), "--yes")
        at_work, there = _counts(installation, sandboxes, socket)
        try:
            began = time.monotonic()
            _wait(lambda: at_work() >= workers or command.poll() is not None, 300)
            asleep = at_work()
            print(f"{asleep} at work after {time.monotonic() - began:.1f} s", flush=True)
            load, cancelled = os.getloadavg()[0], time.monotonic()
            heard: list[float | None] = []
            looking = threading.Thread(target=lambda: heard.append(_wait(lambda: not at_work(), 120)), daemon=True)
            looking.start()
            _cancel(installation, command, how)
            asked_s = time.monotonic() - cancelled
            looking.join()
            gone = _wait(lambda: not there(), 120)
            gone_s = None if gone is None else time.monotonic() - cancelled
            ended = _wait(lambda: not installation.runs(), 120)
            ended_s = None if ended is None else time.monotonic() - cancelled
            ledger = installation.ledger
            kept = len(ledger.kept_work()) if ledger else 0
        finally:
            left = installation.down()
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(60)
            command.kill()
            command.wait()
    return {
        "workers": asleep,
        "sandboxes": sandboxes,
        "how": how,
        "asked_s": round(asked_s, 2),
        "heard_s": _rounded(heard[0]),
        "gone_s": _rounded(gone_s),
        "ended_s": _rounded(ended_s),
        "kept": kept,
        "left": left,
        "load": round(load, 1),
    }


def _cancel(installation: Installation, command: "subprocess.Popen[bytes]", how: str) -> None:
    """As the UI's button does it, by Ctrl-C of the command that follows the build, or with SIGKILL for everything and a sweep."""
    if how == "interrupt":
        command.send_signal(signal.SIGINT)
        return
    if how == "kill":
        processes.kill(processes.carrying("LONGSHOT_HOME", str(installation.home.root)))
        swept = installation.command("sandboxes", "--reap")
        if swept.wait(180):
            raise LongshotError("the sweep after the kill did not end well")
        return
    info = stack.running(installation.home)
    if info is None:
        raise LongshotError("the stack has ended")
    api = stack.api(installation.home, info)
    api.terminate([run.id for run in api.active()])


def _counts(installation: Installation, sandboxes: str, socket: Path) -> tuple[Callable[[], int], Callable[[], int]]:
    """How many workers are at work, and how many sandboxes there are."""
    if sandboxes == "fleet":
        fleet = FleetProvider(str(socket))
        return fleet.at_work, lambda: len(fleet.list({}))
    return _sleeping, lambda: len(list(installation.home.sandboxes.glob("*")))


def _sleeping() -> int:
    wanted, found = "\0".join((*_SLEEP, "")).encode(), 0
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += line.read_bytes() == wanted
    return found


def _wait(until: Callable[[], bool], seconds: float) -> float | None:
    """How long it took; None when it never came."""
    began = time.monotonic()
    while not until():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(_LOOK_S)
    return time.monotonic() - began


@contextlib.contextmanager
def _host(folder: Path, bare: Path, sandboxes: str) -> Iterator[Path]:
    socket = folder / "fleet.sock"
    if sandboxes != "fleet":
        yield socket
        return
    argv = [sys.executable, "-m", "fleeting.host", "--socket", str(socket), "--repository", str(bare)]
    argv += ["--task-seconds", _SLEEP[1], "--requests", "0", "--log", str(folder / "worked.json")]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environ) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise RuntimeError("the host of the sandboxes does not start")
            yield socket
        finally:
            process.terminate()


def _settings(folder: Path, base_url: str, sandboxes: str, workers: int, socket: Path) -> dict[str, str]:
    return {
        "LLM_BASE_URL": base_url,
        "LLM_API_KEY": "sleepy",
        "LLM_MODEL": REHEARSAL_MODEL,
        "MAX_WORKERS": str(workers),
        "MAX_TOKENS_PER_BUILD": "0",
        "SANDBOX_PROVIDER": sandboxes,
        "PYTHONPATH": installed_as_a_package(folder / "site"),
        wire.VARIABLE: str(socket),
        **dict.fromkeys(("CHECK_INSTALL", "CHECK_COMPILE", "CHECK_TYPES", "CHECK_LINT", "CHECK_TEST"), "none"),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=20, metavar="N", help="that are cancelled (default 20)")
    parser.add_argument("--sandboxes", choices=("local", "fleet"), default="local")
    parser.add_argument("--how", choices=("ui", "interrupt", "kill"), default="ui")
    parser.add_argument("--keep", action="store_true", help="keep the folder with everything in it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
