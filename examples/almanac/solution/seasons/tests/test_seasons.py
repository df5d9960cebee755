import unittest

from almanac import seasons


class SeasonsTest(unittest.TestCase):
    def test_the_turning_points_of_2027(self):
        days = [str(instant.date()) for _, instant in seasons.of(2027)]
        self.assertEqual(days, ["2027-03-20", "2027-06-21", "2027-09-23", "2027-12-22"])

    def test_what_is_no_year_is_refused(self):
        with self.assertRaises(ValueError):
            seasons.run(["next"])
