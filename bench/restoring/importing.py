"""Runs inside the package's own interpreter: imports modules and says which functions that alone has called.

    python importing.py ROOT MODULE ...     prints {"called": [[path, first line, name]], "failed": {module: why}}

`path` is relative to ROOT. Standard library only, and nothing of ours: it sees what the package sees.
"""

import contextlib
import importlib
import io
import json
import os
import sys
import threading
from types import FrameType


def main(root: str, modules: list[str]) -> dict[str, object]:
    root = os.path.realpath(root)
    called = set()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            code = frame.f_code
            called.add((code.co_filename, code.co_firstlineno, code.co_name))

    failed = {}
    for name in modules:
        threading.setprofile(watch)
        sys.setprofile(watch)
        try:
            importlib.import_module(name)
        except BaseException as why:
            failed[name] = f"{type(why).__name__}: {why}"[:300]
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    own = []
    for filename, line, name in called:
        path = os.path.realpath(filename)
        if path.startswith(root + os.sep):
            own.append([os.path.relpath(path, root), line, name])
    return {"called": sorted(own), "failed": failed}


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        found = main(sys.argv[1], sys.argv[2:])
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # whatever threads or exit hooks an import has left are not awaited
