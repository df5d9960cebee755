"""The whole loop through the real executor, daemon, webserver, gateway, sandboxes and git; only the model is scripted.

The tests share one installation and run in order; each takes a repository and a build of its own.
"""

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from installation import KEY, Installation, bare, git

from longshot_dagster.adapters.host import leases
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.models import BuildPhase, Verdict
from longshot_dagster.testing.script import Fault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

_ASSETS = """
query Assets { assetNodes { assetKey { path } partitionKeys dependencyKeys { path } } }"""
_TASK = """
query Task($partition: [String!]) {
  assetOrError(assetKey: {path: ["task_result"]}) { ... on Asset {
    assetMaterializations(partitions: $partition) { metadataEntries { label ... on MarkdownMetadataEntry { mdStr }
      ... on TextMetadataEntry { text } ... on IntMetadataEntry { intValue } } }
  } }
}"""


def test_a_sentence_becomes_landed_code_and_no_key_leaks(installation: Installation, tmp_path: Path):
    repository = bare(tmp_path / "one.git")
    done = installation.longshot("Write alpha and beta", "--repo", str(repository))
    assert done.returncode == 0, done.stdout + done.stderr
    [build] = Ledger(installation.home.builds).builds()
    ledger = installation.ledger(build)
    report = ledger.report()
    assert report is not None and report.verdict is Verdict.GREEN and report.rehearsal
    assert {t: ledger.landing(t).state for t in ledger.task_ids()} == dict.fromkeys(
        ["r001-01", "r001-02"], LandingState.LANDED
    )
    _landed_commits_carry_their_three_trailers(repository, build)
    _ui_shows_partitions_metadata_and_lineage(installation, build)
    _no_key_anywhere(installation, repository)


def _landed_commits_carry_their_three_trailers(repository: Path, build: str) -> None:
    for message in git(repository, "log", "--format=%B%x00", "--grep=Longshot-Task", "main").split("\0"):
        if message.strip():
            found = dict(re.findall(r"^(Longshot-\w+): (\S+)$", message, re.MULTILINE))
            assert found.keys() == {"Longshot-Build", "Longshot-Task", "Longshot-Source"}
            assert found["Longshot-Build"] == build
    tasks = re.findall(r"Longshot-Task: (\S+)", git(repository, "log", "--format=%B", "main"))
    assert sorted(set(tasks)) == ["r001-01", "r001-02"]


def _ui_shows_partitions_metadata_and_lineage(installation: Installation, build: str) -> None:
    nodes = {n["assetKey"]["path"][-1]: n for n in installation.api.ask(_ASSETS, {})["assetNodes"]}
    assert build in nodes["build_report"]["partitionKeys"]
    assert f"{build}.root.001" in nodes["plan"]["partitionKeys"]
    assert {f"{build}.r001-01", f"{build}.r001-02"} <= set(nodes["task_result"]["partitionKeys"])
    above = {name: {k["path"][-1] for k in n["dependencyKeys"]} for name, n in nodes.items()}
    reached, todo = set(), ["metrics"]
    while todo:
        name = todo.pop()
        reached.add(name)
        todo += above.get(name, set()) - reached
    assert "repo_state" in reached, "metrics must descend from repo_state in the lineage"
    asset = installation.api.ask(_TASK, {"partition": [f"{build}.r001-01"]})["assetOrError"]
    [entries] = [m["metadataEntries"] for m in asset["assetMaterializations"][:1]]
    shown = {e["label"]: e.get("mdStr") or e.get("text") or e.get("intValue") for e in entries}
    text = "\n".join(str(v) for v in shown.values())
    assert "+FOUND" in text, "the diff is there to read"
    assert "<img" not in text.replace("\\<", "") and "\x1b" not in text


def _no_key_anywhere(installation: Installation, repository: Path) -> None:
    found_by_the_agent = git(repository, "show", "main:alpha.py")
    assert found_by_the_agent.splitlines() == ['FOUND = """', '"""'], "the sandbox holds a credential"
    root = installation.home.root
    found = subprocess.run(["grep", "-rlaF", KEY, str(root)], capture_output=True, text=True, check=False).stdout
    assert found == "", "a key lies in the ledger, logs, mirrors or Dagster's databases"
    assert KEY not in git(repository, "log", "-p", "--all")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environ = (folder / "environ").read_bytes()
        except OSError:
            continue
        assert KEY.encode() not in command
        if str(root).encode() in environ + command and folder.name != str(os.getpid()):
            assert KEY.encode() not in environ, f"a key is in the environment of {command!r}"


