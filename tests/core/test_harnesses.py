"""The coding agents that are built in, and the choices of one that cannot work anywhere."""

import pytest

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.harnesses import HARNESSES, check_harness, default_package, parse_command
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.settings import HarnessName, Settings


def test_every_harness_that_can_be_chosen_is_described() -> None:
    assert set(HARNESSES) == set(HarnessName) - {HarnessName.AUTO}
    assert all(facts.name == name and facts.cannot for name, facts in HARNESSES.items())


def test_what_is_installed_from_npm_has_an_exact_version_that_the_setting_takes() -> None:
    packaged = {name for name in HARNESSES if default_package(name)}
    assert packaged == {"pi", "opencode", "codex", "claude-code"}
    for name in packaged:
        assert Settings(harness_package=default_package(name)).harness_package == HARNESSES[name].pinned
        assert HARNESSES[name].binary and HARNESSES[name].size_mb


def test_what_each_speaks() -> None:
    spoken = {name: facts.api for name, facts in HARNESSES.items()}
    chat = dict.fromkeys(("builtin", "pi", "opencode"), Api.CHAT)
    assert spoken == {**chat, "codex": Api.RESPONSES, "claude-code": Api.MESSAGES, "command": None}


@pytest.mark.parametrize(
    ("text", "argv", "parser"),
    [
        ('["a", "{prompt_file}"]', ("a", "{prompt_file}"), "text"),
        ('{"argv": ["a"], "parser": "codex"}', ("a",), "codex"),
        ("a --file {prompt_file} | tee x", ("bash", "-c", "a --file {prompt_file} | tee x"), "text"),
    ],
)
def test_a_command_is_a_list_an_object_or_a_line_for_a_shell(text: str, argv: tuple[str, ...], parser: str) -> None:
    found = parse_command(text)
    assert (found.argv, found.parser) == (argv, parser)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        " ",
        "[]",
        '["a", 1]',
        '["a", ""]',
        "[oops",
        "{}",
        '{"argv": ["a"], "parser": "mine"}',
        '{"argv": ["a"], "cwd": "/"}',
        "a\0",
        "a" * 9_000,
    ],
)
def test_a_command_that_is_none_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(WrongUse) as refused:
        check_harness(Settings(harness="command", harness_command=wrong))
    assert "HARNESS_COMMAND" in str(refused.value) and "\n" not in str(refused.value)


def test_a_command_is_looked_at_only_where_it_is_used() -> None:
    check_harness(Settings(harness="pi", harness_command="[oops"))


def test_a_package_for_a_harness_that_comes_from_none_is_refused() -> None:
    check_harness(Settings(harness="pi", harness_package="@earendil-works/pi-coding-agent@0.87.1"))
    check_harness(Settings(harness_package="@earendil-works/pi-coding-agent@0.87.1"))
    with pytest.raises(WrongUse, match="HARNESS=builtin is not installed from a package"):
        check_harness(Settings(harness="builtin", harness_package="x@1.0.0"))
