"""What people get wrong: one clear line, the right exit code, and nothing of theirs is touched.

What is tested elsewhere and not repeated: a request or a `.longshot.toml` that `start_build` refuses and a model that does
not answer (tests/adapters/test_starting.py), what no target is (tests/adapters/test_targets.py), every misspelt setting
(tests/adapters/test_settings.py), mistyped commands (tests/cli/test_commands.py).
"""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from longshot_dagster.adapters.builds.examining_repository import examine_repository
from longshot_dagster.adapters.builds.starting import start_build
from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import lock_path
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.repository import git
from longshot_dagster.adapters.sandboxes import confinement
from longshot_dagster.adapters.settings import resolve
from longshot_dagster.cli import main
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import LedgerError, PlanUnreadable
from longshot_dagster.core.findings import Standing
from longshot_dagster.core.host import Host
from longshot_dagster.core.plan_reply import read_reply
from longshot_dagster.core.usage import REHEARSAL_MODEL
from longshot_dagster.testing.script import Script
from longshot_dagster.testing.scripted_model import ScriptedModel

SECRET = "sk-never-shown"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"


def sh(folder: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *args], check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path, **files: str) -> Path:
    """A checkout with one commit on main; `_` in a name stands for a dot."""
    folder.mkdir()
    sh(folder, "init", "-q", "-b", "main")
    for name, text in {"README": "hi\n", **files}.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    sh(folder, "add", "-A")
    sh(folder, "commit", "-qm", "first")
    return folder


def bare(folder: Path, **files: str) -> Path:
    source = checkout(folder.with_suffix(".source"), **files)
    sh(folder.parent, "clone", "-q", "--bare", str(source), str(folder))
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what is refused -------------------------------------------------------------------------------------------------


def a_file(at: Path) -> Path:
    (at / "file").write_text("x")
    return at / "file"


def a_folder(at: Path) -> Path:
    (at / "plain").mkdir()
    return at / "plain"


def a_folder_inside(at: Path) -> Path:
    inside = checkout(at / "outer") / "inner"
    inside.mkdir()
    return inside


def a_shallow_clone(at: Path) -> Path:
    source = checkout(at / "source")
    sh(at, "clone", "-q", "--bare", "--depth=1", f"file://{source}", str(at / "shallow.git"))
    return at / "shallow.git"


def a_checkout_of_a_checkout(at: Path) -> Path:
    sh(at, "clone", "-q", str(checkout(at / "origin")), str(at / "clone"))
    return at / "clone"


def a_sha256_repository(at: Path) -> Path:
    made = at / "sha256.git"
    sh(at, "init", "-q", "--bare", "--object-format=sha256", "-b", "main", str(made))
    work = at / "w"
    work.mkdir()
    sh(work, "init", "-q", "--object-format=sha256", "-b", "main")
    sh(work, "commit", "-q", "--allow-empty", "-m", "first")
    sh(work, "push", "-q", str(made), "main")
    return made


def a_damaged_repository(at: Path) -> Path:
    made = bare(at / "r.git")
    (made / "HEAD").write_text("nonsense\n")
    return made


def well(at: Path) -> Path:
    return bare(at / "r.git")


def nowhere(at: Path) -> Path:
    return at / "nowhere"


@dataclass(frozen=True)
class Case:
    """`longshot "do it" --repo REPOSITORY`, with more arguments and variables, and the line it must answer with."""

    says: str
    repository: Callable[[Path], Path] = well
    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    request: str = "do it"


