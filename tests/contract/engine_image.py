"""A small image for the container engine, made of this host's own files: a shell, Python, git, and what the tests call."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

_TOOLS = (
    "sh bash cat sleep head tail seq setsid nohup ls mkdir touch wc env readlink stat cp mv rm ln mkfifo truncate chmod "
    "sha256sum basename grep sed find true id git"
)
_NOT_OF_PYTHON = {"test", "site-packages", "__pycache__", "idlelib", "tkinter", "ensurepip", "lib2to3", "turtledemo"}
_MERGED = ("bin", "sbin", "lib", "lib64")


def test_image() -> str:
    """Its name; it is made once per engine and Python."""
    import docker

    tools = hashlib.sha256(_TOOLS.encode()).hexdigest()[:8]
    name = f"longshot-contract:{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}-{tools}"
    client = docker.from_env(timeout=300)
    try:
        if client.api.images(name):
            return name
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                _fill(archive)
            file.flush()
            repository, _, tag = name.partition(":")
            client.api.import_image_from_file(file.name, repository=repository, tag=tag)
        return name
    finally:
        client.close()


test_image.__test__ = False  # type: ignore[attr-defined]


def _fill(archive: tarfile.TarFile) -> None:
    python = Path(os.path.realpath(sys.executable))
    stdlib = Path(os.path.realpath(sysconfig.get_path("stdlib")))
    modules = [p for p in stdlib.rglob("*") if p.is_file() and not _NOT_OF_PYTHON & set(p.relative_to(stdlib).parts)]
    binaries = {tool: Path(os.path.realpath(shutil.which(tool) or f"/bin/{tool}")) for tool in _TOOLS.split()}
    files = {*binaries.values(), python, *modules}
    files |= {lib for one in [*binaries.values(), python, *stdlib.glob("lib-dynload/*.so")] for lib in _libraries(one)}
    for path in sorted(files):
        archive.add(path.resolve(), str(path).lstrip("/"), recursive=False)
    for tool, path in [*binaries.items(), ("python3", python)]:
        if str(path) != f"/usr/bin/{tool}":
            _link(archive, f"usr/bin/{tool}", str(path))
    for name in _MERGED:
        _link(archive, name, f"usr/{name}")
    for name, mode in (("tmp", 0o1777), ("proc", 0o755), ("dev", 0o755), ("root", 0o755)):
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, mode
        archive.addfile(folder)
    passwd = b"root:x:0:0:root:/root:/bin/sh\n"
    entry = tarfile.TarInfo("etc/passwd")
    entry.size = len(passwd)
    archive.addfile(entry, io.BytesIO(passwd))


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def _libraries(binary: Path) -> Iterator[Path]:
    """Where the loader finds them, below /usr where the host has merged it."""
    said = subprocess.run(["ldd", str(binary)], capture_output=True, text=True, check=False).stdout
    for found in re.findall(r"(/\S+)", said):
        path = Path(found)
        if path.exists():
            yield Path(os.path.realpath(path.parent)) / path.name
