"""The table of attacks: what is tried, which of OWASP's agentic risks it is, what stops it, and how that is switched off.

A test that carries `attack` proves both sides: with its defence the attack has no effect, without it it has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

RISKS = {  # OWASP Top 10 for Agentic Applications, 2026
    "ASI01": "Agent Goal Hijack",
    "ASI02": "Tool Misuse and Exploitation",
    "ASI03": "Identity and Privilege Abuse",
    "ASI04": "Agentic Supply Chain Vulnerabilities",
    "ASI05": "Unexpected Code Execution",
    "ASI06": "Memory and Context Poisoning",
    "ASI07": "Insecure Inter-Agent Communication",
    "ASI08": "Cascading Failures",
    "ASI09": "Human-Agent Trust Exploitation",
    "ASI10": "Rogue Agents",
}

T = TypeVar("T", bound=Callable[..., None])


@dataclass(frozen=True)
class Attack:
    risk: str
    tries: str
    defence: str
    off: str  # how the test switches the defence off


TABLE: dict[str, Attack] = {}


def attack(risk: str, tries: str, *, defence: str, off: str) -> Callable[[T], T]:
    """Enter a test into the table, under its name without `test_`."""

    def entered(test: T) -> T:
        enter(test.__name__.removeprefix("test_"), Attack(risk, tries, defence, off))
        return test

    return entered


def enter(name: str, entry: Attack) -> None:
    assert entry.risk in RISKS, entry
    assert TABLE.setdefault(name, entry) == entry, f"two attacks are called {name}"
