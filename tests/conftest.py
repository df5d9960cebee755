"""Shared by all tests: an environment without anybody's settings, and no silent skips in CI."""

import collections
import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

_OURS = ("LONGSHOT_", "LLM_", "SANDBOX_", "FINALIZATION_", "CHECK_", "MAX_", "WORKER_", "MERGE_", "HEALTH_", "HARNESS")
_OURS_EXACT = ("GIT_REPO_URL", "GIT_MAIN_BRANCH", "GIT_BRANCH_PREFIX", "DAGSTER_HOME")


@pytest.fixture(autouse=True)
def _nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name.startswith(_OURS) or name in _OURS_EXACT:
            monkeypatch.delenv(name)
    if "MODAL_SERVER_URL" not in os.environ:  # a test's own server has its own account
        monkeypatch.delenv("MODAL_TOKEN_ID", raising=False)
        monkeypatch.setenv("MODAL_CONFIG_PATH", os.devnull)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A Person")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "person@example.invalid")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be skipped: {report.longrepr}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests of the sandbox contract each provider has passed, and which were left out and why."""
    passed = collections.Counter(
        re.sub(r".*\[([a-z0-9]+(-loopback)?).*", r"\1", report.nodeid)
        for report in terminalreporter.getreports("passed")
        if "contract/test_sandboxes.py" in report.nodeid
    )
    if passed:
        sys.path.append(str(Path(__file__).parent / "contract"))
        left_out = importlib.import_module("places").left_out()
        counts = ", ".join(f"{name} {count}" for name, count in sorted(passed.items()))
        terminalreporter.write_line(f"sandbox contract, tests passed: {counts}")
        for name, why in sorted(left_out.items()):
            terminalreporter.write_line(f"sandbox contract, not checked here: {name}: {why}")
