"""The three sets of dynamic partitions; their keys come from `core/ids.py` and from nowhere else."""

import dagster as dg

builds = dg.DynamicPartitionsDefinition(name="builds")
iterations = dg.DynamicPartitionsDefinition(name="iterations")
tasks = dg.DynamicPartitionsDefinition(name="tasks")

BUILD_TAG = "longshot/build"
ATTEMPT_TAG = "longshot/attempt"
FINALIZATION_TAG = "longshot/finalization"
BACKLOG_TAG = "longshot/backlog"  # file name of the item that a build comes from
START_TAG = "longshot/backlog-start"  # which start of it; Dagster's own retries of its run carry it on
# Every step is idempotent, so a retry repeats them all; `from_failure` drops mapped steps (DESIGN.md section 3).
RETRY_TAGS = {"dagster/retry_strategy": "ALL_STEPS"}
PRIORITY_TAG = "dagster/priority"
SANDBOX_POOL = "sandbox"
