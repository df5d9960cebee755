"""The job `finalize_build`: drain landings, sweep main, then either ask for fixes or write the last word on a build."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.errors import Cancelled, LedgerError, LongshotError, SandboxError
from longshot_dagster.core.finalizing import AskForFixes, WorkLeft, outcome, work_left
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import (
    BuildPhase,
    BuildReport,
    BuildState,
    Sweep,
)
from longshot_dagster.core.report import make_report
from longshot_dagster.defs import partitions
from longshot_dagster.defs.executor import cancellation, threaded_executor
from longshot_dagster.defs.iteration import sweep_main
from longshot_dagster.defs.metadata import Metadata, report_metadata
from longshot_dagster.defs.pausing import (
    cancelled_reason,
    count_finalization,
    fail_finalization,
    finalization_name,
    reason_of,
)
from longshot_dagster.defs.resources import BuildTools, LongshotResource


@dg.asset(
    partitions_def=partitions.builds,
    group_name="longshot",
    deps=[
        dg.AssetDep(name, partition_mapping=dg.AllPartitionMapping())
        for name in ("metrics", "health", "landings", "task_result")
    ],
    kinds={"markdown"},
    output_required=False,
)
def build_report(context: dg.AssetExecutionContext, longshot: LongshotResource) -> Iterator[Any]:
    """The last word on a build: what landed, what did not and why, whether main is green, what it cost.

    Empty while main is red and fixes are still being tried: then the build goes back to work and this runs again.
    """
    tools = longshot.tools(context.partition_key)
    number, attempt = _which(context, tools.ledger)
    try:
        report = finalize(tools, number, cancellation(context.run.run_id).is_set)
    except LongshotError as e:
        reason = cancelled_reason(context.partition_key) if isinstance(e, Cancelled) else reason_of(e)
        fail_finalization(tools.ledger, number, attempt, reason)
        raise dg.Failure(description=reason, allow_retries=False) from e
    if report is not None:
        yield dg.MaterializeResult(metadata=report_record(tools))


finalize_build = dg.define_asset_job(
    "finalize_build",
    selection=dg.AssetSelection.assets(build_report),
    executor_def=threaded_executor,
    tags=partitions.RETRY_TAGS,
    description="Drain the landing queue, sweep main, then report, or go back to work for fixes. A sensor starts it.",
)


def finalize(tools: BuildTools, number: int, cancelled: Callable[[], bool]) -> BuildReport | None:
    """Finalization `number` of a build; None when the build goes back to work. Raises what stops it, and Cancelled."""
    ledger = tools.ledger
    if earlier := ledger.report():
        _end(tools, earlier)
        return earlier
    ledger.update_state(lambda s: s.moved(BuildPhase.FINALIZING))
    tools.landing.drain()
    if work_left(ledger.view()):
        _back_to_work(ledger, WorkLeft(), number)
        return None
    sweep = None
    if tools.request.settings.finalization_enabled:
        sweep = sweep_main(tools, finalization_name(number), cancelled)
        if sweep.error:  # the sandbox's trouble, not main's: no model can mend it
            raise SandboxError(f"main could not be checked: {sweep.error}; longshot resume {ledger.build}")
    ended = outcome(ledger.view(), number, sweep)
    if isinstance(ended, WorkLeft | AskForFixes):
        _back_to_work(ledger, ended, number)
        return None
    report = report_on(tools, sweep)
    ledger.save_report(report)
    _end(tools, report)
    return report


def report_on(tools: BuildTools, sweep: Sweep | None) -> BuildReport:
    """The report of a drained build from its whole ledger; `sweep` is the newest, None when nothing was checked."""
    from longshot_dagster.adapters.builds.last_word import spent

    ledger = tools.ledger
    names, head = ledger.task_ids(), tools.mirror.fetch()
    landings = {t: o for t in names if (o := ledger.landing(t))}
    if sweep is None:  # not asked for, but what an iteration has found wrong with this very commit is known
        sweep = next((s for s in reversed(ledger.sweeps()) if s.head == head and s.red), None)
    return make_report(
        tools.request,
        tasks=[ledger.existing_task(t) for t in names],
        handoffs={t: h for t in names if (h := ledger.handoff(t))},
        landings=landings | taken_away(tools, landings, head),
        runs=[r for r in map(ledger.run, names) if r],
        plans=[p for p in map(ledger.plan, ledger.iterations()) if p],
        sweep=sweep,
        head=head,
        finalization_attempts=ledger.view().finalize_attempt,
        now=tools.clock.now(),
        spent=spent(tools.home, tools.request),
    )


def taken_away(tools: BuildTools, landings: Mapping[str, LandingOutcome], head: str) -> dict[str, LandingOutcome]:
    """What has landed and is not on the branch any more: somebody has deleted it or forced it back. Withheld, for the report."""
    landed = {t: o for t, o in landings.items() if o.state is LandingState.LANDED and o.commits}
    there = tools.mirror.commits_since(tools.request.base, head) if landed else frozenset()
    reason = "it landed, but its commits were removed from the branch"
    return {
        t: o.model_copy(update={"state": LandingState.WITHHELD, "reason": reason})
        for t, o in landed.items()
        if o.commits[-1] not in there
    }


def _which(context: dg.AssetExecutionContext, ledger: BuildLedger) -> tuple[int, int]:
    """(number, attempt) of this finalization, from the sensor's tags; launched by hand it is the one that is due."""
    tags = context.run.tags
    number = int(tags.get(partitions.FINALIZATION_TAG, "") or ledger.view().finalize_attempt + 1)
    attempt = ledger.state().attempts.get(finalization_name(number), 1)
    return number, int(tags.get(partitions.ATTEMPT_TAG, "") or attempt)


def _back_to_work(ledger: BuildLedger, ended: WorkLeft | AskForFixes, number: int) -> None:
    if isinstance(ended, WorkLeft):
        count_finalization(ledger, number)

    def change(state: BuildState) -> BuildState:
        noted = {f"red-final.{number}": ended.sweep} if isinstance(ended, AskForFixes) else {}
        moved = state.moved(BuildPhase.RUNNING) if state.phase is BuildPhase.FINALIZING else state
        return moved.model_copy(update={"attempts": {**moved.attempts, **noted}})

    ledger.update_state(change)


def report_record(tools: BuildTools) -> Metadata:
    """What the UI shows of a build that has a report."""
    from longshot_dagster.adapters.builds.last_word import last_word, markdown  # git and pandas, which no sensor needs

    word = last_word(tools.ledger, tools.home, tools.clock.now())
    return report_metadata(word, markdown(word, picture=True))


def _end(tools: BuildTools, report: BuildReport) -> None:
    from longshot_dagster.adapters.builds.last_word import write_last_word

    with contextlib.suppress(OSError, LedgerError):  # a page is never worth a build: `longshot report` makes it again
        write_last_word(tools.ledger, tools.home, tools.clock.now())
    _finish(tools.ledger, report)
    with contextlib.suppress(LongshotError):  # refs that stay cost little; `longshot clean` finds them
        tools.forget_landed_work()
    with contextlib.suppress(LongshotError):  # likewise
        tools.end_sandboxes()


def _finish(ledger: BuildLedger, report: BuildReport) -> None:
    def change(state: BuildState) -> BuildState:
        # Running: it was paused between report and end, and somebody has resumed it. A paused one waits for that.
        if state.phase is BuildPhase.RUNNING:
            state = state.moved(BuildPhase.FINALIZING)
        if state.phase is BuildPhase.FINALIZING:
            return state.moved(BuildPhase.FINISHED, verdict=report.verdict)
        return state

    ledger.update_state(change)
