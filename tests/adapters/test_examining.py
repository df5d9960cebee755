"""What `longshot doctor` looks at, one thing at a time: well, or what to do about it."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
from model_double import Reply, says, serving
from pydantic import SecretStr
from repositories import bare, git

from longshot_dagster.adapters.builds import examining
from longshot_dagster.adapters.builds.examining import (
    examine_endpoints,
    examine_home,
    examine_sandbox,
    examine_stack,
    examine_versions,
    leaving_no_folder,
)
from longshot_dagster.adapters.builds.examining_repository import examine_repository
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import lock_path
from longshot_dagster.adapters.settings import resolve
from longshot_dagster.adapters.stack.stack import StackInfo, save_info
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.findings import Finding, Standing
from longshot_dagster.version import __version__

OK, TO_DO, LEFT_OUT = Standing
KEY = "sk-secret"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def by_subject(found: list[Finding]) -> dict[str, Finding]:
    return {f.subject: f for f in found}


class TestVersions:
    def test_what_is_installed_here_will_do(self) -> None:
        found = by_subject(examine_versions())
        assert {f.standing for f in found.values()} == {OK}
        assert set(found) == {"longshot", "python", "git", "dagster"}
        assert __version__ in found["longshot"].what

    @pytest.mark.parametrize(
        ("says_", "what"),
        [(None, "git is not installed, or not on PATH"), ("git version 2.30.2", "git version 2.30.2 is too old")],
    )
    def test_git_is_missing_or_old(
        self, says_: str | None, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if says_:
            (tmp_path / "git").write_text(f"#!/bin/sh\necho {says_}\n")
            (tmp_path / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        found = by_subject(examine_versions())["git"]
        assert found == Finding("git", TO_DO, what, "install git 2.38 or newer")


class TestHome:
    def test_a_home_that_was_not_there_is_well_and_gone_again(self, home: Home) -> None:
        with leaving_no_folder(home):
            found = examine_home(home)
        assert {f.standing for f in found} == {OK}
        assert [f.subject for f in found] == ["home", "dagster home", "disk", "sockets"]
        assert not home.root.exists()

    def test_what_a_home_holds_stays(self, home: Home) -> None:
        (home.builds / "b-1").mkdir()
        with leaving_no_folder(home):
            examine_home(home)
        assert (home.root / "builds" / "b-1").is_dir()

    def test_a_home_below_a_file_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (found,) = examine_home(Home(tmp_path / "file" / "home"))
        assert found.standing is TO_DO
        assert "cannot write below LONGSHOT_HOME" in found.what

    def test_too_little_room(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(examining, "MIN_FREE_BYTES", 1 << 60)
        found = by_subject(examine_home(home))["disk"]
        assert found.standing is TO_DO
        assert "longshot clean" in found.remedy


class TestStack:
    def test_a_taken_port_is_passed_over(self, home: Home) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            (found,) = examine_stack(home, port)
        assert found.standing is OK
        assert f"{port} is taken by another program" in found.what

    @pytest.mark.parametrize(("version", "standing"), [(__version__, OK), ("0.0.1", TO_DO)])
    def test_a_stack_of_another_version_must_go_down(self, home: Home, version: str, standing: Standing) -> None:
        import fcntl

        home.root.mkdir()
        save_info(home, StackInfo(pid=os.getpid(), port=3456, version=version, started=1.0, ready=True))
        with lock_path(home).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            held.write(str(os.getpid()))
            held.flush()
            (found,) = examine_stack(home, 3456)
        assert found.standing is standing
        assert ("longshot down" in found.remedy) is (standing is TO_DO)


class TestSandbox:
    def test_it_is_made_used_and_ended(self, home: Home) -> None:
        found = by_subject(examine_sandbox(home, resolve({}, {}, {}, None, None)))
        assert found["sandbox"].standing is OK
        assert "made, used and ended in" in found["sandbox"].what
        assert found["bubblewrap"].standing is OK
        assert not list(home.sandboxes.iterdir())

    def test_a_setting_that_cannot_be_kept_is_to_do(self, home: Home) -> None:
        flags = {"sandbox_isolation": "none", "sandbox_network": "allowlist"}
        (found,) = examine_sandbox(home, resolve({}, flags, {}, None, None))
        assert found.standing is TO_DO
        assert "SANDBOX_NETWORK=allowlist (command line) cannot be enforced" in found.what


class TestEndpoints:
    def test_each_is_asked_once_and_says_what_is_wrong(self, home: Home) -> None:
        def script(request: dict[str, object], number: int) -> Reply:
            return says("ok")

        def without(request: dict[str, object], number: int) -> Reply:
            return Reply(404, {"error": {"message": f"no such model; your key is {KEY}"}})

        def strict(request: dict[str, object], number: int) -> Reply:
            return Reply(401, {"error": {"message": f"bad key {KEY}"}})

        with (
            serving(script, ["nice", "other"]) as well,
            serving(script, ["other"]) as hidden,
            serving(strict, ["nice"]) as closed,
            serving(without, ["other"]) as poor,
            socket.socket() as nobody,
        ):
            nobody.bind(("127.0.0.1", 0))
            urls = {"well": well.url, "hidden": hidden.url, "closed": closed.url, "poor": poor.url}
            urls["dead"] = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            endpoints = [Endpoint(name=n, url=f"{u}/v1", api_key=SecretStr(KEY)) for n, u in urls.items()]
            found = examine_endpoints(home, endpoints, "nice")
            asked = [(r["model"], r["max_tokens"]) for r in well.requests]
        assert asked == [("nice", 16)]
        for finding, standing, *words in zip(
            found,
            (OK, OK, TO_DO, TO_DO, TO_DO),
            ("well (127.0.0.1:", "though it does not list it", "refused the key (HTTP 401)", "no such model", "dead ("),
            ("nice answers in", "nice answers in", "closed (", "it lists other", "cannot be reached"),
            strict=True,
        ):
            assert finding.standing is standing
            assert all(word in finding.what for word in words)
            assert bool(finding.remedy) is (standing is TO_DO)
            assert KEY not in finding.what + finding.remedy

    def test_a_checkout_full_of_modules_gets_neither_keys_nor_a_say(
        self, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("argparse.py", "aiohttp.py", "longshot_dagster/__init__.py"):
            (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "checkout" / name).write_text(f"open({str(tmp_path / 'stolen')!r}, 'w').close()\n")
        monkeypatch.chdir(tmp_path / "checkout")
        with serving(lambda request, number: says("ok"), ["nice"]) as model:
            endpoint = Endpoint(name="e", url=f"{model.url}/v1", api_key=SecretStr(KEY))
            (found,) = examine_endpoints(home, [endpoint], "nice")
        assert found.standing is OK
        assert not (tmp_path / "stolen").exists()

    def test_half_a_key_and_one_among_the_models_are_not_shown_either(self, home: Home) -> None:
        def page(request: dict[str, object], number: int) -> Reply:
            return Reply(404, f"<p>{'x' * (397 - len(KEY) // 2)}{KEY}".encode())

        with serving(page, [f"model-of-{KEY}"]) as model:
            endpoint = Endpoint(name="e", url=f"{model.url}/v1", api_key=SecretStr(KEY))
            (found,) = examine_endpoints(home, [endpoint], "nice")
        assert "it lists model-of-[key]" in found.what
        assert KEY[: len(KEY) // 2] not in found.what + found.remedy

    def test_none_is_configured(self, home: Home) -> None:
        (found,) = examine_endpoints(home, (), "nice")
        assert (found.standing, found.what) == (TO_DO, "no model endpoint is configured")


class TestRepository:
    def test_its_own_settings_are_seen_and_nothing_is_pushed(self, tmp_path: Path) -> None:
        origin = bare(tmp_path / "r.git", {"README": "x\n", ".longshot.toml": "max_workers = 7\n"})
        refs = git(origin, "for-each-ref")
        looked = examine_repository(str(origin), resolve({}, {}, {}, None, None), None)
        assert looked.target_toml == "max_workers = 7\n"
        assert [f.standing for f in looked.findings] == [OK]
        assert git(origin, "for-each-ref") == refs

    def test_none_is_named(self) -> None:
        (found,) = examine_repository("", resolve({}, {}, {}, None, None), None).findings
        assert found.standing is LEFT_OUT

    def test_one_that_refuses_even_a_tried_push(self, tmp_path: Path) -> None:
        origin = bare(tmp_path / "r.git", {"README": "x\n"})
        port = str(_free_port())
        daemon = ["git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", "--export-all"]
        process = subprocess.Popen([*daemon, f"--base-path={tmp_path}", str(tmp_path)], stderr=subprocess.DEVNULL)
        try:
            url = f"git://127.0.0.1:{port}/r.git"
            _wait_for(int(port))
            (found,) = examine_repository(url, resolve({}, {}, {}, None, None), None).findings
        finally:
            process.terminate()
            process.wait()
        assert origin.exists()
        assert found.standing is TO_DO
        assert f"{url} cannot be pushed to: git push: " in found.what


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return
        except OSError:
            continue
    raise AssertionError("git daemon does not listen")
