"""The mirror: fetches what is needed, packs it for sandboxes, and answers planners about one pinned commit only."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from repositories import BUILD, World, bare, commit_on, git

from longshot_dagster.adapters.repository import mirror as mirror_module
from longshot_dagster.adapters.repository.branch import commit
from longshot_dagster.adapters.repository.git import Git, environment, reason
from longshot_dagster.adapters.repository.mirror import FileChange, Mirror, Update
from longshot_dagster.adapters.repository.object_store import Entry, graft, look_up, tree_of
from longshot_dagster.adapters.repository.object_store import write as write_object
from longshot_dagster.core.errors import RepositoryError, WrongUse
from longshot_dagster.core.models import MAX_DIFF

FILES = {"README.md": "hello\n", "src/a.py": "a = 1\n", "src/deep/b.py": "b = 1\n", "bin.dat": b"\0\1\2", "l": "-> src"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, bare(tmp_path / "origin.git", FILES))


def test_fetch_gives_the_landing_branch_and_before_it_exists_the_base(tmp_path):
    world = World(tmp_path, bare(tmp_path / "origin.git", FILES), land_on="result")
    assert world.mirror.fetch() == git(world.origin, "rev-parse", "main")
    git(world.origin, "update-ref", "refs/heads/result", "main")
    newer = commit_on(world.origin, "result", {"n": "n\n"})
    assert world.mirror.fetch() == newer
    assert git(world.mirror.path, "cat-file", "-t", newer) == "commit"


def test_workers_that_start_together_ask_the_target_once_and_a_push_makes_it_asked_again(world, monkeypatch):
    shared = Mirror(world.home, world.request.target)
    looked, look = [], shared.read_remote

    def counting(*refs):
        looked.append(refs)
        return look(*refs)

    monkeypatch.setattr(shared, "read_remote", counting)
    with ThreadPoolExecutor(8) as pool:
        (base,) = set(pool.map(lambda _: shared.fetch(60), range(20)))
    assert len(looked) == 1
    head = shared.intake(BUILD, "r001-01", base, world.bundle(base, {"x": "x\n"}))
    assert shared.push([Update("refs/heads/main", base, head)]) is None
    assert shared.fetch(60) == head and len(looked) == 2


def test_a_look_that_began_before_it_was_asked_for_does_not_answer_unless_that_is_wanted(world):
    assert world.mirror.fetch() != commit_on(world.origin, "main", {"n": "n\n"}) == world.mirror.fetch()


def test_only_the_needed_branches_are_fetched(world):
    commit_on(world.origin, "unrelated", {"n": "n\n"})
    git(world.origin, "tag", "v1", "main")
    world.mirror.fetch()
    assert git(world.mirror.path, "for-each-ref", "--format=%(refname)") == "refs/longshot/fetched/heads/main"


def test_many_threads_and_instances_make_one_mirror(world):
    mirrors = [Mirror(world.home, world.request.target) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(lambda m: m.fetch(), mirrors))) == 1
    assert len(list(world.home.mirrors.glob("*.git"))) == 1


def test_a_target_that_lost_its_branches_is_an_error_of_the_repository(world):
    git(world.origin, "update-ref", "-d", "refs/heads/main")
    with pytest.raises(RepositoryError, match="neither main nor"):
        world.mirror.fetch()


def test_commits_since_tells_what_a_branch_that_was_forced_back_has_lost(world):
    base = world.mirror.fetch()
    first = commit_on(world.origin, "main", {"n": "1\n"})
    assert world.mirror.commits_since(base, world.mirror.fetch()) == {first}
    git(world.origin, "update-ref", "refs/heads/main", base)
    second = commit_on(world.origin, "main", {"m": "2\n"})
    assert world.mirror.commits_since(base, world.mirror.fetch()) == {second}


def test_a_bundle_holds_one_ref_with_its_history_and_is_made_once(world):
    base = world.mirror.fetch()
    path = world.mirror.bundle(base)
    assert git(world.root, "bundle", "list-heads", str(path)) == f"{base} refs/heads/base"
    before = path.stat().st_mtime_ns
    assert Mirror(world.home, world.request.target).bundle(base) == path and path.stat().st_mtime_ns == before
    git(world.root, "clone", "-q", "-b", "base", str(path), "out")
    assert (world.root / "out/src/deep/b.py").read_text() == "b = 1\n"


def test_old_bundles_are_forgotten_and_young_ones_are_not(world, monkeypatch):
    monkeypatch.setattr(mirror_module, "KEEP_BUNDLES", 2)
    for n in range(3):
        path = world.mirror.bundle(commit_on(world.origin, "main", {"n": f"{n}\n"}) and world.mirror.fetch())
        os.utime(path, (1_000_000 + n * 1_000, 1_000_000 + n * 1_000))
    left = world.mirror.bundle(commit_on(world.origin, "main", {"n": "x\n"}) and world.mirror.fetch())
    assert left.exists() and len(list(left.parent.glob("*.bundle"))) == 2


def test_what_lands_is_packed_once_it_is_many_objects_and_nothing_of_it_is_lost(world):
    store, head = world.mirror.git, world.mirror.fetch()
    packs = world.mirror.path / "objects/pack"
    found = []
    for n, files in enumerate((1, 1_000, 1, 1, 1_000)):
        names = [f"n{n}/{m}" for m in range(files)]
        entries = [Entry(t.encode(), "100644", write_object(store, "blob", f"{t}\n".encode())) for t in names]
        head = commit(store, graft(store, tree_of(store, head), entries), (head,), f"{n}", 1.0)
        bundle = Mirror(world.home, world.request.target).bundle(head)
        found.append(len(list(packs.glob("*.pack"))))
        assert look_up(store, head) is not None and world.mirror.has(head)
    assert found == [0, 1, 1, 1, 2]
    assert not (world.mirror.path / "objects" / head[:2] / head[2:]).exists()
    git(world.root, "clone", "-q", "-b", "base", str(bundle), "out")
    assert (world.root / "out/n4/999").read_text() == "n4/999\n" and (world.root / "out/README.md").exists()
    (world.mirror.path / "longshot-packed").write_text("not a note")
    assert world.mirror.bundle(world.mirror.fetch()).exists()
    git(world.mirror.path, "fsck", "--strict")


def test_a_diff_counts_lines_files_and_binaries(world):
    base = world.mirror.fetch()
    edits = {"src/a.py": "a = 2\nc = 3\n", "new.py": "n\n", "README.md": None, "bin.dat": b"\0\3", 'q"\t.txt': "q\n"}
    head = world.mirror.intake(BUILD, "r001-01", base, world.bundle(base, edits))
    diff = world.mirror.diff(base, head)
    assert set(diff.files) == {
        FileChange("src/a.py", "M", 2, 1),
        FileChange("new.py", "A", 1, 0),
        FileChange("README.md", "D", 0, 1),
        FileChange("bin.dat", "M", 0, 0),
        FileChange('q"\t.txt', "A", 1, 0),
    }
    assert "+a = 2" in diff.text and "Binary files" in diff.text
    assert world.mirror.diff(base, base).files == ()


def test_an_endless_diff_is_cut_and_says_so(world):
    base = world.mirror.fetch()
    head = world.mirror.intake(BUILD, "r001-01", base, world.bundle(base, {"big.txt": "0123456789\n" * 200_000}))
    text = world.mirror.diff(base, head).text
    assert len(text) < MAX_DIFF + 200 and text.endswith("git has all of it")


def test_repo_state_has_tree_log_and_documents(tmp_path):
    world = World(tmp_path, bare(tmp_path / "origin.git", {**FILES, "SPEC.md": "# Spec\n" + "x" * 40_000}))
    commit_on(world.origin, "main", {"x": "x\n"}, "subject \x1b[31mred")
    head = world.mirror.fetch()
    state = world.mirror.repo_state(head)
    assert (state.head, state.branch, state.files) == (head, "main", 7)
    assert "src/deep/b.py" in state.tree and len(state.documents["SPEC.md"]) == 30_000
    assert state.log[0].endswith("red") and "\x1b" not in state.log[0]


def test_conflict_markers_are_found_in_pairs_only(world):
    both = "<<<<<<< a\nx\n=======\ny\n>>>>>>> b\n"
    commit_on(world.origin, "main", {"bad.py": both, "doc.md": "<<<<<<< only\n", "rst.rst": "=======\n"})
    assert world.mirror.files_with_conflict_markers(world.mirror.fetch()) == ("bad.py",)


def test_ancestry(world):
    first = world.mirror.fetch()
    commit_on(world.origin, "main", {"x": "x\n"})
    second = world.mirror.fetch()
    assert world.mirror.is_ancestor(first, second) and not world.mirror.is_ancestor(second, first)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two commits that are only read."""
    root = tmp_path_factory.mktemp("history")
    world = World(root, bare(root / "origin.git", FILES))
    commit_on(world.origin, "main", {"src/a.py": "a = 2\n"})
    return world


