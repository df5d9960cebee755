"""One installation for all end-to-end tests: its own home, its own stack, the scripted model, real everything else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import KEY, Installation

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.testing.script import load
from longshot_dagster.testing.scripted_model import ScriptedModel


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    root = tmp_path_factory.mktemp("installation")
    with ScriptedModel(load(Path(__file__).parent / "script.toml")) as model:
        environ = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "CI")}
        environ |= {
            "LONGSHOT_HOME": str(root / "home"),
            "LONGSHOT_UI_PORT": "0",
            "LLM_BASE_URL": model.base_url,
            "LLM_API_KEY": KEY,
            "LLM_MODEL": "longshot-scripted-model",
            "SANDBOX_PROVIDER": "local",
        }
        installation = Installation(Home(root / "home"), model, environ)
        try:
            yield installation
        finally:
            installation.longshot("down")
            mine = str(root)
            left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mine in _read(p)]
            assert [_read(p) for p in left] == [], "processes outlive `longshot down`"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
