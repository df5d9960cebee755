"""Every setting of a build: name, default, range and meaning. Secrets are not here: only the gateway knows them.

A field's environment variable is its name in capitals. `adapters/settings.py` reads the environment; nothing else does.
"""

import re
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, field_validator

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.path_lists import path_list

# Places of a sandbox's own: below the first, nothing of the host may lie; the second, nothing of the host may cover.
_SANDBOXES_OWN = ("workspace", "longshot", "etc", "proc", "dev", "sys")
REGISTRIES = (
    *("pypi.org", "files.pythonhosted.org", "registry.npmjs.org"),
    *("index.crates.io", "static.crates.io", "proxy.golang.org", "sum.golang.org"),
)
_ROOTS = ("tmp", "home", "home/agent", "root", "usr", "var")
_NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"


class Origin(StrEnum):
    """Where a value came from, strongest first."""

    LAUNCH = "launch field"
    FLAG = "command line"
    ENVIRONMENT = "environment"
    DOTENV = ".env"
    TARGET = ".longshot.toml"
    DEFAULT = "default"


class MergeStrategy(StrEnum):
    FAST_FORWARD = "fast-forward"
    REBASE = "rebase"
    MERGE_COMMIT = "merge-commit"
    SQUASH = "squash"


class RungName(StrEnum):
    """Ways out of a conflict, in the order in which they are tried."""

    RE_MERGE = "re-merge"
    UNION = "union"
    JSON = "json"
    LOCK_FILES = "lock-files"
    SYNTAX = "syntax"
    FIX = "fix"


class Provider(StrEnum):
    """The providers that are built in; an installed package may bring others."""

    AUTO = "auto"
    LOCAL = "local"
    MODAL = "modal"
    DOCKER = "docker"
    E2B = "e2b"


class HarnessName(StrEnum):
    """The coding agents that are built in; an installed package may bring others."""

    AUTO = "auto"
    BUILTIN = "builtin"
    PI = "pi"
    OPENCODE = "opencode"
    CODEX = "codex"
    CLAUDE_CODE = "claude-code"
    COMMAND = "command"


class Network(StrEnum):
    NONE = "none"
    ALLOWLIST = "allowlist"
    OPEN = "open"


class Isolation(StrEnum):
    AUTO = "auto"
    NONE = "none"


class Checkpoint(StrEnum):
    REMOTE = "remote"
    LOCAL = "local"


