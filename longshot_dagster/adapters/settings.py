"""Where each setting of a build comes from; the one place that reads the environment and `.env`.

Precedence: launch field > command line > environment > `.env` > `.longshot.toml` in the target > default. Whatever is not
understood is refused in one line that names the variable and where it stands: a typo never silently means the default.
"""

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.installed_harnesses import installed_harnesses
from longshot_dagster.adapters.sandboxes.installed_providers import installed_providers
from longshot_dagster.core.display import display, one_line
from longshot_dagster.core.endpoints import Endpoint, parse_endpoints
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.settings import HarnessName, Origin, Provider, Settings

FIELDS = {name.upper(): (name, info) for name, info in Settings.model_fields.items()}
ENDPOINT_NAMES = ("LLM_BASE_URL", "LLM_API_KEY", "LLM_ENDPOINTS")
DEFAULT_UI_PORT = 3000
DEFAULT_BACKLOG_BUILDS = 2
DEFAULT_EXECUTOR = "threaded"
EXECUTORS = (DEFAULT_EXECUTOR, "multiprocess")
# Of the process, not of a build: name -> (default, meaning).
PROCESS = {
    "LLM_BASE_URL": ("", "URL of one OpenAI-compatible endpoint, like https://llm.example/v1"),
    "LLM_API_KEY": ("", "its key; held by the gateway alone"),
    "LLM_ENDPOINTS": ("", "several endpoints as JSON, by weight, in place of the two above"),
    "LONGSHOT_HOME": ("~/.longshot", "where Longshot keeps builds, mirrors, logs and Dagster's home"),
    "LONGSHOT_UI_PORT": (str(DEFAULT_UI_PORT), "port of the Dagster UI on 127.0.0.1; 0 takes any free one"),
    "LONGSHOT_BACKLOG": (
        "",
        "folder whose items become builds; empty: `backlog` where `longshot up` is started, if it is there and git does "
        "not track it, else in LONGSHOT_HOME",
    ),
    "LONGSHOT_BACKLOG_BUILDS": (
        str(DEFAULT_BACKLOG_BUILDS),
        "builds of the backlog at once, paused ones included; 0 starts none (0 to 100)",
    ),
    "LONGSHOT_EXECUTOR": (
        DEFAULT_EXECUTOR,
        "how a run's steps are executed: threaded (in its own process) or multiprocess (a process each; costs far more)",
    ),
}
PROCESS_NAMES = tuple(PROCESS)
# What `longshot up` tells its own children; never set by a person.
INHERITED_DOTENV = "LONGSHOT_INHERITED_DOTENV"
STACK_MARK = "LONGSHOT_STACK"
_INSIDE_A_SANDBOX = ("LONGSHOT_SANDBOX_ROOT", "LONGSHOT_NETWORK")  # an agent may well run our own tests
_OURS = (INHERITED_DOTENV, STACK_MARK, *_INSIDE_A_SANDBOX)
PREFIXES = (
    *("LLM_", "MAX_", "WORKER_", "SANDBOX_", "GIT_", "HEALTH_", "MERGE_", "FINALIZATION_", "LONGSHOT_"),
    *("CHECK_", "CHECKPOINT", "HARNESS", "CONFLICT_", "UNION_", "PROTECTED_", "GENERATED_"),
)
# In the process environment other programs own names too (GIT_DIR, LLM_CACHE ...); these two prefixes are only ours.
ONLY_OURS = ("LONGSHOT_", "FINALIZATION_")
# A repository must not decide how well its agents are locked in, what they may land unseen, where the work goes, nor what it may cost.
NOT_FOR_TARGETS = (
    *("git_repo_url", "sandbox_provider", "sandbox_isolation", "sandbox_network", "sandbox_readable"),
    *("sandbox_allow", "sandbox_image", "sandbox_creates_per_second", "sandbox_gpu"),
    *("harness_package", "harness_command"),
    *("max_tokens_per_build", "llm_price_in", "llm_price_out", "protected_paths"),
)
_PROVIDERS_KEYS = ("E2B_API_KEY",)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
_CLOSE = 0.88  # LLM_MODLE is a typo of LLM_MODEL (0.89); GIT_BRANCH, which CI servers set, is none of ours (0.80)
_MAX_DOTENV = 1 << 20
_MAX_TOML = 64 << 10


