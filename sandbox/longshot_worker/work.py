"""One order from beginning to end: do a task, sweep a commit, or salvage what a killed worker left behind."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback

from longshot_worker import checks as project_checks
from longshot_worker.attendant import at_work
from longshot_worker.commands import clipped
from longshot_worker.events import Events, count
from longshot_worker.git import GitError, Repo
from longshot_worker.handoff import HarnessResult, Said, judge, read_final
from longshot_worker.harness.known import work_with
from longshot_worker.order import Order, Places
from longshot_worker.relay import Relay

_GUIDANCE = "AGENTS.md"
_MAX_GUIDANCE = 20_000
# An orchestrator that died is followed by another one, which makes the way to the model anew; most agents wait for less.
_MODEL_AWAY_S = 120.0


def carry_out(order: Order, places: Places) -> None:
    """Do what `order` says and write its result; whatever goes wrong becomes a result, too."""
    os.makedirs(places.out, exist_ok=True)
    until = time.monotonic() + order.deadline_s
    with at_work(places.at_work):
        try:
            result = {"work": _work, "sweep": _sweep, "salvage": _salvage, "warm": _warm}[order.mode](
                order, places, until
            )
        except GitError as e:
            result = _crashed(order, str(e))
        except Exception as e:
            traceback.print_exc()
            result = _crashed(order, f"the worker failed: {type(e).__name__}: {e}")
        _write_result(places.result, result)


def _work(order: Order, places: Places, until: float) -> dict[str, object]:
    repo = _checkout(order, places.bundle_in, places.repo)
    # Before any agent's commit is there: its checks and its instructions are not the branch's to choose.
    before, task = project_checks.found_at(repo.path), _task(order, repo.path)
    if order.start:
        repo.go_on_from(order.start)
    events = Events(places.transcript, sys.stdout)
    try:
        events.add("start", task=order.task_id, harness=order.harness, model=order.model, prompt=order.prompt)
        with Relay(places.socket, _MODEL_AWAY_S) as relay:
            harness = work_with(order, places, task, relay, events, until - _reserve(order))
        result = _finish(order, places, repo, harness, until, before)
        events.add("result", status=result["status"], checks=[f"{c['name']}: {c['status']}" for c in result["checks"]])
    finally:
        events.close()
    return result


def _sweep(order: Order, places: Places, until: float) -> dict[str, object]:
    repo = _checkout(order, places.bundle_in, places.repo)
    found = project_checks.run_all(repo.path, order.checks, order.check_timeout_s, until)
    return {**_result(order, HarnessResult("completed"), "complete"), "checks": [c.wire() for c in found]}


def _warm(order: Order, places: Places, until: float) -> dict[str, object]:
    """For a snapshot that other sandboxes begin with: the base, checked out, and nothing that an agent could have made."""
    _checkout(order, places.bundle_in, places.repo)
    return _result(order, HarnessResult("completed"), "complete")


def _salvage(order: Order, places: Places, until: float) -> dict[str, object]:
    """The orchestrator had to end the worker: keep what is there. No checks: nothing of this is going to land."""
    harness = HarnessResult("timeout", "the worker was ended", tool_calls=count(places.transcript, "tool_start"))
    return _finish(order, places, Repo(places.repo, order.base), harness, until)


def _finish(
    order: Order,
    places: Places,
    repo: Repo,
    harness: HarnessResult,
    until: float,
    before: project_checks.Detected | None = None,
) -> dict[str, object]:
    """Commit, check, bundle. `before`: the checks of the base."""
    head, too_large = repo.collect(order.title or f"{order.task_id}: work the agent left uncommitted")
    changed = repo.changed(head)
    said = read_final(harness.final)
    result = _result(order, harness, judge(harness, said, changed), said)
    result["concerns"] = [
        *result["concerns"],
        *(f"left out, larger than 50 MB: {name[:300]}" for name in too_large[:50]),
    ][:200]
    if not changed:
        return result
    if harness.status == "completed":
        result["checks"] = [c.wire() for c in _check(order, places, repo, until - _grace(order), before)]
    repo.bundle(head, places.bundle_out)
    stat = repo.figures(head)
    figures = {
        "linesAdded": stat.added,
        "linesRemoved": stat.removed,
        "filesCreated": stat.created,
        "filesModified": stat.modified,
    }
    metrics = {**result["metrics"], **figures}
    markers = repo.conflict_markers(head)[:1_000]
    return {**result, "head": head, "commits": repo.commits(head), "metrics": metrics, "conflictMarkers": markers}


def _check(
    order: Order, places: Places, repo: Repo, until: float, before: project_checks.Detected | None
) -> list[project_checks.Check]:
    found = project_checks.run_all(repo.path, order.checks, order.check_timeout_s, until, before=before)
    return project_checks.against_base(
        found,
        lambda: _base_of(order, places),
        order.checks,
        order.check_timeout_s,
        until,
    )


def _base_of(order: Order, places: Places) -> str:
    """The base once more, without what was done to it. A bundle that builds on what is there would not do for it."""
    if order.holds:
        return Repo.beside(places.repo, places.base_repo, order.base).path
    return _checkout(order, places.bundle_in, places.base_repo).path


def _checkout(order: Order, bundle: str, path: str) -> Repo:
    author = (order.author_name, order.author_email)
    if order.holds:
        return Repo.from_snapshot(bundle, path, order.base, order.branch or "work", author)
    return Repo.from_bundle(bundle, path, order.base, order.branch or "work", author)


def _task(order: Order, repo: str) -> str:
    """The user message: the order's prompt, and the repository's own guidance for agents."""
    path = os.path.join(repo, _GUIDANCE)
    if not os.path.isfile(path) or os.path.islink(path):
        return order.prompt
    with open(path, encoding="utf-8", errors="replace") as file:
        guidance = clipped(file.read(1 << 20), _MAX_GUIDANCE)
    return f"{order.prompt.rstrip()}\n\n## {_GUIDANCE} of this repository\n\n{guidance}"


def _grace(order: Order) -> float:
    """Seconds at the end that belong to commit and bundle."""
    return min(30.0, 0.2 * order.deadline_s)


def _reserve(order: Order) -> float:
    """Seconds at the end that the agent does not get: the checks need some of them, commit and bundle the rest."""
    return _grace(order) + min(120.0, 0.1 * order.deadline_s)


def _result(order: Order, harness: HarnessResult, status: str, said: Said | None = None) -> dict[str, object]:
    said = said or Said()
    return {
        "version": order.version,
        "taskId": order.task_id,
        "harnessStatus": harness.status,
        "error": harness.error[:2_000],
        "status": status,
        "said": bool(said.status),
        "summary": said.summary or harness.error or "",
        "concerns": said.concerns,
        "suggestions": said.suggestions,
        "head": None,
        "commits": 0,
        "checks": [],
        "metrics": {"toolCallCount": harness.tool_calls},
        "tokensIn": harness.tokens_in,
        "tokensOut": harness.tokens_out,
    }


def _crashed(order: Order, why: str) -> dict[str, object]:
    return _result(order, HarnessResult("crashed", " ".join(why.split())), "failed")


def _write_result(path: str, result: dict[str, object]) -> None:
    with open(path + ".part", "w", encoding="utf-8", errors="replace") as file:
        json.dump(result, file)
    os.replace(path + ".part", path)
