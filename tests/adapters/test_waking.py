"""A run wakes the sensors: real sockets, and nothing lost when nobody listens."""

import threading
import time
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.waking import Listening, Lookout, socket_path, wake
from longshot_dagster.core.lifecycle import BuildView
from longshot_dagster.core.models import BuildPhase

NEW = BuildView(build="b-1111", phase=BuildPhase.RUNNING)  # its first iteration is due
PAUSED = BuildView(build="b-1111", phase=BuildPhase.PAUSED)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def took(listening: Listening, seconds: float) -> float:
    begun = time.monotonic()
    listening.wait(seconds)
    return time.monotonic() - begun


def test_without_a_daemon_nothing_happens(home: Home) -> None:
    wake(home)
    Lookout(home, lambda: pytest.fail("nobody would hear it")).changed()


def test_a_word_said_before_or_during_the_wait_ends_it_but_not_before_the_sensors_have_rested(home: Home) -> None:
    listening = Listening(home, lambda: False, 0.2)
    try:
        wake(home)
        wake(home)
        assert 0.2 <= took(listening, 60) < 30
        threading.Thread(target=wake, args=(home,)).start()
        assert 0.2 <= took(listening, 60) < 30
        assert took(listening, 0.3) >= 0.3  # both words were heard
    finally:
        listening.close()
    assert not socket_path(home).exists()
    home.leave_runtime()


def test_while_nothing_is_to_be_done_the_wait_goes_on_until_a_word_comes(home: Home) -> None:
    asked: list[float] = []

    def still(waited_s: float) -> bool:
        asked.append(waited_s)
        wake(home)
        return True

    listening = Listening(home, lambda: False, 0.0, still)
    assert 0.1 <= took(listening, 0.1) < 30
    assert len(asked) == 1
    assert asked[0] >= 0.1
    listening.close()
    home.leave_runtime()


def test_the_wait_ends_when_something_is_to_be_done(home: Home) -> None:
    answers = [True, False]
    listening = Listening(home, lambda: False, 0.0, lambda _: answers.pop(0))
    assert took(listening, 0.1) >= 1.0  # however short the first wait was, nobody asks without a pause
    assert answers == []
    listening.close()
    home.leave_runtime()


def test_a_daemon_that_is_to_stop_waits_no_longer(home: Home) -> None:
    listening = Listening(home, lambda: True, 1.0)
    assert took(listening, 60) < 30
    assert socket_path(home).stat().st_mode & 0o077 == 0
    listening.close()
    home.leave_runtime()


def test_what_opens_no_work_wakes_nobody(home: Home) -> None:
    listening = Listening(home, lambda: False, 0.0)
    looked = threading.Event()

    def view() -> BuildView:
        looked.set()
        return PAUSED

    Lookout(home, view, every_s=0.0).changed()
    assert looked.wait(60)
    assert took(listening, 0.2) >= 0.2
    listening.close()
    home.leave_runtime()


def test_a_change_during_a_look_is_looked_at_afterwards(home: Home) -> None:
    listening = Listening(home, lambda: False, 0.0)
    views = [PAUSED, NEW]
    looking, go_on = threading.Event(), threading.Event()

    def view() -> BuildView:
        looking.set()
        assert go_on.wait(60)
        return views.pop(0)

    lookout = Lookout(home, view, every_s=0.0)
    lookout.changed()
    assert looking.wait(60)
    lookout.changed()
    go_on.set()
    assert took(listening, 60) < 30
    assert views == []
    listening.close()
    home.leave_runtime()
