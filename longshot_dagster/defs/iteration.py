"""One planning round and the work it causes: the asset job `planning_iteration`, a run per iteration of any planner.

    read_repo_state → make_plan → run_worker (per task) → land (per task) → gather → reconcile → measure

Every op returns what the ledger already holds instead of doing it again, so a repeated run costs nothing but the gaps.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import dagster as dg

from longshot_dagster.adapters.ledger.apart import Apart
from longshot_dagster.core import ids
from longshot_dagster.core.errors import BuildPaused, Cancelled, IncompleteIteration, LedgerError
from longshot_dagster.core.ids import IterationKey, parse_iteration_key
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lifecycle import BuildView, fixable_sweep
from longshot_dagster.core.measuring import snapshot
from longshot_dagster.core.models import (
    BuildPhase,
    Handoff,
    MetricsSnapshot,
    Plan,
    RepoState,
    Sweep,
    Task,
)
from longshot_dagster.defs import checks, metadata, partitions
from longshot_dagster.defs.executor import cancellation, keep_apart, prioritise
from longshot_dagster.defs.executors import chosen_executor
from longshot_dagster.defs.merging_again import merge_again, spared_fix
from longshot_dagster.defs.pausing import pausing
from longshot_dagster.defs.resources import BuildTools, LongshotResource
from longshot_dagster.defs.task_materialization import report_task


class AssetText(NamedTuple):
    """One asset as the UI shows it: what it is, what kind of thing makes it, what it comes after."""

    description: str
    kind: str
    after: tuple[str, ...] = ()


ASSETS = {
    "repo_state": AssetText(
        "What main looked like when the iteration began: commit, files, history, specification.", "git"
    ),
    "plan": AssetText("The tasks a planner asked for, frozen before anything was dispatched.", "llm", ("repo_state",)),
    "handoffs": AssetText(
        "What the workers handed in, one per task of the plan; the completeness guard saw them all.",
        "agent",
        ("plan",),
    ),
    "landings": AssetText(
        "What became of each branch: landed, nothing to land, conflict, withheld or superseded.",
        "git",
        ("plan", "handoffs"),
    ),
    "health": AssetText(
        "The newest sweep: main built and tested in a clean checkout inside a sandbox.", "sandbox", ("landings",)
    ),
    "metrics": AssetText(
        "Figures of the iteration and of the build so far. Written last: with it, the iteration is done.",
        "json",
        ("plan", "handoffs", "landings", "health"),
    ),
}
_RETRY_BEGINS_S = 5.0  # from setting a task's work aside to its new worker's lock
_LOOK_S = 0.5
_LANDS_FIRST = {"dagster/priority": "1"}  # a finished branch lands before more work starts


@dg.op(out=dg.Out(io_manager_key="ledger"))
def read_repo_state(context: dg.OpExecutionContext, longshot: LongshotResource) -> RepoState:
    """Fetch the target and write down what is on main: the commit every planner of this iteration reads."""
    key, tools = _place(context, longshot)
    with _pausing(context, tools, key):
        state = tools.ledger.repo_state(key) or tools.mirror.repo_state(tools.mirror.fetch())
    context.add_output_metadata(metadata.repo_state_metadata(state))
    return state


@dg.op(out={"plan": dg.Out(Plan, io_manager_key="ledger"), "tasks": dg.DynamicOut(dg.Nothing)})
def make_plan(
    context: dg.OpExecutionContext, repo_state: RepoState, longshot: LongshotResource
) -> Iterator[dg.Output[Plan] | dg.DynamicOutput[None]]:
    """Ask the planner for the next tasks, or take the frozen plan; each task for a worker becomes a step of its own."""
    key, tools = _place(context, longshot)
    # Dagster may retry a run that a resumed build has replaced: one of the two asks the model, the other waits and reads.
    with _pausing(context, tools, key), tools.ledger.lock(f"planning-{key.short}"):
        plan = tools.ledger.plan(key)
        if plan is None:
            going_on(tools)
            merge_again(context, tools, key)
            planned = tools.planner.plan(key, repo_state, view_to_plan_from(tools, key))
            plan = tools.ledger.freeze_plan(key, planned.model_copy(update={"planned_at": tools.clock.now()}))
            # An empty one goes with what lands next, or with the next heartbeat.
            if plan.tasks and (refused := tools.landing.checkpoint()):
                context.log.warning(f"the checkpoint stays local: {refused}")
    keys = [ids.task_partition(key.build, task.id) for task in plan.tasks]
    context.instance.add_dynamic_partitions(str(partitions.tasks.name), keys)
    yield dg.Output(plan, "plan", metadata=metadata.plan_metadata(plan, tools.request))
    prioritise(context.run_id, {ids.mapping_key(task.id): -task.priority for task in plan.dispatched})
    keep_apart(context.run_id, Apart(tools.ledger, tools.request.settings.worker_timeout, tools.clock))
    for task in plan.dispatched:
        yield dg.DynamicOutput(None, mapping_key=ids.mapping_key(task.id), output_name="tasks")


# Which task it is the mapping key says: a value between steps would cost five events and three files per task.
@dg.op(ins={"task": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), pool=partitions.SANDBOX_POOL)
def run_worker(context: dg.OpExecutionContext, longshot: LongshotResource) -> None:
    """One worker in one sandbox does one task and hands it in. A slot of the pool `sandbox` is taken meanwhile."""
    (key, tools), task = _place(context, longshot), _mapped_task(context)
    with _pausing(context, tools, key):
        planned = dispatched(tools, key, task)
        if tools.ledger.handoff(task) is None:
            going_on(tools)
        handoff = spared_fix(tools, planned) or tools.worker.run(planned, cancellation(context.run_id).is_set)
    tools.lookout.changed()
    context.add_output_metadata({"task": task, "status": handoff.status.value})


@dg.op(ins={"worked": dg.In(dg.Nothing)}, out=dg.Out(dg.Nothing), tags=_LANDS_FIRST)
def land(context: dg.OpExecutionContext, longshot: LongshotResource) -> None:
    """Merge the task's branch and push it, or say why not; then the task's record appears under `task_result`."""
    (key, tools), task = _place(context, longshot), _mapped_task(context)
    with _pausing(context, tools, key):
        planned = dispatched(tools, key, task)
        outcome = tools.landing.land(planned)
    tools.lookout.changed()
    report_task(context, tools, planned, outcome)


@dg.op(
    ins={"landed": dg.In(dg.Nothing)},
    out={
        "handoffs": dg.Out(list[Handoff], io_manager_key="ledger"),
        "landings": dg.Out(list[LandingOutcome], io_manager_key="ledger"),
        checks.ALL_LANDED: dg.Out(dg.Nothing),
    },
)
def gather(context: dg.OpExecutionContext, plan: Plan, longshot: LongshotResource) -> Iterator[Any]:
    """Compare what came back with the manifest: a task without handoff and landing stops the iteration, by name."""
    key, tools = _place(context, longshot)
    with _pausing(context, tools, key):
        await_retried(tools, plan, cancellation(context.run_id).is_set)
        handoffs, landings = complete(tools, plan)
    yield dg.Output(handoffs, "handoffs", metadata=metadata.handoffs_metadata(handoffs))
    yield dg.Output(landings, "landings", metadata=metadata.landings_metadata(landings))
    yield checks.landed_check(landings, key.build)


@dg.op(
    out={
        "health": dg.Out(Sweep, io_manager_key="ledger"),
        checks.CHECKS_PASS: dg.Out(dg.Nothing),
        checks.NO_CONFLICT_MARKERS: dg.Out(dg.Nothing),
    }
)
def reconcile(
    context: dg.OpExecutionContext, landings: list[LandingOutcome], longshot: LongshotResource
) -> Iterator[Any]:
    """Sweep main as it is after this iteration's landings, unless a sweep of that commit is there already."""
    key, tools = _place(context, longshot)
    context.log.info(f"{sum(o.state is LandingState.LANDED for o in landings)} tasks landed")
    with _pausing(context, tools, key):
        found = sweep_main(tools, key.short, cancellation(context.run_id).is_set)
    yield dg.Output(found, "health", metadata=metadata.sweep_metadata(found, key.build))
    yield from checks.health_checks(found, key.build)


