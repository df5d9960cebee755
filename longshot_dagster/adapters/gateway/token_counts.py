"""The gateway's memory: which sockets are open, and how many tokens each task and build has spent.

One file per build, written whole at most every half second: what a killed gateway forgets is what the last half second
spent. The file is read without the gateway too, so that a report can be written after it has gone.
"""

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.core.ids import check_build_id
from longshot_dagster.core.usage import Usage

_ENDING = ".tokens.json"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


class Account(BaseModel):
    """One key of a build: a task or a planner."""

    model_config = ConfigDict(extra="ignore")

    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0
    estimated: bool = False
    is_open: bool = False
    timeout_s: float | None = Field(default=None, description="seconds to wait for one answer; None: the gateway's own")
    model: str | None = Field(default=None, description="the one it may ask; None: any")

    @property
    def usage(self) -> Usage:
        return Usage(self.tokens_in, self.tokens_out, self.requests, self.estimated)


class BuildAccounts(BaseModel):
    """All keys of one build and its token budget; 0 is no limit."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = 1
    build: str
    budget: int = 0
    accounts: dict[str, Account] = Field(default_factory=dict)

    @property
    def usage(self) -> Usage:
        return sum((a.usage for a in self.accounts.values()), Usage())

    @property
    def exhausted(self) -> bool:
        return 0 < self.budget <= self.usage.total


class TokenCounts:
    """Accounts of every build below `folder`. Not thread-safe: it lives in the gateway's one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._builds: dict[str, BuildAccounts] = {}
        self._used: dict[str, Usage] = {}  # by whole builds
        self._texts: dict[str, dict[str, str]] = {}  # of accounts, as they are written; most have not changed
        self._dirty: dict[str, set[str]] = {}  # keys by build

    def build(self, build: str) -> BuildAccounts:
        """Raises WrongUse for a name that cannot be a build's."""
        check_build_id(build)
        if build not in self._builds:
            self._builds[build] = read_accounts(self._folder, build)
            self._used[build] = self._builds[build].usage
            self._texts[build] = {key: _text(key, a) for key, a in self._builds[build].accounts.items()}
        return self._builds[build]

    def open(self, build: str, key: str, budget: int, timeout_s: float | None, model: str | None = None) -> None:
        found = self.build(build)
        found.budget = budget
        account = found.accounts.setdefault(key, Account())
        account.is_open, account.timeout_s, account.model = True, timeout_s, model
        self._note(build, key)

    def close(self, build: str, key: str) -> None:
        if account := self.build(build).accounts.get(key):
            account.is_open = False
            self._note(build, key)

    def charge(self, build: str, key: str, tokens: tuple[int, int], *, estimated: bool) -> None:
        account = self.build(build).accounts.setdefault(key, Account())
        account.tokens_in += tokens[0]
        account.tokens_out += tokens[1]
        account.requests += 1
        account.estimated = account.estimated or estimated
        self._used[build] += Usage(*tokens, requests=1, estimated=estimated)
        self._note(build, key)

    def exhausted(self, build: str) -> bool:
        return 0 < self.build(build).budget <= self._used[build].total

    def usage(self, build: str, key: str | None = None) -> Usage:
        """Of one key, or of the whole build, which costs no look at every key."""
        accounts = self.build(build).accounts
        if key:
            return accounts[key].usage if key in accounts else Usage()
        return self._used[build]

    def left_open(self) -> list[tuple[str, str]]:
        """(build, key) of every socket that was open when the files were last written."""
        found = []
        for file in sorted(self._folder.glob(f"*{_ENDING}")):
            build = file.name.removesuffix(_ENDING)
            accounts = read_accounts(self._folder, build).accounts
            found += [(build, key) for key, account in accounts.items() if account.is_open]
        return found

    def take_dirty(self) -> list[tuple[Path, bytes]]:
        """What to write, as (path, bytes), so that the writing can happen in another thread."""
        dirty, self._dirty = self._dirty, {}
        return [(accounts_file(self._folder, b), self._document(b, keys)) for b, keys in sorted(dirty.items())]

    def not_written(self, documents: list[tuple[Path, bytes]]) -> None:
        """Of `take_dirty`: they are to be taken again."""
        for path, _ in documents:
            self._dirty.setdefault(path.name.removesuffix(_ENDING), set())

    def _note(self, build: str, key: str) -> None:
        self._dirty.setdefault(build, set()).add(key)

    def _document(self, build: str, changed: set[str]) -> bytes:
        """As `BuildAccounts.model_dump_json`, for the price of what has changed: a build has a thousand tasks."""
        found, texts = self._builds[build], self._texts[build]
        for key in changed:
            texts[key] = _text(key, found.accounts[key])
        head = found.model_dump_json(exclude={"accounts"}).removesuffix("}")
        return f'{head},"accounts":{{{",".join(texts.values())}}}}}'.encode()


def _text(key: str, account: Account) -> str:
    return f"{json.dumps(key)}:{account.model_dump_json()}"


def write_accounts(documents: list[tuple[Path, bytes]]) -> None:
    for path, data in documents:
        write_atomically(path, data)


def accounts_file(folder: Path, build: str) -> Path:
    return folder / f"{check_build_id(build)}{_ENDING}"


def read_accounts(folder: Path, build: str) -> BuildAccounts:
    """What was last written of `build`; empty when nothing was, or nothing readable."""
    try:
        return BuildAccounts.model_validate_json(accounts_file(folder, build).read_bytes())
    except (FileNotFoundError, ValidationError):
        return BuildAccounts(build=build)


def is_key(key: object) -> bool:
    return isinstance(key, str) and _KEY.fullmatch(key) is not None
