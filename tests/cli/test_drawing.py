"""The dashboard as lines of a terminal: whole, exactly as wide as it, and never what a model wants."""

import os
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from told import HOSTILE, a_build, a_large_scene, hand_off, land, plan

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.adapters.stack.dagster_api import Pool
from longshot_dagster.cli import dashboard
from longshot_dagster.cli.dashboard import Screen, Slots
from longshot_dagster.cli.drawing import draw
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core.dashboard import Occupancy, Scene
from longshot_dagster.core.ids import ROOT
from longshot_dagster.core.models import BuildPhase


class Occupied(Slots):
    def __init__(self, occupancy: Occupancy | None) -> None:
        self.occupancy = occupancy

    def look(self) -> Occupancy | None:
        return self.occupancy


def scene_of(ledger: BuildLedger, home: Path, occupancy: Occupancy | None = None) -> Scene:
    watch, screen = BuildWatch(ledger), Screen(Home(home), ledger, "q leaves")
    screen._slots = Occupied(occupancy)
    screen.events(watch.events())
    watch.tally.tokens, watch.tally.tokens_in = 3_000_000, 2_000_000
    return screen.scene(watch.tally, 754)


def drawn(scene: Scene, width: int, height: int) -> list[str]:
    lines = [line.plain for line in draw(scene, width, height, "q leaves")]
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {width}
    assert not [c for line in lines for c in line if unicodedata.category(c) in ("Cc", "Cf")]
    return [line.rstrip() for line in lines]


BUSY = Occupancy(used=9, limit=12, waiting=4, at_work=frozenset({"r001-09-001-01", "f001-01"}))


def test_80_by_24_shows_every_part(tmp_path: Path) -> None:
    lines = drawn(scene_of(a_large_scene(tmp_path), tmp_path, BUSY), 80, 24)
    assert lines[0].startswith(" todo-0001  running  REHEARSAL")
    assert lines[0].endswith("12 min 34 s")
    assert lines[1] == "Build a todo API [/bold]�[2J� 日本語"
    assert lines[2].startswith("main of /srv/t.git")
    assert lines[2].endswith("3,000,000 tokens, $5.00")
    assert lines[3] == "slots    ████████░░  9 of 12 in use by all builds, 4 waiting"
    assert lines[4].startswith("tasks    ██████████  11: 1 landed, 1 landing, 2 at work, 1 conflict, 1 withh")
    assert lines[5].startswith("health   red  test red  sweep 1 of aaaaaaaaaa")
    assert "─ planners ─" in lines[6]
    assert lines[7].startswith("root  round 1  1 landed, 1 landing, 1 conflict, 1 withheld, 1 undone")
    assert lines[8].startswith("  └ r001-09  round 1  1 at work, 1 waiting  Task 9 of root.001 [/bold]")
    assert lines[9] == "fix  round 1  1 at work"
    assert "─ at work ─" in lines[10]
    assert lines[11].startswith("f001-01  Task 1 of fix.001")
    assert any("sweep 1 RED: test" in line for line in lines[13:23])
    assert lines[23] == " q leaves"


def test_160_by_50_stands_side_by_side(tmp_path: Path) -> None:
    lines = drawn(scene_of(a_large_scene(tmp_path), tmp_path, BUSY), 160, 50)
    assert "REHEARSAL: a scripted model answers" in lines[0]
    assert "─ planners ─" in lines[6] and "─ feed ─" in lines[6]
    assert all(" │" in line for line in lines[6:49])
    assert any(line.startswith("r001-09-001-01  Task 1 of r001-09.001") for line in lines)


def test_a_long_line_of_the_feed_takes_a_second_one_beneath_its_text(tmp_path: Path) -> None:
    ledger = a_build(tmp_path)
    [task] = plan(ledger, ROOT, 1, 1)
    hand_off(ledger, task.id, 1100.0)
    scene = replace(scene_of(ledger, tmp_path), feed=(("12:00:00", "word " * 20, "plain"), ("12:00:01", "end", "good")))
    lines = drawn(scene, 80, 24)
    at = lines.index("12:00:00 " + " ".join(["word"] * 14))
    assert lines[at + 1 : at + 3] == [" " * 9 + " ".join(["word"] * 6), "12:00:01 end"]


