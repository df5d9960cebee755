"""Finished work that has not landed: its branches go to the target beside the checkpoint, so that no machine's end loses it.

Below refs/longshot/work/<build>/, never refs/heads: a pushed branch can start somebody's CI. They leave again when the
task lands, or something in its place. Of which only a part has landed, they stay until the build is cleaned: what was
withheld because it is somebody else's, or a person is to approve it, is nowhere else.
"""

from collections.abc import Mapping

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.mirror import Update
from longshot_dagster.core.landing_records import LandingOutcome, LandingState

_WAITING = (LandingState.QUEUED, LandingState.CONFLICT, LandingState.WITHHELD)


def unlanded(ledger: BuildLedger, outcomes: Mapping[str, LandingOutcome] | None = None) -> dict[str, str]:
    """Task -> tip, of every task that was handed in, or interrupted, with commits whose changes are not all on the target.

    `outcomes` are about to be written.
    """
    found = {}
    for task, gist in ledger.gists().items():
        outcome = (outcomes or {}).get(task)
        state = outcome.state if outcome else gist.landing
        kept_back = outcome.keeps_back if outcome else gist.kept_back
        if state is not None and state not in _WAITING and not kept_back:
            continue
        if state is None and gist.handoff is None and gist.interrupted is None:
            continue
        run = ledger.run(task)
        if run is not None and run.head is not None and run.head != run.base:
            found[task] = run.head
    return found


def work_updates(build: str, wanted: Mapping[str, str], there: Mapping[str, str]) -> list[Update]:
    """What brings the target's work refs (`there`: all refs that were read of it) in line with `wanted` (task -> tip)."""
    refs = {work_ref(build, task): tip for task, tip in wanted.items()}
    prefix = work_ref(build, "")
    stale = [ref for ref in there if ref.startswith(prefix) and ref not in refs]
    moved = [Update(ref, there.get(ref), tip) for ref, tip in refs.items() if there.get(ref) != tip]
    return [*moved, *(Update(ref, there[ref], None) for ref in stale)]