# --- planners' questions ---------------------------------------------------------------------------------------------


def test_planners_read_files_and_directories_of_the_pinned_commit(world):
    oid = world.mirror.fetch()
    commit_on(world.origin, "main", {"README.md": "newer\n"})
    world.mirror.fetch()
    mirror = world.mirror
    assert mirror.read_file(oid, "README.md", 3) == "hel"
    assert mirror.list_dir(oid) == ["README.md", "bin.dat", "l", "src/"]
    assert mirror.list_dir(oid, "src/") == ["a.py", "deep/"]
    assert mirror.grep(oid, "[ab] = 1") == ["src/a.py:1:a = 1", "src/deep/b.py:1:b = 1"]
    assert mirror.grep(oid, "= 1", "src/deep") == ["src/deep/b.py:1:b = 1"]
    assert mirror.grep(oid, "= 1", limit=1) == ["src/a.py:1:a = 1"]
    assert mirror.grep(oid, "nowhere") == []
    assert mirror.find(oid, "*.py") == ["src/a.py", "src/deep/b.py"]
    assert mirror.find(oid, "src/*/*.py") == ["src/deep/b.py"]


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("read_file", ("nothing.txt",)),
        ("read_file", ("src",)),
        ("read_file", ("../x",)),
        ("read_file", ("/etc/passwd",)),
        ("read_file", (".git/config",)),
        ("read_file", ("bin.dat",)),
        ("read_file", ("l/a.py",)),
        ("list_dir", ("README.md",)),
        ("list_dir", ("nowhere",)),
        ("list_dir", ("..",)),
        ("grep", ("(",)),
        ("grep", ("",)),
        ("grep", ("x", "../..")),
        ("find", ("",)),
    ],
)
def test_what_cannot_be_read_is_one_line_for_the_model(history, method, args):
    oid = history.mirror.fetch()
    with pytest.raises(WrongUse) as error:
        getattr(history.mirror, method)(oid, *args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "has"),
    [
        (["log", "--oneline", "-5"], "by hand"),
        (["log", "-p", "HEAD", "--", "src/a.py"], "+a = 2"),
        (["log", "--since=10 years ago", "--author=worker", "-n3", "--format=short"], "by hand"),
        (["show", "HEAD~1:src/a.py"], "a = 1"),
        (["show", "--stat", "HEAD"], "src/a.py"),
        (["diff", "HEAD~1..HEAD", "--", "src"], "-a = 1"),
        (["diff", "--name-only", "HEAD^", "HEAD"], "src/a.py"),
        (["blame", "-L1,1", "--", "src/a.py"], "a = 2"),
        (["shortlog", "-sn"], "A Worker"),
    ],
)
def test_planners_may_ask_git_plain_questions(history, args, has):
    assert has in history.mirror.git_read(history.mirror.fetch(), args)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["status"],
        ["push"],
        ["-c", "core.pager=touch x", "log"],
        ["log", "--output=/tmp/owned"],
        ["log", "--output", "/tmp/owned"],
        ["log", "--ext-diff"],
        ["log", "--textconv"],
        ["log", "--format=%G?"],
        ["log", "--show-signature"],
        ["log", "--all"],
        ["log", "--exec=x"],
        ["log", ";", "rm", "-f", "x"],
        ["log", "src/a.py"],
        ["diff", "--no-index", "/etc/passwd", "/dev/null"],
        ["diff", "-O/etc/passwd"],
        ["diff", "HEAD", "--", "/etc/passwd"],
        ["diff", "HEAD", "--", "../x"],
        ["show", "HEAD:../../etc/passwd"],
        ["show", ":/x"],
        ["show", "HEAD@{1}"],
        ["show", "refs/longshot/work/a-build-7f3k/r001-01"],
        ["blame", "--contents", "/etc/passwd", "--", "README.md"],
        ["blame", "README.md"],
        ["shortlog", "--group=format:x"],
    ],
)
def test_anything_else_is_refused(history, args):
    oid = history.mirror.fetch()
    with pytest.raises(WrongUse) as error:
        history.mirror.git_read(oid, args)
    assert "\n" not in str(error.value)