@dataclass(frozen=True)
class BacklogPlace:
    """Where the backlog's items lie and how many of its builds there may be at once; `named`: a person said where."""

    folder: Path
    builds: int
    named: bool

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of the stack, whose processes live in another folder."""
        return {"LONGSHOT_BACKLOG": str(self.folder), "LONGSHOT_BACKLOG_BUILDS": str(self.builds)}


@dataclass(frozen=True)
class Resolved:
    """All settings, and by field name the origin of every one that somebody set."""

    settings: Settings
    origins: dict[str, Origin] = field(default_factory=dict)


def resolve(
    launch: Mapping[str, object],
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    dotenv: Path | None,
    target_toml: str | None,
    origins: Mapping[str, str] | None = None,
) -> Resolved:
    """Settings by precedence. Names count in any case; None and empty values count as not set. Raises WrongUse.

    `origins` says where launched values come from when the command line, which has resolved them already, launches:
    it sends every setting, with origin `default` for what only the target's file may still change.
    """
    told = {_plain(name): _origin(value) for name, value in (origins or {}).items()}
    values: dict[str, object] = {}
    raw: dict[str, object] = {}
    found: dict[str, Origin] = {}
    layers: list[tuple[Origin, dict[str, object]]] = [
        (Origin.LAUNCH, _own(launch, Origin.LAUNCH)),
        (Origin.FLAG, _own(flags, Origin.FLAG)),
        (Origin.ENVIRONMENT, _environment(environ)),
        (Origin.DOTENV, _dotenv_layer(dotenv)),
        (Origin.TARGET, _target(target_toml)),
    ]
    for origin, layer in layers:
        for name, value in layer.items():
            true_origin = told.get(name, origin) if origin is Origin.LAUNCH else origin
            if name not in values or (origin is Origin.TARGET and name not in found):
                values[name], raw[name] = _parsed(name, value, true_origin), value
                if true_origin is not Origin.DEFAULT:
                    found[name] = true_origin
    return Resolved(_validated(values, raw, found), found)


def with_target(resolved: Resolved, target_toml: str | None) -> Resolved:
    """`resolved` with the target's `.longshot.toml` below everything a person set. Raises WrongUse."""
    launch = resolved.settings.model_dump(mode="json")
    origins = {name: resolved.origins.get(name, Origin.DEFAULT).value for name in launch}
    return resolve(launch, {}, {}, None, target_toml, origins)


def launched(settings: Mapping[str, object], origins: Mapping[str, str]) -> Resolved:
    """For the `start_build` job: launch fields over what this process inherited. Raises WrongUse."""
    environ = dict(os.environ)
    below = resolve({}, {}, {}, None, None)
    if inherited := environ.get(INHERITED_DOTENV):
        below = resolve(json.loads(inherited), {}, {}, None, None)
    top = resolve(settings, {}, environ, None, None, origins)
    sent = set(_own(settings, Origin.LAUNCH))
    extra = [n for n in below.origins if n not in top.origins and n not in sent]
    values = dict(top.settings) | {n: getattr(below.settings, n) for n in extra}
    return Resolved(Settings.model_validate(values), top.origins | dict.fromkeys(extra, Origin.DOTENV))


def as_launch(resolved: Resolved) -> tuple[dict[str, Any], dict[str, str]]:
    """`settings` and `origins` for the `start_build` job: everything, so that its own environment adds nothing."""
    settings = {n: v for n, v in resolved.settings.model_dump(mode="json").items() if v not in ("", None)}
    return settings, {n: resolved.origins.get(n, Origin.DEFAULT).value for n in settings}


def endpoints(environ: Mapping[str, str], dotenv: Path | None) -> tuple[Endpoint, ...]:
    """The model endpoints named by LLM_ENDPOINTS, or LLM_BASE_URL and LLM_API_KEY; () when none is. Raises WrongUse."""
    found = _process_values(environ, dotenv)
    return parse_endpoints(found["LLM_ENDPOINTS"], found["LLM_BASE_URL"], found["LLM_API_KEY"])


