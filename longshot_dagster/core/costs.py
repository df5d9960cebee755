"""What tokens cost, by the prices a person set; without both prices every cost is unknown, and unknown is never nothing."""

from longshot_dagster.core.settings import Settings

_PER = 1_000_000


def cost_usd(tokens_in: int, tokens_out: int, settings: Settings) -> float | None:
    """USD for tokens sent and received; None while LLM_PRICE_IN or LLM_PRICE_OUT is not set."""
    if settings.llm_price_in is None or settings.llm_price_out is None:
        return None
    return (tokens_in * settings.llm_price_in + tokens_out * settings.llm_price_out) / _PER


def most_usd(settings: Settings) -> float | None:
    """What a build can cost at most: its whole budget at the dearer price. None: unknown, or there is no budget."""
    if settings.max_tokens_per_build == 0:
        return None
    dearer = max((p for p in (settings.llm_price_in, settings.llm_price_out) if p is not None), default=0.0)
    known = cost_usd(0, 0, settings) is not None
    return settings.max_tokens_per_build * dearer / _PER if known else None
