"""The backlog's folder and its book on disk: what is read, what is refused, and what survives a death between any two steps."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds import backlog as adapter
from longshot_dagster.adapters.builds import backlog_folder
from longshot_dagster.adapters.builds.backlog import Ask, Backlog, Fate
from longshot_dagster.adapters.builds.backlog_folder import read
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core import backlog_item
from longshot_dagster.core.backlog import ASK_AGAIN_S, SETTLE_S, Start, State
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.models import BuildPhase, BuildRequest, Target, TargetKind
from longshot_dagster.core.settings import Settings

OID = "a" * 40
ROOT = Path(__file__).parents[2]


class SetClock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Place:
    """A home, a folder of items, a clock, and Dagster as far as the backlog asks it."""

    def __init__(self, root: Path, limit: int = 2) -> None:
        self.home = Home(root / "home")
        self.home.root.mkdir(parents=True)
        self.folder = root / "items"
        self.folder.mkdir()
        self.clock = SetClock()
        self.limit = limit
        self.fates: dict[str, Fate] = {}

    @property
    def backlog(self) -> Backlog:
        """As another process would open it."""
        return Backlog(self.home, self.folder, self.limit, 1_000, self.clock)

    def write(self, name: str, request: str = "Build it", **front: object) -> Path:
        lines = "".join(f"{k}: {v}\n" for k, v in front.items())
        path = self.folder / f"{name}.md"
        path.write_text(f"---\n{lines}---\n{request}\n", encoding="utf-8")
        return path

    def fate(self, start: Start) -> Fate:
        return self.fates.get(start.build, Fate("unseen"))

    def turn(self, **more: Any) -> list[Ask]:
        return list(self.backlog.turn(self.fate, **more).asks)

    def settled(self) -> list[Ask]:
        first = self.turn()
        self.clock.time += SETTLE_S
        return first + self.turn()

    def begun(self, ask: Ask) -> None:
        """What `start_build` leaves behind."""
        target = Target(repository="r", url="/r.git", kind=TargetKind.REMOTE, base_branch="main", branch="main")
        Ledger(self.home.builds).build(ask.start.build).save_request(
            BuildRequest(
                build=ask.start.build, request="x", target=target, base=OID, settings=Settings(), created_at=1.0
            )
        )

    def moves(self, ask: Ask, *phases: BuildPhase, reason: str = "") -> None:
        for phase in phases:
            Ledger(self.home.builds).build(ask.start.build).update_state(lambda s, p=phase: s.moved(p, reason))

    def ends(self, ask: Ask) -> None:
        self.moves(ask, BuildPhase.FINALIZING, BuildPhase.FINISHED)

    def standings(self) -> dict[str, tuple[State, str]]:
        return {s.name: (s.state, s.why) for s in self.backlog.look().standings}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_order_names_its_repository_from_the_items_folder(place: Place) -> None:
    place.write("a", repository="../r", priority=2, settings="\n  MAX_WORKERS: 3", land_on="next")
    (ask,) = place.settled()
    assert ask.item == "a.md"
    assert ask.start.order is not None
    assert ask.start.order.model_dump() == {
        "request": "Build it",
        "repository": str(place.folder.parent / "r"),
        "land_on": "next",
        "settings": {"MAX_WORKERS": "3"},
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", ""),
        ("https://git.example/me/api.git", "https://git.example/me/api.git"),
        ("git@git.example:me/api.git", "git@git.example:me/api.git"),
        ("/srv/r.git", "/srv/r.git"),
        ("./r", "{folder}/r"),
        ("there", "{folder}/there"),
    ],
)
def test_what_a_repository_is_called(place: Place, given: str, meant: str) -> None:
    (place.folder / "there").mkdir()
    place.write("a", repository=given)
    (found,) = read(place.folder).items
    assert found.repository == meant.format(folder=place.folder)


MALFORMED = [
    (
        "repository: https://me:sk-secret@git.example/r.git",
        "the URL of the repository on git.example carries a password",
    ),
    ("repository: https://git.example/r.git?private_token=sk-secret", "on git.example carries a password or token"),
    ("repository: 'ext::sh -c id'", "names a git transport that runs programs"),
    ("repository: ~nobody-of-this-name/r", "repository: ~nobody-of-this-name/r is no path: Could not determine home"),
    (f"repository: ./{'a' * 300}", "is no path: File name too long"),
    ("repository: ./circle", "repository: ./circle is no path: Too many levels of symbolic links"),
    ("settings:\n  sandbox_i\u017folation: none", "sandbox_i\u017folation is not a setting"),
    ("cron: every day", "cron: every day is not a schedule: it has five fields"),
    ("settings:\n  MAX_WORKERS: lots", "MAX_WORKERS=lots is not a whole number; give 0 to 1000"),
    ("settings:\n  MAX_WORKER: 1", "MAX_WORKER is not a setting; did you mean MAX_WORKERS?"),
    ("settings:\n  LLM_API_KEY: sk-secret", "LLM_API_KEY is not a setting"),
    ("settings:\n  sandbox-isolation: none", "SANDBOX_ISOLATION is not for an item to decide"),
    ("settings:\n  SANDBOX_NETWORK: open", "SANDBOX_NETWORK is not for an item to decide"),
    ("settings:\n  MAX_TOKENS_PER_BUILD: 1001", "MAX_TOKENS_PER_BUILD=1001 is more than this installation's 1000"),
    ("settings:\n  MAX_TOKENS_PER_BUILD: 0", "MAX_TOKENS_PER_BUILD=0 is more than this installation's 1000"),
]


@pytest.mark.parametrize(("front", "line"), MALFORMED)
def test_a_malformed_item_is_one_line_without_its_secrets_and_the_others_are_built(
    place: Place, front: str, line: str
) -> None:
    (place.folder / "circle").symlink_to("circle")
    (place.folder / "bad.md").write_text(f"---\n{front}\n---\nBuild it\n", encoding="utf-8")
    place.write("good", settings="\n  MAX_TOKENS_PER_BUILD: 999")
    assert [a.item for a in place.settled()] == ["good.md"]
    state, why = place.standings()["bad.md"]
    assert (state, line in why, "\n" in why) == (State.MALFORMED, True, False), why
    assert "secret" not in why + (place.home.root / "backlog.json").read_text(encoding="utf-8")


def test_what_is_no_readable_file_is_one_line_and_never_waited_for(place: Place) -> None:
    (place.folder / "latin.md").write_bytes(b"---\n---\n\xff\xfe")
    (place.folder / "large.md").write_bytes(b"---\n---\n" + b"x" * (600 << 10))
    (place.folder / "link.md").symlink_to("/etc/passwd")
    (place.folder / "folder.md").mkdir()
    (place.folder / "\x1b[31mred.md").write_text("---\n---\nx", encoding="utf-8")
    os.mkfifo(place.folder / "pipe.md")
    place.write("README")
    assert dict(read(place.folder).malformed) == {
        "latin.md": "it is not UTF-8 text",
        "large.md": "it is larger than 512 KB",
        "link.md": "it is a link, which could lead anywhere",
        "folder.md": "it is not a file",
        "pipe.md": "it is not a file",
        "\ufffd[31mred.md": "its name may have letters, digits, spaces and . + - _, at most 100 of them",
    }
    assert read(place.folder).items == ()


def test_a_folder_of_too_many_items_is_read_up_to_a_limit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_folder, "MAX_ITEMS", 3)
    for n in range(5):
        place.write(f"i{n}", f"Build {n}")
    found = read(place.folder)
    assert [i.name for i in found.items] == ["i0.md", "i1.md", "i2.md"]
    assert found.malformed == {"(2 more)": "a backlog has at most 3 items; these are not read"}


def test_no_folder_starts_nothing_and_forgets_nothing(place: Place) -> None:
    place.write("a")
    (ask,) = place.settled()
    place.begun(ask)
    place.folder.rename(place.folder.parent / "elsewhere")
    assert place.turn() == []
    assert place.backlog.look().found.missing == f"there is no folder {place.folder}"
    (place.folder.parent / "elsewhere").rename(place.folder)
    assert place.turn() == []
    assert place.standings() == {"a.md": (State.BUILDING, "")}


def test_a_folder_that_has_moved_holds_the_items_it_held(place: Place) -> None:
    place.write("a")
    (ask,) = place.settled()
    place.begun(ask)
    place.ends(ask)
    place.turn()
    place.folder = place.folder.rename(place.folder.parent / "elsewhere")
    assert place.settled() == []
    assert place.standings() == {"a.md": (State.DONE, "")}


def test_deaths_between_any_two_steps_leave_one_build(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a")
    place.turn()
    place.clock.time += SETTLE_S
    with monkeypatch.context() as dying:
        dying.setattr(adapter, "write_atomically", _dies)
        with pytest.raises(KeyboardInterrupt):
            place.turn()
    (ask,) = place.turn()  # nothing was written down, so nothing had been asked for
    assert place.turn() == []
    place.clock.time += ASK_AGAIN_S
    (again,) = place.turn()  # written down, and then the daemon died before it launched
    assert (again.start.key, again.start.order) == (ask.start.key, ask.start.order)
    place.fates[ask.start.build] = Fate("under way")
    place.clock.time += 3_600
    assert place.turn() == []  # launched, and the run has not come to the ledger yet
    place.begun(ask)
    place.fates.clear()  # Dagster's runs are forgotten, the ledger is not
    assert place.turn() == []
    place.ends(ask)
    assert place.turn() == []
    place.clock.time += 86_400
    assert place.turn() == []


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_build_that_was_cleaned_away_is_not_built_again(place: Place) -> None:
    place.write("a")
    (ask,) = place.settled()
    place.fates[ask.start.build] = Fate("succeeded")
    assert place.turn() == []
    place.fates.clear()
    assert place.turn() == []
    assert place.standings() == {"a.md": (State.DONE, "")}


def test_should_the_book_be_lost_a_build_that_exists_is_met_again(place: Place) -> None:
    place.write("a")
    (ask,) = place.settled()
    place.begun(ask)
    place.turn()
    (place.home.root / "backlog.json").unlink()
    assert place.settled() == []
    assert place.standings() == {"a.md": (State.BUILDING, "")}


def test_an_unreadable_book_starts_nothing_and_says_so(place: Place) -> None:
    place.write("a")
    place.turn()
    (place.home.root / "backlog.json").write_text('{"schema_version": "of a later day"}', encoding="utf-8")
    for look in (place.turn, place.standings):
        with pytest.raises(LedgerError, match="cannot be read, so the backlog starts nothing; mend it, or remove it"):
            look()


@pytest.mark.parametrize(
    ("reason", "stands"),
    [
        ("no endpoint answers", State.PAUSED),
        ("cancelled by hand", State.DONE),
        ("cancelled; longshot resume a-1", State.DONE),
    ],
)
def test_a_paused_build_keeps_its_place_and_a_cancelled_one_gives_it_back(
    place: Place, reason: str, stands: State
) -> None:
    place.limit = 1
    place.write("a", priority=1)
    place.write("b", "Build that")
    (ask,) = place.settled()
    place.begun(ask)
    place.moves(ask, BuildPhase.PAUSED, reason=reason)
    assert bool(place.turn()) is (stands is State.DONE)
    assert place.standings()["a.md"] == (stands, reason)


def test_a_refused_start_says_why_and_a_cancelled_one_is_not_tried_again(place: Place) -> None:
    place.write("a")
    place.write("b", "Build that")
    one, two = place.settled()
    place.fates = {one.start.build: Fate("failed", "no branch 'main'"), two.start.build: Fate("cancelled", "cancelled")}
    assert place.turn() == []
    said = place.standings()
    assert said["a.md"] == (State.REFUSED, "no branch 'main'; again 2027-01-15 08:01 UTC")
    assert said["b.md"] == (State.REFUSED, "cancelled; tried 4 times, again once it is edited")
    place.fates.clear()
    place.clock.time += 60
    (again,) = place.turn()
    assert again.start.key == f"{one.start.build}#2"
    place.clock.time += 1e6
    assert [a.item for a in place.turn()] == ["a.md"]


def test_a_recurring_item_is_started_by_ticks_alone_and_once_after_a_night(place: Place) -> None:
    place.write("n", cron="0 3 * * *")
    assert place.settled() == []
    assert place.standings() == {"n.md": (State.SCHEDULED, "")}
    place.clock.time += 10 * 86_400  # switched off for ten days
    (ask,) = place.turn(ticking=place.clock.time, recurring_only=True)
    assert ask.start.tick == datetime(2027, 1, 25, 3, tzinfo=UTC).timestamp()
    place.begun(ask)
    assert place.turn(ticking=place.clock.time + 60) == []
    place.ends(ask)
    assert place.turn(ticking=place.clock.time + 120) == []
    (next_day,) = place.turn(ticking=place.clock.time + 86_400)
    assert next_day.start.build != ask.start.build


def test_the_schedule_starts_recurring_items_only_and_never_past_a_more_urgent_one(place: Place) -> None:
    place.limit = 1
    place.write("n", "Every minute", cron="* * * * *")
    place.write("a", priority=1)
    place.turn()
    place.clock.time += 60
    assert place.turn(ticking=place.clock.time, recurring_only=True) == []
    assert [a.item for a in place.turn()] == ["a.md"]
    place.clock.time += 1
    place.limit = 2
    assert [a.item for a in place.turn()] == ["n.md"], "the sensor starts a tick that had to wait for room"


@pytest.mark.parametrize(("limit", "why"), [(0, "LONGSHOT_BACKLOG_BUILDS is 0"), (1, "number 1 in the queue; 1 of 1")])
def test_what_waits_says_for_what(place: Place, limit: int, why: str) -> None:
    place.limit = limit
    place.write("a", priority=1)
    asks = place.settled()
    place.write("b", "Build that")
    place.settled()
    assert len(asks) == limit
    state, said = place.standings()["b.md" if limit else "a.md"]
    assert (state, why in said) == (State.WAITING, True), said


def test_looking_changes_nothing(place: Place) -> None:
    place.write("a")
    assert place.standings() == {"a.md": (State.WAITING, "number 1 in the queue; 0 of 2 builds are under way")}
    assert not (place.home.root / "backlog.json").exists()


def test_the_book_says_what_the_running_stack_reads(place: Place) -> None:
    place.turn()
    book = json.loads((place.home.root / "backlog.json").read_text(encoding="utf-8"))
    assert (book["folder"], book["limit"]) == (str(place.folder), 2)


# --- what is shipped ---------------------------------------------------------------------------------------------------


def test_the_backlog_of_this_repository_starts_nothing_by_itself() -> None:
    found = read(ROOT / "backlog")
    assert [(i.name, i.enabled) for i in found.items] == [("example.md", False)]
    assert found.malformed == {}


def test_the_page_about_items_names_every_field_and_its_example_is_one(place: Place) -> None:
    page = (ROOT / "docs" / "backlog.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(backlog_item.FIELDS)
    (example,) = re.findall(r"```markdown\n(.*?)```", page, re.DOTALL)
    (place.folder / "example.md").write_text(example, encoding="utf-8")
    assert read(place.folder).malformed == {}


# --- where it is -------------------------------------------------------------------------------------------------------


def test_which_folder_is_the_backlog(tmp_path: Path) -> None:
    home, here = Home(tmp_path / "home"), tmp_path / "here"
    (here / "backlog").mkdir(parents=True)

    def folder(variables: dict[str, str], beside: Path | None) -> tuple[Path, int, bool]:
        found = settings.backlog(variables, None, home, beside)
        return found.folder, found.builds, found.named

    assert folder({}, None) == (tmp_path / "home/backlog", 2, False)
    assert folder({}, tmp_path) == (tmp_path / "home/backlog", 2, False)
    assert folder({}, here) == (here / "backlog", 2, False)
    named = {"LONGSHOT_BACKLOG": str(tmp_path / "mine"), "LONGSHOT_BACKLOG_BUILDS": "7"}
    assert folder(named, here) == (tmp_path / "mine", 7, True)
    assert settings.backlog(named, None, home).variables == named
    assert Path(settings.backlog({"LONGSHOT_BACKLOG": "mine"}, None, home).variables["LONGSHOT_BACKLOG"]).is_absolute()


@pytest.mark.parametrize("builds", ["-1", "101", "two", "1.5"])
def test_a_number_of_builds_that_is_none_is_refused(tmp_path: Path, builds: str) -> None:
    with pytest.raises(WrongUse, match=r"LONGSHOT_BACKLOG_BUILDS=.* is not a number of builds; give 0 to 100"):
        settings.backlog({"LONGSHOT_BACKLOG_BUILDS": builds}, None, Home(tmp_path))
