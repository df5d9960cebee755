"""What is said when something of ours cannot be written: a full disk or a folder of somebody else's is no bug."""

import errno
import os
from pathlib import Path

from longshot_dagster.adapters import settings
from longshot_dagster.core.errors import LongshotError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NOT_OURS = (errno.EACCES, errno.EPERM)


def unwritable(error: BaseException) -> str:
    """One line with what to do; empty for an error that is about something else."""
    if not isinstance(error, OSError) or error.filename is None:
        return ""
    if error.errno in _NO_ROOM:
        return f"cannot write {error.filename}: {error.strerror}; free some space there and do the same again"
    if error.errno == errno.EROFS or (error.errno in _NOT_OURS and _is_in_home(Path(os.fsdecode(error.filename)))):
        return f"cannot write {error.filename}: {error.strerror}; set LONGSHOT_HOME to a writable folder"
    return ""


def _is_in_home(path: Path) -> bool:
    try:
        home = settings.home(os.environ, settings.default_dotenv())
    except (LongshotError, OSError):
        return False
    return path.absolute().is_relative_to(home.root.absolute())
