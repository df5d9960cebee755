"""A person's approvals of protected paths, one document a task, in the ledger of this home alone.

They are no facts for a checkpoint: what travels there can be written by anybody who can push, and would land CI of their
choice. Nor are they mended: one that is damaged approves nothing.
"""

import contextlib

from longshot_dagster.adapters.host.documents import parsed, rendered, write_atomically
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.errors import LedgerError
from longshot_dagster.core.ids import check_task_id
from longshot_dagster.core.landing_records import Approval

FOLDER = "approvals"


def approval_of(ledger: BuildLedger, task: str) -> Approval | None:
    path = ledger.directory / FOLDER / f"{check_task_id(task)}.json"
    with contextlib.suppress(OSError):
        found, _ = parsed(Approval, path.read_bytes())
        return found if found and found.task == task else None
    return None


def save_approval(ledger: BuildLedger, approval: Approval) -> None:
    """The newest of a task counts. Raises LedgerError when it cannot be written."""
    path = ledger.directory / FOLDER / f"{check_task_id(approval.task)}.json"
    try:
        write_atomically(path, rendered(approval))
    except OSError as e:
        raise LedgerError(f"{path} cannot be written: {e.strerror or e}") from e
