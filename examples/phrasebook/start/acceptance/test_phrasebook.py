"""The whole book, from outside."""

import subprocess
import sys
import unittest
from pathlib import Path

NAMES = """
danish dutch english estonian finnish french german hungarian icelandic irish italian latvian lithuanian norwegian polish
portuguese romanian spanish swedish turkish
"""


def say(*words):
    argv = [sys.executable, "-X", "utf8", "-m", "phrasebook", *words]
    return subprocess.run(argv, cwd=Path(__file__).parent.parent, capture_output=True, encoding="utf-8", check=False)


class PhrasebookTest(unittest.TestCase):
    def test_it_lists_twenty_languages(self):
        self.assertEqual(say().stdout.split(), NAMES.split())

    def test_it_greets_in_portuguese(self):
        self.assertEqual(say("portuguese", "Ada").stdout, "Bom dia, Ada!\n")

    def test_a_language_that_it_does_not_know_is_refused_in_one_line(self):
        refused = say("klingon", "Ada")
        self.assertEqual((refused.returncode, refused.stderr.count("\n")), (2, 1))
