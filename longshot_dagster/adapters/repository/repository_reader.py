"""What planners may read of one pinned commit: no work tree, no shell, no program of the repository's choosing."""

import fnmatch
import re
from pathlib import Path, PurePosixPath

from longshot_dagster.adapters.repository.git import Git, objects
from longshot_dagster.core import scope
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.models import RepoState

DOCUMENTS = ("SPEC.md", "FEATURES.json", "AGENTS.md", "DECISIONS.md")
DOCUMENT_CHARS = 30_000
TREE_PATHS = 2_000
LOG_ENTRIES = 40
OUTPUT_BYTES = 100_000

_TIMEOUT_S = 30
_OID = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?:HEAD|[0-9a-f]{7,40})(?:[~^]\d{0,4}){0,8}")
_NUMBERED = re.compile(r"-(?:n)?\d{1,4}|--max-count=\d{1,4}|-U\d{1,3}|-L\d{1,7},\+?\d{1,7}")
_HISTORY = {"--oneline", "--stat", "--shortstat", "--numstat", "--name-only", "--name-status", "-p", "--patch"}
_HISTORY |= {"--no-patch", "-s", "--reverse", "--no-merges", "--merges", "--first-parent", "--follow", "-i", "--graph"}
_DIFF = {"--stat", "--shortstat", "--numstat", "--name-only", "--name-status", "-p", "--patch", "-w", "-M"}
_ALLOWED = {
    "log": _HISTORY,
    "show": _HISTORY | {"-w"},
    "diff": _DIFF,
    "blame": {"-s", "-e", "-w"},
    "shortlog": {"-s", "-n", "-e", "-sn", "-ns", "-sne"},
}
_VALUED = re.compile(r"--(?:since|until|author|grep)=[^\x00-\x1f]{1,200}|--(?:format|pretty)=(?:oneline|short|medium)")


