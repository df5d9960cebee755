import unittest

from almanac import month


class MonthTest(unittest.TestCase):
    def test_each_phase_is_marked_on_its_day(self):
        march = month.run(["2026-03"])
        for marked in ["3○", "11◑", "19●", "25◐"]:
            self.assertIn(marked, march)

    def test_the_weeks_begin_on_monday(self):
        lines = month.run(["2026-03"]).splitlines()
        self.assertEqual(lines[0], "March 2026")
        self.assertTrue(lines[2].endswith(" 1"))  # the first of March 2026 is a Sunday

    def test_what_is_no_month_is_refused(self):
        with self.assertRaises(ValueError):
            month.run(["2026-13"])
