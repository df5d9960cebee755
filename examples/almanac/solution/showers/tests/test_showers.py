import datetime
import unittest

from almanac import showers


class ShowersTest(unittest.TestCase):
    def test_a_shower_is_due_up_to_its_peak(self):
        self.assertEqual(showers.coming(datetime.date(2026, 8, 12))[0][1], "Perseids")
        self.assertEqual(showers.coming(datetime.date(2026, 8, 13))[0][1], "Orionids")

    def test_after_december_comes_january(self):
        peak, name, _ = showers.coming(datetime.date(2026, 12, 23))[0]
        self.assertEqual((str(peak), name), ("2027-01-03", "Quadrantids"))

    def test_new_moon_means_a_dark_sky(self):
        self.assertIn("dark sky (moon 0 %)", showers.run(["2026-08-12"]))
