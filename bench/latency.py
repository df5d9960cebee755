"""The latency bench: how long planners wait for handoffs, and workers for slots, on a real stack.

    python bench/latency.py [--rounds N] [--workers N] [--keep]

A scripted planner adds three tasks a round while the three before are worked on; more steps wait than the pool has slots.
bench/README.md says what the last line, one JSON object, means. Exit code 1: the build did not come to its end.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from restoring.loop import Installation, make_repository
from waiting.figures import decile, replan_waits, slot_waits
from waiting.steps import worker_steps

from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.stack import stack
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.models import PlannedTask
from longshot_dagster.core.usage import REHEARSAL_MODEL
from longshot_dagster.testing.script import Action, PlannerScript, Round, Script, WorkerScript
from longshot_dagster.testing.scripted_model import ScriptedModel

_FIRST_TASKS = 12
_TASKS_A_ROUND = 3
_SECONDS = (3.0, 6.0)  # a task sleeps between these, so that handoffs do not come in step


def script(rounds: int) -> Script:
    """Round 1 plans twelve tasks, every later one three; each writes one file of its own after a while."""
    counts = [_FIRST_TASKS] + [_TASKS_A_ROUND] * (rounds - 1)
    planned: list[Round] = []
    workers: list[WorkerScript] = []
    for number, count in enumerate(counts, 1):
        names = [f"part_{number:03}_{n}" for n in range(count)]
        tasks = tuple(PlannedTask(description=f"{name}\n\nWrite {name}.txt.", scope=(f"{name}.txt",)) for name in names)
        planned.append(Round(scratchpad=f"Round {number}.", tasks=tasks))
        for at, name in enumerate(names):
            seconds = _SECONDS[0] + (_SECONDS[1] - _SECONDS[0]) * ((number * 7 + at * 3) % 10) / 9
            writes = Action.model_validate({"bash": f"sleep {seconds:.2f}; echo {name} > {name}.txt"})
            workers.append(WorkerScript(match=f"^{name}$", steps=((writes,),), final=f"{name} is written."))
    return Script(planners=(PlannerScript(planner="root", rounds=tuple(planned)),), workers=tuple(workers))


def bench(rounds: int, workers: int, folder: Path) -> dict[str, Any]:
    """The figures of one build in `folder`, an empty one."""
    tree, bare = folder / "first", folder / "repository.git"
    tree.mkdir()
    (tree / "README.md").write_text("The beginning.\n")
    make_repository(bare, tree, "The beginning")
    with ScriptedModel(script(rounds)) as model:
        installation = Installation(folder, _settings(model.base_url, workers))
        try:
            result = installation.build("Write every part", bare)
            info = stack.running(installation.home)
            steps = worker_steps(stack.api(installation.home, info)) if info else []
        finally:
            installation.down()
        if not result.build:
            raise LongshotError("no build was started; what the command said is above")
        asked = [entry for entry in model.log if entry["role"] == "root"]
    ledger = Ledger(installation.home.builds).build(result.build)
    replans, slots = replan_waits(ledger, asked), slot_waits(steps, workers)
    return {
        "tasks": result.tasks,
        "landed": result.landed,
        "iterations": result.iterations,
        "wall_s": round(result.wall_s, 1),
        "replan_s_p50": decile(replans, 5),
        "replan_s_p90": decile(replans, 9),
        "replans": len(replans),
        "slot_s_p50": decile(slots, 5),
        "slot_s_p90": decile(slots, 9),
        "slots": len(slots),
    }


def _settings(base_url: str, workers: int) -> dict[str, str]:
    return {
        "LLM_BASE_URL": base_url,
        "LLM_API_KEY": "rehearsal",
        "LLM_MODEL": REHEARSAL_MODEL,
        "MAX_WORKERS": str(workers),
        "MAX_TOKENS_PER_BUILD": "0",
        "SANDBOX_PROVIDER": "local",
        **dict.fromkeys(("CHECK_INSTALL", "CHECK_COMPILE", "CHECK_TYPES", "CHECK_LINT", "CHECK_TEST"), "none"),
    }


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=12, help="planning rounds")
    options.add_argument("--workers", type=int, default=3, help="slots of the pool `sandbox`")
    options.add_argument("--keep", action="store_true", help="keep the folder with everything in it")
    given = options.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="longshot-latency-"))
    try:
        figures = bench(given.rounds, given.workers, folder)
    except LongshotError as wrong:
        sys.stderr.write(f"{wrong}\n")
        return 1
    finally:
        if given.keep:
            sys.stderr.write(f"everything is kept in {folder}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["landed"] == figures["tasks"] > 0 and figures["replans"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
