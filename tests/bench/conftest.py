"""The benches are programs beside the package, not part of it: their folder is put on the path as Python itself does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "bench"))
