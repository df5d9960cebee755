"""The commands at the end of a report: for what stands there, and only where they would do something."""

import pytest

from longshot_dagster.core.models import BuildPhase, BuildRequest, BuildState, Target, TargetKind
from longshot_dagster.core.reviewing import next_steps, review_steps, undo_steps
from longshot_dagster.core.settings import Settings

BASE, HEAD, BUILD = "b" * 40, "a" * 40, "todo-7f3k"


def request(url: str, kind: TargetKind, branch: str = "main") -> BuildRequest:
    target = Target(repository=url, url=url, kind=kind, base_branch="main", branch=branch)
    return BuildRequest(build=BUILD, request="x", target=target, base=BASE, settings=Settings(), created_at=1.0)


def commands(
    url: str, kind: TargetKind, branch: str = "main", head: str = HEAD, files: tuple[str, ...] = ()
) -> list[str]:
    return [s.command for s in review_steps(request(url, kind, branch), head, files)]


def test_what_landed_in_a_remote_is_read_in_a_clone() -> None:
    assert commands("https://git.example/me/api.git", TargetKind.REMOTE, files=("src/a b.py",)) == [
        "git clone --branch main -- https://git.example/me/api.git review",
        "git -C review log --reverse --stat bbbbbbbbbbbb..aaaaaaaaaaaa",
        "git -C review diff bbbbbbbbbbbb..aaaaaaaaaaaa",
        "git -C review blame aaaaaaaaaaaa -- 'src/a b.py'",
        "git -C review log -1 --format=%B aaaaaaaaaaaa -- 'src/a b.py'",
    ]


def test_what_landed_in_a_checkout_is_read_and_taken_over_there() -> None:
    found = commands("/home/me/my app/.git", TargetKind.CHECKOUT, f"longshot/{BUILD}")
    assert found[0] == "git -C '/home/me/my app' log --reverse --stat bbbbbbbbbbbb..aaaaaaaaaaaa"
    assert found[-1] == "git -C '/home/me/my app' merge longshot/todo-7f3k"


def test_nothing_landed_has_nothing_to_review_or_undo() -> None:
    assert commands("/r.git", TargetKind.REMOTE, head=BASE) == []
    assert undo_steps(BUILD, []) == ()


def test_a_path_that_cannot_be_printed_is_no_example() -> None:
    assert not any("blame" in c for c in commands("/r.git", TargetKind.REMOTE, files=("a\nb", "\x1b[31m")))
    assert any("-- ok.py" in c for c in commands("/r.git", TargetKind.REMOTE, files=("a\nb", "ok.py")))


def test_undoing_names_the_newest_task_and_the_whole_build() -> None:
    found = [s.command for s in undo_steps(BUILD, ["r001-01", "r001-02"])]
    assert found == ["longshot undo todo-7f3k.r001-02", "longshot undo todo-7f3k"]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (BuildPhase.PAUSED, ["longshot resume todo-7f3k"]),
        (BuildPhase.RUNNING, ["longshot watch todo-7f3k", "longshot cancel todo-7f3k"]),
        (BuildPhase.FINISHED, [f"longshot retry todo-7f3k.r001-0{n}" for n in range(1, 6)]),
    ],
)
def test_how_to_go_on_depends_on_how_the_build_stands(phase: BuildPhase, expected: list[str]) -> None:
    left = [f"r001-0{n}" for n in range(1, 9)]
    assert [s.command for s in next_steps(BuildState(phase=phase), BUILD, left)] == expected
