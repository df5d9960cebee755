"""Coding agents that other packages bring, by an entry point of the group `longshot_dagster.harnesses`.

    [project.entry-points."longshot_dagster.harnesses"]
    mine = "my_package.my_agent:MyAgent"        # HARNESS=mine

It names a class in ONE module, which is never imported here: its source travels into the sandbox with the worker, and runs
there, on Python 3.9 or newer. So it imports the standard library and `longshot_worker` only; the class is a
`longshot_worker.harness.interface.Harness`, and says by attributes with plain values what it speaks (`api`) and which
command it starts (`binary`), which has to be in the sandbox already.
"""

import ast
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.harnesses import HARNESSES, HarnessFacts
from longshot_dagster.core.model_apis import Api

GROUP = "longshot_dagster.harnesses"
WORKER = "longshot_worker"
_PYTHON = (3, 9)  # the oldest of a sandbox
_MAX_SOURCE = 256 << 10


@dataclass(frozen=True)
class BroughtHarness:
    """One that an installed package brings: the class `of` in a module's `source`."""

    facts: HarnessFacts
    of: str
    source: str


def installed_harnesses() -> list[str]:
    """Names that HARNESS may have beside the ones that are built in."""
    return sorted({point.name.lower() for point in entry_points(group=GROUP)})


def harness_facts(name: str) -> HarnessFacts:
    """Of one that is built in or installed. Raises WrongUse."""
    return HARNESSES.get(name) or brought_harness(name).facts


def brought_harness(name: str) -> BroughtHarness:
    """Raises WrongUse, in one line, when no package brings it or what it brings cannot travel."""
    found = [point for point in entry_points(group=GROUP) if point.name.lower() == name]
    if not found:
        raise WrongUse(f"HARNESS={one_line(name, 80)} is neither built in nor brought by an installed package")
    if len({point.value for point in found}) > 1:
        raise WrongUse(f"HARNESS={name} is brought by two packages; uninstall one of them")
    try:
        return _read(name, found[0])
    except (OSError, ValueError, SyntaxError, RecursionError) as e:
        why = one_line(e.msg if isinstance(e, SyntaxError) else e, 200)
        raise WrongUse(f"HARNESS={name} cannot go into a sandbox: {why}; see to the package that brings it") from e


def _read(name: str, point: EntryPoint) -> BroughtHarness:
    path = _source(point.module)
    if path.stat().st_size > _MAX_SOURCE:
        raise ValueError(f"{point.module} is larger than {_MAX_SOURCE >> 10} kB")
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=_PYTHON)
    for wanted in _imports(tree):
        if wanted.partition(".")[0] not in (*sys.stdlib_module_names, WORKER):
            raise ValueError(f"{point.module} imports {wanted}, and only the standard library and {WORKER} are there")
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == point.attr]
    if not found:
        raise ValueError(f"{point.module} has no class {point.attr or 'after a colon'}")
    return BroughtHarness(_facts(name, _plain_attributes(found[-1])), point.attr, source)


def _facts(name: str, said: dict[str, object]) -> HarnessFacts:
    api = said.get("api", Api.CHAT.value)
    if api not in [member.value for member in Api]:
        raise ValueError(f"it speaks {api!r:.60}, and there are {', '.join(Api)}")
    binary = said.get("binary", "")
    return HarnessFacts(name, Api(str(api)), binary=binary if isinstance(binary, str) else "", installed=True)


def _source(module: str) -> Path:
    """The file of `module`, found without running anything of its package. Raises ValueError."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    for part in rest:
        places = list(spec.submodule_search_locations or ()) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(part, places) if places else None
    if spec is None or spec.submodule_search_locations is not None or not (spec.origin or "").endswith(".py"):
        raise ValueError(f"{module} is not one module with its source")
    return Path(str(spec.origin))


def _imports(tree: ast.AST) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def _plain_attributes(node: ast.ClassDef) -> dict[str, object]:
    """What the class says of itself with values that can be read without running it."""
    found: dict[str, object] = {}
    for line in node.body:
        target = (
            line.targets[0]
            if isinstance(line, ast.Assign)
            else line.target
            if isinstance(line, ast.AnnAssign)
            else None
        )
        value = line.value if isinstance(line, ast.Assign | ast.AnnAssign) else None
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            found[target.id] = value.value
    return found
