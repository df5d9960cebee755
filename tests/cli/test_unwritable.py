"""What is said when something of ours cannot be written, and of what that is not said."""

import errno
import os
from pathlib import Path

import pytest

from longshot_dagster.cli.unwritable import unwritable


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "Read-only file system; set LONGSHOT_HOME to a writable folder"),
        (errno.ENOSPC, "No space left on device; free some space there and do the same again"),
        (errno.EDQUOT, "Disk quota exceeded; free some space there and do the same again"),
        (errno.EACCES, "Permission denied; set LONGSHOT_HOME to a writable folder"),
    ],
)
def test_a_home_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path))
    where = str(tmp_path / "stack.lock")
    assert unwritable(OSError(number, os.strerror(number), where)) == f"cannot write {where}: {said}"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        OSError("no number"),
        OSError(errno.EROFS, "Read-only file system"),
        FileNotFoundError(errno.ENOENT, "No such file", "/x"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/x"),
    ],
)
def test_of_other_errors_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path))
    assert unwritable(error) == ""
