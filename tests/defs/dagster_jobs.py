"""Little jobs that every executor must run to the same end."""

import threading
from collections.abc import Iterator

import dagster as dg

from longshot_dagster.core.errors import Cancelled
from longshot_dagster.defs.executor import cancellation, prioritise, threaded_executor

EXECUTORS = {
    "in_process": dg.in_process_executor,
    "multiprocess": dg.multiprocess_executor,
    "threaded": threaded_executor,
}


@dg.success_hook
def noted(context: dg.HookContext) -> None:
    context.log.info("hooked")


@dg.op(out=dg.DynamicOut(int))
def three() -> Iterator[dg.DynamicOutput[int]]:
    for n in (3, 1, 2):
        yield dg.DynamicOutput(n, mapping_key=f"n{n}")


@dg.op
def doubled(n: int) -> int:
    return 2 * n


@dg.op
def total(numbers: list[int]) -> int:
    return sum(numbers)


@dg.op(out=dg.Out(int, is_required=False))
def nothing() -> Iterator[dg.Output[int]]:
    yield from ()


@dg.op
def broken() -> int:
    raise dg.Failure("on purpose", allow_retries=False)


@dg.op
def crashing() -> int:
    raise RuntimeError("on purpose")


@dg.op
def second_time(context: dg.OpExecutionContext) -> int:
    if context.retry_number == 0:
        raise dg.RetryRequested(max_retries=2, seconds_to_wait=0.01)
    return context.retry_number


@dg.op
async def awaited() -> int:
    return 7


class HowMuch(dg.Config):
    by: int = 3


@dg.op(required_resource_keys={"io_manager"})
def multiplied(context: dg.OpExecutionContext, n: int, config: HowMuch) -> int:
    """Ops of one run that are asked for different things: a context, a configuration, nothing at all.

    Returns:
        A product.
    """
    assert context.resources.io_manager is not None
    return n * config.by


@dg.op
def seven() -> int:
    return 7


@dg.op(tags={"kind": "alone"}, pool="two")
def tagged(context: dg.OpExecutionContext) -> int:
    assert context.partition_key == "b"
    return 1


@dg.graph
def fan_out() -> None:
    total(three().map(doubled).collect())


@dg.graph
def asked_for_different_things() -> None:
    multiplied.alias("again")(multiplied(seven()))
    multiplied.alias("of_a_map")(total(three().map(multiplied.alias("each")).collect()))


@dg.graph
def skipped() -> None:
    doubled(nothing())


@dg.graph
def failed() -> None:
    doubled(broken())
    doubled.alias("other")(awaited())


@dg.graph
def crashed() -> None:
    doubled(crashing())


@dg.graph
def retried() -> None:
    doubled.with_hooks({noted})(second_time())


@dg.op(out=dg.DynamicOut(int))
def none_at_all() -> Iterator[dg.DynamicOutput[int]]:
    yield from ()


@dg.op(out=dg.DynamicOut(int, is_required=False))
def perhaps_some() -> Iterator[dg.DynamicOutput[int]]:
    yield from ()


@dg.op(out={"even": dg.DynamicOut(int), "odd": dg.DynamicOut(int)})
def sorted_out() -> Iterator[dg.DynamicOutput[int]]:
    for n in range(3):
        yield dg.DynamicOutput(n, mapping_key=f"n{n}", output_name="odd" if n % 2 else "even")


@dg.op
def broken_at_one(n: int) -> int:
    if n == 1:
        raise dg.Failure("on purpose", allow_retries=False)
    return n


@dg.graph
def nested_and_empty() -> None:
    """Collects of nothing, of a skip, of two outputs of one op, and mapped over what was collected from a map."""
    total(none_at_all().map(doubled).collect())
    total.alias("of_a_skip")(perhaps_some().map(doubled).collect())
    even, odd = sorted_out()
    total.alias("of_even")(even.map(lambda n: doubled.alias("again")(doubled.alias("once")(n))).collect())
    total.alias("of_odd")(odd.collect())


@dg.graph
def one_of_many_failed() -> None:
    total(three().map(broken_at_one).collect())


SHAPES = {
    shape.name: shape
    for shape in (
        fan_out,
        asked_for_different_things,
        skipped,
        failed,
        crashed,
        retried,
        nested_and_empty,
        one_of_many_failed,
    )
}


