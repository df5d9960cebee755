"""The model of the crash bench: it plans a few items a round, writes them, keeps workers waiting until the bench lets them
finish, and notes every question whose answer was there already."""

import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from crashing.assignment import Item, item_of
from longshot_dagster.core.ids import check_task_id
from longshot_dagster.testing.answers import Answer, Asked, play
from longshot_dagster.testing.script import FaultKind, Role, Script, plan_json
from longshot_dagster.testing.scripted_model import ScriptedModel

_SEEN_S = 1.0  # a held request is looked at five times a second; one not seen for so long is gone


class Endpoint(ScriptedModel):
    """`first` items in the first planning round and `more` in each later one; `builds` is where ledgers lie.

    With `paced`, the last answer of a worker waits until its task is let go.
    """

    def __init__(self, items: Sequence[Item], first: int, more: int, builds: Path, paced: bool) -> None:
        super().__init__(Script())
        self._items = list(items)
        self._sizes = (first, more)
        self._builds = builds
        self._turns = threading.Lock()
        self._rounds: dict[str, list[Item]] = {}
        self._waiting: dict[str, float] = {}  # task or planning round -> when its open request was last looked at
        self._since: dict[str, float] = {}  # task or planning round -> when it first had to wait
        self._let_go: set[str] = set()
        self._ended: dict[str, int] = {}
        self.paced = paced
        self.plans_held = False
        self.asked_twice: list[str] = []

    # --- what the bench asks and says --------------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """Items that no plan holds yet."""
        with self._turns:
            return len(self._items) - sum(map(len, self._rounds.values()))

    @property
    def rounds(self) -> int:
        """Planning rounds that have been asked for."""
        with self._turns:
            return len(self._rounds)

    def in_flight(self) -> list[str]:
        """Tasks whose worker waits for an answer at this moment, the one that has waited longest first."""
        return sorted((name for name in self._open() if "." not in name), key=lambda name: self._since[name])

    def planning(self) -> list[str]:
        """Planning rounds whose request is open at this moment."""
        return sorted(name for name in self._open() if "." in name)

    def let_go(self, tasks: Collection[str]) -> None:
        with self._turns:
            self._let_go.update(tasks)

    def asked_since(self, entry: int) -> list[str]:
        """Subjects, tasks or planning rounds, of the requests from number `entry` on."""
        return [str(found["task"]) for found in self.log[entry:] if found["task"]]

    def answered_again(self) -> int:
        """Tasks whose last answer was given more than once: the first one died with whoever was to take it down."""
        with self._turns:
            return sum(times > 1 for times in self._ended.values())

    def _open(self) -> list[str]:
        now = time.monotonic()
        with self._turns:
            return [name for name, seen in self._waiting.items() if now - seen < _SEEN_S]

    # --- what it answers ---------------------------------------------------------------------------------------------

    def take(self, asked: Asked, stream: bool, authorized: bool) -> FaultKind | None:
        if asked.subject and self._is_settled(asked):
            with self._turns:
                self.asked_twice.append(asked.subject)
        return super().take(asked, stream, authorized)

    def reply(self, asked: Asked) -> Answer:
        match asked.role:
            case Role.ROOT if asked.subject:
                return Answer(self._plan(asked.subject), held=lambda: self._held(asked.subject, self.plans_held))
            case Role.WORKER:
                return self._work(asked)
            case Role.SUBPLANNER | Role.RECONCILER:
                return Answer(plan_json("Nothing to add.", ()))
        return super().reply(asked)

    def _plan(self, round_: str) -> str:
        """The same for the same round, however often it is asked."""
        with self._turns:
            if round_ not in self._rounds:
                given = sum(map(len, self._rounds.values()))
                size = self._sizes[1] if self._rounds else self._sizes[0]
                self._rounds[round_] = self._items[given : given + size]
            mine = self._rounds[round_]
        return plan_json(f"{len(mine)} items.", tuple(item.task for item in mine))

    def _work(self, asked: Asked) -> Answer:
        item = item_of(asked.text, self._items)
        if item is None:
            return Answer('{"status": "blocked", "summary": "This is none of my items."}')
        answer = play(asked, (item.step,), f'{{"status": "complete", "summary": "{item.title} is written."}}', 0)
        if answer.calls:
            return answer
        return Answer(answer.content, held=lambda: self._work_held(asked.subject))

    def _work_held(self, task: str) -> bool:
        held = self._held(task, self.paced and task not in self._let_go)
        if not held:
            with self._turns:
                self._ended[task] = self._ended.get(task, 0) + 1
        return held

    def _held(self, name: str, held: bool) -> bool:
        with self._turns:
            if held:
                now = time.monotonic()
                self._waiting[name] = now
                self._since.setdefault(name, now)
            else:
                self._waiting.pop(name, None)
        return held

    def _is_settled(self, asked: Asked) -> bool:
        """Is the document there that the answer would lead to?"""
        if asked.role is Role.WORKER:
            name = f"*/tasks/{check_task_id(asked.subject)}/handoff.json"
        else:
            name = f"*/iterations/{asked.subject}/plan.json"
        return any(self._builds.glob(name))
