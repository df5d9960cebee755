"""`longshot logs [BUILD] [--task TASK] [--follow]`: what happened in a build, or what the agent of one task did, in order."""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.cli.following import interruptible
from longshot_dagster.cli.naming import build_or_task, named_task, newest
from longshot_dagster.cli.showing import LOOK_SECONDS, Objects, Stream, echo_json, show
from longshot_dagster.cli.terminal import say
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.events import Event
from longshot_dagster.core.models import Task
from longshot_dagster.core.report import waiting_for
from longshot_dagster.core.transcript import parse, render

_CHUNK = 4 << 20


def logs(build: str | None, task: str | None, follow: bool, as_json: bool) -> int:
    """0, also when the person has seen enough of what is followed. Raises WrongUse."""
    home = settings.home(os.environ, settings.default_dotenv())
    builds = Ledger(home.builds)
    name, own = build_or_task(builds, build or (task if task and "." in task else newest(builds)))
    ledger = builds.existing(name)
    with interruptible(), contextlib.suppress(KeyboardInterrupt):
        if which := _task_of(builds, name, task, own):
            _tell_task(ledger, ledger.existing_task(which), follow, as_json)
        else:
            _tell_build(home, ledger, follow, as_json)
    return 0


def _task_of(builds: Ledger, build: str, task: str | None, own: str | None) -> str | None:
    """The task asked for, be it as `BUILD --task TASK`, `BUILD --task BUILD.TASK` or `BUILD.TASK`."""
    if task is None:
        return own
    if "." not in task:
        task = f"{build}.{task}"
    of, name = named_task(builds, task)
    if of != build or own not in (None, name):
        raise WrongUse(f"{task} is no task of {build}; `longshot status {build}` lists its tasks")
    return name


def _tell_build(home: Home, ledger: BuildLedger, follow: bool, as_json: bool) -> None:
    told = Objects() if as_json else _Dated()
    with told as shown:
        if follow:
            show(home, ledger, shown, deserted=lambda: True)
        else:
            shown.events(BuildWatch(ledger).events())


class _Dated(Stream):
    """A line per event, with its date and time."""

    def events(self, new: Sequence[Event]) -> None:
        for event in new:
            say(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(event.at))}  {event.line}")


def _tell_task(ledger: BuildLedger, task: Task, follow: bool, as_json: bool) -> None:
    transcript, told = Transcript(ledger, task.id), False
    if not as_json:
        say(f"{task.id} of {ledger.build}: {task.title}")
    while True:
        over = not follow or _over(ledger, task.id)  # asked before reading: what comes later is not missed
        while lines := transcript.read():
            told = True
            _show_lines(lines, as_json)
        if over:
            break
        time.sleep(LOOK_SECONDS)
    if not as_json:
        _close(ledger, task, told)


def _show_lines(lines: Sequence[bytes], as_json: bool) -> None:
    for event in map(parse, lines):
        if as_json:
            echo_json(event)
        else:
            for line in render(event):
                say(line)


def _over(ledger: BuildLedger, task: str) -> bool:
    """Will nothing more be written about the task by itself?"""
    if ledger.live_transcript(task).exists():
        return False
    return ledger.handoff(task) is not None or not ledger.state().under_way


def _close(ledger: BuildLedger, task: Task, told: bool) -> None:
    """How the task stands, below its transcript or in place of one."""
    handoff, landing = ledger.handoff(task.id), ledger.landing(task.id)
    if not told and task.delegated and landing is None:
        parts = [t for t in ledger.task_ids() if ledger.existing_task(t).planner == task.id]
        say(f"no agent worked on it: it went to a subplanner; its parts: {', '.join(parts) or 'none yet'}")
    elif not told:
        why = waiting_for(task, handoff, landing, ledger.state().phase)
        say("there is no transcript" + (f" ({why})" if handoff is None and why else ""))
    if handoff:
        say(f"handed off {handoff.status.value}" + (f", {landing.state.value}" if landing else ""))
    for folder, _, _ in ledger.earlier_work(task.id):
        say(f"an earlier worker's transcript is in {folder}")


class Transcript:
    """Whole lines of a task's transcript as they are written: of the live one while a worker is at it, else the kept one."""

    def __init__(self, ledger: BuildLedger, task: str) -> None:
        self._live = Path(str(ledger.live_transcript(task)))
        self._kept = Path(str(ledger.transcript(task)))
        self._file: tuple[str, int] | None = None
        self._offset = 0
        self._read = hashlib.sha256()

    def read(self) -> list[bytes]:
        """What is new since the last call, a few megabytes at most; empty when nothing is."""
        for path in (self._live, self._kept):
            try:
                with path.open("rb") as file:
                    return self._lines(path, file.fileno())
            except FileNotFoundError:
                continue
        return []

    def _lines(self, path: Path, descriptor: int) -> list[bytes]:
        found = os.fstat(descriptor)
        if self._file != (path.name, found.st_ino) or found.st_size < self._offset:
            self._file = (path.name, found.st_ino)
            self._go_on(os.pread(descriptor, self._offset, 0))
        data = os.pread(descriptor, _CHUNK, self._offset)
        end = data.rfind(b"\n") + 1
        whole = data[:end] or (data if path == self._kept or len(data) == _CHUNK else b"")
        self._offset += len(whole)
        self._read.update(whole)
        return [line for line in whole.split(b"\n") if line.strip()]

    def _go_on(self, beginning: bytes) -> None:
        """The kept transcript begins with what was live: that is not told twice. Another one is told from its beginning."""
        if hashlib.sha256(beginning).digest() != self._read.digest():
            self._offset, self._read = 0, hashlib.sha256()
