"""Entry of the zipapp: `python3 -I worker.pyz` inside a sandbox reads the work order and does it."""

import sys

from longshot_worker import commands, work
from longshot_worker.order import Places, read_order


def main() -> int:
    """0 when a result was written; the result, not this code, says how the work went."""
    places = Places.of_this_sandbox()
    commands.adopt_orphans()
    work.carry_out(read_order(places.order), places)
    return 0


if __name__ == "__main__":
    sys.exit(main())
