"""Which of a shared service's sandboxes are this installation's."""

import uuid
from pathlib import Path

from longshot_dagster.adapters.host.documents import locked, write_atomically


def own_mark(folder: Path) -> str:
    """What this installation marks its own with, kept in `folder`; made once."""
    path = folder / "installation"
    with locked(path.with_name(".lock")):
        if not path.exists():
            write_atomically(path, uuid.uuid4().hex[:16].encode())
        return path.read_text(encoding="ascii")
