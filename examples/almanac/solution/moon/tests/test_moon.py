import datetime
import unittest

from almanac import moon

SOLAR_ECLIPSE = datetime.date(2026, 8, 12)
LUNAR_ECLIPSE = datetime.date(2026, 3, 3)


class MoonTest(unittest.TestCase):
    def test_eclipses_happen_at_new_and_full_moon(self):
        self.assertEqual(moon.name(SOLAR_ECLIPSE), "New moon")
        self.assertEqual(moon.name(LUNAR_ECLIPSE), "Full moon")
        self.assertLess(moon.lit(SOLAR_ECLIPSE), 0.01)
        self.assertGreater(moon.lit(LUNAR_ECLIPSE), 0.99)

    def test_the_moon_waxes_on_the_right_and_wanes_on_the_left(self):
        waxing, waning = moon.draw(90)[5], moon.draw(270)[5]
        self.assertTrue(waxing.startswith(".") and waxing.endswith("@"))
        self.assertEqual(waning, waxing[::-1])

    def test_run_names_the_phase_above_eleven_lines(self):
        lines = moon.run(["2026-03-03"]).splitlines()
        self.assertEqual(lines[0], "2026-03-03: Full moon, 100 % lit")
        self.assertEqual(len(lines), 2 + 11)
