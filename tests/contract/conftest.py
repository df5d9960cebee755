"""One provider at a time, one of each for all tests of a file, and nothing left in it afterwards."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import places
import pytest
from places import Place

from longshot_dagster.core.sandbox import Sandbox


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "wall: fails without isolation")
    config.addinivalue_line("markers", "core: checked of every provider, also of those that are checked in short")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        in_short = not any(mark.name == "core" for mark in metafunc.definition.iter_markers())
        names = [name for name in places.places() if not (in_short and name in places.in_short())]
        metafunc.parametrize("place", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with places.opened(request.param, tmp_path_factory.mktemp("p")) as place:
        yield place


@pytest.fixture(scope="module")
def shared(place: Place) -> Iterator[Sandbox]:
    """For tests that ask questions, and keep to files of their own."""
    with place.sandbox(env={"GIVEN": "by the sandbox"}) as sandbox:
        yield sandbox


@pytest.fixture
def once() -> Iterator[Callable[[str], Path]]:
    """Paths of this host that nobody else uses and that are gone afterwards, whatever a sandbox does to them."""
    made: list[Path] = []

    def path(folder: str) -> Path:
        made.append(Path(folder) / f"longshot-contract-{uuid.uuid4().hex}")
        return made[-1]

    yield path
    for one in made:
        one.unlink(missing_ok=True)
