"""How each agent is started: with the model it is given, nothing that phones home, and no key anywhere."""

import json
import tomllib
from pathlib import Path

import pytest
from longshot_worker.harness.interface import Harness, Request, Tally
from longshot_worker.harness.known import _KNOWN, harness_named

SCRATCH, REPO = "/workspace/agent", "/workspace/repo"
SYSTEM = 'You are "a worker".\nÜbung 🚀 \x7f \\ done ' + "'''" + """\n"""


def request(**more: object) -> Request:
    wire = {
        "system_prompt": SYSTEM,
        "prompt": "# Task t1\nDo it.",
        "repo": REPO,
        "scratch": SCRATCH,
        "model": "glm-5",
        "base_url": "http://127.0.0.1:4000/v1",
        "command": '["agent", "--file", "{prompt_file}", "--model={model}", "{base_url}", "{repo}", "{system_file}"]',
        **more,
    }
    return Request(**wire)  # type: ignore[arg-type]


def prepared(name: str, **more: object) -> tuple[Harness, object]:
    harness = harness_named(name)
    assert harness is not None
    return harness, harness.prepare(request(**more))


@pytest.mark.parametrize("name", _KNOWN)
def test_an_agent_is_started_in_the_repository_and_keeps_its_own_outside(name: str) -> None:
    _, found = prepared(name)
    assert found.cwd == REPO and found.stdin == "# Task t1\nDo it."
    assert found.files and all(path.startswith(f"{SCRATCH}/") for path in found.files)
    assert found.key_env and not any(env in found.env for env in found.key_env)


@pytest.mark.parametrize("name", _KNOWN)
def test_starting_it_depends_on_the_request_alone(name: str) -> None:
    assert vars(prepared(name)[1]) == vars(prepared(name)[1])


@pytest.mark.parametrize("name", _KNOWN)
def test_a_prompt_of_any_length_is_no_argument(name: str) -> None:
    _, found = prepared(name, prompt="x" * 500_000, system_prompt="y" * 500_000)
    assert max(map(len, found.argv)) < 1_000 and max(map(len, found.env.values())) < 1_000


@pytest.mark.parametrize("name", _KNOWN)
def test_its_model_is_asked_by_the_name_and_at_the_address_that_were_given(name: str) -> None:
    _, found = prepared(name, model="vendor/model:1", base_url="http://127.0.0.1:1234/v1")
    everything = json.dumps([found.argv, found.env, found.files])
    assert "vendor/model:1" in everything and "127.0.0.1:1234" in everything and "4000" not in everything


def test_pi_gets_the_search_tools_whose_programs_work() -> None:
    def tools(*there: str) -> str:
        argv = prepared("pi", tools=frozenset(there))[1].argv
        return argv[argv.index("--tools") + 1]

    assert tools() == "read,bash,edit,write,ls"
    assert tools("rg") == "read,bash,edit,write,grep,ls"
    assert tools("rg", "fd") == "read,bash,edit,write,grep,find,ls"


def test_pi_gives_up_a_model_that_hangs() -> None:
    files = prepared("pi", llm_timeout_s=7.5)[1].files
    assert json.loads(files[f"{SCRATCH}/pi/settings.json"])["retry"]["provider"]["timeoutMs"] == 7_500
    provider = json.loads(files[f"{SCRATCH}/pi/models.json"])["providers"]["longshot"]
    assert provider["apiKey"] == "LONGSHOT_LLM_API_KEY" and provider["baseUrl"] == "http://127.0.0.1:4000/v1"


def test_codexs_configuration_is_toml_and_holds_the_system_text_as_it_is() -> None:
    _, found = prepared("codex")
    config = tomllib.loads(found.files[f"{SCRATCH}/codex/config.toml"])
    assert config["developer_instructions"] == SYSTEM
    provider = config["model_providers"]["longshot"]
    assert provider["wire_api"] == "responses" and provider["base_url"] == "http://127.0.0.1:4000/v1"
    assert provider["env_key"] in found.key_env and found.argv[-1] == "-"


def test_claude_code_gets_its_address_without_the_version() -> None:
    assert prepared("claude-code")[1].env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:4000"


def test_opencode_reads_no_models_from_elsewhere() -> None:
    _, found = prepared("opencode")
    config = json.loads(found.files[found.env["OPENCODE_CONFIG"]])
    assert config["enabled_providers"] == ["longshot"] and found.env["OPENCODE_DISABLE_MODELS_FETCH"] == "1"


# --- any command -----------------------------------------------------------------------------------------------------


def test_a_commands_placeholders_are_replaced_and_nothing_else_is() -> None:
    _, found = prepared("command")
    assert found.argv == [
        "agent",
        "--file",
        f"{SCRATCH}/prompt.md",
        "--model=glm-5",
        "http://127.0.0.1:4000/v1",
        REPO,
        f"{SCRATCH}/system.md",
    ]
    assert found.files[f"{SCRATCH}/prompt.md"] == "# Task t1\nDo it."
    assert prepared("command", command='["a", "{home}", "{}"]')[1].argv == ["a", "{home}", "{}"]


def test_a_line_for_a_shell_is_one() -> None:
    argv = prepared("command", command="my-agent < {prompt_file} | tee log")[1].argv
    assert argv == ["bash", "-c", f"my-agent < {SCRATCH}/prompt.md | tee log"]


@pytest.mark.parametrize(
    "wrong", ["", "  ", "[]", "[1]", "{}", '{"argv": "x"}', '{"argv": ["x"], "parser": "mine"}', "[oops"]
)
def test_a_command_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        prepared("command", command=wrong)


@pytest.mark.parametrize(
    ("ended", "code", "status"),
    [("exited", 0, "completed"), ("exited", 1, "crashed"), ("wall", 143, "timeout"), ("idle", 143, "stalled")],
)
def test_plain_text_is_its_last_word_and_its_exit_code_what_it_is_judged_by(ended: str, code: int, status: str) -> None:
    harness, _ = prepared("command")
    tally = Tally()
    for line in ("working ...", "", '{"status": "complete",', ' "summary": "done"}'):
        for event in harness.parse(line):
            tally.add(event)
    result = harness.finish(tally, ended, code, {})
    assert result.status == status
    assert result.final == 'working ...\n\n{"status": "complete",\n "summary": "done"}'


def test_a_command_may_write_like_an_agent_that_is_known() -> None:
    harness, found = prepared("command", command='{"argv": ["my-pi"], "parser": "pi"}')
    assert found.argv == ["my-pi"] and harness.skips
    tally = Tally()
    recorded = Path(__file__).parent / "data" / "harness-events" / "pi401.jsonl"
    for line in recorded.read_text().splitlines():
        for event in harness.parse(line):
            tally.add(event)
    assert harness.finish(tally, "exited", 0, {}).status == "llm_error"
