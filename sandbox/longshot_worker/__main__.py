"""Entry of the zipapp, inside a sandbox: `python3 -I worker.pyz` reads the work order and does it.

`python3 -I attendant.pyz attend` does nothing itself: it says what a worker says that is at work there.
`python3 -I relay.pyz relay SOCKET` is the model's socket there, where the host's own cannot be reached.
"""

import sys

from longshot_worker import commands, work
from longshot_worker.attendant import attend
from longshot_worker.mux import serve
from longshot_worker.order import Places, read_order


def main() -> int:
    """0 when a result was written; the result, not this code, says how the work went."""
    places = Places.of_this_sandbox()
    if sys.argv[1:] == ["attend"]:
        return attend(places, sys.stdout.buffer)
    if sys.argv[1:2] == ["relay"]:
        return serve(places.root + sys.argv[2])
    commands.adopt_orphans()
    work.carry_out(read_order(places.order), places)
    return 0


if __name__ == "__main__":
    sys.exit(main())