@pytest.mark.parametrize(("width", "height"), [(40, 12), (79, 13), (119, 30), (120, 16), (300, 90), (39, 11), (10, 3)])
def test_any_size_is_filled_and_never_exceeded(tmp_path: Path, width: int, height: int) -> None:
    drawn(scene_of(a_large_scene(tmp_path), tmp_path, BUSY), width, height)


def test_a_build_that_has_just_begun_and_one_that_nobody_drives(tmp_path: Path) -> None:
    ledger = a_build(tmp_path)
    lines = drawn(scene_of(ledger, tmp_path), 80, 24)
    assert lines[2].endswith("cost unknown")
    assert lines[3] == "slots    not known: Longshot does not answer"
    assert lines[4] == "tasks    none planned yet"
    assert lines[5] == "health   unchecked  main has not been swept yet"
    ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, f"no model {HOSTILE}"))
    assert drawn(scene_of(ledger, tmp_path), 80, 24)[0].startswith(" todo-0001  paused  REHEARSAL  no model [/bold]")


@pytest.mark.parametrize(
    ("occupancy", "words"),
    [
        (Occupancy(0, 50, 0), "░░░░░░░░░░  0 of 50 in use by all builds"),
        (Occupancy(1, 50, 0), "█░░░░░░░░░  1 of 50 in use by all builds"),
        (Occupancy(60, 50, 7), "██████████  60 of 50 in use by all builds, 7 waiting"),
        (Occupancy(0, 0, 7), "0 in use; the limit of pool `sandbox` is 0, nothing starts, 7 waiting"),
        (Occupancy(3, None, 0), "3 in use, no limit"),
    ],
)
def test_slots(tmp_path: Path, occupancy: Occupancy, words: str) -> None:
    assert drawn(scene_of(a_build(tmp_path), tmp_path, occupancy), 80, 24)[3] == f"slots    {words}"


def test_of_many_planners_those_with_work_are_shown(tmp_path: Path) -> None:
    ledger = a_build(tmp_path)
    tasks = plan(ledger, "root", 1, 30, delegated=tuple(range(1, 31)))
    for task in tasks:
        for part in plan(ledger, task.id, 1, 1):
            if task.id != "r001-29":
                hand_off(ledger, part.id)
                land(ledger, part.id)
    lines = drawn(scene_of(ledger, tmp_path), 80, 24)
    assert any("r001-29  round 1  1 waiting" in line for line in lines)
    assert any(line.startswith("… ") and line.endswith("more planners") for line in lines)


def test_without_a_terminal_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longshot_dagster.cli import main

    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        for words in (["watch", "--dashboard"], ["do it", "--dashboard", "--repo", "/no/such"]):
            assert main.run(words) == 2
            assert capsys.readouterr() == (
                "",
                "longshot: --dashboard needs a terminal; without it the build is followed line by line\n",
            )


def test_who_is_at_work_is_read_from_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of this build's iterations, and of single tasks run by hand; not those of others."""
    asked = []

    class Api:
        def __init__(self, *_: object) -> None: ...

        def pool(self, name: str) -> Pool:
            used = (
                ("run-1", "planning.run_worker[r001_02]"),
                ("run-2", "task_result"),
                ("run-3", "run_worker[r001_07]"),
            )
            return Pool(5, used, (("run-1", "run_worker[r001_03]"),))

        def tags(self, runs: list[str]) -> dict[str, dict[str, str]]:
            asked.extend(runs)
            partitions = {"run-1": "b.root.001", "run-2": "b.r001-05", "run-3": "other.root.001"}
            return {r: {"dagster/partition": partitions[r]} for r in runs}

    monkeypatch.setattr(dashboard, "DagsterApi", Api)
    monkeypatch.setattr(dashboard.stack, "running", lambda _: type("Info", (), {"port": 1}))
    slots = Slots(Home(tmp_path), "b")
    assert slots.look() == Occupancy(3, 5, 1, frozenset({"r001-02", "r001-05"}))
    slots._due = 0
    slots.look()
    assert asked == ["run-1", "run-2", "run-3"], "a run's partition never changes"
