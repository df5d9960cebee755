"""`longshot harnesses` as it is typed."""

import json
from pathlib import Path

import pytest

from longshot_dagster.cli.main import run
from longshot_dagster.core.harnesses import HARNESSES
from longshot_dagster.core.image import dockerfile, recipe


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_each_is_listed_with_what_it_speaks_and_whether_it_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["harnesses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1:]}
    assert set(HARNESSES) <= set(rows)
    assert rows["codex"].split() == ["codex", "responses", "0.169.0", "404", "MB", "not", "installed"]
    assert rows["builtin"].endswith("comes with Longshot")
    assert max(map(len, lines)) <= 90


def test_programs_get_the_same_as_json(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    layer = home / "harnesses" / "pi-0.73.1"
    layer.mkdir(parents=True)
    (layer / "layer.json").write_text(
        json.dumps({"name": "pi", "package": HARNESSES["pi"].pinned, "node": 20, "bytes": 7})
    )
    assert run(["harnesses", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    pi = next(h for h in told["harnesses"] if h["name"] == "pi")
    assert told["harness"] == "auto"
    assert pi["api"] == "chat"
    assert [(i["version"], i["bytes"], i["path"]) for i in pi["installed"]] == [("0.73.1", 7, str(layer))]
    assert run(["harnesses", "remove", "pi"]) == 0
    assert not layer.exists()


def test_the_dockerfile_is_written_for_chosen_harnesses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["harnesses", "dockerfile", "codex", "pi"]) == 0
    assert capsys.readouterr().out == dockerfile(recipe(("codex", "pi")))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["instal", "pi"], "'instal' is not one of install, remove and dockerfile"),
        (["install"], "name one harness: longshot harnesses install pi"),
        (["install", "pi", "codex"], "name one harness"),
        (["install", "builtin"], "builtin needs no installation"),
        (["install", "emacs"], "HARNESS=emacs is neither built in nor brought by an installed package"),
        (["install", "pi", "--package", "pi"], "is not an npm package with its exact version"),
        (["remove", "pi"], "pi is not installed here"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert run(["harnesses", *words]) == 2
    said = capsys.readouterr()
    assert line in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""
