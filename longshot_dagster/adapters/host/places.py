"""Where a ledger lies: a folder of this host, or a place on an object store."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from upath import UPath


def place(root: "str | os.PathLike[str] | UPath") -> "UPath":
    """A plain path where `root` is one: whatever a UPath of it would be, without loading what object stores need."""
    if isinstance(root, Path) or "://" not in str(root):
        return cast("UPath", Path(str(root)))
    from upath import UPath  # 0.15 s, with the event loop that it brings along

    return UPath(root)
