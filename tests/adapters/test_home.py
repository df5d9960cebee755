"""Where an installation's files lie, when somebody else was there first."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.core.errors import WrongUse


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_everything_is_for_its_owner_only(short: Path) -> None:
    home = Home(short / "home")
    folders = [home.builds, home.ui, home.gateway, home.runtime, home.root]
    assert [f.stat().st_mode & 0o077 for f in folders] == [0] * 5


def test_a_home_that_others_can_write_is_not_used(short: Path) -> None:
    root = short / "home"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(WrongUse, match="open to others"):
        UiAccess(Home(root)).token()
    root.chmod(0o755)
    assert UiAccess(Home(root)).token()


def test_a_token_planted_in_an_open_folder_is_not_taken(short: Path) -> None:
    (short / "home" / "ui").mkdir(parents=True)
    (short / "home" / "ui").chmod(0o777)
    (short / "home" / "ui" / "token").write_text("known to somebody else")
    with pytest.raises(WrongUse, match="open to others"):
        UiAccess(Home(short / "home")).token()


def test_a_home_of_somebody_else_is_not_used(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = short / "home"
    root.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: root.stat().st_uid + 1)
    with pytest.raises(WrongUse, match="belongs to somebody else"):
        _ = Home(root).builds


def test_a_link_planted_where_the_sockets_go_is_not_followed(short: Path) -> None:
    home = Home(short / "home")
    place = home.runtime
    place.rmdir()
    (short / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(short / "elsewhere")
    with pytest.raises(WrongUse, match="somebody else"):
        _ = home.runtime


def test_asking_for_a_gateway_that_does_not_run_leaves_no_folder(short: Path) -> None:
    home = Home(short / "home")
    assert not Gateway(home).alive()
    assert not home.has_runtime
    place = home.runtime
    assert home.has_runtime
    place.rmdir()


def test_the_folder_of_sockets_goes_when_nothing_is_served_there(short: Path) -> None:
    home = Home(short / "home")
    place = home.runtime
    (place / "t").mkdir()
    in_use = place / "gateway.sock"
    in_use.touch()
    home.leave_runtime()
    assert place.exists()
    in_use.unlink()
    home.leave_runtime()
    assert not place.exists()


def test_sockets_of_workers_that_nobody_serves_any_more_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ls-") as short:  # a socket's path has at most 107 bytes
        monkeypatch.setattr(tempfile, "tempdir", short)
        home = Home(Path(short) / "home")
        names = [home.runtime / "t" / name / "model.sock" for name in ("served", "left")]
        with socket.socket(socket.AF_UNIX) as served, socket.socket(socket.AF_UNIX) as left:
            for place, path in zip((served, left), names, strict=True):
                path.parent.mkdir(parents=True)
                place.bind(str(path))
                place.listen()
            left.close()  # as a killed gateway leaves it
            home.leave_runtime()
            assert [path.exists() for path in names] == [True, False]
        home.leave_runtime()
        assert not home.has_runtime
