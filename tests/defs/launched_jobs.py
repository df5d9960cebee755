"""Jobs that a run starter runs for test_launcher.py: what they find out about their process they write to a file."""

import json
import os
import threading
import time
from pathlib import Path

import dagster as dg

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.defs.executor import cancellation, threaded_executor


@dg.op(config_schema={"to": str})
def look_around(context: dg.OpExecutionContext) -> None:
    links = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    found = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "sockets": [link for link in links if link.startswith("socket:")],
        "others": [t.name for t in threading.enumerate() if t is not threading.main_thread()],
    }
    Path(context.op_config["to"]).write_text(json.dumps(found))


@dg.op
def refuse() -> None:
    raise WrongUse("no")


@dg.op(config_schema={"until": str})
def wait(context: dg.OpExecutionContext) -> None:
    """Until the file appears, or somebody cancels the run."""
    cancelled = cancellation(context.run_id)
    while not Path(context.op_config["until"]).exists():
        if cancelled.is_set():
            raise RuntimeError("cancelled")
        time.sleep(0.02)


@dg.job(executor_def=threaded_executor)
def looking() -> None:
    look_around()


@dg.job(executor_def=threaded_executor)
def refusing() -> None:
    refuse()


@dg.job(executor_def=threaded_executor)
def waiting() -> None:
    wait()


defs = dg.Definitions(jobs=[looking, refusing, waiting])
