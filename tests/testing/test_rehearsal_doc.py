"""What docs/rehearsal.md shows is what the scripted model does."""

import re
import subprocess
import sys
from pathlib import Path

from longshot_dagster.testing.answers import answer, understand
from longshot_dagster.testing.script import FaultKind, load

DOC = Path(__file__).parents[2] / "docs" / "rehearsal.md"


def shown(folder: Path) -> None:
    """Write every file that the page shows under its name in a first comment."""
    for name, text in re.findall(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```", DOC.read_text("utf-8"), re.M | re.S):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def test_the_first_rehearsal_can_be_copied_from_the_page(tmp_path: Path) -> None:
    shown(tmp_path)
    script = load(tmp_path / "script.toml")
    planned = script.planners[0].round(1).tasks[0]
    messages = [
        {"role": "system", "content": "You are a Longshot worker."},
        {"role": "user", "content": f"# Task r001-01\n\n{planned.description}"},
    ]
    offered = [{"function": {"name": name}} for name in ("write", "bash")]
    calls = answer(script, understand({"messages": messages, "tools": offered})).calls
    assert [call.tool for call in calls] == ["write", "write"]
    subprocess.run([sys.executable, "-m", "unittest", "-q"], cwd=tmp_path / "files", check=True, capture_output=True)


def test_every_fault_is_on_the_page() -> None:
    assert all(f"`{fault}`" in DOC.read_text("utf-8") for fault in FaultKind)
