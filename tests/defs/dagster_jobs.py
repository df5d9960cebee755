"""Little jobs that every executor must run to the same end."""

import threading
from collections.abc import Iterator

import dagster as dg

from longshot_dagster.core.errors import Cancelled
from longshot_dagster.defs.executor import cancellation, threaded_executor

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


@dg.graph
def fan_out() -> None:
    total(three().map(doubled).collect())


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


SHAPES = {shape.name: shape for shape in (fan_out, skipped, failed, crashed, retried)}


def build(shape: str, executor: str) -> dg.JobDefinition:
    return SHAPES[shape].to_job(executor_def=EXECUTORS[executor])


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
