"""`python -m longshot_dagster.testing.loopback_modal --home DIR`: a loopback Modal server until Ctrl-C or SIGTERM.

Its first line of output is the environment for clients, as JSON or, with --shell, as lines for a shell; its last one,
as JSON, what it has seen.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import threading
from pathlib import Path

from longshot_dagster.testing.loopback_modal.server import LoopbackModal


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m longshot_dagster.testing.loopback_modal", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="where the sandboxes lie; emptied at the start")
    parser.add_argument("--shell", action="store_true", help="print `export NAME=value` lines in place of JSON")
    parser.add_argument("--attended", action="store_true", help="end when standard input is closed, too")
    given = parser.parse_args()
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    with LoopbackModal(given.home) as server:
        environment = server.environment()
        if given.shell:
            sys.stdout.write("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))
        else:
            sys.stdout.write(json.dumps(environment) + "\n")
        sys.stdout.flush()
        if given.attended:
            threading.Thread(target=_wait_for_end_of_input, args=(ending,), daemon=True).start()
        ending.wait()
    sys.stdout.write(("# " if given.shell else "") + json.dumps(server.seen()) + "\n")
    return 0


def _wait_for_end_of_input(ending: threading.Event) -> None:
    while os.read(0, 1 << 16):
        pass
    ending.set()


if __name__ == "__main__":
    sys.exit(main())
