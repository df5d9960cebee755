"""Starts runs as forks of the run starter, and cancels them by their lease; without a starter, as Dagster does.

The code server's own way starts an interpreter per run, knows only runs of its own process, and forgets them when it dies.
`load_definitions`, `load`, `execute`, `bury` and `serve` are what the run starter (adapters/stack/run_starter.py) takes from here.

One of the few modules that import private ones of Dagster, whose version is pinned; tests/defs/test_launcher.py is the
contract.
"""

import contextlib
import functools
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.execution.api import create_execution_plan
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata

from longshot_dagster.adapters.host import leases, waking
from longshot_dagster.adapters.host.documents import Stamp, stamp_at
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.stack import run_starter
from longshot_dagster.defs import schema

_GRPC_INFO = ".dagster/grpc_info"  # on runs that the code server has started
_LEAVE_ALONE_S = 60.0
_COLLECTED_EVERY = (
    20_000,
    20,
    20,
)  # objects, and generations: a run that holds a thousand tasks leaves few circles behind
# What code server, daemon, webserver and runs share.
_SHARED = (
    "dagster._cli",
    "dagster._grpc.impl",
    "dagster._grpc.server",
    "longshot_dagster.defs.daemon",
    "longshot_dagster.defs.event_storage",
    "longshot_dagster.defs.kept_storages",
    "longshot_dagster.defs.webserver",
    "sqlalchemy.dialects.sqlite",
)
# What runs import while they work. Nothing here starts a thread; pandas would, and only reports need it.
_LOADED = (
    "dagster._core.execution.api",
    "dagster._core.instance.factory",
    "dagster._core.launcher.sync_in_memory_run_launcher",
    "dagster._core.run_coordinator.queued_run_coordinator",
    "dagster._core.storage.legacy_storage",
    "dagster._core.storage.local_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.system_config.composite_descent",
    "longshot_dagster.adapters.ledger.checkpoint",
    "longshot_dagster.adapters.gateway.gateway_client",
    "longshot_dagster.adapters.landing.queue",
    "longshot_dagster.adapters.workers.planner",
    "longshot_dagster.adapters.sandboxes.providers",
    "longshot_dagster.adapters.settings",
    "longshot_dagster.adapters.landing.shared_main",
    "longshot_dagster.adapters.stack.stack",
    "longshot_dagster.adapters.workers.sweeper",
    "longshot_dagster.adapters.workers.worker",
    "longshot_dagster.defs.launcher",
    "openai",
    "pydantic_ai",
    "upath.implementations.local",
)


_jobs: list[dg.JobDefinition] = []  # of the module that the run starter has loaded


class ForkedRunLauncher(dg.DefaultRunLauncher):
    """See the module; named in dagster.yaml."""

    _not_before = 0.0  # a starter that is stopped or stuck costs one run its time, not every run

    def launch_run(self, context: LaunchRunContext) -> None:
        if not self._forked(context):
            super().launch_run(context)

    def _forked(self, context: LaunchRunContext) -> bool:
        """Has the run starter started the run? False when nothing was started."""
        home, asked = _home(), time.monotonic()
        if home is None or context.dagster_run.job_code_origin is None or asked < self._not_before:
            return False
        if run_starter.ask(home, context.dagster_run.run_id) is not None:
            return True
        if time.monotonic() - asked > run_starter.ANSWER_SECONDS / 2:
            self._not_before = time.monotonic() + _LEAVE_ALONE_S
        return False

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's process, found by its lease; what has no process yet sees that it is being cancelled."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished:
            return False
        home = _home()
        if home is None or (leases.holder(home, run_id) is None and _GRPC_INFO in run.tags):
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        # First the status: a process that is just starting reads it before its first step.
        self._instance.report_run_canceling(run)
        _interrupt(home, run_id)
        return True


def _home() -> Home | None:
    root = os.environ.get("LONGSHOT_HOME")
    return Home(Path(root).expanduser()) if root else None


