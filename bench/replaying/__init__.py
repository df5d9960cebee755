"""The parts of bench/replay.py."""
