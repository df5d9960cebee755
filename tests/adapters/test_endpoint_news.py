"""What a later command says about endpoints reaches the supervisor, by socket only."""

import socket
from pathlib import Path

import pytest

from longshot_dagster.adapters.gateway.endpoint_news import Hearing, tell
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.endpoints import Endpoint

FIRST = Endpoint(name="first", url="http://127.0.0.1:1/v1", api_key="sk-first")
SECOND = Endpoint(name="second", url="http://127.0.0.1:2/v1", api_key="sk-second")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_without_a_supervisor_nothing_happens(home: Home) -> None:
    tell(home, (FIRST,))


def test_the_last_word_counts_and_is_said_once(home: Home) -> None:
    hearing = Hearing(home)
    assert hearing.newest() == ()
    tell(home, (FIRST,))
    tell(home, (FIRST, SECOND))
    assert hearing.newest() == (FIRST, SECOND)
    assert hearing.newest() == ()
    assert (home.runtime / "endpoints.sock").stat().st_mode & 0o077 == 0
    hearing.close()
    home.leave_runtime()


@pytest.mark.parametrize("said", [b"", b"[]", b'{"endpoints": [{"url": 1}]}', b"\xff", b"x" * (2 << 20)])
def test_what_cannot_be_read_changes_nothing(home: Home, said: bytes) -> None:
    hearing = Hearing(home)
    tell(home, (FIRST,))
    with socket.socket(socket.AF_UNIX) as other:
        other.setblocking(False)
        other.connect(str(home.runtime / "endpoints.sock"))
        other.send(said) if said else None
        other.shutdown(socket.SHUT_WR)
    assert hearing.newest() == (FIRST,)
    hearing.close()
    home.leave_runtime()
