"""The worker as one file: `sandbox/longshot_worker` packed into a zipapp, in memory, the same bytes every time."""

import functools
import io
import threading
import zipfile

from longshot_dagster.adapters.host.shipped import shipped
from longshot_dagster.adapters.sandboxes.installed_harnesses import BroughtHarness, brought_harness
from longshot_dagster.core.harnesses import HARNESSES

_EPOCH = (1980, 1, 1, 0, 0, 0)
_ENTRY = "import sys\n\nfrom longshot_worker.__main__ import main\n\nsys.exit(main())\n"
_BROUGHT = "longshot_worker/harness/brought"


_guard = threading.Lock()  # two hundred workers that start at once would each pack it


def worker_archive(harness: str = "builtin") -> bytes:
    """For `python3 -I worker.pyz`; about 60 kB. A harness that an installed package brings is in it.

    Raises WrongUse when that cannot travel.
    """
    with _guard:
        return _packed(harness)


@functools.cache
def _packed(harness: str) -> bytes:
    folder = shipped("sandbox/longshot_worker")
    sources = {
        f"longshot_worker/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in sorted(folder.rglob("*.py"))
    }
    if harness not in HARNESSES:
        sources |= _brought(harness, brought_harness(harness))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _ENTRY)
        for name, source in sources.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), source, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _brought(name: str, harness: BroughtHarness) -> dict[str, bytes]:
    start = f"from longshot_worker.harness.brought.module import {harness.of} as HARNESS\n\nNAME = {name!r}\n"
    return {f"{_BROUGHT}/__init__.py": start.encode(), f"{_BROUGHT}/module.py": harness.source.encode()}
