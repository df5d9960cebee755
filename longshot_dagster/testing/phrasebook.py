"""What the scripted model says while it builds the phrasebook: twenty tasks at once that have nothing to do with each other."""

import json
from pathlib import Path
from typing import Any

TOGETHER_S = 20  # how long each worker's model thinks first, so that all of them are at work at the same time
GOOD_MORNING = {
    "danish": "Godmorgen",
    "dutch": "Goedemorgen",
    "english": "Good morning",
    "estonian": "Tere hommikust",
    "finnish": "Hyvää huomenta",
    "french": "Bonjour",
    "german": "Guten Morgen",
    "hungarian": "Jó reggelt",
    "icelandic": "Góðan daginn",
    "irish": "Maidin mhaith",
    "italian": "Buongiorno",
    "latvian": "Labrīt",
    "lithuanian": "Labas rytas",
    "norwegian": "God morgen",
    "polish": "Dzień dobry",
    "portuguese": "Bom dia",
    "romanian": "Bună dimineața",
    "spanish": "Buenos días",
    "swedish": "God morgon",
    "turkish": "Günaydın",  # noqa: RUF001 - so it is written
}


def write_script(path: Path) -> None:
    """Of testing/script.py's format."""
    plan = {
        "scratchpad": "Twenty languages, each a module and a test of its own: all at once. Then nothing is left.",
        "look": [[{"read": "SPEC.md"}]],
        "tasks": [_task(language) for language in GOOD_MORNING],
    }
    script = {
        "planners": [{"planner": "root", "rounds": [plan]}],
        "workers": [_worker(language, words) for language, words in GOOD_MORNING.items()],
    }
    path.write_text(json.dumps(script, ensure_ascii=False, indent=1), encoding="utf-8")


def _task(language: str) -> dict[str, Any]:
    return {
        "description": f"Good morning in {language.title()}\n\nWrite phrasebook/{language}.py with `greet(name)`, and its test.",
        "scope": [f"phrasebook/{language}.py", f"tests/test_{language}.py"],
        "acceptance": "make test is green.",
        "priority": 1,
    }


def _worker(language: str, words: str) -> dict[str, Any]:
    module = f'def greet(name):\n    return f"{words}, {{name}}!"\n'
    test = (
        f"import unittest\n\nfrom phrasebook import {language}\n\n\nclass {language.title()}Test(unittest.TestCase):\n"
        f'    def test_it_knows_the_name(self):\n        self.assertEqual({language}.greet("Ada"), "{words}, Ada!")\n'
    )
    return {
        "match": f"^Good morning in {language.title()}$",
        "delay_s": TOGETHER_S,
        "steps": [
            [
                {"write": {"path": f"phrasebook/{language}.py", "content": module}},
                {"write": {"path": f"tests/test_{language}.py", "content": test}},
            ],
            {"bash": "make test"},
        ],
        "final": {"status": "complete", "summary": f"{words} is said in {language.title()}."},
    }