@dg.graph
def everything() -> None:
    """All that a process per step is asked for, at once: starting those costs more than anything they do."""
    total(three().map(doubled).collect())
    doubled.alias("after_a_skip")(nothing())
    doubled.alias("after_a_failure")(broken())
    doubled.alias("after_a_retry").with_hooks({noted})(second_time())
    total.alias("of_nothing")(none_at_all().map(doubled.alias("of_none")).collect())
    tagged()
    tagged.alias("tagged_too")()


# Forked from one process that has loaded Dagster: each would cost two seconds.
_PROCESSES = {"start_method": {"forkserver": {"preload_modules": ["dagster_jobs"]}}, "max_concurrent": 4}
_TAGS = {"tag_concurrency_limits": [{"key": "kind", "value": "alone", "limit": 1}]}


def build(shape: str, executor: str) -> dg.JobDefinition:
    if shape != "everything":
        return SHAPES[shape].to_job(executor_def=EXECUTORS[executor])
    config = {"in_process": {}, "multiprocess": {**_PROCESSES, **_TAGS}, "threaded": _TAGS, "threaded_freely": {}}
    executor_def = EXECUTORS[executor.removesuffix("_freely")].configured(config[executor])
    parts = dg.StaticPartitionsDefinition(["a", "b"])
    return everything.to_job(executor_def=executor_def, partitions_def=parts)


# --- one at a time -----------------------------------------------------------------------------------------------------

_order: list[str] = []


@dg.op
def noted_number(n: int) -> int:
    _order.append(f"work {n}")
    return n


@dg.op(tags={"dagster/priority": "1"})
def noted_landing(n: int) -> None:
    _order.append(f"land {n}")


@dg.job(executor_def=threaded_executor.configured({"max_concurrent": 1}))
def one_at_a_time() -> None:
    three().map(noted_number).map(noted_landing)


def order_of_work() -> list[str]:
    """What `one_at_a_time` did since this was last asked."""
    found = list(_order)
    _order.clear()
    return found


# --- pools -------------------------------------------------------------------------------------------------------------

_busy = threading.Semaphore(2)


@dg.op(pool="two")
def pooled(n: int) -> None:
    if not _busy.acquire(blocking=False):
        raise RuntimeError("more than two at once")
    threading.Event().wait(0.05)
    _busy.release()


@dg.op(out=dg.DynamicOut(int))
def eight() -> Iterator[dg.DynamicOutput[int]]:
    for n in range(8):
        yield dg.DynamicOutput(n, mapping_key=f"n{n}")


@dg.job(executor_def=threaded_executor)
def in_a_pool() -> None:
    eight().map(pooled)


@dg.op(out=dg.DynamicOut(int))
def eight_of_rising_urgency(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput[int]]:
    prioritise(context.run_id, {f"n{n}": n for n in range(8)})
    yield from (dg.DynamicOutput(n, mapping_key=f"n{n}") for n in range(8))


@dg.op(pool="two")
def noted_in_a_pool(n: int) -> None:
    _order.append(f"work {n}")


@dg.job(executor_def=threaded_executor)
def urgent_ones_first() -> None:
    eight_of_rising_urgency().map(noted_in_a_pool)


# --- tag limits --------------------------------------------------------------------------------------------------------

_alone = threading.Lock()


@dg.op(tags={"kind": "alone"})
def alone(n: int) -> None:
    if not _alone.acquire(blocking=False):
        raise RuntimeError("not alone")
    threading.Event().wait(0.02)
    _alone.release()


@dg.job(
    executor_def=threaded_executor.configured(
        {"tag_concurrency_limits": [{"key": "kind", "value": "alone", "limit": 1}]}
    )
)
def one_per_tag() -> None:
    eight().map(alone)


# --- cancellation ------------------------------------------------------------------------------------------------------


@dg.op
def waits(context: dg.OpExecutionContext) -> None:
    print(context.run_id, flush=True)
    cancellation(context.run_id).wait(30)
    raise Cancelled("asked to stop")


@dg.job(executor_def=threaded_executor)
def waiting() -> None:
    waits()
    waits.alias("waits_too")()
