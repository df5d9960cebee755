"""Parts of bench/landing.py."""
