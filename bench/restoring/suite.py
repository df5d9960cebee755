"""Runs a repository's test suite in a sandbox as a sweep would, and says which tests passed."""

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.core.display import display
from longshot_dagster.core.sandbox import SandboxSpec

_RESULT = "/workspace/result.xml"
_MAX_RESULT = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """One run of the suite: ids of tests by how they ended. `said` is the tail of what it printed."""

    passed: frozenset[str]
    red: frozenset[str]
    exit_code: int
    seconds: float
    said: str


def command(python: Path, root: str, arguments: Sequence[str]) -> str:
    """The suite as a check's command, to be run in a checkout. Imports begin at `root` of the checkout."""
    path = f'"$PWD"/{shlex.quote(root)}' if root else '"$PWD"'
    pytest = [str(python), "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *arguments]
    return f"PYTHONPATH={path} PYTHONDONTWRITEBYTECODE=1 {shlex.join(pytest)}"


def run(provider: LocalProvider, repository: Path, check: str, readable: Sequence[str], seconds: float) -> Outcome:
    """`check` on branch main of the bare `repository`, without a network where the provider can close it."""
    able = provider.capabilities
    spec = SandboxSpec(
        name="suite",
        network="none" if "none" in able.network else "open",
        lifetime_s=int(seconds) + 120,
        readable=tuple(readable),
    )
    bundle = repository.with_suffix(".bundle")
    Git(repository).run("bundle", "create", "--quiet", str(bundle), "main")
    sandbox = provider.create(spec)
    try:
        # Where the sandbox says it is: without isolation its paths lie below a folder of the host.
        where = "" if able.isolation != "none" else str(sandbox.root)
        sandbox.write("/workspace/suite.bundle", bundle.read_bytes())
        script = f"git clone -q -b main suite.bundle repo && cd repo && {check} --junit-xml={where}{_RESULT}"
        ran = sandbox.exec(["bash", "-c", script], timeout_s=seconds, keep_bytes=20_000)
        said = display((ran.stdout + ran.stderr).decode("utf-8", "replace"), "plain", 20_000)
        try:
            passed, red = read(sandbox.read(_RESULT, max_bytes=_MAX_RESULT))
        except Exception as none:  # a suite that cannot even be collected may write nothing, or half a file
            passed, red, said = frozenset(), frozenset(), f"{said}\n(no result: {none})"
        return Outcome(passed, red, ran.exit_code, ran.duration_s, said)
    finally:
        sandbox.terminate()
        bundle.unlink(missing_ok=True)


def read(result: bytes) -> tuple[frozenset[str], frozenset[str]]:
    """(passed, red) of a JUnit document; a test that appears twice counts twice, a skipped one not at all."""
    passed, red = set[str](), set[str]()
    seen: dict[str, int] = {}
    for case in ET.fromstring(result).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        seen[name] = seen.get(name, 0) + 1
        unique = f"{name}#{seen[name]}"
        if case.find("failure") is not None or case.find("error") is not None:
            red.add(unique)
        elif case.find("skipped") is None:
            passed.add(unique)
    return frozenset(passed), frozenset(red)
