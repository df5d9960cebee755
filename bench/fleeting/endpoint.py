"""The model of a fleet: it plans every task in its first round, and has a word for each worker."""

import json

from longshot_dagster.core.models import PlannedTask
from longshot_dagster.testing.answers import Answer, Asked
from longshot_dagster.testing.script import Role, Script, plan_json
from longshot_dagster.testing.scripted_model import ScriptedModel

_FOLDERS = 32  # a directory of a thousand files would make every tree large


class FleetModel(ScriptedModel):
    """Plans `tasks` tasks; the n-th adds one file of its own."""

    def __init__(self, tasks: int) -> None:
        super().__init__(Script())
        self._plan = plan_json("Everything at once.", tuple(planned(n) for n in range(1, tasks + 1)))

    def reply(self, asked: Asked) -> Answer:
        match asked.role:
            case Role.ROOT:
                first = asked.subject.endswith(".001")
                return Answer(self._plan if first else plan_json("Nothing to add.", ()))
            case Role.WORKER:
                return Answer(json.dumps({"status": "complete", "summary": "Added it."}))
            case Role.SUBPLANNER | Role.RECONCILER:
                return Answer(plan_json("Nothing to add.", ()))
        return super().reply(asked)


def planned(number: int) -> PlannedTask:
    path = path_of(number)
    return PlannedTask(
        description=f"Add `{path}`\n\nOne line with the task's name.", scope=[path], acceptance="It is there."
    )


def path_of(number: int) -> str:
    return f"parts/{number % _FOLDERS:02}/part-{number:04}.txt"
