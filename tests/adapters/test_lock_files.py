"""Lock files made anew by their own tool, in a sandbox without a network, and landed in the same push."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from repositories import World, bare, files_at, git, trailers

from longshot_dagster.adapters.builds.undoing import Undoing
from longshot_dagster.adapters.landing.lock_files import LockFiles
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.errors import SandboxRefused
from longshot_dagster.core.landing_records import ConcernKind, LandingOutcome, LandingState
from longshot_dagster.core.lock_tools import TOOLS
from longshot_dagster.core.models import BuildPhase
from longshot_dagster.core.settings import Isolation, Settings

LOCK = '{"name": "x", "lockfileVersion": 3, "packages": {"": {"name": "x"}}}\n'
LIBS = {f"libs/{n}/package.json": json.dumps({"name": n, "version": "1.0.0"}) for n in "abc"}
FILES = {"package.json": '{\n  "name": "x",\n  "dependencies": {}\n}\n', "package-lock.json": LOCK, **LIBS}


def with_dependencies(*names: str) -> str:
    return json.dumps({"name": "x", "dependencies": {n: f"file:libs/{n}" for n in names}}, indent=2) + "\n"


class Place(World):
    """A world whose queue makes lock files."""

    def queue(self, provider: object = None) -> LandingQueue:
        made = provider or LocalProvider(self.root / "sandboxes", Isolation.AUTO)
        locks = LockFiles(lambda: made, self.request)
        return LandingQueue(
            self.ledger, self.request, Mirror(self.home, self.request.target), SystemClock(), locks=locks
        )


@pytest.fixture
def a_place(tmp_path: Path):
    def make(files=None, **settings: object) -> Place:
        return Place(tmp_path, bare(tmp_path / "origin.git", files or FILES), Settings(**settings))

    return make


@pytest.fixture
def scripted(monkeypatch):
    """A line of shell in npm's place, where what is tested is not npm."""

    def script(line: str) -> None:
        npm = replace(TOOLS[0], program="sh", command=line, offline="")
        monkeypatch.setattr("longshot_dagster.core.lock_tools.TOOLS", (npm, *TOOLS[1:]))

    return script


def worked(place: Place, names: str = "abc"):
    """Tasks on one base, each adding a dependency and a lock file of its own."""
    base = place.mirror.fetch()
    tasks = [place.task(f"r001-0{i}", ("package.json", f"src/{n}.js")) for i, n in enumerate(names, 1)]
    place.plan(*tasks)
    for task, name in zip(tasks, names, strict=True):
        edits = {"package.json": with_dependencies(name), "package-lock.json": f'{{"of": "{name}"}}\n'}
        place.worked(task, {**edits, f"src/{name}.js": "1\n"}, base=base)
    return tasks


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_npm_makes_one_lock_file_of_three_tasks_dependencies_in_the_same_push(a_place):
    place = a_place()
    worked(place)
    before = place.main()
    outcomes = place.queue().drain()
    assert [o.state for o in outcomes] == [LandingState.LANDED] * 3
    found = files_at(place.origin)
    lock = json.loads(found["package-lock.json"])
    assert lock["packages"][""]["dependencies"] == {n: f"file:libs/{n}" for n in "abc"}
    assert {"libs/a", "libs/b", "libs/c"} <= lock["packages"].keys()
    assert place.log(f"{before}..main")[0] == "Make package-lock.json anew" and len(place.log()) == 5
    assert trailers(place.origin, "main") == [
        f"Longshot-Build: {place.build}",
        "Longshot-Lock-File: package-lock.json",
    ]
    result = git(place.origin, "rev-parse", "main:package-lock.json")
    for outcome in outcomes:
        assert (outcome.resolutions[-1].rung, outcome.resolutions[-1].result) == ("lock-files", result)
        assert not any(c.kind is ConcernKind.LOCK_FILE for c in outcome.concerns)
        assert git(place.origin, "rev-parse", "main") not in outcome.commits
    assert not list((place.root / "sandboxes").glob("sb-*"))
    assert [o.state for o in place.queue().drain()] == [LandingState.LANDED] * 3 and len(place.log()) == 5


WRONG = {
    "echo 'npm error code ENOTCACHED' >&2; exit 1": "npm error code ENOTCACHED",
    "command -v no-such-tool || exit 127": "sh is not in the sandbox",
    "echo '<<<<<<< x' > package-lock.json": "left nothing usable",
    "echo no > package-lock.json": "wrote no JSON",
    "rm package-lock.json": "package-lock.json",
    "ln -sf /etc/passwd package-lock.json": "package-lock.json",
}