def home(environ: Mapping[str, str], dotenv: Path | None = None) -> Home:
    """The installation's home: LONGSHOT_HOME, else `~/.longshot`."""
    named = _process_values(environ, dotenv).get("LONGSHOT_HOME")
    return Home(Path(named).expanduser().absolute() if named else Path.home() / ".longshot")


def ui_port(environ: Mapping[str, str], dotenv: Path | None = None) -> int:
    """LONGSHOT_UI_PORT: 0 asks for any free port. Raises WrongUse."""
    text = _process_values(environ, dotenv).get("LONGSHOT_UI_PORT") or str(DEFAULT_UI_PORT)
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65_535:
        raise WrongUse(f"LONGSHOT_UI_PORT={_shown(text)} is not a port; give 0 to 65535, 0 for any free one")
    return int(text)


def executor_variable(environ: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
    """For the environment of the stack, whose processes read no `.env`. Raises WrongUse."""
    return {"LONGSHOT_EXECUTOR": executor(environ, dotenv)}


def executor(environ: Mapping[str, str], dotenv: Path | None = None) -> str:
    """LONGSHOT_EXECUTOR, one of EXECUTORS. Raises WrongUse."""
    text = _process_values(environ, dotenv).get("LONGSHOT_EXECUTOR") or DEFAULT_EXECUTOR
    if text not in EXECUTORS:
        raise WrongUse(f"LONGSHOT_EXECUTOR={_shown(text)} is not one of {', '.join(EXECUTORS)}")
    return text


def backlog(environ: Mapping[str, str], dotenv: Path | None, where: Home, beside: Path | None = None) -> BacklogPlace:
    """LONGSHOT_BACKLOG and LONGSHOT_BACKLOG_BUILDS; `beside` is where `longshot up` was started. Raises WrongUse."""
    values = _process_values(environ, dotenv)
    text = values["LONGSHOT_BACKLOG_BUILDS"] or str(DEFAULT_BACKLOG_BUILDS)
    if not re.fullmatch(r"\d{1,3}", text) or int(text) > 100:
        raise WrongUse(f"LONGSHOT_BACKLOG_BUILDS={_shown(text)} is not a number of builds; give 0 to 100")
    if named := values["LONGSHOT_BACKLOG"]:
        return BacklogPlace(Path(named).expanduser().absolute(), int(text), named=True)
    if beside is not None and (beside / "backlog").is_dir():
        return BacklogPlace((beside / "backlog").absolute(), int(text), named=False)
    return BacklogPlace(where.root / "backlog", int(text), named=False)


def inheritable(dotenv: Path | None) -> str:
    """The settings of `.env`, without any secret, as the stack hands them to its children."""
    return json.dumps(_dotenv_layer(dotenv))


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for processes that must not hold a model's key: only the gateway does. A sandbox provider's own they need."""
    return {
        name: value
        for name, value in environ.items()
        if name not in ("GIT_TOKEN", *ENDPOINT_NAMES)
        and (not name.upper().endswith("_API_KEY") or name in _PROVIDERS_KEYS)
    }


def default_dotenv() -> Path | None:
    """`.env` in the current folder, if there is one."""
    path = Path(".env")
    return path if path.is_file() else None


def process_origins(environ: Mapping[str, str], dotenv: Path | None) -> dict[str, tuple[str, Origin]]:
    """(value, origin) of every setting of the process, the keys among them in clear: mask before showing."""
    values, found = _process_values(environ, dotenv), {}
    for name, (default, _) in PROCESS.items():
        origin = Origin.ENVIRONMENT if (environ.get(name) or "").strip() else Origin.DOTENV
        found[name] = (values[name], origin) if values[name] else (default, Origin.DEFAULT)
    return found


# --- layers: field name -> raw value ------------------------------------------------------------------------------


def _own(raw: Mapping[str, object], origin: Origin) -> dict[str, object]:
    """A layer that is nobody else's: every unknown name in it is a mistake."""
    for name in raw:
        if _plain(name) not in Settings.model_fields:  # not in capitals: another letter (U+017F) has S for one
            raise _unknown(str(name), origin)
    return {_plain(name): value for name, value in raw.items() if not _unset(value)}


def _environment(environ: Mapping[str, str]) -> dict[str, object]:
    known = (*FIELDS, *PROCESS_NAMES)
    for name in environ:
        if name in known or name in _OURS or not name.startswith(PREFIXES):
            continue
        if name.startswith(ONLY_OURS) or difflib.get_close_matches(name, known, 1, _CLOSE):
            raise _unknown(name, Origin.ENVIRONMENT)
    return {FIELDS[n][0]: v for n, v in environ.items() if n in FIELDS and not _unset(v)}


def _dotenv_layer(dotenv: Path | None) -> dict[str, object]:
    raw = _read_dotenv(dotenv)
    for name in raw:
        if name.startswith(PREFIXES) and name not in FIELDS and name not in PROCESS_NAMES:
            raise _unknown(name, Origin.DOTENV)
    return {FIELDS[n][0]: v for n, v in raw.items() if n in FIELDS and not _unset(v)}


def _target(text: str | None) -> dict[str, object]:
    if not text:
        return {}
    if len(text) > _MAX_TOML:
        raise WrongUse(f".longshot.toml of the target is larger than {_MAX_TOML >> 10} KB")
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise WrongUse(f".longshot.toml of the target is not TOML: {display(e, 'plain', 200)}") from e
    for name in raw:
        plain = _plain(name)
        if plain in NOT_FOR_TARGETS:
            raise WrongUse(
                f"{plain.upper()} (.longshot.toml) is not for a repository to decide; set it in the environment or .env"
            )
        if plain.upper() not in FIELDS and _SECRET.search(name.upper()):
            raise WrongUse(
                f"{_shown(name.upper())} (.longshot.toml) looks like a secret, and a repository is no place for one; "
                "take it out and set it in the environment or .env"
            )
    return _own(raw, Origin.TARGET)


def _read_dotenv(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        if path.stat().st_size > _MAX_DOTENV:
            raise WrongUse(f"{path} is larger than 1 MB; is it the .env you mean?")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise WrongUse(f"{path} cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8 text'}") from e
    from pydantic_settings import BaseSettings, DotEnvSettingsSource  # 0.1 s, and most commands read no .env

    source = DotEnvSettingsSource(BaseSettings, env_file=path, env_file_encoding="utf-8", case_sensitive=True)
    found = {name: value or "" for name, value in source.env_vars.items()}
    _must_be_a_persons(path, text, found)
    return found


def _must_be_a_persons(dotenv: Path, text: str, found: Mapping[str, str]) -> None:
    """Raises WrongUse when a `.env` that came with a repository says what is not for a repository to decide."""
    refused = {*PROCESS_NAMES, *(name.upper() for name in NOT_FOR_TARGETS)}
    if "${" in text:  # stands for a variable of the person's environment, and settings are pushed with the ledger
        refused |= set(FIELDS)
    names = [name for name, value in found.items() if name in refused and value.strip()]
    if not names:
        return
    from longshot_dagster.adapters.repository.committed import is_committed  # few commands need git before they begin

    if is_committed(dotenv):
        raise WrongUse(
            f"{names[0]} ({dotenv}) is not for a repository to decide, and git tracks this file; set it in the "
            "environment, or take the file out of the repository: git rm --cached .env"
        )


def _process_values(environ: Mapping[str, str], dotenv: Path | None) -> dict[str, str]:
    below = {} if all(environ.get(n) for n in PROCESS_NAMES) else _read_dotenv(dotenv)
    found = {n: (environ.get(n) or "").strip() or below.get(n, "").strip() for n in PROCESS_NAMES}
    if any(environ.get(n) for n in ENDPOINT_NAMES):  # endpoints come whole from one place, never half from each
        found |= {n: environ.get(n, "").strip() for n in ENDPOINT_NAMES}
    return found


# --- values ----------------------------------------------------------------------------------------------------------


def _parsed(name: str, value: object, origin: Origin) -> object:
    """`value`, often a text, as its field wants it; range and pattern are the model's to check."""
    info = Settings.model_fields[name]
    kind = _kind(info)
    text = str(value).strip()
    if kind is bool:
        truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
        if truth is None:
            raise _wrong(name, value, origin, "is neither true nor false; give true or false")
        return truth
    if kind is int:
        if isinstance(value, bool | float) or not re.fullmatch(r"[+-]?\d{1,18}", text):
            raise _wrong(name, value, origin, f"is not a whole number; give {range_of(info)}")
        return int(text)
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise _wrong(name, value, origin, f"is not a number; give {range_of(info)}")
        return number
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_choice(name, text, value, origin, [str(member.value) for member in kind]))
    if not isinstance(value, str):
        raise _wrong(name, value, origin, "is not a text")
    if name == "harness":
        known = [str(member.value) for member in HarnessName]
        return _choice(name, text, value, origin, known if text.lower() in known else known + installed_harnesses())
    return _provider(text, value, origin) if name == "sandbox_provider" else text


def _provider(text: str, value: object, origin: Origin) -> str:
    """One provider that is built in or installed, or several with their weights."""
    known = [str(member.value) for member in Provider]
    found = []
    for entry in text.lower().split(","):
        name, colon, weight = entry.strip().partition(":")
        if name not in known:
            known += installed_providers()  # looked for only now: it reads the metadata of every installed package
        found.append(_choice("sandbox_provider", name, value, origin, known) + colon + weight)
    return ",".join(found)


def _choice(name: str, text: str, value: object, origin: Origin, choices: Sequence[str]) -> str:
    if text.lower() not in choices:
        close = difflib.get_close_matches(text.lower(), choices, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise _wrong(name, value, origin, f"is not one of {', '.join(choices)}{hint}")
    return text.lower()


def _validated(values: dict[str, object], raw: Mapping[str, object], origins: Mapping[str, Origin]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = str(first["loc"][0])
        said = f"is out of range; give {range_of(Settings.model_fields[name])}"
        if first["type"] == "value_error":
            said = first["msg"].removeprefix("Value error, ")
        raise _wrong(name, raw.get(name, ""), origins.get(name, Origin.DEFAULT), said) from e


def _kind(info: FieldInfo) -> object:
    """The type of a value that is given; what may stay unknown is typed `float | None`."""
    given = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    return given[0] if given else info.annotation


def range_of(info: FieldInfo) -> str:
    """`0 to 1000`, `at least 1`, `more than 0`; empty for what is no number."""
    if _kind(info) not in (int, float):
        return ""
    bounds = {k: getattr(m, k) for m in info.metadata for k in ("ge", "gt", "le") if hasattr(m, k)}
    low = bounds.get("ge")
    if "gt" in bounds:
        more = f"more than {bounds['gt']:g}"
        return f"{more}, at most {bounds['le']:g}" if "le" in bounds else more
    if low is not None and "le" in bounds:
        return f"{low} to {bounds['le']}"
    return f"at least {low}"


def _unknown(name: str, origin: Origin) -> WrongUse:
    shown = _shown(name.upper() if origin is not Origin.ENVIRONMENT and name.isascii() else name)
    known = [*FIELDS, *(PROCESS_NAMES if origin in (Origin.ENVIRONMENT, Origin.DOTENV) else ())]
    close = difflib.get_close_matches(_plain(name).upper(), known, 1, 0.7)
    hint = f"; did you mean {close[0]}?" if close else "; .env.example lists them all"
    if name == "GIT_TOKEN":
        hint = "; git asks your credential helper for repositories that need one"
    return WrongUse(f"{shown} ({origin.value}) is not a setting{hint}")


def _wrong(name: str, value: object, origin: Origin, said: str) -> WrongUse:
    return WrongUse(f"{name.upper()}={_shown(value)} ({origin.value}) {said}")


def _origin(value: str) -> Origin:
    try:
        return Origin(value)
    except ValueError as e:
        raise WrongUse(f"{_shown(value)} is no origin of a setting; leave `origins` to the command line") from e


def _plain(name: object) -> str:
    return str(name).strip().lower().replace("-", "_")


def _unset(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _shown(value: object) -> str:
    return one_line(value, 80)


def written(value: object) -> str:
    """`value` as it is written into a file of settings."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    return str(value.value) if isinstance(value, Enum) else str(value)
