"""Where settings come from: precedence, honest origins, and one line for every mistake."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from longshot_dagster.adapters import settings, settings_pages
from longshot_dagster.adapters.settings import Resolved, resolve, with_target
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.settings import Isolation, MergeStrategy, Origin, Settings

ROOT = Path(__file__).parents[2]


def resolved(
    tmp_path: Path,
    *,
    launch: dict[str, Any] | None = None,
    flags: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    dotenv: str = "",
    toml: str | None = None,
) -> Resolved:
    path = tmp_path / ".env"
    path.write_text(dotenv, encoding="utf-8")
    return resolve(launch or {}, flags or {}, env or {}, path, toml)


LAYERS = [
    (Origin.LAUNCH, {"launch": {"max_workers": 1}}),
    (Origin.FLAG, {"flags": {"max_workers": "2"}}),
    (Origin.ENVIRONMENT, {"env": {"MAX_WORKERS": "3"}}),
    (Origin.DOTENV, {"dotenv": "MAX_WORKERS=4\n"}),
    (Origin.TARGET, {"toml": "max_workers = 5\n"}),
]


@pytest.mark.parametrize("strongest", range(len(LAYERS)))
def test_a_stronger_source_wins_and_is_named(tmp_path: Path, strongest: int) -> None:
    given: dict[str, Any] = {}
    for _, layer in LAYERS[strongest:]:
        given |= layer
    found = resolved(tmp_path, **given)
    assert (found.settings.max_workers, found.origins) == (strongest + 1, {"max_workers": LAYERS[strongest][0]})


def test_nothing_set_is_all_default_and_has_no_origin(tmp_path: Path) -> None:
    assert resolved(tmp_path) == Resolved(Settings(), {})


@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_value_is_not_set(tmp_path: Path, empty: str) -> None:
    found = resolved(tmp_path, env={"MERGE_STRATEGY": empty}, dotenv="MERGE_STRATEGY=squash\n")
    assert found.settings.merge_strategy is MergeStrategy.SQUASH


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("yes", True), ("False", False), ("0", False), ("no", False)]
)
def test_truth_has_six_spellings(tmp_path: Path, text: str, value: bool) -> None:
    assert resolved(tmp_path, env={"FINALIZATION_ENABLED": text}).settings.finalization_enabled is value


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"env": {"MAX_WORKERS": "fifty"}}, "MAX_WORKERS=fifty (environment) is not a whole number; give 0 to 1000"),
    ({"env": {"MAX_WORKERS": "5000"}}, "MAX_WORKERS=5000 (environment) is out of range; give 0 to 1000"),
    ({"env": {"MAX_WORKERS": "1e3"}}, "MAX_WORKERS=1e3 (environment) is not a whole number; give 0 to 1000"),
    ({"flags": {"max_workers": "-1"}}, "MAX_WORKERS=-1 (command line) is out of range; give 0 to 1000"),
    ({"env": {"LLM_TEMPERATURE": "nan"}}, "LLM_TEMPERATURE=nan (environment) is not a number; give 0 to 2"),
    (
        {"env": {"SANDBOX_CPU_CORES": "0"}},
        "SANDBOX_CPU_CORES=0 (environment) is out of range; give more than 0, at most 256",
    ),
    (
        {"dotenv": "MERGE_STRATEGY=rebas\n"},
        "MERGE_STRATEGY=rebas (.env) is not one of fast-forward, rebase, merge-commit, squash; did you mean rebase?",
    ),
    (
        {"env": {"FINALIZATION_ENABLED": "on!"}},
        "FINALIZATION_ENABLED=on! (environment) is neither true nor false; give true or false",
    ),
    (
        {"dotenv": "FINALIZATION_MAX_ATEMPTS=2\n"},
        "FINALIZATION_MAX_ATEMPTS (.env) is not a setting; did you mean FINALIZATION_MAX_ATTEMPTS?",
    ),
    (
        {"env": {"FINALIZATION_MAX_ATEMPTS": "2"}},
        "FINALIZATION_MAX_ATEMPTS (environment) is not a setting; did you mean FINALIZATION_MAX_ATTEMPTS?",
    ),
    ({"env": {"LLM_MODLE": "x"}}, "LLM_MODLE (environment) is not a setting; did you mean LLM_MODEL?"),
    (
        {"env": {"LONGSHOT_FRUIT_BASKET_NAME": "x"}},
        "LONGSHOT_FRUIT_BASKET_NAME (environment) is not a setting; .env.example lists them all",
    ),
    (
        {"env": {"GIT_MAIN_BRANCH": "a b"}},
        "GIT_MAIN_BRANCH=a b (environment) is not part of a legal git branch name",
    ),
    ({"launch": {"llm_modell": "x"}}, "LLM_MODELL (launch field) is not a setting; did you mean LLM_MODEL?"),
    ({"toml": "max_worker = 3"}, "MAX_WORKER (.longshot.toml) is not a setting; did you mean MAX_WORKERS?"),
    (
        {"toml": "llm_api_key = 'sk-secret'"},
        "LLM_API_KEY (.longshot.toml) looks like a secret, and a repository is no place for one; "
        "take it out and set it in the environment or .env",
    ),
    (
        {"toml": "sandbox_isolation = 'none'"},
        "SANDBOX_ISOLATION (.longshot.toml) is not for a repository to decide; set it in the environment or .env",
    ),
    ({"toml": "max_workers = 2.5"}, "MAX_WORKERS=2.5 (.longshot.toml) is not a whole number; give 0 to 1000"),
    ({"env": {"LLM_PRICE_IN": "cheap"}}, "LLM_PRICE_IN=cheap (environment) is not a number; give at least 0"),
    ({"env": {"LLM_PRICE_OUT": "-1"}}, "LLM_PRICE_OUT=-1 (environment) is out of range; give at least 0"),
    (
        {"toml": "llm_price_in = 0"},
        "LLM_PRICE_IN (.longshot.toml) is not for a repository to decide; set it in the environment or .env",
    ),
    ({"toml": "check_test = 3"}, "CHECK_TEST=3 (.longshot.toml) is not a text"),
    (
        {"dotenv": "GIT_TOKEN=x\n"},
        "GIT_TOKEN (.env) is not a setting; git asks your credential helper for repositories that need one",
    ),
]


@pytest.mark.parametrize(("given", "line"), MISTAKES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, given: dict[str, Any], line: str) -> None:
    with pytest.raises(WrongUse) as raised:
        resolved(tmp_path, **given)
    assert str(raised.value) == line


def test_a_broken_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"\.longshot\.toml of the target is not TOML"):
        resolved(tmp_path, toml="max_workers = = 3")


@pytest.mark.parametrize(
    "name", ["GIT_DIR", "GIT_SSH_COMMAND", "GIT_AUTHOR_NAME", "GIT_BRANCH", "GIT_TOKEN", "LLM_CACHE", "CHECKPOINTS_DIR"]
)
def test_names_of_other_programs_in_the_environment_are_left_alone(tmp_path: Path, name: str) -> None:
    assert resolved(tmp_path, env={name: "x"}) == Resolved(Settings(), {})


@pytest.mark.parametrize(
    "line", ["SANDBOX_ISOLATION=none", "LONGSHOT_HOME=here", "LLM_BASE_URL=https://a.example", "CHECK_TEST=${PATH}"]
)
def test_a_dotenv_that_came_with_a_repository_decides_no_more_than_the_repository(tmp_path: Path, line: str) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"MAX_WORKERS=4\n{line}\n", encoding="utf-8")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert settings.resolve({}, {}, {}, dotenv, None).settings.max_workers == 4
    dotenv.write_text(f"MAX_WORKERS=5\n{line}\n", encoding="utf-8")
    subprocess.run(["git", "-C", tmp_path, "add", ".env"], check=True)
    with pytest.raises(WrongUse, match="is not for a repository to decide, and git tracks this file"):
        settings.resolve({}, {}, {}, dotenv, None)
    dotenv.write_text("MAX_WORKERS=6\n", encoding="utf-8")
    assert settings.resolve({}, {}, {}, dotenv, None).settings.max_workers == 6


def test_a_dotenv_may_hold_the_rest_of_an_application(tmp_path: Path) -> None:
    found = resolved(tmp_path, dotenv="DATABASE_URL=x\nexport MAX_WORKERS='7' # seven\n")
    assert found.settings.max_workers == 7


class TestTarget:
    def test_lies_below_everything_a_person_set_and_above_defaults(self, tmp_path: Path) -> None:
        found = with_target(resolved(tmp_path, env={"MAX_WORKERS": "3"}), "max_workers = 9\ncheck_test = 'make t'\n")
        assert (found.settings.max_workers, found.settings.check_test) == (3, "make t")
        assert found.origins == {"max_workers": Origin.ENVIRONMENT, "check_test": Origin.TARGET}

    def test_a_repository_cannot_unlock_the_sandbox(self, tmp_path: Path) -> None:
        with pytest.raises(WrongUse, match="not for a repository to decide"):
            with_target(resolved(tmp_path), "SANDBOX_NETWORK = 'open'")

    def test_a_repository_cannot_lift_what_a_build_may_cost(self, tmp_path: Path) -> None:
        with pytest.raises(WrongUse, match="not for a repository to decide"):
            with_target(resolved(tmp_path), "max_tokens_per_build = 0")


def test_a_price_that_nobody_set_is_unknown_wherever_it_travels(tmp_path: Path) -> None:
    asked = resolved(tmp_path, env={"LLM_PRICE_IN": "0.6"}, dotenv="LLM_PRICE_OUT=\n")
    assert (asked.settings.llm_price_in, asked.settings.llm_price_out) == (0.6, None)
    assert settings.launched(*settings.as_launch(asked)) == asked


def test_settings_of_the_process_say_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("LONGSHOT_UI_PORT=4000\nLLM_BASE_URL=https://a.example\n", encoding="utf-8")
    found = settings.process_origins({"LLM_BASE_URL": "https://b.example"}, path)
    assert set(found) == set(settings.PROCESS_NAMES)
    assert found["LLM_BASE_URL"] == ("https://b.example", Origin.ENVIRONMENT)
    assert found["LONGSHOT_UI_PORT"] == ("4000", Origin.DOTENV)
    assert found["LONGSHOT_HOME"] == ("~/.longshot", Origin.DEFAULT)


class TestLaunched:
    """What `start_build` makes of its launch fields, with and without a command line in front."""

    def test_fields_win_over_the_environment_of_the_code_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MAX_WORKERS", "3")
        monkeypatch.setenv("LLM_MODEL", "from-the-stack")
        found = settings.launched({"max_workers": 5}, {})
        assert (found.settings.max_workers, found.settings.llm_model) == (5, "from-the-stack")
        assert found.origins == {"max_workers": Origin.LAUNCH, "llm_model": Origin.ENVIRONMENT}

    def test_the_dotenv_of_longshot_up_lies_below_its_environment(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        dotenv = tmp_path / ".env"
        dotenv.write_text("MAX_WORKERS=4\nLLM_MODEL=m\nLLM_API_KEY=sk-very-secret\n", encoding="utf-8")
        told = settings.inheritable(dotenv)
        assert "secret" not in told
        monkeypatch.setenv(settings.INHERITED_DOTENV, told)
        monkeypatch.setenv("MAX_WORKERS", "3")
        found = settings.launched({}, {})
        assert (found.settings.max_workers, found.settings.llm_model) == (3, "m")
        assert found.origins == {"max_workers": Origin.ENVIRONMENT, "llm_model": Origin.DOTENV}

    def test_the_command_line_sends_everything_and_its_origins_stay_true(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked = resolved(tmp_path, flags={"max_workers": "2"}, dotenv="HARNESS=builtin\n")
        monkeypatch.setenv("MAX_WORKERS", "9")
        monkeypatch.setenv("WORKER_TIMEOUT", "60")
        found = settings.launched(*settings.as_launch(asked))
        assert found == asked
        assert with_target(found, "worker_timeout = 7").settings.worker_timeout == 7

    def test_an_origin_of_ones_own_making_is_refused(self) -> None:
        with pytest.raises(WrongUse, match="is no origin"):
            settings.launched({"max_workers": 1}, {"max_workers": "thin air"})


class TestEndpoints:
    def test_the_environment_is_taken_whole_never_mixed_with_a_dotenv(self, tmp_path: Path) -> None:
        dotenv = tmp_path / ".env"
        dotenv.write_text("LLM_BASE_URL=https://a.example\nLLM_API_KEY=key-of-a\n", encoding="utf-8")
        (only,) = settings.endpoints({"LLM_BASE_URL": "https://b.example"}, dotenv)
        assert (only.url, only.api_key.get_secret_value()) == ("https://b.example/v1", "")
        (other,) = settings.endpoints({}, dotenv)
        assert (other.url, other.api_key.get_secret_value()) == ("https://a.example/v1", "key-of-a")

    def test_none_configured_is_no_error(self) -> None:
        assert settings.endpoints({}, None) == ()

    def test_children_get_no_key(self) -> None:
        kept = settings.without_secrets(
            {"LLM_API_KEY": "a", "LLM_ENDPOINTS": "b", "GIT_TOKEN": "c", "OTHER_API_KEY": "d", "PATH": "e"}
        )
        assert kept == {"PATH": "e"}


@pytest.mark.parametrize("port", ["-1", "70000", "x"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    with pytest.raises(WrongUse, match="LONGSHOT_UI_PORT"):
        settings.ui_port({"LONGSHOT_UI_PORT": port})


def test_an_unreadable_dotenv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"MAX_WORKERS=\xff\xfe\n")
    with pytest.raises(WrongUse, match="not UTF-8"):
        resolve({}, {}, {}, path, None)


def test_the_example_file_is_what_the_model_says() -> None:
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == settings_pages.env_example()


def test_the_settings_page_is_what_the_model_says() -> None:
    # To write it anew: print settings_pages.settings_table() into it.
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_pages.settings_table()


def test_the_example_file_uncommented_is_all_defaults(tmp_path: Path) -> None:
    lines = settings_pages.env_example().splitlines()
    names = {name for name, _ in ((x.removeprefix("# ").partition("=")[0], x) for x in lines)} & set(settings.FIELDS)
    assert names == set(settings.FIELDS)
    text = "\n".join(x.removeprefix("# ") for x in lines if x.removeprefix("# ").partition("=")[0] in settings.FIELDS)
    path = tmp_path / ".env"
    path.write_text(text, encoding="utf-8")
    found = resolve({}, {}, {}, path, None).settings
    assert found == Settings()
    assert found.sandbox_isolation is Isolation.AUTO
