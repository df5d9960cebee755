"""The tools with which planners look at the repository: read, ls, find, grep and git, on one pinned commit, without a shell."""

import shlex
from collections.abc import Callable

from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.errors import RepositoryError, WrongUse

MAX_OUTPUT = 12_000  # characters of one result
_LINES = 400


def reading_tools(mirror: Mirror, head: str) -> list[Callable[..., str]]:
    """Plain functions; their docstrings are what the model reads. A mistake is told in the result, never raised."""

    def read(path: str, offset: int = 0, limit: int = _LINES) -> str:
        """Read lines of a text file. `offset` counts lines from 0."""

        def lines() -> str:
            every = mirror.read_file(head, path, 2_000_000).splitlines()
            first = max(0, offset)
            shown = every[first : first + max(1, min(limit, 2_000))]
            rest = len(every) - first - len(shown)
            return "\n".join(shown) + (f"\n({rest} more lines, from offset {first + len(shown)})" if rest > 0 else "")

        return _told(lines)

    def ls(path: str = ".") -> str:
        """List a directory; directories end with a slash."""
        return _told(lambda: "\n".join(mirror.list_dir(head, path)))

    def find(glob: str) -> str:
        """Find files by a glob such as `*.py` or `src/**/test_*.js`."""
        return _told(lambda: "\n".join(mirror.find(head, glob, 300)))

    def grep(pattern: str, path: str = ".") -> str:
        """Search file contents with an extended regular expression, below `path`."""
        return _told(lambda: "\n".join(mirror.grep(head, pattern, path, 150)))

    def git(args: list[str] | str) -> str:
        """Run a read-only git command: log, show, diff, blame or shortlog, for example ["log", "--oneline", "-20"]."""

        def run() -> str:
            words = args if isinstance(args, list) else shlex.split(args[:2_000])
            return mirror.git_read(head, words[1:] if words[:1] == ["git"] else words)

        return _told(run)

    return [read, ls, find, grep, git]


def _told(look: Callable[[], str]) -> str:
    try:
        text = look()
    except (WrongUse, RepositoryError, ValueError) as e:
        return f"error: {e}"[:1_000]
    if len(text) > MAX_OUTPUT:
        return f"{text[:MAX_OUTPUT]}\n(cut, {len(text)} characters; ask for less)"
    return text or "(nothing)"