def _interrupt(home: Home, run_id: str) -> None:
    pid = leases.holder(home, run_id)
    if not pid:
        return
    with contextlib.suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open"):  # macOS
            os.kill(pid, signal.SIGINT)
            return
        process = os.pidfd_open(pid)
        try:
            if leases.holder(home, run_id) == pid:  # still the process it was when it was opened
                signal.pidfd_send_signal(process, signal.SIGINT)
        finally:
            os.close(process)


# --- in the run starter and its children -----------------------------------------------------------------------------


def load_definitions(module: str) -> None:
    """Import what a run and every service of the stack need, and build every job of `module` once."""
    for name in _SHARED:
        importlib.import_module(name)
    schema.newest_revision()
    for found in vars(importlib.import_module(module)).values():
        if isinstance(found, dg.Definitions):
            _jobs.extend(found.get_repository_def().get_all_jobs())


def load() -> None:
    """Import whatever else runs need, and have the jobs and the instance's configuration work out what they keep."""
    from longshot_dagster.adapters.sandboxes import installed_providers
    from longshot_dagster.adapters.workers import llm

    for name in _LOADED:
        importlib.import_module(name)
    llm.preload()
    installed_providers.installed_providers()
    for job in _jobs:
        with contextlib.suppress(dg.DagsterError):  # it needs a configuration, which only a run has
            create_execution_plan(job)
    schema.statements(SqlEventLogStorageMetadata)
    with contextlib.suppress(Exception):  # a run says what is wrong with it
        _instance_of(*_configured())


def serve(module: str, arguments: Sequence[str]) -> None:
    """Be `python -m module arguments`, in a process that has loaded what it needs."""
    sys.argv = [module, *arguments]
    importlib.import_module("dagster._cli" if module == "dagster" else module).main()


def execute(run_id: str) -> None:
    """What the code server's child does, in this process."""
    from dagster._core.events import EngineEventData
    from dagster._grpc.impl import core_execute_run
    from dagster._utils.hosted_user_process import recon_job_from_origin
    from dagster._utils.interrupts import capture_interrupts

    gc.set_threshold(*_COLLECTED_EVERY)
    with capture_interrupts(), _instance_of(*_configured()) as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.job_code_origin is None:
            raise LookupError(f"no such run: {run_id}")
        pid = os.getpid()
        instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
        # It writes down whatever goes wrong before it raises it.
        with contextlib.suppress(BaseException):
            for _ in core_execute_run(recon_job_from_origin(run.job_code_origin), run, instance, inject_env_vars=False):
                pass
        instance.report_engine_event(f"Process for run exited (pid: {pid}).", run)
        now = instance.get_run_by_id(run_id)
        if now is not None and now.status is dg.DagsterRunStatus.CANCELING:  # cancelled before its first step
            instance.report_run_canceled(now)
    if home := _home():
        waking.wake(home)  # an iteration that is done may be what the build waits for


def instance_ref() -> InstanceRef:
    """As `DagsterInstance.get()` has it: most of what opening an instance costs is to read and check dagster.yaml."""
    return _ref_of(*_configured())


def _configured() -> tuple[str, Stamp | None]:
    directory = Path(os.environ["DAGSTER_HOME"]).expanduser()
    return str(directory), stamp_at(f"{directory}/dagster.yaml")


@functools.lru_cache(maxsize=1)
def _ref_of(directory: str, _written: Stamp | None) -> InstanceRef:
    return InstanceRef.from_dir(directory)


@functools.lru_cache(maxsize=1)
def _instance_of(directory: str, written: Stamp | None) -> dg.DagsterInstance:
    """One for a starter and all its forks, each of which has it to itself: nothing of it is open before it is asked."""
    return dg.DagsterInstance.from_ref(_ref_of(directory, written))


def bury(run_id: str, code: int) -> None:
    """Mark a run whose process has died without a word, as the code server does for its own."""
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if run.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, message=f"The run's process {how} while it was being cancelled.")
        else:
            instance.report_run_failed(run, message=f"The run's process {how}.")