def test_a_build_from_the_launchpad_needs_no_command_line_and_one_task_can_be_run_again(installation, tmp_path):
    repository, before = bare(tmp_path / "two.git"), len(installation.model.log)
    installation.launch("launchpad-0001", repository)
    installation.wait("the build's end", lambda: installation.finished("launchpad-0001"))
    report = installation.ledger("launchpad-0001").report()
    assert report is not None and report.verdict is Verdict.GREEN
    assert git(repository, "show", "main:beta.py").startswith("def beta")
    workers = Counter(r["task"] for r in installation.asked(before) if r["role"] == "worker" and r["step"] == 0)
    assert workers == {"r001-01": 1, "r001-02": 1}
    head = git(repository, "rev-parse", "main")
    run = _materialize(installation, "launchpad-0001.r001-01")
    installation.wait("the task's run", lambda: installation.api.status(run) in ("SUCCESS", "FAILURE"))
    assert installation.api.status(run) == "SUCCESS"
    assert git(repository, "rev-parse", "main") == head, "a landed task does not land twice"


def _materialize(installation: Installation, partition: str) -> str:
    query = """
    mutation M($params: ExecutionParams!) { launchRun(executionParams: $params) {
      __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
    params = {
        "selector": {
            "repositoryLocationName": "longshot",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": ["task_result"]}],
        },
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
    }
    answer = installation.api.ask(query, {"params": params})["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def test_a_model_that_gives_nothing_usable_pauses_the_build_and_nothing_says_green(installation, tmp_path):
    faults = ("500", "prose", "empty")
    installation.model.set_faults([Fault(fault=fault, match=f"in the case of {fault}") for fault in faults])

    def build(fault: str) -> tuple[int, str]:
        repository = bare(tmp_path / f"{fault}.git")
        done = installation.longshot(f"Write it in the case of {fault}", "--repo", str(repository))
        return done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor() as pool:
        ended = dict(zip(faults, pool.map(build, faults), strict=True))
    installation.model.set_faults([])
    for fault, (code, said) in ended.items():
        assert code == 5, f"{fault}: {said}"
        assert "green" not in said and "Traceback" not in said
        assert sum(" is paused: " in line for line in said.splitlines()) == 1, said
        assert "longshot resume" in said


def test_a_run_killed_mid_build_is_resumed_without_asking_a_finished_tasks_model_again(installation, tmp_path):
    repository, build, before = bare(tmp_path / "three.git"), "killed-0001", len(installation.model.log)
    installation.launch(build, repository)
    ledger = installation.ledger(build)
    installation.wait("alpha's handoff", lambda: ledger.exists() and ledger.handoff("r001-01"))
    assert ledger.handoff("r001-02") is None, "beta was to be under way still"
    killed = _kill_run(installation, build)
    done = installation.longshot("resume", build)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ledger.state().phase is BuildPhase.FINISHED
    assert leases.holder(installation.home, killed) is None
    first_steps = Counter(r["task"] for r in installation.asked(before) if r["role"] == "worker" and r["step"] == 0)
    assert first_steps["r001-01"] == 1, "alpha had finished and was asked again"
    rounds = Counter(r["task"] for r in installation.asked(before) if r["role"] == "root" and r["step"] == 0)
    assert rounds["root.001"] == 1, "the plan was frozen and was asked for again"
    tasks = re.findall(r"Longshot-Task: (\S+)", git(repository, "log", "--format=%B", "main"))
    assert sorted(tasks) == ["r001-01", "r001-02"], "each task landed once"


def test_ctrl_c_keeps_the_workers_work_and_what_a_person_cancelled_can_be_retried(installation, tmp_path):
    repository = bare(tmp_path / "four.git")
    with installation.started("Write alpha and beta, then stop", "--repo", str(repository)) as longshot:
        live = installation.wait("beta at work", lambda: _at_its_sleep(installation))
        longshot.send_signal(signal.SIGINT)
        said, _ = longshot.communicate(timeout=60)
    build = live.parents[2].name
    assert longshot.returncode == 130, said
    assert said.splitlines()[-1].endswith(f"so far is kept; to go on: longshot resume {build}"), said
    ledger = installation.ledger(build)
    kept = ledger.interrupted("r001-02")
    assert kept is not None and kept.files_changed == ["beta.py", "test_beta.py"]
    assert (ledger.state().reason, ledger.handoff("r001-02")) == ("interrupted by Ctrl-C", None)
    assert not live.exists() and not list(installation.home.sandboxes.iterdir())
    assert installation.longshot("cancel", f"{build}.r001-02").returncode == 0
    assert installation.longshot("resume", build).returncode == 3, "what a person cancelled is left over"
    assert ledger.landing("r001-02").state is LandingState.WITHHELD
    retried = installation.longshot("retry", f"{build}.r001-02")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    installation.wait("the end of the reopened build", lambda: installation.finished(build))
    report = ledger.report()
    assert report is not None and report.verdict is Verdict.GREEN
    assert (ledger.directory / "earlier-report-1.json").exists()
    tasks = re.findall(r"Longshot-Task: (\S+)", git(repository, "log", "--format=%B", "main"))
    assert sorted(tasks) == ["r001-01", "r001-02"]


def _at_its_sleep(installation: Installation) -> Path | None:
    """The live transcript of a worker that sleeps."""
    found = installation.home.builds.glob("*/tasks/r001-02/live.jsonl")
    return next((path for path in found if b"sleep 6.1" in path.read_bytes()), None)


def _kill_run(installation: Installation, build: str) -> str:
    [run] = [r for r in installation.api.active() if r.tags.get("dagster/partition") == f"{build}.root.001"]
    pid = leases.holder(installation.home, run.id)
    assert pid, "a run that is under way holds its lease"
    os.kill(pid, signal.SIGKILL)
    return run.id


_BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) { __typename ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message } }
}"""


