"""What a sandbox's image is made of: one recipe, from which `sandbox/Dockerfile` is written and Modal's image is built."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.harnesses import HARNESSES
from longshot_dagster.core.sandbox import WORKDIR
from longshot_dagster.core.settings import HarnessName

NODE_MAJOR = 22
NODE_VERSION = "22.23.3"  # of the npm packages node-linux-*, for hosts whose own is older
DEFAULT_HARNESSES = (HarnessName.PI.value,)

_BASE = "node:22-trixie-slim"  # Debian 13, whose fd is new enough for pi's `find`
_PACKAGES = (
    *("build-essential", "ca-certificates", "curl", "fd-find", "file", "git", "jq", "less", "patch", "pkg-config"),
    *(
        "procps",
        "python-is-python3",
        "python3",
        "python3-dev",
        "python3-pip",
        "python3-venv",
        "ripgrep",
        "unzip",
        "xz-utils",
    ),
)


@dataclass(frozen=True)
class Recipe:
    """`commands` are lines for a shell, run as root one after the other on `base`; then `env` and `workdir` are set.

    The worker itself is not in it: it travels with every task, and is always the one that belongs to the orchestrator.
    """

    base: str
    commands: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = WORKDIR


def recipe(harnesses: Sequence[str] = DEFAULT_HARNESSES, package: str = "") -> Recipe:
    """With the command-line agents among `harnesses`; `package` (`name@1.2.3`) in place of the last one's tried one.

    Raises WrongUse for a name that is not built in.
    """
    packages = []
    for name in dict.fromkeys(harnesses):
        if name not in HARNESSES:
            raise WrongUse(f"no recipe knows the harness {name[:80]!r}; there are {', '.join(HARNESSES)}")
        if pinned := HARNESSES[name].pinned:
            packages.append(pinned)
    if package and packages:
        packages[-1] = package
    commands = [
        "apt-get update && apt-get install -y --no-install-recommends "
        + " ".join(_PACKAGES)
        + " && rm -rf /var/lib/apt/lists/*",
        "ln -s /usr/bin/fdfind /usr/local/bin/fd",
    ]
    commands += [_npm_line(pinned) for pinned in packages]
    commands.append(f"mkdir -p {WORKDIR} /longshot/out")
    return Recipe(_BASE, tuple(commands), {"LANG": "C.UTF-8", "PIP_BREAK_SYSTEM_PACKAGES": "1"})


def _npm_line(pinned: str) -> str:
    """Only the named package runs its install script, not the hundreds it brings along."""
    name = pinned.rpartition("@")[0]
    quiet = "--no-audit --no-fund --no-update-notifier"
    return (
        f"npm install -g --ignore-scripts {quiet} {shlex.quote(pinned)} && npm rebuild -g {shlex.quote(name)}"
        " && npm cache clean --force"
    )


def dockerfile(made: Recipe) -> str:
    """`made` as a Dockerfile."""
    lines = [
        "# Written from longshot_dagster/core/image.py; `longshot harnesses dockerfile [NAME ...]` writes it anew.",
        f"FROM {made.base}",
        *(f"RUN {command}".replace(" && ", " \\\n && ") for command in made.commands),
        *(f"ENV {name}={shlex.quote(value)}" for name, value in made.env.items()),
        f"WORKDIR {made.workdir}",
    ]
    return "\n\n".join(lines) + "\n"