@dg.op(out=dg.Out(io_manager_key="ledger"))
def measure(
    context: dg.OpExecutionContext,
    plan: Plan,
    handoffs: list[Handoff],
    landings: list[LandingOutcome],
    health: Sweep,
    longshot: LongshotResource,
) -> MetricsSnapshot:
    """Count tasks, landings, tokens and time. This document is the last of an iteration: with it, it is done."""
    key, tools = _place(context, longshot)
    ledger = tools.ledger
    plans = [p for p in map(ledger.plan, ledger.iterations()) if p]
    runs = [r for r in map(ledger.run, ledger.task_ids()) if r]
    record = context.instance.get_run_record_by_id(context.run_id)
    started = record.start_time if record and record.start_time else tools.clock.now()
    took_ms = max(0, round((tools.clock.now() - started) * 1000))
    metrics = ledger.metrics(key) or snapshot(plan, handoffs, landings, health, runs, plans, took_ms)
    context.add_output_metadata(metadata.metrics_metadata(metrics))
    return metrics


_CHECKS = ("landings_all_landed", "health_checks_pass", "health_no_conflict_markers")


@dg.graph(name="iteration", out={name: dg.GraphOut() for name in (*ASSETS, *_CHECKS)})
def iteration_graph() -> dict[str, Any]:
    """One planning round of one planner, and everything its tasks did."""
    repo_state = read_repo_state()
    plan, tasks = make_plan(repo_state)
    landed = tasks.map(lambda task: land(run_worker(task)))
    handoffs, landings, all_landed = gather(plan, landed=landed.collect())
    health, checks_pass, no_conflict_markers = reconcile(landings)
    return {
        "repo_state": repo_state,
        "plan": plan,
        "handoffs": handoffs,
        "landings": landings,
        "health": health,
        "metrics": measure(plan, handoffs, landings, health),
        "landings_all_landed": all_landed,
        "health_checks_pass": checks_pass,
        "health_no_conflict_markers": no_conflict_markers,
    }


