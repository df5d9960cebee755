"""Install, compile, types, lint and test: which commands a project has, and how each of them ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from longshot_worker import commands

NAMES = ("install", "compile", "types", "lint", "test")
KEEP = 20_000
Detected = dict[str, tuple[str, str]]  # check -> kind of project, command
_OF_THE_BRANCH = "[the base has no such check: this one is the branch's own]"
_NO_TESTS_COLLECTED = 5  # exit code of pytest, and of unittest since 3.12
_NOT_FOUND = 127  # bash: command not found
_PLACEHOLDER = "no test specified"  # what `npm init` writes
_SKIP_DIRECTORIES = {".git", "node_modules", ".venv", "venv", "dist", "build", "target", "__pycache__"}


@dataclass(frozen=True)
class Check:
    """One check as it ran; on the wire its fields are camelCase."""

    name: str
    command: str
    status: str  # green, red, red-before, timeout, skipped
    exit_code: int | None = None
    output: str = ""
    duration_ms: int = 0

    @property
    def red(self) -> bool:
        return self.status in ("red", "timeout")

    def wire(self) -> dict[str, object]:
        fields = asdict(self)
        fields["exitCode"], fields["durationMs"] = fields.pop("exit_code"), fields.pop("duration_ms")
        return fields


def run_all(
    path: str,
    ordered: dict[str, str],
    timeout_s: float,
    until: float,
    only: set[str] | None = None,
    before: Detected | None = None,
) -> list[Check]:
    """Every check of the project at `path` in order; `until` (monotonic) ends the last one that still runs.

    A command in `ordered` wins over what is detected; `none` skips its check. `before`: what was detected before an
    agent had its hands on it (None: nobody had). What that found is run, whatever would be found now.
    """
    found = []
    detected = _commands(path, before)
    for name in NAMES:
        command = ordered.get(name, "").strip() or detected.get(name, "")
        if only is not None and name not in only:
            continue
        if not command or command == "none":
            found.append(
                Check(name, command, "skipped", output="switched off" if command else "nothing to run was found")
            )
            continue
        check = _run(name, command, path, min(timeout_s, until - time.monotonic()))
        if before is not None and name not in before and not ordered.get(name, "").strip():
            check = replace(check, output=f"{_OF_THE_BRANCH}\n{check.output}".rstrip()[-KEEP:])
        found.append(check)
    return found


def against_base(
    checks: list[Check], base: Callable[[], str], ordered: dict[str, str], timeout_s: float, until: float
) -> list[Check]:
    """`checks` with those marked `red-before` that are red in a clean checkout of the base as well.

    `base()` makes that checkout, and is only asked when something is red and there is time.
    """
    reds = [c.name for c in checks if c.red]
    if not reds or time.monotonic() > until - 5:
        return checks
    needed = set(NAMES[: NAMES.index(reds[-1]) + 1])  # a test needs what install and compile made
    before = {
        c.name
        for c in run_all(base(), ordered, timeout_s, until, needed - (_greens(checks) - {"install", "compile"}))
        if c.red
    }
    if time.monotonic() > until:
        return checks  # the base was cut off by our own deadline: that proves nothing about it
    return [replace(c, status="red-before") if c.red and c.name in before else c for c in checks]


def detect(path: str) -> dict[str, str]:
    """Commands by check. A Makefile's own targets win; then the language's usual ones. A tool that is
    not in the sandbox makes its check red, which says more than a check that is silently left out."""
    return {name: command for name, (_, command) in found_at(path).items()}


def found_at(path: str) -> Detected:
    """The same, each with the kind of project that it comes from."""
    found: Detected = {}
    for kind, detector in _KINDS.items():
        for name, command in detector(path).items():
            found.setdefault(name, (kind, command))
    return found


def _commands(path: str, before: Detected | None) -> dict[str, str]:
    """What to run at `path`: of each check that was there before, the same kind's command, be it one that fails now.

    Within its kind a command may follow the project: a first requirement brings a virtual environment with it.
    """
    if before is None:
        return detect(path)
    now = {kind: detector(path) for kind, detector in _KINDS.items()}
    kept = {name: now[kind].get(name, command) for name, (kind, command) in before.items()}
    return detect(path) | kept


def _run(name: str, command: str, path: str, timeout_s: float) -> Check:
    if timeout_s <= 0:
        return Check(name, command[:2_000], "timeout", 124, "the worker's time was up before this check could start")
    offline = os.environ.get("LONGSHOT_NETWORK") == "none"
    env = {**os.environ, "CI": "1", **(_OFFLINE if offline else {})}
    ran = commands.run(["bash", "-c", command], path, timeout_s, keep=KEEP - 500, env=env)
    output = ran.output.strip()
    if ran.ended != "exit":
        status, output = "timeout", f"{output}\n[ended after {timeout_s:.0f} s]"
    elif ran.code == 0:
        status = "green"
    elif (
        name == "test"
        and ran.code == _NO_TESTS_COLLECTED
        and re.search(r"no tests ran|NO TESTS RAN|collected 0 items", output)
    ):
        status = "skipped"
    else:
        status = "red"
    if status in ("red", "timeout") and name == "install" and offline:
        output += (
            "\n[the sandbox has no network: SANDBOX_NETWORK=none; SANDBOX_NETWORK=open lets it install, or prepare a venv, "
            "name it in SANDBOX_READABLE, and let CHECK_TEST use it with CHECK_INSTALL=none]"
        )
    if status == "red" and ran.code == _NOT_FOUND:
        output += f"\n[a command is missing in the sandbox; CHECK_{name.upper()}=none leaves this check out]"
    return Check(name, command[:2_000], status, ran.code, output[-KEEP:], int(ran.duration_s * 1000))


# Package managers that know they are offline say so at once; else they retry for minutes.
_OFFLINE = {
    "npm_config_offline": "true",
    "npm_config_audit": "false",
    "npm_config_fund": "false",
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "CARGO_NET_OFFLINE": "true",
    "GOPROXY": "off",
    "GOFLAGS": "-mod=mod",
}


def _makefile(path: str) -> dict[str, str]:
    text = next((t for n in ("GNUmakefile", "makefile", "Makefile") if (t := _read(path, n))), "")
    if not text:
        return {}
    targets = set(re.findall(r"^([A-Za-z0-9_.-]+)\s*:(?!=)", text, re.M))
    wanted = {"compile": ("compile", "build"), "types": ("typecheck", "types"), "lint": ("lint",), "test": ("test",)}
    return {name: f"make {target}" for name, names in wanted.items() for target in reversed(names) if target in targets}


def _npm(path: str) -> dict[str, str]:
    package = _json(path, "package.json")
    if package is None:
        return {}
    scripts = package.get("scripts")
    scripts = {k: v for k, v in scripts.items() if isinstance(v, str)} if isinstance(scripts, dict) else {}
    found = {}
    if any(package.get(kind) for kind in ("dependencies", "devDependencies")):
        locked = os.path.exists(os.path.join(path, "package-lock.json"))
        found["install"] = "npm ci" if locked else "npm install --no-package-lock"
    for name, script in (("compile", "build"), ("types", "typecheck"), ("types", "type-check"), ("lint", "lint")):
        if script in scripts:
            found.setdefault(name, f"npm run --silent {script}")
    if "test" in scripts and _PLACEHOLDER not in scripts["test"]:
        found["test"] = "npm test --silent"
    return found


def _python(path: str) -> dict[str, str]:
    project = _read(path, "pyproject.toml")
    tests = _python_tests(path)
    if not (project or _read(path, "setup.py") or _read(path, "requirements.txt") or tests):
        return {}
    found = {"compile": "python3 -m compileall -q -x '/(\\.git|\\.venv|venv|node_modules)/' ."}
    python = "python3"
    if re.search(r"^[^#\s]", _read(path, "requirements.txt"), re.M):
        python, what = ".venv/bin/python", "-r requirements.txt"
    elif re.search(r"^dependencies\s*=\s*\[\s*[\"']", project, re.M):
        python, what = ".venv/bin/python", "-e ."
    if python != "python3":
        found["install"] = f"python3 -m venv --system-site-packages .venv && .venv/bin/python -m pip install -q {what}"
    if "[tool.mypy]" in project and _has("mypy"):
        found["types"] = f"{python} -m mypy ."
    if ("[tool.ruff" in project or os.path.exists(os.path.join(path, "ruff.toml"))) and shutil.which("ruff"):
        found["lint"] = "ruff check ."
    if tests:
        # What an install brings cannot be known before it ran; a bare interpreter is asked here.
        found["test"] = f"{python} -m pytest -q" if python != "python3" or _has("pytest") else _unittest(path)
    return found


def _unittest(path: str) -> str:
    if not os.path.isdir(os.path.join(path, "tests")):
        return "python3 -m unittest discover"
    return "python3 -m unittest discover -s tests" + (
        " -t ." if os.path.exists(os.path.join(path, "tests/__init__.py")) else ""
    )


def _cargo(path: str) -> dict[str, str]:
    if not _read(path, "Cargo.toml"):
        return {}
    found = {"compile": "cargo build --all-targets", "test": "cargo test"}
    return {**found, "lint": "cargo clippy --all-targets -- -D warnings"} if shutil.which("cargo-clippy") else found


def _go(path: str) -> dict[str, str]:
    if not _read(path, "go.mod"):
        return {}
    return {"compile": "go build ./...", "lint": "go vet ./...", "test": "go test ./..."}


# In the order in which they win.
_KINDS: dict[str, Callable[[str], dict[str, str]]] = {
    "make": _makefile,
    "npm": _npm,
    "python": _python,
    "cargo": _cargo,
    "go": _go,
}


def _python_tests(path: str) -> bool:
    for directory, names, files in os.walk(path):
        names[:] = [n for n in names if n not in _SKIP_DIRECTORIES]
        if directory.count(os.sep) - path.count(os.sep) > 6:
            names[:] = []
        if any(re.fullmatch(r"test.*\.py|.*_test\.py", f) for f in files):
            return True
    return False


def _has(module: str) -> bool:
    """Can `python3` of this sandbox import `module`? The worker itself runs isolated but on that same interpreter."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _greens(checks: list[Check]) -> set[str]:
    return {c.name for c in checks if not c.red}


def _read(path: str, name: str) -> str:
    full = os.path.join(path, name)
    try:
        if not os.path.isfile(full):
            return ""
        with open(full, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _json(path: str, name: str) -> dict[str, object] | None:
    try:
        found = json.loads(_read(path, name))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
