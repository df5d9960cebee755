"""The folder of the backlog: which of its files are items, what they ask for, and one line for each that cannot be read."""

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.host import cron
from longshot_dagster.adapters.repository.targets import check_url
from longshot_dagster.core.backlog_item import Item, is_item, parse_item
from longshot_dagster.core.display import display, one_line
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.settings import Origin

MAX_BYTES = 512 << 10  # 100,000 characters of UTF-8, and the front matter
MAX_ITEMS = 1_000

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Folder:
    """What lies in the folder now; `malformed` maps file names to one line each, `written` places to seconds."""

    items: tuple[Item, ...] = ()
    malformed: Mapping[str, str] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    written: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""

    @property
    def wanted(self) -> frozenset[str]:
        """Places of the files that are not switched off; one that cannot be read just now is not."""
        return self.present - {item.place for item in self.items if not item.enabled}


def read(folder: Path, budget: int = 0) -> Folder:
    """Every item of `folder`; what is wrong with one keeps no other from being read."""
    try:
        names = sorted(path.name for path in folder.iterdir() if is_item(path.name))
    except FileNotFoundError:
        return Folder(missing=f"there is no folder {folder}")
    except OSError as e:
        return Folder(missing=f"{folder} cannot be read: {e.strerror}")
    items, malformed, written = [], {}, {}
    for name in names[:MAX_ITEMS]:
        try:
            place, stamp = str(folder / name), _stamp(folder / name)
            item = _item(place, stamp, budget)
            items.append(item.model_copy(update={"repository": _repository(item.repository, folder)}))
        except WrongUse as e:
            malformed[display(name, "plain", 100)] = one_line(e, 500)
            continue
        written[place] = stamp[0] / 1e9
    if len(names) > MAX_ITEMS:
        malformed[f"({len(names) - MAX_ITEMS} more)"] = f"a backlog has at most {MAX_ITEMS:,} items; these are not read"
    return Folder(tuple(items), malformed, frozenset(str(folder / name) for name in names), written)


def _stamp(path: Path) -> Stamp:
    """What changes whenever the file does, its modification time in nanoseconds first. Raises WrongUse."""
    try:
        found = path.lstat()
    except OSError as e:
        raise WrongUse(f"it cannot be read: {e.strerror}") from e
    if not stat.S_ISREG(found.st_mode):
        raise WrongUse(
            "it is not a file" if not stat.S_ISLNK(found.st_mode) else "it is a link, which could lead anywhere"
        )
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


@lru_cache(MAX_ITEMS)
def _item(place: str, stamp: Stamp, budget: int) -> Item:
    """The file read once as long as it stays what it is: the sensor asks every few seconds. Raises WrongUse."""
    item = parse_item(place, _text(Path(place)))
    if item.cron:
        cron.check(item.cron)
    check_url(item.repository)  # before it is written down anywhere: it might carry a password
    _check_settings(item.settings, budget)
    return item


def _text(path: Path) -> str:
    try:
        # It may have become something else since it was looked at; without O_NONBLOCK a named pipe would be waited for.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            data = os.read(file, MAX_BYTES + 1)
        finally:
            os.close(file)
    except OSError as e:
        raise WrongUse(f"it cannot be read: {e.strerror}") from e
    if len(data) > MAX_BYTES:
        raise WrongUse(f"it is larger than {MAX_BYTES >> 10} KB")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise WrongUse("it is not UTF-8 text") from e


def _check_settings(given: Mapping[str, str], budget: int) -> None:
    for name in given:
        plain = name.lower().replace("-", "_")
        if plain in settings.NOT_FOR_TARGETS and plain != "max_tokens_per_build":
            raise WrongUse(f"{plain.upper()} is not for an item to decide; set it in the environment or .env")
    try:
        resolved = settings.resolve(given, {}, {}, None, None)
    except WrongUse as e:
        raise WrongUse(str(e).replace(f" ({Origin.LAUNCH.value})", "")) from e
    tokens = resolved.settings.max_tokens_per_build
    if "max_tokens_per_build" in resolved.origins and budget and not 0 < tokens <= budget:
        raise WrongUse(
            f"MAX_TOKENS_PER_BUILD={tokens} is more than this installation's {budget}; an item may only lower it"
        )


def _repository(given: str, folder: Path) -> str:
    """A path is meant from the folder of the item; a URL stays as it is. Raises WrongUse."""
    if not given or "://" in given:
        return given
    try:
        path = folder / Path(given).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # newer Pythons take links in a circle for a path that is merely not there
        return str(path.resolve()) if path.exists() or given.startswith((".", "/", "~")) else given
    except (OSError, RuntimeError) as e:  # a name too long, links in a circle, a user that nobody has heard of
        why = (isinstance(e, OSError) and e.strerror) or str(e)
        raise WrongUse(f"repository: {one_line(given, 60)} is no path: {why}") from e