def test_a_lock_file_that_cannot_be_made_is_one_concern_and_holds_nothing_up(a_place, scripted):
    place = a_place()
    head, git_there = place.mirror.fetch(), place.mirror.git
    provider = LocalProvider(place.root / "sandboxes", Isolation.AUTO)
    landed = LandingOutcome(task="r001-01", state=LandingState.LANDED, landed_paths=("package.json",))
    for line, why in WRONG.items():
        scripted(line)
        made = LockFiles(lambda: provider, place.request).made_anew(git_there, head, {"r001-01": landed}, 1.0)
        assert made.head == head and made.outcomes["r001-01"].resolutions == ()
        (concern,) = made.outcomes["r001-01"].concerns
        assert concern.kind is ConcernKind.LOCK_FILE and concern.path == "package-lock.json"
        assert why in concern.text and "\n" not in concern.text


def test_without_a_sandbox_the_tasks_land_and_the_reason_is_said(a_place):
    class Refusing:
        name = "none"
        capabilities = LocalProvider(Path("/nonexistent"), Isolation.NONE).capabilities

        def list(self, tags):
            return []

        def create(self, spec):
            raise SandboxRefused("no sandbox here")

    place = a_place()
    worked(place, "a")
    outcomes = place.queue(Refusing()).drain()
    assert [o.state for o in outcomes] == [LandingState.LANDED]
    assert all(any("no sandbox here" in c.text for c in o.concerns) for o in outcomes)


def test_nothing_is_made_where_no_manifest_landed_or_the_rung_is_switched_off(a_place, scripted):
    scripted("echo '{\"made\": 1}' > package-lock.json")
    place = a_place(conflict_rungs="json")
    worked(place, "a")
    assert [o.state for o in place.queue().drain()] == [LandingState.LANDED]
    assert files_at(place.origin)["package-lock.json"] == LOCK.strip()


def test_the_first_lock_file_of_a_project_is_made_where_a_task_had_one_and_a_lost_race_makes_it_once(
    a_place, scripted, monkeypatch
):
    scripted("echo '{\"made\": 1}' > package-lock.json")
    place = a_place({k: v for k, v in FILES.items() if k != "package-lock.json"})
    worked(place, "a")
    queue = place.queue()
    pushes, push = [], queue.mirror.push

    def pushed(updates):
        pushes.append(updates)
        if len(pushes) == 1:
            stranger = git(place.origin, "commit-tree", "-p", "main", "-m", "stranger", "main^{tree}")
            git(place.origin, "update-ref", "refs/heads/main", stranger)
            scripted("exit 1")
        return push(updates)

    monkeypatch.setattr(queue.mirror, "push", pushed)
    (outcome,) = queue.drain()
    assert outcome.state is LandingState.LANDED and len(pushes) == 2
    assert json.loads(files_at(place.origin)["package-lock.json"]) == {"made": 1}
    assert place.log() == ["Make package-lock.json anew", "Do r001-01", "stranger", "by hand"]
    assert outcome.resolutions[-1].ours is None


def test_an_undone_dependency_leaves_the_lock_file_too(a_place, scripted):
    """The stand-in tool writes down what the manifest names."""
    scripted(
        "grep -o 'libs/[a-z]*' package.json | sed 's/.*/\"&\"/' | paste -sd, | sed 's/.*/{\"of\": [&]}/' > package-lock.json"
    )
    place = a_place()
    worked(place, "ab")
    assert {o.state for o in place.queue().drain()} == {LandingState.LANDED}
    assert json.loads(files_at(place.origin)["package-lock.json"]) == {"of": ["libs/a", "libs/b"]}
    place.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "to undo"))
    provider = LocalProvider(place.root / "sandboxes", Isolation.AUTO)
    undoing = Undoing(place.home, place.ledger, SystemClock(), LockFiles(lambda: provider, place.request))
    done = undoing.carry_out(("r001-02",))
    assert json.loads(files_at(place.origin)["package-lock.json"]) == {"of": ["libs/a"]}
    assert place.log()[:2] == ["Make package-lock.json anew", "Undo: Do r001-02"]
    assert done.outcomes[0].resolutions[-1].path == "package-lock.json"
