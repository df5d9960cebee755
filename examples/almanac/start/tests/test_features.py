"""FEATURES.json is what everybody plans by, so it has to stay readable."""

import json
import pathlib
import unittest

FEATURES = pathlib.Path(__file__).resolve().parent.parent / "FEATURES.json"


class FeaturesTest(unittest.TestCase):
    def test_every_feature_has_its_own_id_and_a_text(self):
        features = json.loads(FEATURES.read_text(encoding="utf-8"))["features"]
        self.assertEqual(len(features), len({feature["id"] for feature in features}))
        self.assertTrue(all(feature["text"] for feature in features))


if __name__ == "__main__":
    unittest.main()
