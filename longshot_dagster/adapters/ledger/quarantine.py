"""Where damaged documents go: kept as they were found, never deleted, each with a line that says what became of it.

builds/<build>/quarantine/notes.jsonl                     one line per document, oldest first
                          1-tasks.r001-01.handoff.broken  the bytes that were found
"""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from longshot_dagster.adapters.host.documents import append_line
from longshot_dagster.core.models import Line, Record

if TYPE_CHECKING:
    from upath import UPath

MISSING = "it is missing"
BEYOND = "nothing holds it any more"
_FOLDER, _NOTES = "quarantine", "notes.jsonl"


class Mended(Record):
    """One document that was found damaged."""

    at: float
    document: Line
    wrong: Line = Field(description="what was wrong with it")
    became: Line = Field(description="what was done about it")
    kept: Line = Field(default="", description="where its bytes are, below the build's folder; empty: there were none")

    @property
    def line(self) -> str:
        return f"{self.document} was damaged ({self.wrong}): {self.became}"


def set_aside(directory: Path, name: str, *, stays: bool = False) -> str:
    """Keep what is at `name` in quarantine and return where; it `stays` in its place too until it is written anew.

    Empty when there is nothing.
    """
    folder = directory / _FOLDER
    folder.mkdir(exist_ok=True)
    number = 1 + sum(1 for f in folder.iterdir() if f.suffix == ".broken")
    flat = name.removesuffix(".json").replace("/", ".")
    while True:
        kept = folder / f"{number}-{flat}.broken"
        try:
            if stays:
                os.link(directory / name, kept)
            else:
                (directory / name).rename(kept)
        except FileExistsError:
            number += 1
            continue
        except FileNotFoundError:
            return ""
        return f"{_FOLDER}/{kept.name}"


def note(directory: Path, found: Mended) -> None:
    """A full disk keeps nobody from mending."""
    with contextlib.suppress(OSError):
        (directory / _FOLDER).mkdir(exist_ok=True)
        append_line(directory / _FOLDER / _NOTES, found.model_dump(mode="json"))


def read_notes(directory: "UPath | Path") -> list[Mended]:
    """Oldest first; lines that cannot be read say nothing."""
    try:
        lines = (directory / _FOLDER / _NOTES).read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(Mended.model_validate(json.loads(line)))
    return found


def numbers_lost(directory: "UPath | Path") -> set[int]:
    """Numbers of sweeps that went to quarantine: none of them is given to another."""
    lost = (m.document for m in read_notes(directory) if m.document.startswith("sweeps/"))
    return {int(stem) for name in lost if (stem := name.removeprefix("sweeps/").removesuffix(".json")).isdigit()}