def test_a_backfill_repairs_a_stopped_build_and_its_checkpoint_brings_it_back(installation, tmp_path):
    repository, before = bare(tmp_path / "five.git"), len(installation.model.log)
    with installation.started("Write alpha and beta, and stop", "--repo", str(repository)) as longshot:
        live = installation.wait("beta at work", lambda: _at_its_sleep(installation))
        build = live.parents[2].name
        ledger = installation.ledger(build)
        installation.wait("alpha handed in", lambda: ledger.handoff("r001-01"))
        longshot.send_signal(signal.SIGINT)
        said, _ = longshot.communicate(timeout=60)
    assert ledger.handoff("r001-01") and not ledger.handoff("r001-02"), said
    _backfill(installation, [f"{build}.r001-01", f"{build}.r001-02"])
    landed = installation.wait("the repair", lambda: (o := ledger.landing("r001-02")) and o.settled and o)
    assert landed.state is LandingState.LANDED
    shutil.rmtree(ledger.directory)
    shutil.rmtree(installation.home.mirror_of(str(repository)))
    done = installation.longshot("resume", build, "--repo", str(repository), "--take-over")
    assert done.returncode == 0, done.stdout + done.stderr
    again = installation.ledger(build)
    assert again.state().phase is BuildPhase.FINISHED and again.report().verdict is Verdict.GREEN
    asked = Counter(r["task"] for r in installation.asked(before) if r["role"] == "worker" and r["step"] == 0)
    assert asked["r001-01"] == 1, "alpha had finished and was asked again"
    tasks = re.findall(r"Longshot-Task: (\S+)", git(repository, "log", "--format=%B", "main"))
    assert sorted(tasks) == ["r001-01", "r001-02"], "each task landed once"


def _backfill(installation: Installation, partitions: list[str]) -> None:
    """As the UI launches it for the partitions of `task_result` that are missing."""
    params = {"assetSelection": [{"path": ["task_result"]}], "partitionNames": partitions}
    answer = installation.api.ask(_BACKFILL, {"params": params})["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
