"""One recipe for every image: the Dockerfile in the repository is what it writes."""

import re
import shlex
from pathlib import Path

import pytest

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.harnesses import HARNESSES
from longshot_dagster.core.image import NODE_MAJOR, NODE_VERSION, Recipe, dockerfile, recipe

DOCKERFILE = Path(__file__).parents[2] / "sandbox" / "Dockerfile"


def test_the_dockerfile_is_the_recipe() -> None:
    assert DOCKERFILE.read_text("utf-8") == dockerfile(recipe())


def test_it_holds_what_a_worker_and_its_agent_need() -> None:
    made = recipe()
    everything = " ".join(made.commands)
    for program in ("git", "python3", "ripgrep", "fd-find", "jq", "build-essential"):
        assert f" {program} " in everything
    assert made.base.startswith(f"node:{NODE_MAJOR}-")
    assert NODE_VERSION.startswith(f"{NODE_MAJOR}.")
    assert HARNESSES["pi"].pinned in everything
    assert made.workdir == "/workspace"


def test_chosen_harnesses_are_in_it_once_with_exact_versions() -> None:
    made = recipe(("codex", "claude-code", "codex", "builtin"))
    lines = [c for c in made.commands if c.startswith("npm ")]
    assert [shlex.split(line.partition(" && ")[0])[-1] for line in lines] == [
        HARNESSES["codex"].pinned,
        HARNESSES["claude-code"].pinned,
    ]
    assert not [c for c in recipe(("builtin",)).commands if c.startswith("npm ")]
    assert "@earendil-works/pi-coding-agent@0.87.1" in " ".join(
        recipe(("pi",), "@earendil-works/pi-coding-agent@0.87.1").commands
    )


def test_only_the_named_package_runs_an_install_script() -> None:
    for line in recipe(tuple(HARNESSES)).commands:
        if line.startswith("npm "):
            install, rebuild, _ = line.split(" && ")
            assert "--ignore-scripts" in install
            assert shlex.split(install)[-1].startswith(shlex.split(rebuild)[-1] + "@")


def test_a_harness_nobody_knows_has_no_recipe() -> None:
    with pytest.raises(WrongUse, match="no recipe knows the harness 'emacs'"):
        recipe(("emacs",))


def test_values_with_spaces_stay_one_value() -> None:
    assert "ENV A='b c'\n" in dockerfile(Recipe("x", (), {"A": "b c"}))


def test_nobodys_name_or_address_is_in_it() -> None:
    assert not re.search(r"[\w.]+@[\w-]+\.(com|org|net|io)", DOCKERFILE.read_text("utf-8"))
    assert "LABEL" not in dockerfile(recipe(tuple(HARNESSES)))
