"""A service as small as one can be: says what it finds in its process, and ends when it is told to."""

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    found = {
        "parent": os.getppid(),
        "session": os.getsid(0),
        "arguments": sys.argv[1:],
        "modules": "longshot_dagster.defs.daemon" in sys.modules,
        "sockets": [s for s in (str(fd.readlink()) for fd in _open()) if s.startswith("socket:")],
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    print(json.dumps(found), flush=True)
    while True:
        signal.pause()


def _open() -> list[Path]:
    return [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
