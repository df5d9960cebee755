"""The images of a loopback server: definitions that are accepted and never built, and snapshots of sandboxes."""

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.core.errors import SandboxError, SandboxRefused
from longshot_dagster.core.sandbox import SandboxProvider, SandboxSpec
from longshot_dagster.testing.loopback_modal.container import Command, Container

_CHUNK = 1 << 18
_PATIENCE_S = 600.0
_WHOLE = (  # everything but what the host shows; a file that changes meanwhile is no failure
    'cut -d" " -f5 /proc/self/mountinfo | grep -v "^/$" | sed "s|^|.|" | '
    "tar -C / --anchored --no-wildcards -X - -cf - . ; test $? -le 1"
)
_FOLDER = 'tar -C "$0" -cf - . ; test $? -le 1'
_UNPACKED = 'mkdir -p "$0" && tar -C "$0" -xpf -'
_MOUNTED = 'rm -rf "$0" && ' + _UNPACKED


@dataclass(frozen=True)
class Image:
    """`ref` is what the sandbox provider calls it; `archive` holds files that a sandbox from it begins with."""

    id: str
    ref: str = ""
    archive: Path | None = None


class Images:
    """All of one server; archives lie in `folder`. Used on its loop only."""

    def __init__(self, folder: Path, provider: SandboxProvider) -> None:
        self._folder = folder
        self._provider = provider
        self._numbers = itertools.count(1)
        self._by_id: dict[str, Image] = {}
        self._by_definition: dict[bytes, Image] = {}
        self._published: dict[str, str] = {}

    def get(self, image_id: str) -> Image:
        """Raises KeyError."""
        return self._by_id[image_id]

    def defined(self, definition: bytes) -> tuple[Image, bool]:
        """The image of a definition, and whether it was there before."""
        known = definition in self._by_definition
        if not known:
            self._by_definition[definition] = self._add(Image(self._new_id()))
        return self._by_definition[definition], known

    def publish(self, tag: str, image_id: str) -> None:
        """Raises KeyError."""
        self._published[tag] = self.get(image_id).id

    def published(self, tag: str) -> str:
        """Raises KeyError."""
        return self._published[tag]

    async def snapshot(self, container: Container, folder: str = "") -> Image:
        """Of a whole sandbox, whatever runs in it, or of one folder. Raises SandboxError."""
        image_id = self._new_id()
        archive = self._folder / f"{image_id}.tar"
        self._folder.mkdir(parents=True, exist_ok=True)
        argv = ["sh", "-c", _FOLDER, folder] if folder else ["sh", "-c", _WHOLE]
        packing = container.start(f"snapshot {image_id}", argv, cwd="/", env={}, timeout_s=None)
        await packing.feed(b"", 0, last=True)
        offset = 0
        with archive.open("wb") as file:
            while data := await packing.stdout.after(offset):
                file.write(data)
                offset += len(data)
        await _well(packing, "make a snapshot")
        ref = "" if folder else await asyncio.to_thread(self._layer, image_id, archive)
        return self._add(Image(image_id, ref, None if ref else archive))

    def _layer(self, image_id: str, archive: Path) -> str:
        """The provider's own snapshot of the same files, which costs a sandbox nothing; empty: it makes none."""
        if not self._provider.capabilities.snapshots:
            return ""
        seed = self._provider.create(SandboxSpec(name=image_id))
        try:
            ran = seed.exec(["tar", "-C", "/", "-xpf", "-"], timeout_s=_PATIENCE_S, stdin=_pieces(archive))
            if ran.exit_code:
                raise SandboxError(f"cannot unpack a snapshot: {ran.stderr[-300:].decode(errors='replace')}")
            return seed.snapshot()
        except SandboxRefused:
            return ""
        finally:
            seed.terminate()

    async def unpack(self, image: Image, container: Container, folder: str, *, over: bool) -> None:
        """Its files into `folder`, `over` what is there or in place of it. Raises SandboxError."""
        if image.archive is None:
            raise SandboxError(f"{image.id} is no snapshot of a folder")
        argv = ["sh", "-c", _UNPACKED if over else _MOUNTED, folder]
        unpacking = container.start(f"unpack {image.id}", argv, cwd="/", env={}, timeout_s=None)
        try:
            for data in _pieces(image.archive):
                await unpacking.feed(data, unpacking.given, last=False)
            await unpacking.feed(b"", unpacking.given, last=True)
        except BrokenPipeError:
            pass  # it says why
        await _well(unpacking, "unpack a snapshot")

    def _add(self, image: Image) -> Image:
        self._by_id[image.id] = image
        return image

    def _new_id(self) -> str:
        return f"im-{next(self._numbers):022d}"


def _pieces(archive: Path) -> Iterator[bytes]:
    with archive.open("rb") as file:
        while data := file.read(_CHUNK):
            yield data


async def _well(command: Command, what: str) -> None:
    if await command.ended() != 0:
        why = (await command.stderr.after(0)).decode(errors="replace").strip()
        raise SandboxError(f"cannot {what}: {why[-300:]}")
