"""The parts of bench/landers.py."""
