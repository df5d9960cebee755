"""What is written about settings, from the settings themselves: `.env.example` and `docs/settings.md`."""

from collections.abc import Iterable

from pydantic.fields import FieldInfo

from longshot_dagster.adapters.settings import (
    ENDPOINT_NAMES,
    FIELDS,
    NOT_FOR_TARGETS,
    PROCESS,
    range_of,
    written,
)


def env_example() -> str:
    """The text of `.env.example`: every variable with its default and meaning."""
    lines = [
        "# Settings of Longshot. Copy to .env, or set them in the environment; `longshot --help` says which wins.",
        "# .env is read from the folder you are in. It may hold a key: keep it out of git.",
        "# A line that is commented out shows the default.",
        "",
        "# Where the models are: one OpenAI-compatible endpoint ...",
        "# LLM_BASE_URL=https://llm.example/v1",
        "# LLM_API_KEY=",
        "# ... or several, by weight:",
        '# LLM_ENDPOINTS=[{"name":"primary","endpoint":"https://llm.example/v1","apiKey":"...","weight":100}]',
    ]
    for name, (default, meaning) in PROCESS.items():
        if name not in ENDPOINT_NAMES:
            lines += ["", f"# {meaning}", f"# {name}={default}"]
    for variable, (_, info) in FIELDS.items():
        wanted = range_of(info)
        lines += ["", f"# {info.description}" + (f" ({wanted})" if wanted else "")]
        lines.append(f"# {variable}={written(info.default)}")
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    """The text of `docs/settings.md`: every variable with its default, range and meaning."""
    lines = [
        "# Settings",
        "",
        "Generated from the code by `settings_table()`; a test keeps it true. The strongest source wins: launch field, command",
        "line, environment, `.env` in the folder you are in, `.longshot.toml` in the target, default. A name that is not here,",
        "or a value out of range, is one line that says so. `longshot doctor` shows every value and where it comes from.",
        "",
        "The names in the first table belong to the installation, the others to each build, which keeps what it was started",
        "with.",
        "",
        *_table((name, default, meaning) for name, (default, meaning) in PROCESS.items()),
        "",
        *_table(_row(variable, info) for variable, (_, info) in FIELDS.items()),
        "",
        "A `.longshot.toml` in the repository uses the same names in lower case. It decides about the repository's own checks,",
        "branches and model, never about your safety or money, so these are refused there:",
        f"{', '.join(f'`{name}`' for name in NOT_FOR_TARGETS)}.",
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    shown = (f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |" for name, default, meaning in rows)
    return ["| variable | default | meaning |", "| --- | --- | --- |", *shown]


def _row(variable: str, info: FieldInfo) -> tuple[str, str, str]:
    wanted = range_of(info)
    return variable, written(info.default), f"{info.description}" + (f" ({wanted})" if wanted else "")
