"""The job `start_build`: from a sentence and a repository to an open first iteration. The launchpad is its form."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from longshot_dagster.core.ids import ROOT, IterationKey, task_partition
from longshot_dagster.core.models import BuildRequest
from longshot_dagster.defs import partitions
from longshot_dagster.defs.executor import threaded_executor
from longshot_dagster.defs.metadata import rehearsal
from longshot_dagster.defs.pausing import plainly
from longshot_dagster.defs.resources import LongshotResource


class StartBuildConfig(dg.Config):
    """What to build, where, and whatever should differ from the settings of this installation."""

    request: str = Field(description="What to build, in your words: `Build a REST API according to SPEC.md`.")
    repository: str = Field(
        default="",
        description="URL or path of the git repository to build in. Empty: GIT_REPO_URL of the installation.",
    )
    land_on: str = Field(
        default="",
        description="Branch that finished work lands on. Empty: the main branch of a URL or bare repository, "
        "`longshot/<build>` in a checkout that has no origin.",
    )
    build: str = Field(default="", description="Name of the build, a-z, 0-9 and '-'. Empty: made from the request.")
    max_workers: int | None = Field(
        default=None, description="MAX_WORKERS: tasks worked on at once, in all builds together; 0 pauses."
    )
    provider: str = Field(default="", description="SANDBOX_PROVIDER: where workers run: auto, local or modal.")
    harness: str = Field(default="", description="HARNESS: the coding agent inside a sandbox: auto or builtin.")
    model: str = Field(default="", description="LLM_MODEL: name of the model sent to the endpoints.")
    merge_strategy: str = Field(
        default="", description="MERGE_STRATEGY: how branches land: fast-forward, rebase, merge-commit or squash."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Any other setting as NAME: value, e.g. `WORKER_TIMEOUT: 600`."
    )
    origins: dict[str, str] = Field(
        default_factory=dict, description="Filled in by the command line, which has resolved the settings; leave empty."
    )


@dg.op(name="start_build")
def open_build(context: dg.OpExecutionContext, config: StartBuildConfig, longshot: LongshotResource) -> str:
    """Resolve the repository and the settings, freeze both, and open the root planner's first iteration."""
    # Decided before anything is written: a retried run carries the tag and meets its own build again.
    with plainly():
        build = config.build or context.run.tags.get(partitions.BUILD_TAG) or name_for(config.request)
        context.instance.add_run_tags(context.run_id, {partitions.BUILD_TAG: build})
        request = begin(config, build, longshot)
    limit = request.settings.max_workers
    first = IterationKey(build, ROOT, 1)
    # The limit is one for the whole fleet; the newest build's setting counts until somebody changes it in the UI.
    context.instance.event_log_storage.set_concurrency_slots(partitions.SANDBOX_POOL, limit)
    context.instance.add_dynamic_partitions(str(partitions.builds.name), [build])
    ledger = longshot.tools(build).ledger
    # A build that was restored has some already.
    iterations = [str(key) for key in ledger.iterations() if key != first]
    context.instance.add_dynamic_partitions(str(partitions.iterations.name), [str(first), *iterations])
    if tasks := [task_partition(build, task) for task in ledger.task_ids()]:
        context.instance.add_dynamic_partitions(str(partitions.tasks.name), tasks)
    ledger.open_iteration(first)  # last: from here on the sensors drive it
    context.add_output_metadata(
        {
            "build": build,
            "repository": request.target.url,
            "branch": request.target.branch,
            "base": request.base,
            "settings": dg.MetadataValue.json(request.settings.model_dump(mode="json")),
            **rehearsal(request),
        }
    )
    return build


@dg.graph
def building() -> None:
    """The one step of `start_build`."""
    open_build()


# Op and job share the name, so that the run's configuration reads `ops: {start_build: {config: ...}}`; the graph between
# them may not.
start_build = building.to_job(
    name="start_build",
    executor_def=threaded_executor,
    tags=partitions.RETRY_TAGS,
    description="Start a build: describe it in `request`, name a repository, launch. The sensors carry it on from there.",
)


def begin(config: StartBuildConfig, build: str, longshot: LongshotResource) -> BuildRequest:
    """Raises WrongUse for what cannot be built as it is asked for."""
    from longshot_dagster.adapters.builds.starting import start_build
    from longshot_dagster.adapters.gateway.gateway_client import Gateway
    from longshot_dagster.adapters.settings import launched
    from longshot_dagster.core.clock import SystemClock

    home = longshot.installation()
    return start_build(
        home,
        request=config.request,
        repository=config.repository,
        resolved=launched(overrides(config), config.origins),
        build=build,
        land_on=config.land_on or None,
        gateway=Gateway(home),
        clock=SystemClock(),
    )


def name_for(request: str) -> str:
    from longshot_dagster.adapters.builds.starting import check_request, new_build_name

    return new_build_name(check_request(request))


def overrides(config: StartBuildConfig) -> Mapping[str, Any]:
    """Settings the form names, by their setting's name; a field of its own wins over the same name under `settings`."""
    fields = {
        "max_workers": config.max_workers,
        "sandbox_provider": config.provider,
        "harness": config.harness,
        "llm_model": config.model,
        "merge_strategy": config.merge_strategy,
    }
    given = {name: value for name, value in fields.items() if value not in (None, "")}
    return {name.lower(): value for name, value in config.settings.items()} | given
