"""This home's hold on a build: its name in every checkpoint it pushes, and a look at whose checkpoint it builds upon.

    LONGSHOT_HOME/orchestrator                 this home's id, random; a copy of the file elsewhere does not count
    mirrors/<target>.git/longshot-beat-<build>.json   the last checkpoint that this home has pushed, and when

The rule is in `core/orchestrating.py`.
"""

import hashlib
import os
import platform
import re
import secrets
import tempfile
from pathlib import Path

from pydantic import ValidationError

from longshot_dagster.adapters.host import processes
from longshot_dagster.adapters.host.documents import locked
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import supervisor_pid
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint, document_at
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.errors import TakenOver
from longshot_dagster.core.models import Record
from longshot_dagster.core.orchestrating import Hold, Orchestrator, hold, lost

DOCUMENT = "orchestrator.json"
_MAX_BYTES = 4_096


class Beat(Record):
    """`longshot-beat-<build>.json`."""

    commit: str
    at: float
    released: bool


class Seat:
    """One build, as the home of `mirror` drives it."""

    def __init__(self, mirror: Mirror, build: str) -> None:
        self.home = Home(mirror.path.parents[1])
        self.mirror = mirror
        self.build = build

    def document(self, now: float, released: bool) -> bytes:
        """This home's `orchestrator.json`."""
        pid = supervisor_pid(self.home) or 0
        return (
            Orchestrator(
                id=identity(self.home),
                host=platform.node()[:200],
                seen_at=max(0.0, now),
                released=released,
                machine=_this_machine(),
                pid=pid,
                started=(processes.start_time(pid) or "") if pid else "",
            )
            .model_dump_json(indent=1)
            .encode()
        )

    def found(self, commit: str | None) -> Orchestrator | None:
        """Whose checkpoint that is; None for one that names nobody, as older versions' do."""
        data = document_at(self.mirror.git, commit, DOCUMENT, _MAX_BYTES) if commit else None
        try:
            return Orchestrator.model_validate_json(data) if data else None
        except ValidationError:
            return None

    def check(self, keeper: Checkpoint, parent: str | None) -> None:
        """Raises TakenOver when another home has put the checkpoint there that a push of ours would build upon."""
        if parent is None or self.is_ours(keeper, parent):
            return
        found = self.found(parent)
        if found is not None and found.id != identity(self.home):
            raise TakenOver(lost(self.build, found))

    def is_ours(self, keeper: Checkpoint, commit: str) -> bool:
        """Made, pushed, or taken over by this home; without a look at the commit itself."""
        beat = self.last()
        return commit == keeper.made() or (beat is not None and commit == beat.commit)

    def hold(self, commit: str | None, now: float) -> tuple[Hold, Orchestrator | None]:
        """How the build stands to this home, and who that checkpoint names."""
        found = self.found(commit)
        return hold(found, identity(self.home), now, ended_here=found is not None and _ended_here(found)), found

    def last(self) -> Beat | None:
        try:
            return Beat.model_validate_json(self._beat.read_bytes())
        except (OSError, ValidationError):
            return None

    def noted(self, commit: str, at: float, released: bool) -> None:
        """Remember what this home has pushed, or has decided to go on from."""
        # Not fsynced: without it the next push looks at the commit itself.
        self._beat.write_bytes(Beat(commit=commit, at=at, released=released).model_dump_json().encode())

    def forget(self) -> None:
        """Nothing of what this home has pushed counts any more: the build is another's."""
        self._beat.unlink(missing_ok=True)

    @property
    def _beat(self) -> Path:
        return self.mirror.path / f"longshot-beat-{self.build}.json"


def identity(home: Home) -> str:
    """This home's id: 32 hexadecimal digits, made when first asked for.

    The file holds its own inode, too: a home that was copied to another machine is another one.
    """
    path = home.root / "orchestrator"
    if found := _identity_in(path):
        return found
    _ = home.builds  # has the home made, and made sure of
    with locked(home.root / ".orchestrator.lock"):
        if found := _identity_in(path):
            return found
        made = secrets.token_hex(16)
        handle, temporary = tempfile.mkstemp(dir=home.root, prefix=".orchestrator.")
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{made} {os.fstat(file.fileno()).st_ino}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return made


def _identity_in(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            found = re.fullmatch(r"([0-9a-f]{32}) (\d+)\n", file.read(100))
            return found[1] if found and int(found[2]) == os.fstat(file.fileno()).st_ino else ""
    except OSError:
        return ""


def _this_machine() -> str:
    """A digest of this start of this machine (and container); empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:32]


def _ended_here(found: Orchestrator) -> bool:
    """Did it drive the build from this very machine, and is its process gone?"""
    here = bool(found.machine) and found.machine == _this_machine()
    return here and found.pid > 0 and processes.start_time(found.pid) != found.started
