"""The finished almanac as a person meets it: one test for each feature of FEATURES.json."""

import json
import pathlib
import re
import subprocess
import sys
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = ["moon", "month", "sun", "golden", "seasons", "showers", "page"]


def almanac(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "almanac", *arguments], cwd=str(ROOT), capture_output=True, encoding="utf-8", timeout=60
    )


def minutes(text):
    """The clock times of `text` (`05:09`), as minutes after midnight."""
    return [int(hours) * 60 + int(rest) for hours, rest in re.findall(r"\b(\d\d):(\d\d)\b", text)]


class AlmanacTest(unittest.TestCase):
    def says(self, *arguments):
        done = almanac(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def near(self, times, expected):
        self.assertEqual(len(times), len(expected), times)
        self.assertTrue(all(abs(times[n] - expected[n]) <= 5 for n in range(len(times))), (times, expected))

    def test_every_feature_is_tested_here(self):
        features = json.loads((ROOT / "FEATURES.json").read_text(encoding="utf-8"))["features"]
        for feature in features:
            self.assertTrue(hasattr(self, "test_" + feature["id"]), feature["id"])

    def test_help(self):
        listing = self.says()
        for command in COMMANDS:
            self.assertRegex(listing, rf"(?m)^\s+{command}\s+\S")

    def test_mistakes(self):
        for arguments, hint in [
            (["mooon"], "moon"),
            (["moon", "2026-13-01"], "2026-13-01"),
            (["sun", "2026-06-21", "Lisbn"], "Lisbon"),
        ]:
            done = almanac(*arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.assertIn(hint, done.stderr)

    def test_moon(self):
        full, new = self.says("moon", "2026-03-03"), self.says("moon", "2026-08-12")  # both are days of an eclipse
        self.assertIn("full moon", full.lower())
        self.assertIn("100 %", full)
        self.assertIn("new moon", new.lower())
        drawn, bare = full.splitlines()[-11:], new.splitlines()[-11:]
        self.assertGreater("".join(drawn).count("@"), 100)
        self.assertEqual("".join(bare).count("@"), 0)

    def test_sun(self):
        self.near(minutes(self.says("sun", "2026-06-21", "lisbon"))[:2], [5 * 60 + 12, 20 * 60 + 5])
        self.near(minutes(self.says("sun", "2026-12-21", "Kyoto"))[:2], [7 * 60 + 1, 16 * 60 + 49])
        self.assertIn("does not set", self.says("sun", "2026-06-21", "Tromso"))
        self.assertIn("does not rise", self.says("sun", "2026-12-21", "Tromso"))

    def test_golden(self):
        sunrise, sunset = minutes(self.says("sun", "2026-03-20", "Quito"))[:2]
        morning, high, low, evening = minutes(self.says("golden", "2026-03-20", "Quito"))
        self.assertEqual((morning, evening), (sunrise, sunset))
        self.assertTrue(20 < high - morning < 40 and 20 < evening - low < 40)
        self.near(minutes(self.says("golden", "2026-03-20", "-0.18,-78.47")), [morning, high, low, evening])

    def test_seasons(self):
        year = self.says("seasons", "2027")
        for day in ["2027-03-20", "2027-06-21", "2027-09-23", "2027-12-22"]:
            self.assertIn(day, year)

    def test_showers(self):
        coming = self.says("showers", "2026-08-01")
        self.assertLess(coming.index("Perseids"), coming.index("Orionids"))
        self.assertRegex(coming, r"Perseids.*dark sky")  # peak on a new moon

    def test_month(self):
        calendar = self.says("month", "2026-03")
        self.assertIn("March 2026", calendar)
        self.assertRegex(calendar, r"\b3○")
        self.assertRegex(calendar, r"\b31\b")
        self.assertEqual([calendar.count(mark) for mark in "●◐○◑"], [1, 1, 1, 1])

    def test_page(self):
        page = self.says("page", "2026-12-24", "Reykjavik")
        self.assertIn("Reykjavik", page)
        self.assertNotIn("http", page.replace("http://www.w3.org/2000/svg", ""))
        drawing = xml.etree.ElementTree.fromstring(re.search(r"<svg.*</svg>", page, re.S).group())
        self.assertTrue(drawing.tag.endswith("svg"))
        self.assertEqual(len(minutes(page)), 2)


if __name__ == "__main__":
    unittest.main()