# What @graph_multi_asset makes, and the lineage between the six, which it cannot be told.
iteration = dg.AssetsDefinition.from_graph(
    iteration_graph,
    keys_by_output_name={name: dg.AssetKey(name) for name in ASSETS},
    internal_asset_deps={name: {dg.AssetKey(d) for d in asset.after} for name, asset in ASSETS.items()},
    descriptions_by_output_name={name: asset.description for name, asset in ASSETS.items()},
    tags_by_output_name={name: {f"dagster/kind/{asset.kind}": ""} for name, asset in ASSETS.items()},
    partitions_def=partitions.iterations,
    group_name="longshot",
    check_specs=checks.SPECS,
)

planning_iteration = dg.define_asset_job(
    "planning_iteration",
    selection=dg.AssetSelection.assets(iteration),
    executor_def=chosen_executor(),
    tags=partitions.RETRY_TAGS,
    description="One planning round: read main, plan, run the workers, land, sweep, measure. The sensors start it.",
)


def going_on(tools: BuildTools) -> None:
    """Raises BuildPaused unless the build is under way: whatever paused it, nothing that costs tokens begins after it."""
    state = tools.ledger.state()
    if state.phase is BuildPhase.PAUSED:
        raise BuildPaused(f"not begun, because the build is paused: {state.reason or 'no reason recorded'}")


def dispatched(tools: BuildTools, key: IterationKey, task: str) -> Task:
    """The task as this iteration gives it to a worker; raises LedgerError when its plan has no such task."""
    plan = tools.ledger.plan(key)
    found = plan.given(task) if plan else None
    if found is None:
        raise LedgerError(f"the plan of {key} has no task {task}")
    return found


def await_retried(tools: BuildTools, plan: Plan, cancelled: Callable[[], bool]) -> None:
    """Wait for tasks that a person has meanwhile given to a new worker: another run hands them in. Raises Cancelled."""
    for task in plan.dispatched:
        until = tools.clock.monotonic() + _RETRY_BEGINS_S
        while tools.ledger.handoff(task.id) is None:
            if cancelled():
                raise Cancelled(f"cancelled while {task.id} is worked on again")
            if tools.ledger.at_work(task.id):
                until = tools.clock.monotonic() + _RETRY_BEGINS_S
            elif tools.clock.monotonic() > until:
                return  # the completeness guard says so
            tools.clock.sleep(_LOOK_S)
        tools.landing.land(task)


def complete(tools: BuildTools, plan: Plan) -> tuple[list[Handoff], list[LandingOutcome]]:
    """The completeness guard. Raises IncompleteIteration that names every task of the manifest without its documents."""
    wanted = [t.id for t in plan.dispatched]
    handoffs = {t: h for t in wanted if (h := tools.ledger.handoff(t))}
    landings = {t: o for t in wanted if (o := tools.ledger.landing(t))}
    missing = [t for t in wanted if t not in handoffs or t not in landings]
    if missing:
        raise IncompleteIteration(f"iteration {plan.iteration} has no result of {', '.join(missing)}")
    return [handoffs[t] for t in wanted], [landings[t] for t in wanted]


def view_to_plan_from(tools: BuildTools, key: IterationKey) -> BuildView:
    """The ledger's view; of a red main only when no other build on the branch mends it already."""
    view = tools.ledger.view()
    if key.planner == ids.FIX and fixable_sweep(view) is not None:
        return replace(view, mended_by=tools.shared_main.claim_mending(tools.ledger, key))
    return view


def sweep_main(tools: BuildTools, iteration: str, cancelled: Callable[[], bool]) -> Sweep:
    """The newest sweep of main's head that could run, this build's or another's, or a new one. One at a time of a branch."""
    ledger, shared = tools.ledger, tools.shared_main
    with shared.sweeping(cancelled):
        sweeps, head = ledger.sweeps(), tools.mirror.fetch()
        if sweeps and sweeps[-1].head == head and not sweeps[-1].error:
            return sweeps[-1]
        others = shared.newest_sweep()
        if others is not None and others.head == head:
            return ledger.add_sweep(others.model_copy(update={"iteration": iteration}))
        found = ledger.add_sweep(tools.sweep(head, len(sweeps) + 1, iteration, cancelled))
        shared.publish(found)
        return found


def _pausing(context: dg.OpExecutionContext, tools: BuildTools, key: IterationKey) -> AbstractContextManager[None]:
    asked = context.run.tags.get(partitions.ATTEMPT_TAG, "")
    attempt = int(asked) if asked.isdigit() else tools.ledger.state().attempts.get(key.short, 1)
    return pausing(tools.ledger, key, attempt)


def _mapped_task(context: dg.OpExecutionContext) -> str:
    """Raises WrongUse where the step is mapped over no task."""
    return ids.mapped_task(context.get_mapping_key() or "")


def _place(context: dg.OpExecutionContext, longshot: LongshotResource) -> tuple[IterationKey, BuildTools]:
    key = parse_iteration_key(context.partition_key)
    return key, longshot.tools(key.build)
