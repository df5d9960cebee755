"""What a person should know before the first build on a repository: where it lands, who works, what it may cost."""

from dataclasses import dataclass

from longshot_dagster.core.costs import cost_usd, most_usd
from longshot_dagster.core.display import one_line
from longshot_dagster.core.models import Target, TargetKind
from longshot_dagster.core.report import cost
from longshot_dagster.core.settings import Network, Settings
from longshot_dagster.core.usage import BYTES_PER_TOKEN


@dataclass(frozen=True)
class Outlook:
    """`endpoints` are labels, never keys; `first_prompt` is all that the root planner is told at first."""

    target: Target
    settings: Settings
    sandboxes: str
    endpoints: tuple[str, ...]
    files: int
    first_prompt: str
    notes: tuple[str, ...] = ()


def outlook_facts(outlook: Outlook) -> list[tuple[str, str]]:
    """(name, fact), plain text, in the order to be shown."""
    settings, target = outlook.settings, outlook.target
    network = "no network" if settings.sandbox_network is Network.NONE else "your machine's network"
    kept = "; your files stay as they are" if target.kind is TargetKind.CHECKOUT else ""
    return [
        ("repository", f"{one_line(target.url, 300)}, {outlook.files:,} file{'s' if outlook.files != 1 else ''}"),
        ("lands on", f"branch {one_line(target.branch, 200)}, from {one_line(target.base_branch, 200)}{kept}"),
        ("workers", f"{settings.max_workers} at once; {outlook.sandboxes}; {network}"),
        ("model", f"{one_line(settings.llm_model, 100)} at {one_line(', '.join(outlook.endpoints), 300)}"),
        ("limits", _limits(settings)),
        ("cost", _cost(settings, outlook.first_prompt)),
        *(("note", note) for note in outlook.notes),
    ]


def _limits(settings: Settings) -> str:
    budget = f"{settings.max_tokens_per_build:,} tokens" if settings.max_tokens_per_build else "NO limit of tokens"
    return f"{budget}, {settings.max_iterations} planning rounds, {settings.worker_timeout:,} s a task"


def _cost(settings: Settings, first_prompt: str) -> str:
    tokens = -(-len(first_prompt.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
    first = cost_usd(tokens, 0, settings)
    if first is None:
        return f"unknown until LLM_PRICE_IN and LLM_PRICE_OUT are set; the first prompt has about {tokens:,} tokens"
    most = most_usd(settings)
    bound = "no upper bound" if most is None else f"at most {cost(most)}"
    return f"{bound}; the first prompt, about {tokens:,} tokens, {cost(first)}"
