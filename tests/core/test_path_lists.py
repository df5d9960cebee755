"""Lists of paths as a setting writes them."""

import pytest

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.path_lists import path_list


@pytest.mark.parametrize(
    ("entry", "path", "covered"),
    [
        ("AGENTS.md", "AGENTS.md", True),
        ("AGENTS.md", "packages/api/AGENTS.md", True),
        ("AGENTS.md", "packages/agents.MD", True),
        ("AGENTS.md", "MY-AGENTS.md", False),
        ("AGENTS.md", "AGENTS.md.txt", False),
        (".claude/", ".claude/settings.json", True),
        (".claude/", ".claude", True),
        ("/.github/", ".github/workflows/ci.yml", True),
        ("/.github/", ".github", True),
        ("/.github/", "templates/.github/workflows/ci.yml", False),
        ("deploy/prod", "deploy/prod/main.tf", True),
        ("deploy/prod", "x/deploy/prod/main.tf", False),
        ("*.config.*", "web/jest.config.mjs", True),
        ("*.config.*", "config/x", False),
        ("infra/*.tf", "infra/a.tf", True),
        ("infra/*.tf", "infra/sub/a.tf", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a+(b)", "a+(b)", True),
        ("x", "x\nodd", False),
    ],
)
def test_what_an_entry_covers(entry, path, covered):
    assert path_list(entry).covers(path) is covered


def test_the_built_in_list_is_asked_for_by_name_and_nothing_by_none():
    assert path_list("default") == path_list(" default , ")
    assert path_list("default").built_in and not path_list("default").covers("default")
    assert not path_list("deploy/").built_in
    assert path_list("none").entries == () and not path_list("").covers("anything")
    assert path_list("default, deploy/ ,deploy/").entries == ("deploy/",)


@pytest.mark.parametrize("entry", ["../x", "a//b", "/", "*", "**/x", "a\\b", "a\x00b", "x" * 501])
def test_an_entry_that_is_no_path_of_a_repository_is_refused(entry):
    with pytest.raises(WrongUse, match="cannot hold"):
        path_list(entry)


def test_an_endless_list_is_refused():
    with pytest.raises(WrongUse, match="more than 200"):
        path_list(",".join(f"p{n}" for n in range(201)))
