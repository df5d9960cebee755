"""The worker as one file: `sandbox/longshot_worker` packed into a zipapp, in memory, the same bytes every time."""

import functools
import io
import zipfile

from longshot_dagster.adapters.shipped import shipped

_EPOCH = (1980, 1, 1, 0, 0, 0)
_ENTRY = "import sys\n\nfrom longshot_worker.__main__ import main\n\nsys.exit(main())\n"


@functools.cache
def worker_archive() -> bytes:
    """For `python3 -I worker.pyz`; about 40 kB."""
    folder = shipped("sandbox/longshot_worker")
    sources = {f"longshot_worker/{p.relative_to(folder).as_posix()}": p for p in sorted(folder.rglob("*.py"))}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _ENTRY)
        for name, path in sources.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
