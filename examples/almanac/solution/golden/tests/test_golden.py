import unittest

from almanac import golden


class GoldenTest(unittest.TestCase):
    def test_the_light_is_golden_for_about_half_an_hour_at_the_equator(self):
        lines = golden.run(["2026-03-20", "Quito"]).splitlines()
        self.assertEqual([line.count(":") for line in lines], [2, 2])

    def test_coordinates_are_as_good_as_a_name(self):
        named, placed = golden.where("quito"), golden.where("-0.18,-78.47")
        self.assertEqual(named[1:], placed[1:])

    def test_nowhere_is_refused(self):
        with self.assertRaisesRegex(ValueError, "nowhere"):
            golden.where("95,0")
