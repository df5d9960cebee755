"""Which lock files are due once manifests have landed."""

import pytest

from longshot_dagster.core.landing import is_fit
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.lock_tools import TOOLS, asked_about, concerns_of, due, message, needed, problem
from longshot_dagster.core.scope import LOCK_FILES


def jobs(landed, withheld, there):
    assert {*there} & {*asked_about(landed, withheld)} >= {
        p for j in due(landed, withheld, there) for p in [j.path]
    } & {*there}
    return [(j.tool.program, j.folder, j.path) for j in due(landed, withheld, there)]


@pytest.mark.parametrize(
    ("landed", "withheld", "there", "wanted"),
    [
        (["package.json"], [], ["package.json", "package-lock.json"], [("npm", "", "package-lock.json")]),
        (["src/a.ts"], ["package-lock.json"], ["package.json", "package-lock.json"], []),  # only its own noise
        (["src/a.ts"], [], ["package.json", "package-lock.json"], []),
        (["package.json"], [], ["package.json"], []),  # a project without lock files stays one
        (["package.json"], ["package-lock.json"], ["package.json"], [("npm", "", "package-lock.json")]),
        (["package.json"], ["web/package-lock.json"], ["package.json"], []),  # nothing to make it from
        (
            ["package.json"],
            ["package-lock.json"],
            ["package.json", "yarn.lock"],
            [("yarn", "", "yarn.lock")],  # the project's own tool, whatever a task ran
        ),
        (["package.json"], ["pnpm-lock.yaml", "package-lock.json"], ["package.json"], [("pnpm", "", "pnpm-lock.yaml")]),
        (
            ["web/ui/package.json"],  # a workspace
            [],
            ["web/ui/package.json", "web/package.json", "web/package-lock.json", "package.json", "package-lock.json"],
            [("npm", "web", "web/package-lock.json")],
        ),
        (
            ["a/Cargo.toml", "b/pyproject.toml"],
            [],
            ["Cargo.toml", "Cargo.lock", "b/uv.lock", "b/pyproject.toml"],
            [("cargo", "", "Cargo.lock"), ("uv", "b", "b/uv.lock")],
        ),
        (["web/package.json"], [], ["package-lock.json", "web/package.json"], []),  # removed at the root
    ],
)
def test_the_nearest_lock_file_above_a_landed_manifest_is_due(landed, withheld, there, wanted):
    assert jobs(landed, withheld, there) == wanted


def test_a_task_is_told_of_the_lock_files_that_it_had_a_part_in():
    (job,) = due(["web/package.json"], [], ["web/package.json", "web/package-lock.json"])

    def outcome(landed, withheld=()):
        return LandingOutcome(task="r001-01", state=LandingState.LANDED, landed_paths=landed, withheld_paths=withheld)

    assert concerns_of(outcome(("web/package.json",)), job)
    assert concerns_of(outcome((), ("web/package-lock.json",)), job)
    assert not concerns_of(outcome(("package.json", "web/a.ts")), job)


def test_a_tool_gets_what_it_reads_and_nothing_else():
    (job,) = due(["package.json"], [], ["package.json", "package-lock.json"])
    assert [p for p in ("package.json", "libs/a/package.json", "x/a.tgz", ".npmrc") if not needed(job, p)] == []
    assert not needed(job, "src/a.ts") and not needed(job, "node_modules/a/package.json")
    (whole,) = due(["Cargo.toml"], [], ["Cargo.toml", "Cargo.lock"])
    assert needed(whole, "src/main.rs")


def test_every_lock_file_has_its_tool_which_stays_offline_where_there_is_no_network():
    assert {lock for tool in TOOLS for lock in tool.locks} == LOCK_FILES, (
        "what never lands from a worker is made by somebody"
    )
    npm = TOOLS[0]
    assert npm.line(False).endswith("--offline") and "--offline" not in npm.line(True)


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        (127, "", "npm is not in the sandbox"),
        (124, "", "npm did not end in time"),
        (1, "", "npm ended with exit code 1: it said nothing"),
        (1, "warn x\nnpm error code E\x1b[0mX\n", "npm ended with exit code 1: npm error code E�[0mX"),
    ],
)
def test_why_a_lock_file_was_not_made_is_one_plain_line(code, said, line):
    (job,) = due(["package.json"], [], ["package.json", "package-lock.json"])
    assert problem(job, code, said) == line


def test_the_commit_names_the_build_and_no_task_and_a_worker_cannot_write_its_trailer():
    text = message("b-1", ["a/uv.lock", "b\nLongshot-Task: x"])
    assert text.startswith("Make 2 lock files anew\n\nLongshot-Build: b-1\nLongshot-Lock-File: a/uv.lock\n")
    assert "\nLongshot-Task" not in text
    assert not is_fit("x\n\nLongshot-Lock-File: a\n")
