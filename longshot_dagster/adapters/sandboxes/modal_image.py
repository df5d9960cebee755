"""The image that Modal's sandboxes are made of when nobody names another: built once, remembered by its id."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from longshot_dagster.adapters.host.documents import locked, write_atomically
from longshot_dagster.adapters.sandboxes.modal_sdk import client, sdk, speaking
from longshot_dagster.core.image import Recipe

if TYPE_CHECKING:
    import modal


def longshot_image(app: "modal.App", folder: Path, made: Recipe, *, anew: bool = False) -> "modal.Image":
    """`made`, by its id where this installation knows it; `anew`: that one is gone. Processes that start together build
    once. Raises SandboxError.
    """
    path, key = folder / "images.json", _key(made)
    with locked(folder / ".lock"):
        known = _known(path)
        if anew or key not in known:
            with speaking("build Longshot's image"):
                known[key] = str(_defined(made).build(app).object_id)
            write_atomically(path, json.dumps(known, indent=1).encode())
    found: modal.Image = sdk().Image.from_id(known[key], client=client())
    return found


def _defined(made: Recipe) -> "modal.Image":
    """Its commands come first: they bring the Python that the service's own layers may want."""
    lines = [f"RUN {command}" for command in made.commands]
    image: modal.Image = sdk().Image.from_registry(made.base, setup_dockerfile_commands=lines)
    named: modal.Image = image.env(made.env).workdir(made.workdir)
    return named


def _key(made: Recipe) -> str:
    """Of this recipe at this account."""
    account = [os.environ.get(name, "") for name in ("MODAL_SERVER_URL", "MODAL_TOKEN_ID", "MODAL_PROFILE")]
    return hashlib.sha256(json.dumps([account, asdict(made)]).encode()).hexdigest()[:24]


def _known(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
