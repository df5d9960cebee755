"""Where a build reads from and lands to: from what a person typed to a Target, proven readable and writable.

URL, bare repository        lands on GIT_MAIN_BRANCH there, or on `--land-on BRANCH`
checkout with an origin     the same, on that origin
checkout without an origin  lands on branch longshot/<build> in it; work tree, index and checked-out branch stay
empty repository            gets an empty first commit: on GIT_MAIN_BRANCH, or, in a checkout, on longshot/<build>
                            only, because its checked-out branch is the person's own
"""

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from longshot_dagster.adapters.repository.git import Git, version
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.models import Oid, Target, TargetKind
from longshot_dagster.core.settings import Settings

QUEUE_NAME = "longshot queue"
QUEUE_EMAIL = "queue@longshot.invalid"
RESERVED = frozenset({"work", "landed", "fetched", "checkpoint", "green", "backup"})  # names below refs/longshot/

_SCHEMES = ("https", "http", "ssh", "git+ssh", "ssh+git", "git")
_SCP = re.compile(r"(?:[\w.+~-]+@)?[\w.-]*[\w]:(?!//)[^\s]+")
_SECRET_FIELD = re.compile(r"(?i)(?:token|key|pass(?:word|wd)?|secret|auth|credential|sig(?:nature)?)=")
_TOKEN = re.compile(r"(?:gh[a-z]_|github_pat_|glpat-|x-access-token|x-token-auth|oauth2)|.{20,}")


def resolve_target(repository: str, settings: Settings, build: str, land_on: str | None = None) -> Target:
    """What `repository` (URL or path) means. Looks at local paths, never at the network.

    Raises WrongUse: missing path, no repository, a password in the URL, a transport that runs programs.
    """
    _check_git()
    if build in RESERVED:
        raise WrongUse(f"{build!r} cannot name a build; its refs would lie in the way")
    text = repository.strip()
    _check_text(text)
    base = settings.git_main_branch
    if land_on is not None:
        _check_branch(land_on)
    if _is_remote(text):
        return _remote(repository, _checked_url(text), base, land_on)
    return _local(repository, _path_of(text), base, build, land_on)


def check_url(repository: str) -> None:
    """Raises WrongUse for a URL that could never be built in, one with a password among them; asks nobody."""
    text = repository.strip()
    if text:
        _check_text(text)
        if _is_remote(text):
            _checked_url(text)


def prepare_target(target: Target, clock: Clock) -> Oid:
    """Prove that `target` can be read and pushed to; returns the commit the build starts from.

    An empty repository gets its first commit. Raises WrongUse with git's reason, or naming the branches there are.
    """
    return look_at(target) or _first_commit(target, clock)


def look_at(target: Target) -> Oid | None:
    """The commit a build on `target` starts from; None: it is empty. Nothing is changed, a push is only tried.

    Raises WrongUse with git's reason, or naming the branches there are.
    """
    heads = branch_heads(target)
    _check_room(target, heads)
    _check_push(target)
    if not heads:
        return None
    head = heads.get(target.branch) or heads.get(target.base_branch)
    if head is None:
        names = ", ".join(sorted(display(name, "plain", 60) for name in heads)[:10])
        raise WrongUse(
            f"{target.repository} has no branch {target.base_branch!r}; it has {names}: set GIT_MAIN_BRANCH to one of them"
        )
    return head


# --- reading what the person typed -----------------------------------------------------------------------------------


def _check_git() -> None:
    try:
        version()
    except RepositoryError as e:
        raise WrongUse(str(e)) from e


def _check_text(text: str) -> None:
    if not text:
        raise WrongUse("no repository given; name one with --repo PATH_OR_URL or set GIT_REPO_URL")
    shown = display(text, "plain", 120)
    if text.startswith("-") or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise WrongUse(f"{shown!r} is neither a path nor the URL of a git repository")
    if re.match(r"[A-Za-z0-9+.-]+::", text):
        raise WrongUse(f"{shown!r} names a git transport that runs programs; use https, ssh or a path")


def _is_remote(text: str) -> bool:
    scheme, found, _ = text.partition("://")
    if found:
        return scheme.lower() != "file"
    return bool(_SCP.fullmatch(text)) and not Path(text).expanduser().exists()


