"""What tokens cost: by the prices a person set, and never nothing for what is not known."""

import pytest

from longshot_dagster.core.costs import cost_usd, most_usd
from longshot_dagster.core.settings import Settings
from longshot_dagster.core.usage import Usage


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({"llm_price_in": 0.6, "llm_price_out": 2.0}, 3.2),
        ({"llm_price_in": 0.0, "llm_price_out": 0.0}, 0.0),
        ({"llm_price_in": 0.6}, None),
        ({"llm_price_out": 2.0}, None),
        ({}, None),
    ],
)
def test_both_prices_or_unknown(prices: dict[str, float], cost: float | None) -> None:
    settings = Settings.model_validate(prices)
    assert cost_usd(2_000_000, 1_000_000, settings) == cost
    assert Usage(2_000_000, 1_000_000, 1).priced(settings).cost_usd == cost


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"llm_price_in": 0.6, "llm_price_out": 2.0, "max_tokens_per_build": 3_000_000}, 6.0),
        ({"llm_price_in": 0.6, "llm_price_out": 2.0, "max_tokens_per_build": 0}, None),
        ({"llm_price_in": 0.6, "max_tokens_per_build": 3_000_000}, None),
    ],
)
def test_the_most_a_build_can_cost_is_its_budget_at_the_dearer_price(
    settings: dict[str, float], most: float | None
) -> None:
    assert most_usd(Settings.model_validate(settings)) == most
