"""When a restoration counts as one, and what is said when it cannot begin."""

from typing import Any

import pytest
import restore

GOOD = {"exit_code": 0, "tests_passed": 465, "tests_expected": 465, "tasks": 7, "landed": 7}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"tests_passed": 464}, False),
        ({"landed": 6}, False),
        ({"exit_code": 3}, False),
        ({"exit_code": 130}, False),
        ({"tests_passed": 0, "tests_expected": 0}, False),
        ({"tasks": 0, "landed": 0}, False),
    ],
)
def test_only_a_whole_restoration_counts(changed: dict[str, Any], counts: bool) -> None:
    assert restore.restored({**GOOD, **changed}) is counts


def test_a_wrong_name_is_one_line_and_leaves_nothing_behind(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert restore.main(["--package", "cachetools"]) == 2
    assert capsys.readouterr().err == "'cachetools' is not NAME==VERSION\n"
    assert list(tmp_path.iterdir()) == []