def _checked_url(url: str) -> str:
    """Raises WrongUse for a password or token in `url`, an unknown scheme, or a host that git would take for an option."""
    if "://" not in url:
        host = url.partition(":")[0].rpartition("@")[2]
        if host.startswith("-"):
            raise WrongUse("the repository's host name begins with '-'")
        return url
    try:
        parts = urlsplit(url)
        host, password, user = parts.hostname or "", parts.password, parts.username or ""
    except ValueError:
        raise WrongUse("the repository's URL cannot be read; it should look like https://host/owner/name.git") from None
    if parts.scheme not in _SCHEMES:
        raise WrongUse(f"{display(parts.scheme, 'plain', 20)}:// is not supported; use https, ssh or a path")
    if not host or host.startswith("-") or unquote(host).startswith("-"):
        raise WrongUse("the repository's URL names no host")
    named = _SECRET_FIELD.search(parts.query)
    if password is not None or named or (parts.scheme in ("http", "https") and _TOKEN.match(user)):
        raise WrongUse(
            f"the URL of the repository on {host} carries a password or token; leave it out and use a git credential helper"
        )
    return url


def _path_of(text: str) -> Path:
    if text.lower().startswith("file://"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise WrongUse("a file:// URL names no host; write file:///path or the path itself")
        text = unquote(parts.path)
    path = Path(text).expanduser()
    try:
        path = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise WrongUse(f"{display(text, 'plain', 200)} does not exist or cannot be read") from None
    return path.parent if path.name == ".git" else path


def _remote(repository: str, url: str, base: str, land_on: str | None) -> Target:
    return Target(
        repository=display(repository.strip(), "plain", 1_000),
        url=url,
        kind=TargetKind.REMOTE,
        base_branch=base,
        branch=land_on or base,
    )


def _local(repository: str, path: Path, base: str, build: str, land_on: str | None) -> Target:
    git_dir, bare = _inspect(path)
    if bare:
        _check_whole(path, git_dir)
        return _remote(repository, str(git_dir), base, land_on)
    origin = _origin(git_dir)
    if origin is None:
        _check_whole(path, git_dir)
        if land_on not in (None, f"longshot/{build}"):
            raise WrongUse(
                f"{path} has no origin, so the build lands on longshot/{build} in it; --land-on is for remotes"
            )
        return Target(
            repository=display(repository.strip(), "plain", 1_000),
            url=str(git_dir),
            kind=TargetKind.CHECKOUT,
            base_branch=base,
            branch=f"longshot/{build}",
        )
    _check_text(origin)
    if _is_remote(origin):
        return _remote(repository, _checked_url(origin), base, land_on)
    there = _path_of(str(path / origin) if not origin.startswith(("/", "~", "file://")) else origin)
    origin_dir, origin_bare = _inspect(there)
    _check_not_checked_out(there, origin_dir, origin_bare, land_on or base)
    return _remote(repository, str(origin_dir), base, land_on)


def _inspect(path: Path) -> tuple[Path, bool]:
    """(directory with the refs, is it bare?) of the repository at exactly `path`; raises WrongUse."""
    git = Git(network=True)  # the person's safe.directory counts
    asked = ("rev-parse", "--is-bare-repository", "--absolute-git-dir", "--git-common-dir")
    try:
        lines = git.run("-C", str(path), *asked).text.splitlines()
    except RepositoryError as e:
        if "not a git repository" in str(e):
            raise WrongUse(f"{path} is not a git repository; `git init` makes it one") from e
        raise WrongUse(f"{path} cannot be read: {e}") from e
    bare, common = lines[0] == "true", (path / lines[2]).resolve()
    top = Path(lines[1]) if bare else Path(git.run("-C", str(path), "rev-parse", "--show-toplevel").text)
    if top.resolve() != path:
        raise WrongUse(f"{path} is not a repository itself but lies inside {top}; give that path")
    return common, bare


def _check_whole(path: Path, git_dir: Path) -> None:
    if (git_dir / "shallow").exists():
        raise WrongUse(f"{path} is a shallow clone; `git fetch --unshallow` completes it")


def _origin(git_dir: Path) -> str | None:
    asked = ("config", "--file", str(git_dir / "config"), "--get-all")
    urls = Git().run(*asked, "remote.origin.url", ok=(0, 1)).text.splitlines()
    if not urls:
        return None
    if Git().run(*asked, "remote.origin.pushurl", ok=(0, 1)).text:
        raise WrongUse("the checkout's origin has a push URL of its own; give the URL to land on with --repo")
    return urls[0]


def _check_not_checked_out(path: Path, git_dir: Path, bare: bool, branch: str) -> None:
    if bare:
        return
    head = Git(git_dir).run("symbolic-ref", "-q", "HEAD", ok=(0, 1)).text
    if head == f"refs/heads/{branch}":
        raise WrongUse(f"the origin {path} has {branch} checked out, so nothing can land on it; use --land-on BRANCH")


def _check_branch(name: str) -> None:
    shown = display(name, "plain", 120)
    if name.startswith(("-", "refs/")) or Git().run("check-ref-format", f"refs/heads/{name}", ok=(0, 1)).code != 0:
        raise WrongUse(f"--land-on {shown!r} is not a legal branch name")


# --- proving it ------------------------------------------------------------------------------------------------------


def branch_heads(target: Target) -> dict[str, str]:
    """Branch name -> commit, of the target as it is now."""
    try:
        listed = Git(network=True).run("ls-remote", "--heads", "--", target.url, timeout_s=120).out
    except RepositoryError as e:
        raise WrongUse(f"{target.repository} cannot be read: {e}") from e
    heads = {}
    for line in listed.decode("utf-8", "surrogateescape").splitlines():
        oid, _, ref = line.partition("\t")
        if len(oid) != 40:
            raise WrongUse(f"{target.repository} uses SHA-256 object names, which longshot does not support yet")
        heads[ref.removeprefix("refs/heads/")] = oid
    return heads


def _check_room(target: Target, heads: dict[str, str]) -> None:
    for head in heads:
        if target.branch.startswith(head + "/") or head.startswith(target.branch + "/"):
            raise WrongUse(f"branch {target.branch} cannot be made: branch {display(head, 'plain', 80)} is in its way")


def _check_push(target: Target) -> None:
    """Push nothing, but all the way: a forge says no here and not after an hour's work."""
    local = Path(target.url)
    if local.is_absolute() and not os.access(local / "objects", os.W_OK):
        raise WrongUse(f"{target.repository} cannot be written: no permission below {local}")
    with tempfile.TemporaryDirectory() as folder:
        probe = _empty_commit(Path(folder), 0)
        try:
            _push(Path(folder), target.url, probe, "refs/heads/longshot-probe/never-created", "--dry-run")
        except RepositoryError as e:
            raise WrongUse(f"{target.repository} cannot be pushed to: {e}") from e


def _first_commit(target: Target, clock: Clock) -> Oid:
    branch = target.branch if target.kind is TargetKind.CHECKOUT else target.base_branch
    with tempfile.TemporaryDirectory() as folder:
        first = _empty_commit(Path(folder), clock.now())
        try:
            _push(Path(folder), target.url, first, f"refs/heads/{branch}", f"--force-with-lease=refs/heads/{branch}:")
        except RepositoryError:
            # Another build may have been first.
            there = branch_heads(target).get(branch)
            if there is None:
                raise
            return there
    return first


def _empty_commit(folder: Path, at: float) -> str:
    Git().run("init", "-q", "--bare", str(folder))
    git = Git(folder)
    tree = git.run("mktree").text
    return git.run("commit-tree", tree, "-m", "First commit", env=queue_identity(at)).text


def _push(folder: Path, url: str, commit: str, ref: str, *options: str) -> None:
    git = Git(folder, network=True)
    git.run("push", "-q", "--no-verify", "--no-recurse-submodules", *options, "--", url, f"{commit}:{ref}")


def queue_identity(at: float, author: tuple[str, str] | None = None) -> dict[str, str]:
    """Environment of a commit that longshot makes at `at` (seconds since the epoch)."""
    name, email = author or (QUEUE_NAME, QUEUE_EMAIL)
    date = f"@{int(at)} +0000"
    return {
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": email,
        "GIT_AUTHOR_DATE": date,
        "GIT_COMMITTER_NAME": QUEUE_NAME,
        "GIT_COMMITTER_EMAIL": QUEUE_EMAIL,
        "GIT_COMMITTER_DATE": date,
    }