CASES = {
    "a number that is none": Case("MAX_WORKERS=fifty (environment) is not", variables={"MAX_WORKERS": "fifty"}),
    "a negative number": Case("MAX_WORKERS=-1 (command line) is out of range", arguments=("--max-workers=-1",)),
    "a price in words": Case("LLM_PRICE_IN=cheap (environment) is not a number", variables={"LLM_PRICE_IN": "cheap"}),
    "a strategy misspelt": Case("did you mean rebase?", variables={"MERGE_STRATEGY": "rebas"}),
    "a provider that is none": Case(
        "SANDBOX_PROVIDER=moon (command line) is not one of", arguments=("--provider=moon",)
    ),
    "a provider without an account": Case(
        "SANDBOX_PROVIDER=modal needs MODAL_TOKEN_ID", arguments=("--provider=modal",)
    ),
    "a harness that is none": Case("HARNESS=vim (command line) is not one of", arguments=("--harness=vim",)),
    "a limit nobody keeps": Case(
        "cannot be enforced by local sandboxes", variables={"SANDBOX_ISOLATION": "none", "SANDBOX_NETWORK": "none"}
    ),
    "an endpoint without scheme": Case("LLM_BASE_URL is not a URL", variables={"LLM_BASE_URL": "llm.example"}),
    "endpoints that are no JSON": Case("LLM_ENDPOINTS is not JSON like", variables={"LLM_ENDPOINTS": f"[{SECRET}"}),
    "a key with a line break": Case("no key has", variables={"LLM_API_KEY": f"{SECRET}\nx"}),
    "a request of a megabyte": Case(
        "the request has 1,000,000 characters, at most 100,000", request="x " + "x" * 999_998
    ),
    "a repository that is missing": Case("nowhere does not exist or cannot be read", nowhere),
    "a file": Case("file", a_file),
    "a folder without git": Case("plain is not a git repository; `git init` makes it one", a_folder),
    "a folder inside a repository": Case("is not a repository itself but lies inside", a_folder_inside),
    "a damaged repository": Case("is not a git repository", a_damaged_repository),
    "a shallow clone": Case("is a shallow clone; `git fetch --unshallow` completes it", a_shallow_clone),
    "an origin with main checked out": Case("has main checked out, so nothing can land", a_checkout_of_a_checkout),
    "a repository of SHA-256": Case("uses SHA-256 object names, which longshot does not support", a_sha256_repository),
    "a main branch that is not there": Case(
        "has no branch 'trunk'; it has main: set GIT_MAIN_BRANCH", variables={"GIT_MAIN_BRANCH": "trunk"}
    ),
    "a branch name that git refuses": Case("--land-on 'a..b' is not a legal", arguments=("--land-on", "a..b")),
    "a branch in another's way": Case("branch main is in its way", arguments=("--land-on", "main/sub")),
    "a home that is a file": Case("cannot write below LONGSHOT_HOME=", variables={"LONGSHOT_HOME": "/dev/null/x"}),
    "no endpoint": Case("no model endpoint is configured", variables={"LLM_BASE_URL": ""}),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home of its own with a model that nobody reaches; the folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLM_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("LLM_API_KEY", SECRET)
    return Home(tmp_path / "home")


def refused(capsys: pytest.CaptureFixture[str], says: str, *arguments: str) -> None:
    """`longshot ARGUMENTS` says one line that holds `says`, on stderr, no secret, and that it is wrong use."""
    assert main.run(arguments) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.startswith("longshot: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert SECRET not in shown.err + shown.out
    assert "unexpected" not in shown.err


def nothing_began(home: Home) -> None:
    if not str(home.root).startswith("/dev"):
        assert not any((home.root / "builds").glob("*"))
        assert not (home.root / "stack.json").exists()
        assert not Gateway(home).alive()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_refused_in_one_line_and_nothing_begins(
    case: Case, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = case.repository(tmp_path)
    for name, value in case.variables.items():
        monkeypatch.setenv(name, value)
    before = everything(tmp_path)
    refused(capsys, case.says, case.request, "--repo", str(repository), *case.arguments)
    after = {name: data for name, data in everything(tmp_path).items() if not name.startswith("home/")}
    assert after == before
    nothing_began(home)


def test_a_dotenv_that_is_no_text(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_bytes(b"MAX_WORKERS=\xff\n")
    refused(capsys, ".env cannot be read: it is not UTF-8 text", "do it")


def test_a_password_in_the_url_is_not_repeated(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "carries a password or token", "do it", "--repo", f"https://me:{SECRET}@git.example/r.git")


def test_no_network(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and listening to nobody
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/r.git"
        refused(capsys, f"{url} cannot be read: git ls-remote: ", "do it", "--repo", url)
    nothing_began(home)


@pytest.fixture
def another_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is all of PATH; what git says of itself is asked anew."""
    folder = tmp_path / "bin"
    folder.mkdir()
    git.version.cache_clear()
    monkeypatch.setenv("PATH", str(folder))
    yield folder
    git.version.cache_clear()


def test_no_git(home: Home, tmp_path: Path, another_git: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "git is not installed, or not on PATH", "do it", "--repo", str(tmp_path))
    nothing_began(home)


def test_an_old_git(home: Home, tmp_path: Path, another_git: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (another_git / "git").write_text("#!/bin/sh\necho git version 2.30.2\n")
    (another_git / "git").chmod(0o755)
    refused(capsys, "git 2.38 or newer is needed, this is 'git version 2.30.2'", "do it", "--repo", str(tmp_path))
    nothing_began(home)


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (Host("darwin"), "on macOS run longshot in Docker"),
        (Host("linux", max_user_namespaces=0), "sysctl -w user.max_user_namespaces"),
        (Host("linux", apparmor_restricts_userns=1), "AppArmor keeps user namespaces"),
    ],
)
def test_a_host_that_cannot_isolate(
    host: Host,
    says: str,
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    confinement.bubblewrap.cache_clear()
    monkeypatch.setattr(confinement, "host_facts", lambda: host)
    monkeypatch.setattr(confinement, "_candidates", lambda: ["/bin/false"])
    refused(capsys, says, "do it", "--repo", str(bare(tmp_path / "r.git")))
    monkeypatch.setattr(confinement, "_candidates", list)
    refused(capsys, "or set SANDBOX_ISOLATION=none: agents then run as YOU", "do it", "--repo", str(tmp_path / "r.git"))
    nothing_began(home)


def longshot_where(mounts: list[str], tmp_path: Path, repository: Path) -> "subprocess.CompletedProcess[str]":
    """`longshot "do it"` in a view of this machine with other mounts; its own process, and whoever is root may do it."""
    binary = confinement.bubblewrap().binary
    program = [sys.executable, "-m", "longshot_dagster.cli.main", "do it", "--repo", str(repository)]
    argv = [binary, "--dev-bind", "/", "/", *mounts, "--chdir", str(tmp_path), "--", *program]
    environ = {**os.environ, "SANDBOX_ISOLATION": "none", "SANDBOX_NETWORK": "open"}
    return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_repository_that_cannot_be_written(home: Home, tmp_path: Path) -> None:
    repository = bare(tmp_path / "r.git")
    done = longshot_where(["--ro-bind", str(repository), str(repository)], tmp_path, repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"longshot: {repository} cannot be written: no permission below {repository}\n"
    nothing_began(home)


def test_a_full_disk(home: Home, tmp_path: Path) -> None:
    repository = bare(tmp_path / "r.git")
    home.root.mkdir()
    done = longshot_where(["--size", "1000000", "--tmpfs", str(home.root)], tmp_path, repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"longshot: cannot write below LONGSHOT_HOME={home.root}: No space left on device; free some space there, or set "
        "LONGSHOT_HOME to a folder on another disk\n"
    )


def test_a_disk_that_fills_up_meanwhile_loses_no_document(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(home.builds).build("b-1")
    ledger.update_state(lambda s: s.paused("first"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LedgerError, match=r"state\.json cannot be written: No space left on device"):
            ledger.update_state(lambda s: s.model_copy(update={"reason": "second"}))
    assert ledger.state().reason == "first"
    assert not list(Path(str(ledger.directory)).glob(".state.json.*"))  # nor does it leave half of one


def test_a_second_stack_of_the_same_home(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.root.mkdir()
    with lock_path(home).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main.run(["up"]) == 2
    shown = capsys.readouterr().err
    assert shown == f"longshot: a stack is already running for {home.root}; `longshot down` stops it\n"


def test_a_plan_that_reaches_out_of_the_repository_is_no_plan() -> None:
    answer = '{"scratchpad": "", "tasks": [{"description": "d", "scope": ["../../etc/passwd"]}]}'
    found = read_reply(answer)
    assert found.reply is None or not found.reply.tasks
    assert any("../../etc/passwd" in line for line in found.problems)
    assert PlanUnreadable.exit_code == 5  # what the build pauses with when the model never answers better


# --- what looks wrong and is not -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose gateway reaches the scripted model."""
    found = Home(tmp_path_factory.mktemp("inputs") / "home")
    found.root.mkdir(parents=True)
    with ScriptedModel(Script(), 0) as model:
        Gateway(found).ensure((Endpoint(name="scripted", url=f"http://127.0.0.1:{model.port}/v1"),))
        try:
            yield found
        finally:
            Gateway(found).stop()


def empty(at: Path) -> Path:
    sh(at, "init", "-q", "--bare", "-b", "main", str(at / "empty.git"))
    return at / "empty.git"


def dirty_with_origin(at: Path) -> Path:
    sh(at, "clone", "-q", str(bare(at / "r.git")), str(at / "work"))
    (at / "work/README").write_text("not committed\n")
    return at / "work"


def dirty_without_origin(at: Path) -> Path:
    work = checkout(at / "work")
    (at / "work/README").write_text("not committed\n")
    (at / "work/staged").write_text("staged\n")
    sh(work, "add", "staged")
    return work


def with_submodules(at: Path) -> Path:
    return bare(at / "r.git", _gitmodules='[submodule "lib"]\n\tpath = lib\n\turl = ../lib.git\n')


def with_lfs_pointers(at: Path) -> Path:
    return bare(at / "r.git", _gitattributes="*.bin filter=lfs diff=lfs merge=lfs -text\n", big_bin=POINTER)


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (empty, "it is empty and gets a first commit"),
        (well, "finished work lands on main"),
        (dirty_with_origin, "finished work lands on main of its origin"),
        (dirty_without_origin, "finished work lands on its branch longshot/<build>"),
        (with_submodules, "it has submodules: their folders are empty in sandboxes"),
        (with_lfs_pointers, "it keeps files in Git LFS: sandboxes see the pointers"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_it_is_built_in_and_the_persons_files_stay(
    make: Callable[[Path], Path], note: str, installed: Home, tmp_path: Path
) -> None:
    repository = make(tmp_path)
    launch = {"llm_model": REHEARSAL_MODEL, "sandbox_isolation": "none"}
    resolved = resolve(launch, {}, {}, None, None)
    own = {n: d for n, d in everything(repository).items() if n == ".git/index" or not n.startswith(".git/")}
    findings = examine_repository(str(repository), resolved, None).findings
    assert note in " ".join(f.what for f in findings)
    assert all(f.standing is not Standing.TO_DO for f in findings)
    made = start_build(
        installed,
        request="do it",
        repository=str(repository),
        resolved=resolved,
        build=f"well-{make.__name__.replace('_', '-')[:30]}",
        gateway=Gateway(installed),
        clock=SystemClock(),
    )
    assert Ledger(installed.builds).existing(made.build).request().base == made.base
    if make in (dirty_with_origin, dirty_without_origin):
        assert {n: (repository / n).read_bytes() for n in own} == own
