"""The coding agents that are built in: what each speaks, where it comes from, what it needs and what it cannot do."""

import json
from dataclasses import dataclass

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.settings import HarnessName, Settings

PARSERS = ("text", "pi", "opencode", "codex", "claude-code")
PLACEHOLDERS = ("prompt_file", "system_file", "model", "base_url", "repo")
_MAX_COMMAND = 8_000


@dataclass(frozen=True)
class HarnessFacts:
    """One agent.

    `api`       the language it speaks to its model; None: whatever its command speaks
    `package`   npm package and `version` that were tried; empty: nothing to install
    `node`      lowest version of Node.js it runs on, (major, minor); None: it needs none
    `size_mb`   installed, without Node.js; 0: nothing
    `binary`    name of its command on PATH; empty: none
    `tools`     programs it uses where they are there
    `cannot`    what a user gives up with it, for the docs
    """

    name: str
    api: Api | None
    package: str = ""
    version: str = ""
    node: tuple[int, int] | None = None
    size_mb: int = 0
    binary: str = ""
    tools: tuple[str, ...] = ()
    cannot: tuple[str, ...] = ()
    installed: bool = False  # brought by an installed package

    @property
    def pinned(self) -> str:
        """The package with its exact version, as HARNESS_PACKAGE has it."""
        return f"{self.package}@{self.version}" if self.package else ""


HARNESSES: dict[str, HarnessFacts] = {
    facts.name: facts
    for facts in (
        HarnessFacts("builtin", Api.CHAT, cannot=("no images, no sub-agents",)),
        HarnessFacts(
            "pi",
            Api.CHAT,
            "@mariozechner/pi-coding-agent",
            "0.73.1",
            (20, 0),
            204,
            "pi",
            ("rg", "fd"),
            ("its grep and find need rg and a recent fd; without them it gets neither tool",),
        ),
        HarnessFacts(
            "opencode",
            Api.CHAT,
            "opencode-ai",
            "1.18.33",
            None,
            354,
            "opencode",
            ("rg",),
            (
                "takes the most memory of all, about 600 MB; tries a model that answers with errors again for a long time",
            ),
        ),
        HarnessFacts(
            "codex",
            Api.RESPONSES,
            "@openai/codex",
            "0.169.0",
            (16, 0),
            404,
            "codex",
            (),
            ("does not tell single model answers apart: no limit of turns, only of tool calls",),
        ),
        HarnessFacts(
            "claude-code",
            Api.MESSAGES,
            "@anthropic-ai/claude-code",
            "2.1.330",
            None,
            364,
            "claude",
            (),
            (
                "tells its tokens only at its end: a worker that is ended reports none (the gateway counts them all the same)",
            ),
        ),
        HarnessFacts(
            "command",
            None,
            cannot=("as plain text it is judged by its exit code, and its turns, tools and tokens are not seen",),
        ),
    )
}


@dataclass(frozen=True)
class Command:
    """HARNESS_COMMAND understood. `parser`: whose output its standard output is written like."""

    argv: tuple[str, ...]
    parser: str = "text"


def parse_command(text: str) -> Command:
    """A JSON list of words, a JSON object with `argv` and `parser`, or a line for a shell.

    `{prompt_file}` and the other placeholders are replaced inside the sandbox. Raises WrongUse.
    """
    if not text.strip():
        raise WrongUse('HARNESS=command needs HARNESS_COMMAND, such as ["my-agent", "--task-file", "{prompt_file}"]')
    if len(text) > _MAX_COMMAND or "\0" in text:
        raise WrongUse(f"HARNESS_COMMAND is longer than {_MAX_COMMAND:,} characters or holds a null byte")
    if text.lstrip()[:1] not in ("[", "{"):
        return Command(("bash", "-c", text))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise WrongUse(f"HARNESS_COMMAND begins like JSON and is none: {e}") from None
    wire = found if isinstance(found, dict) else {"argv": found}
    argv, parser = wire.get("argv"), wire.get("parser", "text")
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) and word for word in argv):
        raise WrongUse("HARNESS_COMMAND is not a JSON list of words")
    if parser not in PARSERS or set(wire) - {"argv", "parser"}:
        raise WrongUse(
            f"HARNESS_COMMAND has keys beside argv and parser, or a parser that is not one of {', '.join(PARSERS)}"
        )
    return Command(tuple(argv), parser)


def check_harness(settings: Settings) -> None:
    """Raises WrongUse, in one line, for a choice of harness that cannot work anywhere."""
    if settings.harness == HarnessName.COMMAND:
        parse_command(settings.harness_command)
    if settings.harness_package and not default_package(settings.harness) and settings.harness != HarnessName.AUTO:
        raise WrongUse(f"HARNESS_PACKAGE is set, and HARNESS={settings.harness} is not installed from a package")


def default_package(name: str) -> str:
    """Package and exact version that was tried, or nothing."""
    facts = HARNESSES.get(name)
    return facts.pinned if facts else ""
