"""A pocket almanac for the terminal."""
