"""`longshot harnesses`: which coding agents there are, which are installed here, and installing one."""

import json
import os
from typing import Any

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.sandboxes.installed_harnesses import harness_facts, installed_harnesses
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.adapters.workers.harness_layers import HarnessLayers, Layer
from longshot_dagster.cli.status import table
from longshot_dagster.cli.terminal import say, waiting
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.harnesses import HARNESSES
from longshot_dagster.core.image import dockerfile, recipe
from longshot_dagster.core.settings import HarnessName

_MB = 1_000_000
_SPEAKS_ANYTHING = "as its command does"


def harnesses(do: str | None, names: tuple[str, ...], package: str | None, as_json: bool) -> int:
    """`do` is install, remove, dockerfile or None, which lists. Raises WrongUse."""
    dotenv = settings.default_dotenv()
    layers = HarnessLayers(settings.home(os.environ, dotenv))
    if do is None:
        _list(layers, settings.resolve({}, {}, os.environ, dotenv, None), as_json)
        return 0
    if do == "dockerfile":
        click.echo(dockerfile(recipe(names or (HarnessName.PI.value,), package or "")), nl=False)
        return 0
    if len(names) != 1:
        raise WrongUse(f"name one harness: longshot harnesses {do} pi")
    name = names[0].lower()
    if do == "remove":
        removed = layers.remove(name, package or "")
        return _told(f"removed {removed.name} {removed.version}, {_size(removed.bytes)}", removed, as_json)
    with waiting(f"installing {name} ...") as now:
        layer = layers.install(name, package or "", now)
    return _told(f"{name} {layer.version} is installed, {_size(layer.bytes)}; HARNESS={name} uses it", layer, as_json)


def _told(line: str, layer: Layer, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(_layer(layer)))
    else:
        say(line)
    return 0


def _list(layers: HarnessLayers, resolved: Resolved, as_json: bool) -> None:
    found = layers.all()
    rows: list[dict[str, Any]] = []
    for facts in [*HARNESSES.values(), *(harness_facts(name) for name in installed_harnesses())]:
        own = [layer for layer in found if layer.name == facts.name]
        rows.append(
            {
                "name": facts.name,
                "api": facts.api.value if facts.api else None,
                "package": facts.pinned or None,
                "needs_installing": bool(facts.package),
                "installed": [_layer(layer) for layer in own],
                "size_mb": facts.size_mb,
                "cannot": list(facts.cannot),
            }
        )
    if as_json:
        click.echo(json.dumps({"harness": resolved.settings.harness, "harnesses": rows}, indent=1))
        return
    table(("NAME", "API", "VERSION", "SIZE", "HERE"), [_row(r) for r in rows])
    say(
        f"HARNESS={resolved.settings.harness}; local sandboxes see what `longshot harnesses install NAME` has installed"
    )


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    api, here = row["api"] or _SPEAKS_ANYTHING, row["installed"]
    if not row["needs_installing"]:
        return row["name"], api, "", "", "comes with Longshot" if row["name"] in HARNESSES else "by a package"
    tried = row["package"].rpartition("@")[2]
    versions = ", ".join(layer["version"] for layer in here)
    return row["name"], api, tried, f"{row['size_mb']} MB", f"installed: {versions}" if here else "not installed"


def _layer(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "package": layer.package, "version": layer.version, "bytes": layer.bytes} | {
        "path": str(layer.folder)
    }


def _size(count: int) -> str:
    return f"{count / _MB:,.0f} MB"
