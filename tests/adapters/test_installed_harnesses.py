"""Coding agents that other packages bring: their source travels into the sandbox, and is refused in one line when it cannot."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.sandboxes import worker_archive
from longshot_dagster.adapters.sandboxes.installed_harnesses import brought_harness, harness_facts, installed_harnesses
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.model_apis import Api

_MODULE = '''
"""An agent of theirs."""
import json
from dataclasses import replace

from longshot_worker.harness.interface import Event, Harness, Invocation

class Theirs(Harness):
    name = "theirs"
    api = "messages"
    binary = "sh"

    def prepare(self, request):
        return Invocation(["sh", "-c", "echo made > made.txt; echo '{\\"said\\": \\"done\\"}'"], request.repo)

    def parse(self, line):
        return [Event("text", json.loads(line)["said"]), Event("done")]
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A package `agents_of_theirs` as pip would leave it; importing anything of it ends the test."""
    site = tmp_path / "site"
    (site / "theirs-1.dist-info").mkdir(parents=True)
    (site / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    package = site / "agents_of_theirs"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it is imported outside of a sandbox')\n")
    monkeypatch.syspath_prepend(str(site))
    worker_archive._packed.cache_clear()

    def install(source: str = _MODULE, value: str = "agents_of_theirs.agent:Theirs", *more: str) -> None:
        (package / "agent.py").write_text(source, encoding="utf-8")
        points = "\n".join(["[longshot_dagster.harnesses]", f"Theirs = {value}", *more])
        (site / "theirs-1.dist-info" / "entry_points.txt").write_text(points + "\n")

    return install


def test_a_harness_of_an_installed_package_is_chosen_by_its_name_in_any_case(install: Install) -> None:
    install()
    assert settings.resolve({}, {"harness": "THEIRS"}, {}, None, None).settings.harness == "theirs"
    assert installed_harnesses() == ["theirs"]


def test_what_nobody_brings_is_refused_with_the_names_there_are(install: Install) -> None:
    install()
    known = "is not one of auto, builtin, pi, opencode, codex, claude-code, command, theirs; did you mean theirs"
    with pytest.raises(WrongUse, match=known):
        settings.resolve({}, {"harness": "their"}, {}, None, None)


def test_what_it_speaks_is_known_without_running_it(install: Install) -> None:
    install()
    facts = harness_facts("theirs")
    assert (facts.api, facts.binary, facts.installed) == (Api.MESSAGES, "sh", True)
    assert harness_facts("codex").api is Api.RESPONSES
    install(_MODULE.replace('api = "messages"', 'api: str = "chat"').replace('binary = "sh"', 'binary = "s" + "h"'))
    assert (harness_facts("theirs").api, harness_facts("theirs").binary) == (Api.CHAT, "")


def test_its_source_travels_with_the_worker_and_only_when_it_is_wanted(install: Install) -> None:
    install()
    with_it, without = worker_archive.worker_archive("theirs"), worker_archive.worker_archive()
    names = {name for name in zipfile.ZipFile(BytesIO(with_it)).namelist() if "brought" in name}
    assert names == {"longshot_worker/harness/brought/__init__.py", "longshot_worker/harness/brought/module.py"}
    assert not any("brought" in name for name in zipfile.ZipFile(BytesIO(without)).namelist())
    assert worker_archive.worker_archive("pi") == without


def test_inside_it_works_on_a_task_like_any_other(install: Install, tmp_path: Path) -> None:
    install()
    root, origin = tmp_path / "sandbox", tmp_path / "origin"
    (root / "longshot").mkdir(parents=True)
    origin.mkdir()

    def git(*arguments: str) -> str:
        argv = ["git", "-c", "user.name=a", "-c", "user.email=a@example.invalid", *arguments]
        return subprocess.run(argv, cwd=origin, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet", "--initial-branch=base")
    git("commit", "--quiet", "--allow-empty", "--message=begin")
    git("bundle", "create", "--quiet", str(root / "longshot/in.bundle"), "refs/heads/base")
    order = {"taskId": "t1", "base": git("rev-parse", "HEAD"), "deadlineS": 60, "harness": "theirs"}
    (root / "longshot/order.json").write_text(json.dumps(order))
    (root / "longshot/worker.pyz").write_bytes(worker_archive.worker_archive("theirs"))
    environment = {"PATH": "/usr/bin:/bin", "LONGSHOT_SANDBOX_ROOT": str(root), "HOME": str(tmp_path)}
    argv = [sys.executable, "-I", str(root / "longshot/worker.pyz")]
    subprocess.run(argv, env=environment, check=True, capture_output=True, timeout=60)
    result = json.loads((root / "longshot/out/result.json").read_text())
    assert (result["harnessStatus"], result["summary"], result["status"]) == ("completed", "done", "complete")
    assert result["metrics"]["filesCreated"] == 1


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (_MODULE.replace("import json", "import requests"), "imports requests, and only the standard library"),
        (_MODULE.replace("import json", "from . import other"), "imports ., and only the standard library"),
        (
            _MODULE.replace("def parse", "def parse(self: int) -> int:\n        import numpy.linalg\n\n    def parse"),
            "numpy",
        ),
        (_MODULE.replace("class Theirs", "class Other"), "has no class Theirs"),
        (_MODULE.replace('"messages"', '"grpc"'), "it speaks 'grpc', and there are chat, responses, messages"),
        ("class Theirs(:\n", "invalid syntax"),
        ("match 1:\n    case 1: pass\nclass Theirs: pass\n", "only supported in Python 3.10 and greater"),
        ("#" * 300_000, "is larger than 256 kB"),
        ("x = '\0'", "null bytes"),
    ],
)
def test_one_that_cannot_travel_is_refused_in_one_line(install: Install, source: str, why: str) -> None:
    install(source)
    with pytest.raises(WrongUse) as refused:
        brought_harness("theirs")
    assert (
        why in str(refused.value) and "\n" not in str(refused.value) and str(refused.value).startswith("HARNESS=theirs")
    )


@pytest.mark.parametrize(
    "value",
    [
        "agents_of_theirs:Theirs",
        "nothing_at_all:Theirs",
        "agents_of_theirs.missing:Theirs",
        "agents_of_theirs.agent",
        "sys:Theirs",
    ],
)
def test_what_is_not_one_module_with_a_class_is_refused_in_one_line(install: Install, value: str) -> None:
    install(value=value)
    with pytest.raises(WrongUse, match="HARNESS=theirs cannot go into a sandbox: "):
        brought_harness("theirs")


def test_two_packages_that_bring_the_same_name_are_one_too_many(install: Install) -> None:
    install(_MODULE, "agents_of_theirs.agent:Theirs", "theirs = agents_of_theirs.agent:Other")
    with pytest.raises(WrongUse, match="brought by two packages"):
        brought_harness("theirs")
