"""Where everything of one installation lives: `LONGSHOT_HOME`, by default `~/.longshot`."""

import contextlib
import functools
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from longshot_dagster.core.errors import WrongUse

_ROOM_BYTES = 4 << 20  # tells a full disk from one that is not; what a build needs, nobody knows before


class Home:
    """The folders below LONGSHOT_HOME; each is created when first asked for, readable by its owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def builds(self) -> Path:
        return self._folder("builds")

    @property
    def mirrors(self) -> Path:
        return self._folder("mirrors")

    def mirror_of(self, url: str) -> Path:
        """Where the mirror of the repository at `url` lies, with what its builds share; made when first used."""
        name = hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:20]
        return self.mirrors / f"{name}.git"

    @property
    def sandboxes(self) -> Path:
        return self._folder("sandboxes")

    @property
    def harnesses(self) -> Path:
        """Coding agents that were installed for local sandboxes."""
        return self._folder("harnesses")

    @property
    def leaving(self) -> Path:
        return self._folder("leaving")

    @property
    def restoring(self) -> Path:
        """Ledgers that are being restored, and those that were put aside for one that was."""
        return self._folder("restoring")

    @property
    def dagster(self) -> Path:
        return self._folder("dagster")

    @property
    def logs(self) -> Path:
        return self._folder("logs")

    @property
    def gateway(self) -> Path:
        return self._folder("gateway")

    @property
    def leases(self) -> Path:
        return self._folder("leases")

    @property
    def runtime(self) -> Path:
        """Sockets: a short path outside the home, because a unix socket's path has at most 107 bytes.

        Raises WrongUse when somebody else owns the folder.
        """
        folder = self._runtime
        try:
            found = folder.lstat()  # asked for by every task
        except FileNotFoundError:
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise WrongUse(f"{folder} belongs to somebody else or is open to others; remove it or set TMPDIR")
        return folder

    @property
    def has_runtime(self) -> bool:
        """Is there a folder of sockets? Asking makes none."""
        return self._runtime.is_dir()

    @functools.cached_property
    def _runtime(self) -> Path:
        name = hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"longshot-{os.getuid()}-{name}"

    @property
    def ui(self) -> Path:
        return self._folder("ui")

    def leave_runtime(self) -> None:
        """Remove the folder of sockets once nothing serves one there any more; what is still in use stays."""
        for path in (self._runtime / "t").glob("*/*.sock"):  # of workers whose process was killed
            if not _is_served(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                    path.parent.rmdir()
        with contextlib.suppress(OSError):
            for folder in (self._runtime / "t", self._runtime):
                if folder.exists():
                    folder.rmdir()

    def check_room(self) -> None:
        """Write something for good, and take it away again. Raises WrongUse when the disk is full or read-only."""
        try:
            with tempfile.TemporaryFile(dir=self.builds) as file:
                file.write(bytes(_ROOM_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise WrongUse(
                f"cannot write below LONGSHOT_HOME={self.root}: {e.strerror}; free some space there, or set LONGSHOT_HOME "
                "to a folder on another disk"
            ) from e

    def _folder(self, name: str) -> Path:
        """Raises WrongUse when it cannot be made, or when somebody else could have put things into it."""
        folder = self.root / name
        try:
            if not folder.is_dir():  # asked for at every step of every run
                self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder.mkdir(exist_ok=True, mode=0o700)
            found = [self.root.stat(), folder.lstat()]
        except OSError as e:
            raise WrongUse(
                f"cannot write below LONGSHOT_HOME={self.root}: {e.strerror}; set LONGSHOT_HOME to a writable folder"
            ) from e
        if any(f.st_uid != os.getuid() or f.st_mode & stat.S_IWOTH for f in found if not stat.S_ISLNK(f.st_mode)):
            raise WrongUse(
                f"LONGSHOT_HOME={self.root} belongs to somebody else or is open to others; take a folder of your own"
            )
        return folder


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # its queue is full
            return True
        except OSError:
            return False
    return True
