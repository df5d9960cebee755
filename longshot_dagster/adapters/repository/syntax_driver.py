"""A merge driver that knows the syntax of the file, where one is installed: mergiraf, run on three small files."""

import contextlib
import functools
import os
import posixpath
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.core import scope
from longshot_dagster.core.rungs import MAX_BYTES, Sides
from longshot_dagster.core.settings import RungName

NAME = "mergiraf"
TIMEOUT_S = 15.0
MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class SyntaxDriver:
    """It parses what an agent wrote, so it gets no environment, little memory and little time."""

    program: str
    name: RungName = RungName.SYNTAX

    def resolve(self, sides: Sides) -> bytes | None:
        name = posixpath.basename(sides.path)
        # It takes a file's kind from its name; no other part of what an agent chose is needed.
        ending = re.fullmatch(r"[A-Za-z0-9_.-]{0,80}?(\.[A-Za-z0-9]{1,12})", name)
        if sides.base is None or ending is None or name in scope.LOCK_FILES:
            return None
        with tempfile.TemporaryDirectory(prefix="longshot-syntax-") as folder:
            files = {side: Path(folder, f"{side}{ending[1]}") for side in ("base", "ours", "theirs")}
            for path, content in zip(files.values(), (sides.base, sides.ours, sides.theirs), strict=True):
                path.write_bytes(content)
            # As git calls it: the result takes the place of the second file.
            words = ["merge", "--git", *map(str, files.values()), "-p", f"file{ending[1]}"]
            if self._run(words, folder) != 0:
                return None
            with contextlib.suppress(OSError), files["ours"].open("rb") as made:
                content = made.read(4 * MAX_BYTES + 1)
                return content if content and len(content) <= 4 * MAX_BYTES else None
        return None

    def _run(self, words: list[str], folder: str) -> int:
        """Its exit code; 1, as for a conflict, when it does not come to an end."""
        process = subprocess.Popen(
            [self.program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        with process:
            if hasattr(resource, "prlimit"):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
                    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
            try:
                return process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return 1
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)


@functools.cache
def syntax_rung() -> SyntaxDriver | None:
    """None where it is not installed."""
    program = shutil.which(NAME)
    return SyntaxDriver(program) if program else None
