import unittest

from almanac import page


class PageTest(unittest.TestCase):
    def test_a_page_has_the_moon_and_the_sun_in_it(self):
        text = page.run(["2026-12-24", "Reykjavik"])
        self.assertIn("<h1>Reykjavik, 24 December 2026</h1><svg", text)
        self.assertIn("The sun rises at", text)

    def test_a_polar_night_is_told_in_words(self):
        self.assertIn("does not rise in Tromso", page.run(["2026-12-24", "tromso"]))
