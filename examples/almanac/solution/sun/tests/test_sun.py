import datetime
import unittest

from almanac import places, sun

MIDSUMMER = datetime.date(2026, 6, 21)
EQUINOX = datetime.date(2026, 3, 20)


class SunTest(unittest.TestCase):
    def test_a_midsummer_day_in_lisbon(self):
        rises, sets = sun.crossing(places.find("lisbon"), MIDSUMMER)
        self.assertAlmostEqual(rises, 5.2, delta=0.1)
        self.assertAlmostEqual(sets, 20.1, delta=0.1)

    def test_the_sun_stays_up_or_down_beyond_the_polar_circle(self):
        with self.assertRaises(sun.StaysUp):
            sun.crossing(places.find("Tromso"), MIDSUMMER)
        self.assertEqual(sun.run(["2026-12-21", "Tromso"]), "The sun does not rise in Tromso on 2026-12-21")

    def test_every_place_has_about_twelve_hours_at_the_equinox(self):
        for place in places.PLACES:
            rises, sets = sun.crossing(place, EQUINOX)
            self.assertAlmostEqual((sets - rises) % 24, 12.2, delta=0.2, msg=place.name)

    def test_a_mistyped_place_gets_a_suggestion(self):
        with self.assertRaisesRegex(ValueError, "did you mean Lisbon"):
            places.find("Lisbn")
