"""A code location as small as one can be, for tests of what runs around it."""

import time

import dagster as dg

from longshot_dagster.core.errors import WrongUse


@dg.op(pool="beds", config_schema={"seconds": dg.Field(float, default_value=0.0)})
def nap(context: dg.OpExecutionContext) -> None:
    time.sleep(context.op_config["seconds"])


@dg.op
def refuse() -> None:
    raise WrongUse("there is no such repository; give another")


@dg.job
def napping() -> None:
    nap()


@dg.job
def refusing() -> None:
    refuse()


@dg.asset(partitions_def=dg.DynamicPartitionsDefinition(name="beds"))
def made() -> None:
    pass


defs = dg.Definitions(assets=[made], jobs=[napping, refusing])
