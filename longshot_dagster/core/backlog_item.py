"""What one item of the backlog asks for: a Markdown file whose front matter says where and when, and whose body is the request.

The front matter is a small part of YAML, read strictly: `name: value` lines, comments, quotes, and one indented list of
`NAME: value` lines below `settings:`. Whatever else stands there is refused with its line number, never guessed at.
"""

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

from pydantic import Field

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.models import MAX_LINE, MAX_REQUEST, Record

MAX_FRONT_LINES = 200
MAX_SETTINGS = 50
FIRST, LAST, USUAL = 1, 10, 5  # priorities, as tasks have them

FIELDS = ("repository", "priority", "cron", "land_on", "settings", "enabled")
_FENCE = "---"
_NAME = re.compile(r"[^\W_](?:[\w .+-]{0,94}[\w+-])?\.md", re.IGNORECASE)
_LINE = re.compile(r"(?P<indent>[ \t]*)(?P<name>[A-Za-z][\w-]*)[ \t]*:(?:[ \t]+(?P<value>.*))?")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\']|\'\')*\'')
_NOT_PLAIN = ("|", ">", "[", "{", "&", "!", "-", "'", '"')  # they begin something else in YAML; `*` we need for cron
_TRUTH = {"true": True, "yes": True, "false": False, "no": False}


class Item(Record):
    """One file of the backlog that can be read."""

    name: str = Field(description="its file name")
    place: str = Field(description="its absolute path")
    contents: str = Field(description="SHA-256 of the file, line ends aside")
    request: str
    repository: str = ""
    priority: int = USUAL
    cron: str = ""
    land_on: str = ""
    settings: dict[str, str] = Field(default_factory=dict)
    enabled: bool = True


def is_item(name: str) -> bool:
    """Is a file of this name meant as an item? Other files, hidden ones and README.md are not."""
    return name.lower().endswith(".md") and name.lower() != "readme.md" and not name.startswith((".", "_"))


def check_name(name: str) -> None:
    """Raises WrongUse for a file name that could not be told apart on a screen."""
    if not _NAME.fullmatch(name):
        raise WrongUse("its name may have letters, digits, spaces and . + - _, at most 100 of them")


def parse_item(place: str, text: str) -> Item:
    """The item that the file at `place` holds. Raises WrongUse with one line that names what is wrong and where."""
    name = place.rpartition("/")[2]
    check_name(name)
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    front, body = _split(lines)
    found = _front_matter(front)
    request = "\n".join(body).strip()
    if not request:
        raise WrongUse("there is no request below its front matter; say there what to build")
    if len(request) > MAX_REQUEST:
        raise WrongUse(f"its request has {len(request):,} characters, at most {MAX_REQUEST:,}")
    settings = found.pop("settings", {})
    assert isinstance(settings, dict)
    return Item(
        name=name,
        place=place,
        contents=hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
        request=request,
        repository=str(found.get("repository", "")),
        priority=_priority(found.get("priority")),
        cron=str(found.get("cron", "")),
        land_on=str(found.get("land_on", "")),
        settings=settings,
        enabled=_truth(found.get("enabled")),
    )


def _split(lines: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """(lines of the front matter, lines of the body)."""
    if lines[0].rstrip() != _FENCE:
        raise WrongUse(f"it does not begin with front matter: a line {_FENCE}, its fields, and a line {_FENCE}")
    for number, line in enumerate(lines[1 : MAX_FRONT_LINES + 2], 1):
        if line.rstrip() == _FENCE:
            return lines[1:number], lines[number + 1 :]
    raise WrongUse(f"its front matter is not closed by a line {_FENCE} within {MAX_FRONT_LINES} lines")


def _front_matter(lines: Sequence[str]) -> dict[str, str | dict[str, str]]:
    found: dict[str, str | dict[str, str]] = {}
    settings: dict[str, str] | None = None  # while below `settings:`
    for number, line in enumerate(lines, 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        read = _LINE.fullmatch(line.rstrip()) if len(line) <= MAX_LINE else None
        if read is None:
            raise WrongUse(f"line {number} is not `name: value`: {one_line(line, 60)}")
        value = _value(read["value"] or "", number)
        if read["indent"]:
            if settings is None:
                raise WrongUse(f"line {number} is indented, and only what stands below `settings:` may be")
            _put(settings, read["name"], value, number)
            if len(settings) > MAX_SETTINGS:
                raise WrongUse(f"line {number}: an item has at most {MAX_SETTINGS} settings")
            continue
        name = _field(read["name"], number)
        settings = {} if name == "settings" else None
        if settings is not None and value:
            raise WrongUse(f"line {number}: write the settings below `settings:`, one indented `NAME: value` a line")
        _put(found, name, value if settings is None else settings, number)
    return found


def _field(name: str, number: int) -> str:
    plain = name.lower().replace("-", "_")
    if plain in FIELDS:
        return plain
    close = difflib.get_close_matches(plain, FIELDS, 1, 0.6)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(FIELDS)}"
    raise WrongUse(f"line {number}: {one_line(name, 40)} is not a field; {hint}")


def _put(into: dict[str, str | dict[str, str]] | dict[str, str], name: str, value: object, number: int) -> None:
    if name in into:
        raise WrongUse(f"line {number}: {one_line(name, 40)} is there twice")
    into[name] = value  # type: ignore[assignment] # of the kind that `into` holds


def _value(text: str, number: int) -> str:
    """One YAML scalar on one line: quoted, or plain up to a comment."""
    quoted = _QUOTED.match(text)
    if quoted is not None:
        value, rest = _unquoted(quoted[0]), text[quoted.end() :]
        if value is None or (rest.strip() and not re.match(r"\s+#", rest)):
            raise WrongUse(f"line {number}: something is wrong inside the quotes, or follows them")
    else:
        value = re.split(r"(?:^|\s)#", text, maxsplit=1)[0].rstrip()
        if value.startswith(_NOT_PLAIN):
            raise WrongUse(f"line {number}: a value is a text on one line; put {one_line(value, 40)} in quotes")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in value):
        raise WrongUse(f"line {number}: a value has no control or invisible characters")
    return value


def _unquoted(text: str) -> str | None:
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    try:
        return str(json.loads(text))
    except ValueError:
        return None


def _priority(value: object) -> int:
    if value is None or value == "":
        return USUAL
    if not re.fullmatch(r"\d{1,2}", str(value)) or not FIRST <= int(str(value)) <= LAST:
        raise WrongUse(f"priority is {FIRST} (first) to {LAST} (last), not {one_line(value, 40)}")
    return int(str(value))


def _truth(value: object) -> bool:
    if value is None or value == "":
        return True
    if str(value).lower() not in _TRUTH:
        raise WrongUse(f"enabled is true or false, not {one_line(value, 40)}")
    return _TRUTH[str(value).lower()]
