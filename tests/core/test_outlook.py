"""What is told before money is spent: branch, workers, model, caps, and a cost that is never guessed."""

import pytest

from longshot_dagster.core.models import Target, TargetKind
from longshot_dagster.core.outlook import Outlook, outlook_facts
from longshot_dagster.core.settings import Settings

TARGET = Target(repository="r", url="/r.git", kind=TargetKind.REMOTE, base_branch="main", branch="next")
CHECKOUT = Target(repository="w", url="/w/.git", kind=TargetKind.CHECKOUT, base_branch="main", branch="longshot/b-1")
PRICES = {"llm_price_in": 0.5, "llm_price_out": 2.0}


def facts(target: Target = TARGET, **settings: object) -> dict[str, str]:
    told = Outlook(target, Settings.model_validate(settings), "local sandboxes", ("a", "b"), 1_234, "x" * 400_000)
    return dict(outlook_facts(told))


def test_what_will_happen() -> None:
    assert facts(max_workers=7, sandbox_network="open") == {
        "repository": "/r.git, 1,234 files",
        "lands on": "branch next, from main",
        "workers": "7 at once; local sandboxes; your machine's network",
        "model": "glm-5 at a, b",
        "limits": "20,000,000 tokens, 100 planning rounds, 1,800 s a task",
        "cost": "unknown until LLM_PRICE_IN and LLM_PRICE_OUT are set; the first prompt has about 100,000 tokens",
    }


def test_a_checkouts_files_stay_and_a_network_that_is_closed_is_told() -> None:
    told = facts(CHECKOUT)
    assert told["lands on"] == "branch longshot/b-1, from main; your files stay as they are"
    assert told["workers"].endswith("; no network")


@pytest.mark.parametrize(
    ("settings", "cost"),
    [
        (PRICES, "at most 40.00 USD; the first prompt, about 100,000 tokens, 0.0500 USD"),
        (
            {**PRICES, "max_tokens_per_build": 0},
            "no upper bound; the first prompt, about 100,000 tokens, 0.0500 USD",
        ),
        (
            {"llm_price_in": 0.5},
            "unknown until LLM_PRICE_IN and LLM_PRICE_OUT are set; the first prompt has about 100,000 tokens",
        ),
    ],
)
def test_what_it_costs(settings: dict[str, object], cost: str) -> None:
    assert facts(**settings)["cost"] == cost


def test_no_budget_is_said_loudly() -> None:
    assert facts(max_tokens_per_build=0)["limits"].startswith("NO limit of tokens")


def test_hostile_names_stay_one_line() -> None:
    hostile = TARGET.model_copy(update={"url": "/r\x1b[31m\n.git"})
    assert "\n" not in facts(hostile)["repository"]
    assert "\x1b" not in facts(hostile)["repository"]
