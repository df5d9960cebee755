"""A Dagster instance of one's own, configured as small and fast as ours."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster_doubles import instance_config

from longshot_dagster.adapters.host.home import Home


@pytest.fixture(scope="session")
def _empty_databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: creating the tables costs more than most tests."""
    directory = tmp_path_factory.mktemp("instance")
    with dg.instance_for_test(temp_dir=str(directory), overrides=instance_config(directory)):
        return directory


@pytest.fixture
def instance(tmp_path: Path, _empty_databases: Path) -> Iterator[dg.DagsterInstance]:
    directory = tmp_path / "dagster"
    shutil.copytree(_empty_databases, directory)
    with dg.instance_for_test(temp_dir=str(directory), overrides=instance_config(directory)) as found:
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")
