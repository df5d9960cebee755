"""The table itself: how many attacks there are, which risks they belong to, and that the page about it says the same."""

import importlib
import re
from collections import Counter
from pathlib import Path

from attacks import RISKS, TABLE

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs/security.md").read_text(encoding="utf-8")


def table() -> dict[str, str]:
    """Risk by attack; every file of this folder enters its own."""
    for path in sorted(HERE.glob("test_hostile_*.py")):
        importlib.import_module(path.stem)
    return {name: entry.risk for name, entry in TABLE.items()}


def test_every_risk_is_tried_and_sixty_attacks_at_least() -> None:
    by_risk = Counter(table().values())
    assert set(by_risk) == set(RISKS)
    assert by_risk.total() >= 60


def test_every_attack_says_what_stops_it_and_how_that_is_switched_off() -> None:
    table()
    assert all(entry.tries and entry.defence and entry.off for entry in TABLE.values())


def test_the_page_counts_right() -> None:
    by_risk = Counter(table().values())
    said = {risk: int(count) for risk, count in re.findall(r"^\| (ASI\d\d)[^|]*\|[^|]*\| (\d+) \|", PAGE, re.MULTILINE)}
    assert said == dict(by_risk)
    assert f"{by_risk.total()} attacks" in PAGE
    assert {name.removesuffix(".py") for name in re.findall(r"`(test_hostile_\w+)\.py`", PAGE)} <= {
        path.stem for path in [*HERE.glob("test_*.py"), *(HERE.parent / "adapters").glob("test_*.py")]
    }
