"""What the crash bench has built: items, each a file of its own; in mode `conflicting` also a line in a list that others
extend at the same place, so that branches collide."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from longshot_dagster.core.models import PlannedTask
from longshot_dagster.testing.script import Action, Step

Mode = Literal["disjoint", "conflicting"]

REQUEST = "Crash bench: write down every item."
LISTS = 20  # that all items of mode `conflicting` share
_TITLE = re.compile(r"\bItem (\d{4})\b")


@dataclass(frozen=True)
class Item:
    number: int
    mode: Mode

    @property
    def title(self) -> str:
        return f"Item {self.number:04d}"

    @property
    def path(self) -> str:
        return f"items/{self.number:04d}.txt"

    @property
    def shared(self) -> str:
        return f"lists/{self.number % LISTS:02d}.txt"

    @property
    def task(self) -> PlannedTask:
        wanted = f"Write {self.path}" + (f" and add its line to {self.shared}." if self.mode == "conflicting" else ".")
        return PlannedTask(description=f"{self.title}\n\n{wanted}", scope=self.scope)

    @property
    def scope(self) -> list[str]:
        return [self.path, self.shared] if self.mode == "conflicting" else [self.path]

    @property
    def step(self) -> Step:
        """The tool calls that do it; done again on work that has it already they change nothing."""
        write = Action.model_validate({"write": {"path": self.path, "content": f"{self.title} is done.\n"}})
        if self.mode == "disjoint":
            return (write,)
        line = f"grep -qx '{self.title}' {self.shared} || echo '{self.title}' >> {self.shared}"
        return (write, Action.model_validate({"bash": line}))


def items(count: int, mode: Mode) -> list[Item]:
    return [Item(number, mode) for number in range(1, count + 1)]


def item_of(text: str, of: Sequence[Item]) -> Item | None:
    """The item that a task's message or description is about: the first that it names."""
    found = _TITLE.search(text)
    number = int(found[1]) if found else 0
    return of[number - 1] if 1 <= number <= len(of) else None


def first_files(mode: Mode) -> dict[str, str]:
    """What the repository holds before the build: path -> text."""
    lists = {f"lists/{n:02d}.txt": f"List {n:02d}\n" for n in range(LISTS)} if mode == "conflicting" else {}
    return {"README.md": "The crash bench lands its items here.\n", **lists}
