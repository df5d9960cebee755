import unittest
import xml.etree.ElementTree

from almanac import drawing


class DrawingTest(unittest.TestCase):
    def test_it_is_well_formed_through_the_whole_month(self):
        for degrees in range(0, 360, 15):
            xml.etree.ElementTree.fromstring(drawing.moon(degrees))

    def test_the_terminator_bulges_into_the_dark_only_after_the_first_quarter(self):
        self.assertIn("0 0 0 0,-50", drawing.outline(45))
        self.assertIn("0 0 1 0,-50", drawing.outline(135))

    def test_a_waning_moon_is_the_mirror_image(self):
        self.assertIn("scale(-1,1)", drawing.moon(225))
        self.assertNotIn("scale", drawing.moon(135))
