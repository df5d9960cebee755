"""The backlog's sensor and schedule, evaluated on an instance of their own: what they launch, and that it is launched once."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_dagster.adapters.host import cron
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core.backlog import ASK_AGAIN_S, SETTLE_S
from longshot_dagster.core.models import BuildRequest, Target, TargetKind
from longshot_dagster.core.settings import Settings
from longshot_dagster.definitions import defs
from longshot_dagster.defs import backlog
from longshot_dagster.defs.resources import LongshotResource


class SetClock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    found = SetClock()
    monkeypatch.setattr(backlog, "CLOCK", found)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "items"
    found.mkdir()
    monkeypatch.setenv("LONGSHOT_BACKLOG", str(found))
    monkeypatch.setenv("LONGSHOT_BACKLOG_BUILDS", "2")
    return found


def write(folder: Path, name: str, request: str = "Build it", **front: object) -> None:
    lines = "".join(f"{k}: {v}\n" for k, v in front.items())
    (folder / f"{name}.md").write_text(f"---\n{lines}---\n{request}\n", encoding="utf-8")


def tick(home: Home, instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    resources = {"longshot": LongshotResource(home=str(home.root))}
    found = backlog.backlog_sensor(dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources))
    assert isinstance(found, dg.SensorResult)
    return found


def minute(home: Home, instance: dg.DagsterInstance, at: float) -> Any:
    context = dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=datetime.fromtimestamp(at, UTC),
        resources={"longshot": LongshotResource(home=str(home.root))},
    )
    with context:  # unlike a sensor's, it opens an instance of its own
        return backlog.recurring_backlog(context)


def settled(home: Home, instance: dg.DagsterInstance, clock: SetClock) -> list[dg.RunRequest]:
    tick(home, instance)
    clock.time += SETTLE_S
    return list(tick(home, instance).run_requests or ())


def launched(
    instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus, **tags: str
) -> dg.DagsterRun:
    """The run of `request` as the daemon creates it."""
    run = dg.DagsterRun(
        job_name="start_build", run_config=request.run_config, tags={**request.tags, **tags}, status=status
    )
    return instance.add_run(run)


def begun(home: Home, build: str) -> None:
    target = Target(repository="r", url="/r.git", kind=TargetKind.REMOTE, base_branch="main", branch="main")
    Ledger(home.builds).build(build).save_request(
        BuildRequest(build=build, request="x", target=target, base="a" * 40, settings=Settings(), created_at=1.0)
    )


def test_an_item_becomes_a_launch_of_start_build_that_dagster_accepts(
    home: Home, instance: dg.DagsterInstance, folder: Path, clock: SetClock
) -> None:
    write(folder, "todo", repository="/srv/r.git", land_on="next", settings="\n  MAX_WORKERS: 3")
    (request,) = settled(home, instance, clock)
    build = request.tags["longshot/build"]
    assert request.run_config["ops"]["start_build"]["config"] == {
        "request": "Build it",
        "repository": "/srv/r.git",
        "land_on": "next",
        "build": build,
        "settings": {"MAX_WORKERS": "3"},
    }
    assert dg.validate_run_config(defs.resolve_job_def("start_build"), request.run_config)
    assert request.run_key == f"{build}#1"
    assert request.tags["longshot/backlog"] == "todo.md"
    assert request.tags["dagster/retry_strategy"] == "ALL_STEPS"


def test_a_daemon_that_dies_at_any_point_leaves_one_build(
    home: Home, instance: dg.DagsterInstance, folder: Path, clock: SetClock
) -> None:
    write(folder, "todo")
    (request,) = settled(home, instance, clock)
    clock.time += ASK_AGAIN_S  # it died before it had launched anything
    (again,) = tick(home, instance).run_requests or ()
    assert (again.run_key, again.run_config) == (request.run_key, request.run_config)
    run = launched(instance, again, dg.DagsterRunStatus.STARTED)  # it died once it had
    clock.time += ASK_AGAIN_S
    assert not tick(home, instance).run_requests
    instance.report_run_failed(run)  # the run's process died before the build was there, and Dagster starts it again
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    assert not tick(home, instance).run_requests
    launched(instance, again, dg.DagsterRunStatus.STARTED)
    begun(home, request.tags["longshot/build"])
    for _ in range(3):
        clock.time += 86_400
        assert not tick(home, instance).run_requests


def test_a_start_that_dagster_gave_up_is_told_and_asked_for_under_a_new_key(
    home: Home, instance: dg.DagsterInstance, folder: Path, clock: SetClock
) -> None:
    write(folder, "todo")
    (request,) = settled(home, instance, clock)
    run = launched(instance, request, dg.DagsterRunStatus.STARTED)
    instance.report_run_failed(run, message="longshot_dagster.core.errors.WrongUse: /r.git has no branch 'main'")
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})
    said = tick(home, instance)
    assert not said.run_requests and said.skip_reason and said.skip_reason.skip_message
    assert "1 refused; todo.md: " in said.skip_reason.skip_message
    assert "/r.git has no branch 'main'; again 2027-01-15" in said.skip_reason.skip_message
    clock.time += 60
    (again,) = tick(home, instance).run_requests or ()
    assert (again.run_key, again.tags["longshot/build"]) == (
        f"{request.tags['longshot/build']}#2",
        request.tags["longshot/build"],
    )


def test_a_malformed_item_is_in_the_skip_reason_and_logged_once(
    home: Home, instance: dg.DagsterInstance, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "bad", prio="1")
    line = "bad.md: line 2: prio is not a field; did you mean priority?"
    first = tick(home, instance)
    assert first.skip_reason is not None
    assert first.skip_reason.skip_message == f"1 malformed; {line}"
    assert line in capsys.readouterr().err
    assert tick(home, instance, first.cursor).cursor == first.cursor
    assert line not in capsys.readouterr().err


def test_a_book_that_cannot_be_read_stops_the_backlog_and_says_so(
    home: Home, instance: dg.DagsterInstance, folder: Path
) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "backlog.json").write_text("{", encoding="utf-8")
    said = tick(home, instance).skip_reason
    assert said is not None and said.skip_message and "the backlog starts nothing" in said.skip_message
    skipped = minute(home, instance, 1_800_000_000.0)
    assert isinstance(skipped, dg.SkipReason) and skipped.skip_message == said.skip_message


def test_without_a_folder_there_is_nothing_to_do(home: Home, instance: dg.DagsterInstance) -> None:
    os.environ.pop("LONGSHOT_BACKLOG", None)
    said = tick(home, instance).skip_reason
    assert said is not None and said.skip_message == f"no backlog: there is no folder {home.root}/backlog"


def test_the_schedule_starts_each_tick_once_and_not_all_that_were_missed(
    home: Home, instance: dg.DagsterInstance, folder: Path, clock: SetClock
) -> None:
    write(folder, "nightly", cron='"* * * * *"')
    assert settled(home, instance, clock) == []
    clock.time += 600  # ten ticks were missed; Dagster makes up for the last five of its own
    asked = []
    for behind in (240, 180, 120, 60, 0):
        found = minute(home, instance, clock.time - behind)
        asked += found if isinstance(found, list) else []
    (request,) = asked
    assert request.tags["longshot/backlog"] == "nightly.md"
    begun(home, request.tags["longshot/build"])
    clock.time += 60
    assert isinstance(minute(home, instance, clock.time), dg.SkipReason), "never two builds of one item at once"
    assert not tick(home, instance).run_requests


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["*", "*/7", "5", "0,30", "10-20/3"]),
    st.sampled_from(["*", "*/5", "3", "0,12", "22-23"]),
    st.sampled_from(["*", "1", "31"]),
    st.sampled_from(["*", "2,7", "*/3"]),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)),
)
def test_an_item_ticks_when_a_schedule_of_dagsters_own_would(
    minutes: str, hour: str, day: str, month: str, now: datetime
) -> None:
    from dagster._utils.schedules import cron_string_iterator

    expression = f"{minutes} {hour} {day} {month} *"
    theirs = (t.timestamp() for t in cron_string_iterator(now.timestamp(), expression, "UTC"))
    expected = next(t for t in theirs if t > now.timestamp())
    assert cron.following(expression, now.timestamp()) == expected
    assert cron.latest(expression, expected + 59) == expected
    assert cron.latest(expression, expected - 1) <= now.timestamp()
