"""Files that travel with the package: prompts, the sandbox's worker, examples, Dagster's two YAML files."""

from pathlib import Path

from longshot_dagster.core.errors import LongshotError

_PACKAGE = Path(__file__).resolve().parents[2]


def shipped(name: str) -> Path:
    """`name` (`prompts/worker.md`, `sandbox`, ...) inside an installed wheel, or beside the package in a checkout.

    Raises LongshotError when the installation is incomplete.
    """
    for root in (_PACKAGE / "_shipped", _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise LongshotError(f"this installation lacks {name}; install longshot-dagster again")


def prompt(role: str) -> str:
    """The system prompt of `root-planner`, `subplanner`, `worker` or `reconciler`."""
    return shipped(f"prompts/{role}.md").read_text(encoding="utf-8")