class Settings(BaseModel):
    """Settings of one build, frozen into its `request.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    git_repo_url: str = Field(
        default="", description="URL or path of the repository to build in (`--repo` on the command line)"
    )

    max_workers: int = Field(default=50, ge=0, le=1000, description="tasks worked on at once, fleet-wide; 0 pauses")
    worker_timeout: int = Field(default=1800, ge=1, le=86_400, description="seconds a worker may take for one task")

    llm_model: str = Field(default="glm-5", min_length=1, description="model name sent to the endpoints")
    llm_max_tokens: int = Field(default=65_536, ge=1, description="tokens a single answer may have")
    llm_temperature: float = Field(default=0.7, ge=0, le=2, description="sampling temperature")
    llm_price_in: float | None = Field(
        default=None, ge=0, description="price of a million tokens sent, USD; empty: unknown, and so is every cost"
    )
    llm_price_out: float | None = Field(
        default=None, ge=0, description="price of a million tokens received, USD; empty: unknown"
    )
    llm_timeout: int = Field(default=600, ge=1, le=7200, description="seconds to wait for one answer of the model")

    sandbox_provider: str = Field(
        default=Provider.AUTO.value,
        description="where workers run: auto, local, modal, docker, e2b, or a provider that an installed package brings; "
        "several share the work by weight: modal:3,local:1",
    )
    sandbox_image: str = Field(
        default="",
        description="image or template that sandboxes are made of, by the provider's own name; empty: Longshot's",
    )
    sandbox_creates_per_second: float = Field(
        default=5, gt=0, le=1000, description="sandboxes that one process asks a remote provider for in a second"
    )
    sandbox_network: Network = Field(
        default=Network.NONE,
        description="what a worker may reach beside its model: none, allowlist (SANDBOX_ALLOW), open",
    )
    sandbox_allow: str = Field(
        default="default",
        description="hosts that SANDBOX_NETWORK=allowlist lets workers reach by HTTPS, names or `*.name`, `,` between them; "
        "default: the package registries of Python, JavaScript, Rust and Go",
    )
    sandbox_isolation: Isolation = Field(
        default=Isolation.AUTO,
        description="auto needs bubblewrap; none runs agents as YOU, with your files and network, and must be asked for",
    )
    sandbox_readable: str = Field(
        default="",
        description="folders of this host that agents may read, `:` between them, such as a venv with the tests' libraries",
    )
    sandbox_cpu_cores: float = Field(default=4, gt=0, le=256, description="CPU cores per sandbox")
    sandbox_memory_mb: int = Field(default=8192, ge=64, description="memory per sandbox, MB")
    sandbox_gpu: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9:._+, -]{0,200}$",
        description="GPUs that a plan may ask for, by the provider's own words, `,` between them; empty: none",
    )
    sandbox_idle_timeout: int = Field(
        default=300, ge=1, description="seconds without a sign of life before a worker is ended"
    )

    harness: str = Field(
        default=HarnessName.AUTO.value,
        pattern=_NAME,
        description="coding agent: auto (pi where it can run, else builtin), builtin, pi, opencode, codex, claude-code, "
        "command, or one that an installed package brings",
    )
    harness_package: str = Field(
        default="",
        description="npm package of the coding agent with its exact version, `name@1.2.3`; empty: the tried one",
    )
    harness_command: str = Field(
        default="", description="of HARNESS=command: what to run, as a JSON list of words or a line for a shell"
    )

    git_main_branch: str = Field(
        default="main", min_length=1, description="branch of the target that work starts from and lands on"
    )
    git_branch_prefix: str = Field(default="worker/", min_length=1, description="prefix of workers' branch names")

    health_check_interval: int = Field(
        default=10, ge=0, description="seconds: minimum interval of the `reconcile` sensor"
    )
    merge_strategy: MergeStrategy = Field(
        default=MergeStrategy.REBASE, description="fast-forward, rebase, merge-commit or squash"
    )
    conflict_rungs: str = Field(
        default=",".join(RungName),
        description="ways out of a conflict that are tried, `,` between them: re-merge (when main has moved in those "
        "files), union (UNION_PATHS), json (package.json and the like, key by key), lock-files (made anew by their own "
        "tool), syntax (mergiraf, where it is installed), fix (one fix task); or none",
    )
    union_paths: str = Field(
        default="CHANGELOG,CHANGELOG.md,CHANGELOG.rst,CHANGELOG.txt,CHANGES,CHANGES.md,CHANGES.rst,CHANGES.txt,"
        ".gitignore,.dockerignore,.npmignore,index.ts,index.tsx,index.js,index.jsx,index.mjs",
        description="names, paths or patterns of files that only grow, `,` between them: in a conflict both sides' new "
        "lines are kept; of source files only those that do nothing but re-export",
    )
    protected_paths: str = Field(
        default="default",
        description="names, folders and patterns of what lands only after `longshot approve`, `,` between them; default: "
        "CI, CODEOWNERS, .longshot.toml, agents' instructions, and the checks' configuration that was there already; or none",
    )
    generated_paths: str = Field(
        default="default",
        description="the same of what never lands from a worker; default: lock files, build output and caches; or none",
    )
    max_file_mb: int = Field(
        default=20, ge=0, le=2_048, description="size of the largest file that may land, MB; 0: no limit"
    )
    finalization_enabled: bool = Field(default=True, description="sweep main after all tasks have landed")
    finalization_max_attempts: int = Field(
        default=3, ge=0, le=100, description="rounds of fixing a red main at the end"
    )

    max_iterations: int = Field(default=100, ge=1, le=999, description="planning rounds of the root planner")
    max_tokens_per_build: int = Field(
        default=20_000_000, ge=0, description="tokens after which a build pauses; 0: no limit"
    )

    check_install: str = Field(default="", description="install command; empty: detected, `none`: skipped")
    check_compile: str = Field(default="", description="compile command; empty: detected, `none`: skipped")
    check_types: str = Field(default="", description="type-check command; empty: detected, `none`: skipped")
    check_lint: str = Field(default="", description="lint command; empty: detected, `none`: skipped")
    check_test: str = Field(default="", description="test command; empty: detected, `none`: skipped")
    check_timeout: int = Field(default=600, ge=1, le=86_400, description="seconds each check may take")

    checkpoint: Checkpoint = Field(
        default=Checkpoint.REMOTE, description="push the ledger beside main, or keep it local"
    )

    @property
    def providers(self) -> dict[str, float]:
        """Weight by name, in the order given."""
        return {
            name: float(weight or 1) for name, _, weight in (e.partition(":") for e in _listed(self.sandbox_provider))
        }

    @property
    def gpus(self) -> tuple[str, ...]:
        return _listed(self.sandbox_gpu)

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        return REGISTRIES if self.sandbox_allow == "default" else _listed(self.sandbox_allow)

    @property
    def rungs(self) -> frozenset[RungName]:
        return frozenset(RungName(name) for name in _listed(self.conflict_rungs) if name != "none")

    @property
    def union_patterns(self) -> tuple[str, ...]:
        return _listed(self.union_paths)

    @property
    def readable_folders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for path in self.sandbox_readable.split(":") if path))

    @field_validator("sandbox_provider")
    @classmethod
    def _providers(cls, value: str) -> str:
        entries = _listed(value)
        if not entries or not all(
            re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}(:[0-9]{1,4}(\.[0-9]{1,3})?)?", e) for e in entries
        ):
            raise ValueError("is not a provider's name, or several with weights like modal:3,local:1")
        names = [entry.partition(":")[0] for entry in entries]
        if len(set(names)) < len(names) or (Provider.AUTO in names and len(names) > 1):
            raise ValueError("names a provider twice, or auto beside another")
        return ",".join(entries)

    @field_validator("sandbox_allow")
    @classmethod
    def _hosts(cls, value: str) -> str:
        label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        for host in _listed(value) if value != "default" else ():
            if not re.fullmatch(rf"(\*\.)?{label}(\.{label})+", host) or host.rpartition(".")[2].isdigit():
                raise ValueError(f"cannot hold {host[:80]!r}: a host is a name like files.example.org or *.example.org")
        return value

    @field_validator("harness_package")
    @classmethod
    def _package(cls, value: str) -> str:
        if value and not re.fullmatch(
            r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*@[0-9]+\.[0-9]+\.[0-9]+[0-9A-Za-z.-]*", value
        ):
            raise ValueError("is not an npm package with its exact version, like @scope/name@1.2.3")
        return value

    @field_validator("conflict_rungs")
    @classmethod
    def _rungs(cls, value: str) -> str:
        known = [*RungName, "none"]
        unknown = next((name for name in _listed(value) if name not in known), None)
        if unknown is not None:
            raise ValueError(f"names no way out of a conflict with {unknown[:40]!r}; there are {', '.join(known)}")
        return value

    @field_validator("union_paths")
    @classmethod
    def _patterns(cls, value: str) -> str:
        for pattern in _listed(value):
            if pattern.endswith((".json", ".lock")) or not pattern.strip("*?/."):
                raise ValueError(f"cannot hold {pattern[:80]!r}: lines of such files are not to be strung together")
        return value

    @field_validator("protected_paths", "generated_paths")
    @classmethod
    def _paths(cls, value: str) -> str:
        try:
            path_list(value)
        except WrongUse as e:
            raise ValueError(str(e)) from e
        return value

    @field_validator("sandbox_readable")
    @classmethod
    def _folders(cls, value: str) -> str:
        for path in filter(None, value.split(":")):
            parts = [part for part in path.split("/") if part not in ("", ".")]
            plain = "/".join(parts)
            if not path.startswith("/") or ".." in parts or any(ord(c) < 32 for c in path):
                raise ValueError("is not a list of absolute paths without `..`, `:` between them")
            if not parts or plain in _ROOTS or f"{plain}/".startswith(tuple(f"{own}/" for own in _SANDBOXES_OWN)):
                raise ValueError(
                    f"cannot hold {path[:200]}: a sandbox has its own there; name the one folder agents need"
                )
        return value

    @field_validator("git_main_branch", "git_branch_prefix")
    @classmethod
    def _ref(cls, value: str) -> str:
        bad = set(" ~^:?*[\\\x7f") & set(value) or ".." in value or "//" in value or value.startswith(("/", "-", "."))
        if bad or any(ord(c) < 32 for c in value) or "@{" in value or value.endswith((".lock", ".")):
            raise ValueError("is not part of a legal git branch name")
        return value


def _listed(value: str) -> tuple[str, ...]:
    """The entries of a list with commas, each once."""
    return tuple(dict.fromkeys(entry for part in value.split(",") if (entry := part.strip())))