def test_unlanded_work_of_others_cannot_be_read(world):
    oid = world.mirror.fetch()
    work = world.mirror.intake(BUILD, "r001-01", oid, world.bundle(oid, {"secret.txt": "s\n"}))
    with pytest.raises(WrongUse, match="no commit of this history"):
        world.mirror.git_read(oid, ["show", work])


# --- git itself ------------------------------------------------------------------------------------------------------


def test_a_push_is_all_or_nothing_and_only_from_the_expected_value(world):
    head = world.mirror.fetch()
    work = world.mirror.intake(BUILD, "r001-01", head, world.bundle(head, {"x": "x\n"}))
    stale = [Update("refs/heads/main", "1" * 40, work), Update("refs/heads/new", None, work)]
    assert "stale" in world.mirror.push(stale)
    assert git(world.origin, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert world.mirror.push([Update("refs/heads/main", head, work)]) is None


def test_no_key_and_no_git_variable_of_the_surroundings_reaches_git(monkeypatch):
    monkeypatch.setenv("LLM_API_KEY", "sk-secret")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")
    assert "GIT_SSH_COMMAND" in environment(network=True) and "GIT_SSH_COMMAND" not in environment()
    for env in (environment(), environment(network=True)):
        assert not {"LLM_API_KEY", "GIT_DIR"} & set(env) and env["GIT_TERMINAL_PROMPT"] == "0"


def test_a_command_that_hangs_is_killed_and_one_that_floods_is_cut(tmp_path):
    git_on = Git(bare(tmp_path / "r.git", FILES))
    with pytest.raises(RepositoryError, match="did not end within"):
        git_on.run("-c", "alias.hang=!sleep 60", "hang", timeout_s=0.3)
    flood = git_on.run("-c", "alias.flood=!yes", "flood", keep=10)
    assert flood.truncated and flood.out == b"y\ny\ny\ny\ny\n"


@pytest.mark.parametrize(
    ("err", "line"),
    [
        ("remote: protected branch\nerror: failed to push some refs to 'x'\n", "protected branch"),
        ("fatal: unable to access 'https://me:pw@h/x/': nope", "fatal: unable to access 'https://h/x/': nope"),
        ("noise\n\x1b[31mred\n", "noise"),
        ("", ""),
    ],
)
def test_gits_complaint_becomes_one_line_without_credentials(err, line):
    assert reason(err) == line


def test_a_helper_that_complains_after_git_has_ended_hides_nothing_that_git_said():
    """It shares the file of errors, and writes on for a moment: where that lands is not where we read."""
    late = "(i=0; while [ $i -lt 3000 ]; do echo late >&2; i=$((i+1)); done) >/dev/null &"
    for _ in range(10):
        ran = Git().run("-c", f"alias.ends=!echo fatal: what it is >&2; {late} exit 9", "ends", ok=(9,))
        assert ran.err.startswith("fatal: what it is\n")