class RepositoryReader:
    """Read-only questions to a bare repository. Every path and revision comes from a model and is checked.

    What cannot be answered as asked is WrongUse with one line, meant to be given back to the model.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._git = Git(directory)

    def read_file(self, oid: str, path: str, max_bytes: int = OUTPUT_BYTES) -> str:
        """The file's first `max_bytes` as text."""
        data = self._blob(_commit(oid), _path(path), max_bytes)
        if data is None:
            raise WrongUse(f"there is no file {display(path, 'plain', 200)!r}")
        if b"\0" in data[:8_000]:
            raise WrongUse(f"{display(path, 'plain', 200)!r} is not a text file")
        return data.decode("utf-8", "replace")

    def list_dir(self, oid: str, path: str = "") -> list[str]:
        """Names in a directory (`""` or `.`: the root), directories with a trailing slash."""
        where = "" if path.strip() in ("", ".", "./") else _path(path).rstrip("/")
        with objects(self.directory) as repo:
            try:
                tree = repo.commit(_commit(oid)).tree
                tree = tree / where if where else tree
                if tree.type != "tree":
                    raise KeyError
                names = [f"{e.name}/" if e.type == "tree" else str(e.name) for e in tree]
            except (KeyError, ValueError):
                raise WrongUse(f"there is no directory {display(path, 'plain', 200)!r}") from None
        return sorted(_printable(name) for name in names)

    def grep(self, oid: str, pattern: str, path: str = "", limit: int = 100) -> list[str]:
        """Lines that match the extended regular expression, as `path:number:line`."""
        if not pattern or len(pattern) > 500 or "\n" in pattern or "\0" in pattern:
            raise WrongUse("a pattern is one line of 1 to 500 characters")
        where = [] if path.strip() in ("", ".", "./") else ["--", ":(literal)" + _path(path).rstrip("/")]
        flags = ("grep", "-n", "-I", "-E", "--no-color", "--full-name", "--no-textconv", "-e", pattern)
        found = self._ask(*flags, _commit(oid), *where, ok=(0, 1))
        lines = found.removesuffix("\n").split("\n") if found else []
        return [display(line.removeprefix(f"{oid}:"), "plain", 500) for line in lines[:limit]]

    def find(self, oid: str, glob: str, limit: int = 200) -> list[str]:
        """Paths that match a glob; without a slash it is matched against file names. `*` also crosses slashes."""
        if not glob or len(glob) > 300:
            raise WrongUse("a glob has 1 to 300 characters")
        by_name = "/" not in glob
        found = []
        for path in self.paths(oid):
            if fnmatch.fnmatchcase(PurePosixPath(path).name if by_name else path, glob.removeprefix("./")):
                found.append(path)
                if len(found) >= limit:
                    break
        return found

    def git_read(self, oid: str, args: list[str]) -> str:
        """`git log|show|diff|blame|shortlog` with plain options, on `oid` and its ancestors. HEAD means `oid`."""
        command, options, revisions, paths = self._parse(_commit(oid), args)
        quiet = ("--no-ext-diff", "--no-textconv") if command in ("log", "show", "diff") else ()
        if command == "blame" and len(paths) != 1:
            raise WrongUse("git blame takes exactly one file, after --")
        head = revisions or [oid]
        out = self._ask(command, *quiet, *options, *head, "--", *paths)
        return display(out, "plain", OUTPUT_BYTES)

    def repo_state(self, head: str, branch: str) -> RepoState:
        """What an iteration finds at `head`."""
        paths = self.paths(_commit(head))
        log = self._ask("log", f"-{LOG_ENTRIES}", "--format=%h %s", head).splitlines()
        documents = {}
        for name in DOCUMENTS:
            if name in paths and (data := self._blob(head, name, DOCUMENT_CHARS * 4)) is not None:
                documents[name] = data.decode("utf-8", "replace")[:DOCUMENT_CHARS]
        return RepoState(
            head=head,
            branch=branch,
            files=len(paths),
            tree=tuple(sorted(paths)[:TREE_PATHS]),
            log=tuple(display(line, "plain", 200) for line in log),
            documents=documents,
        )

    def paths(self, oid: str) -> list[str]:
        """Every file of the commit, as git orders them."""
        listed = self._git.run("ls-tree", "-r", "-z", "--name-only", _commit(oid), timeout_s=_TIMEOUT_S).out
        return [_printable(p) for p in listed.decode("utf-8", "replace").split("\0") if p]

    def files_with_conflict_markers(self, oid: str) -> tuple[str, ...]:
        """Text files in which a line begins a conflict and another ends one."""
        flags = ("grep", "-l", "-z", "-I", "--all-match", "--full-name", "-e", "^<<<<<<< ", "-e", "^>>>>>>> ")
        found = self._git.run(*flags, _commit(oid), ok=(0, 1)).out.decode("utf-8", "replace")
        return tuple(_printable(p.removeprefix(f"{oid}:")) for p in found.split("\0") if p)

    def _parse(self, oid: str, args: list[str]) -> tuple[str, list[str], list[str], list[str]]:
        if not args or args[0] not in _ALLOWED or len(args) > 40:
            raise WrongUse(f"only git {', '.join(_ALLOWED)} can be read here")
        command, options, revisions, paths = args[0], list[str](), list[str](), list[str]()
        words = iter(args[1:])
        for word in words:
            if word == "--":
                paths = [":(literal)" + _path(p) if command != "blame" else _path(p) for p in words]
            elif word in _ALLOWED[command] or _NUMBERED.fullmatch(word) or _VALUED.fullmatch(word):
                options.append(word)
            elif word.startswith("-"):
                raise WrongUse(f"git {command} {display(word, 'plain', 80)} is not allowed here")
            else:
                revisions.append(self._revision(oid, command, word))
        return command, options, revisions, paths

    def _revision(self, oid: str, command: str, word: str) -> str:
        shown = display(word, "plain", 120)
        revision, colon, path = word.partition(":")
        if colon:
            if command != "show":
                raise WrongUse(f"{shown!r}: REVISION:PATH is for git show")
            return f"{self._one(oid, revision, shown)}:{_path(path)}"
        separator = "..." if "..." in word else ".."
        if separator in word and command in ("log", "diff", "shortlog"):
            left, _, right = word.partition(separator)
            return f"{self._one(oid, left or 'HEAD', shown)}{separator}{self._one(oid, right or 'HEAD', shown)}"
        return self._one(oid, word, shown)

    def _one(self, oid: str, revision: str, shown: str) -> str:
        """A revision as full id; only `oid` and its ancestors, because the mirror also holds others' unlanded work."""
        if not _REVISION.fullmatch(revision):
            raise WrongUse(f"{shown!r} is no revision: HEAD, HEAD~2 or a commit id; paths go after --")
        name = re.sub("^HEAD", oid, revision)
        full = self._git.run("rev-parse", "-q", "--verify", f"{name}^{{commit}}", ok=(0, 1, 128)).text
        if not _OID.fullmatch(full):
            raise WrongUse(f"{shown!r} is no commit of this history")
        if full != oid and self._git.run("merge-base", "--is-ancestor", full, oid, ok=(0, 1)).code != 0:
            raise WrongUse(f"{shown!r} is no commit of this history")
        return full

    def _ask(self, *args: str, ok: tuple[int, ...] = (0,)) -> str:
        try:
            ran = self._git.run(*args, ok=ok, keep=OUTPUT_BYTES, timeout_s=_TIMEOUT_S)
        except RepositoryError as e:
            raise WrongUse(str(e)) from e
        return ran.out.decode("utf-8", "replace")

    def _blob(self, oid: str, path: str, max_bytes: int) -> bytes | None:
        with objects(self.directory) as repo:
            try:
                found = repo.commit(oid).tree / path
            except (KeyError, ValueError):
                return None
            return bytes(found.data_stream.read(max_bytes)) if found.type == "blob" else None


def _commit(oid: str) -> str:
    if not _OID.fullmatch(oid):
        raise WrongUse("a pinned commit is a full commit id")
    return oid


def _path(text: str) -> str:
    return scope.normalise(text)


def _printable(path: str) -> str:
    return display(path, "plain", 4_096)
