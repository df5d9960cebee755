"""The oracle: a model that knows the original source. It plans one task for each module and writes that module back.

It reads what any model reads, the planner's and the worker's messages, and answers with ordinary plans and tool calls;
it remembers nothing, so the same question gets the same answer.
"""

import json
import random
import re
import threading
from collections.abc import Callable, Iterable, Mapping

from longshot_dagster.core.models import PlannedTask
from longshot_dagster.testing.answers import Answer, Asked, play
from longshot_dagster.testing.script import Action, Role, Script, plan_json
from longshot_dagster.testing.scripted_model import ScriptedModel

REQUEST = (
    "Restore this package: every function whose body is `raise NotImplementedError` gets the body its docstring, its "
    "name and the tests ask for, until the package's own test suite is green."
)
ROUND = 20  # tasks of one planning round
_TITLE = re.compile(r"Restore `([^`]+)`")
_REPORT = re.compile(r"(?:### |- )(\S+): (complete|partial|failed|blocked)(?:, (\w+))?")
_OVER = ("landed", "superseded", "conflict", "queued")
_MID_WORK = (1, 2)  # answers a worker has had when it is killed: nothing is written yet, or everything but the handoff


class Oracle(ScriptedModel):
    """`sources`: path in the repository -> original text. `kill(task)` is called for `victims` tasks while they are worked on."""

    def __init__(
        self,
        sources: Mapping[str, str],
        kill: Callable[[str], bool] = lambda task: False,
        victims: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(Script())
        self._sources = dict(sources)
        self._kill = kill
        chance = random.Random(seed)
        chosen = chance.sample(sorted(self._sources), min(victims, len(self._sources)))
        self._victims = {path: chance.choice(_MID_WORK) for path in chosen}
        self._deaths = threading.Lock()
        self.killed: list[str] = []

    def reply(self, asked: Asked) -> Answer:
        match asked.role:
            case Role.ROOT:
                return play(asked, ((_call("ls", "."),),), self._plan(asked), 0)
            case Role.WORKER:
                return self._work(asked)
            case Role.SUBPLANNER | Role.RECONCILER:  # a module is one piece; what is red is another module's task
                return Answer(plan_json("Nothing to add.", ()))
        return super().reply(asked)

    def _plan(self, asked: Asked) -> str:
        number = asked.subject.rpartition(".")[2]
        first = (int(number) - 1) * ROUND if number.isdigit() else 0
        modules = sorted(self._sources)[first : first + ROUND]
        tasks = [_task(path) for path in modules]
        tasks += [_task(path, ids) for path, ids in to_redo(asked.text, self._sources).items()]
        return plan_json(f"{len(self._sources)} modules, {ROUND} a round.", tuple(tasks))

    def _work(self, asked: Asked) -> Answer:
        paths = [path for path in _scope(asked.text) if path in self._sources]
        if not paths:
            return Answer(json.dumps({"status": "blocked", "summary": "This is not one of the modules I know."}))
        self._strike(asked, paths)
        look = tuple(_call("read", path) for path in paths)
        write = tuple(_call("write", {"path": path, "content": self._sources[path]}) for path in paths)
        final = {"status": "complete", "summary": f"Restored {', '.join(paths)}."}
        return play(asked, (look, write, (_call("bash", "git diff --stat"),)), json.dumps(final), 0)

    def _strike(self, asked: Asked, paths: Iterable[str]) -> None:
        with self._deaths:
            due = [path for path in paths if self._victims.get(path) == asked.step]
            if due and self._kill(asked.subject):
                self.killed.append(asked.subject)
                for path in due:
                    del self._victims[path]


def to_redo(text: str, sources: Iterable[str]) -> dict[str, list[str]]:
    """Module -> ids of its tasks that came to nothing, from a planner's message; not those that somebody works on."""
    known, busy = set(sources), set[str]()
    found: dict[str, list[str]] = {}
    section, last = "", ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = line
        if section == "## Tasks under way":
            busy.update(_TITLE.findall(line))
            continue
        if report := _REPORT.match(line):
            task, status, state = report.groups()
            last = task if state not in _OVER and (status != "complete" or state == "withheld") else ""
        if last and (title := _TITLE.search(line)) and title[1] in known:
            found.setdefault(title[1], []).append(last)
            last = ""
    return {path: ids[:20] for path, ids in found.items() if path not in busy}


def _task(path: str, replaces: Iterable[str] = ()) -> PlannedTask:
    return PlannedTask(
        description=f"Restore `{path}`\n\nEvery function of it that only raises NotImplementedError gets its body back.",
        scope=[path],
        acceptance="No function of the module raises NotImplementedError; its tests pass once the other modules are back.",
        replaces=list(replaces),
    )


def _scope(text: str) -> list[str]:
    after = text.partition("\n## Scope\n")[2].partition("\n## ")[0]
    return [line[2:].strip() for line in after.splitlines() if line.startswith("- ")]


def _call(tool: str, arguments: object) -> Action:
    return Action.model_validate({tool: arguments})
