"""The contract finds a provider out that claims to isolate and does not.

CONTRACT_SANDBOXES=isolation-off pytest tests/contract/test_sandboxes.py    shows it at length
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_sandboxes
from places import ISOLATION_OFF, Place, opened

WALLS = {
    name: function
    for name, function in vars(test_sandboxes).items()
    if any(mark.name == "wall" for mark in getattr(function, "pytestmark", ()))
}


@pytest.fixture(scope="module")
def unwalled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """SANDBOX_ISOLATION=none in a provider that claims otherwise."""
    with opened(ISOLATION_OFF, tmp_path_factory.mktemp("p")) as place:
        yield place


def test_it_bites(
    unwalled: Place, once: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {name.removeprefix("test_") for name in WALLS if not holds(name, unwalled, once, tmp_path, monkeypatch)} >= {
        "a_path_is_the_same_to_commands_and_to_files",
        "two_sandboxes_share_no_file",
        "no_file_of_the_host_is_read",
        "no_file_of_the_host_is_written",
        "no_process_of_the_host_is_seen",
        "no_process_of_another_sandbox_is_seen",
        "without_network_nobody_is_reached",
        "no_abstract_socket_of_the_host_is_reached",
        "beside_the_allowed_hosts_nobody_is_reached",
    }


def holds(name: str, place: Place, once: Callable[[str], Path], folder: Path, patch: pytest.MonkeyPatch) -> bool:
    own = folder / name
    own.mkdir()
    with place.sandbox(env={"GIVEN": "by the sandbox"}) as shared:
        given: dict[str, Any] = {"place": place, "shared": shared, "once": once, "tmp_path": own, "monkeypatch": patch}
        function = WALLS[name]
        with contextlib.suppress(AssertionError, pytest.fail.Exception):
            function(**{word: given[word] for word in inspect.signature(function).parameters})
            return True
    return False
