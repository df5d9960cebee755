"""Which order a worker gets, and what its answer is worth. The answer comes out of a sandbox: nothing in it is believed."""

import re
from dataclasses import dataclass

from pydantic import ValidationError

from longshot_dagster.core.contract import Mode, WorkOrder, WorkResult
from longshot_dagster.core.display import one_line
from longshot_dagster.core.models import (
    MAX_LINE,
    MAX_LIST,
    MAX_TEXT,
    BuildRequest,
    CheckName,
    CheckResult,
    Handoff,
    HandoffMetrics,
    HandoffStatus,
    Task,
)
from longshot_dagster.core.settings import HarnessName, Settings

COMPLETED = "completed"
MODEL_FAILED = "llm_error"
OVER_BUDGET = "budget"
CANCELLED = "cancelled"
UNPLACED = "unplaced"

BY_A_PERSON = "a person cancelled this task; plan it again only if the request cannot do without it"

_RULES = """\
- Change only files in your scope. If the task cannot be done within it, do what can be done and say in `concerns` which other files need what.
- Others work on other files of this repository at the same time. Do not reformat, rename or tidy what you need not touch.
- Do not edit lock files, build output or .gitignore for the sake of either; they are made elsewhere.
- Run the project's own checks on what you changed before you finish.
- Your branch is {branch}. You may commit; what you leave uncommitted is committed for you. There is no remote.
- Finish with one message that contains your handoff as JSON."""

_FILES_NAMED = 30


@dataclass(frozen=True)
class Beginning:
    """Where a worker goes on because an earlier one was interrupted: commit `head`, made on `base`."""

    base: str
    head: str
    done: Handoff


def harness_named(tag: str) -> str:
    """A harness as a sandbox's tag has it; empty for anything that cannot be the name of one."""
    return tag if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", tag) else ""


def harness_of(settings: Settings) -> str:
    """`auto` is the built-in agent."""
    return HarnessName.BUILTIN.value if settings.harness == HarnessName.AUTO else settings.harness


def work_order(
    task: Task,
    request: BuildRequest,
    base: str,
    system_prompt: str,
    beginning: Beginning | None = None,
    harness: str = "",
) -> WorkOrder:
    """The order for `task` on commit `base`, from its `beginning` where there is one. `harness`: the one it was routed to."""
    settings = request.settings
    return WorkOrder(
        task_id=task.id,
        branch=task.branch,
        title=task.title,
        base=base,
        start=beginning.head if beginning else None,
        scope=list(task.scope),
        system_prompt=system_prompt,
        prompt=user_message(task, beginning),
        harness=harness or harness_of(settings),
        harness_command=settings.harness_command,
        model=settings.llm_model,
        max_tokens=settings.llm_max_tokens,
        temperature=settings.llm_temperature,
        llm_timeout_s=settings.llm_timeout,
        # A little earlier than the orchestrator's own limit: a worker that ends itself hands over more.
        deadline_s=settings.worker_timeout - min(5.0, 0.1 * settings.worker_timeout),
        idle_timeout_s=settings.sandbox_idle_timeout,
        checks=ordered_checks(settings),
        check_timeout_s=settings.check_timeout,
    )


def sweep_order(request: BuildRequest, head: str, number: int) -> WorkOrder:
    """The order to run every check on commit `head`; time enough for each of them."""
    settings = request.settings
    return WorkOrder(
        mode=Mode.SWEEP,
        task_id=f"sweep-{number}",
        base=head,
        deadline_s=len(CheckName) * settings.check_timeout + 60,
        checks=ordered_checks(settings),
        check_timeout_s=settings.check_timeout,
    )


def ordered_checks(settings: Settings) -> dict[CheckName, str]:
    """Commands that somebody set; the others are detected in the sandbox."""
    commands = {name: str(getattr(settings, f"check_{name.value}")).strip() for name in CheckName}
    return {name: command for name, command in commands.items() if command}


def user_message(task: Task, beginning: Beginning | None = None) -> str:
    """The worker's first message; its first line is exactly `# Task <id>`."""
    parts = [
        f"# Task {task.id}",
        f"Kind: {task.kind.value}",
        task.description.strip(),
        "## Scope",
        "\n".join(f"- {path}" for path in task.scope),
    ]
    if task.acceptance.strip():
        parts += ["## Done when", task.acceptance.strip()]
    if beginning is not None:
        parts += ["## What was done so far", _so_far(beginning)]
    return "\n\n".join([*parts, "## Rules", _RULES.format(branch=task.branch)]) + "\n"


def _so_far(beginning: Beginning) -> str:
    names = [one_line(path, 300) for path in beginning.done.files_changed]
    more = f" and {len(names) - _FILES_NAMED} more" if len(names) > _FILES_NAMED else ""
    return (
        "An earlier worker was interrupted at this task. What it had done is committed on your branch: it changed "
        f"{', '.join(names[:_FILES_NAMED])}{more}. `git diff {beginning.base[:12]} HEAD` shows all of it. It may stop in the "
        "middle of something: look at it first, keep what is good, and finish the task."
    )


def read_result(data: bytes, task_id: str) -> WorkResult:
    """Raises ValueError, in one line, for anything but a result of `task_id`."""
    try:
        result = WorkResult.model_validate_json(data)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(p)[:40] for p in first["loc"]) or "the document"
        raise ValueError(f"the worker's result is not readable: {where}: {first['msg'][:200]}") from None
    if result.task_id != task_id:
        raise ValueError(f"the worker's result is of another task: {result.task_id[:80]!r}")
    return result


def check_results(result: WorkResult) -> tuple[CheckResult, ...]:
    return tuple(
        CheckResult(
            name=c.name,
            command=c.command,
            status=c.status,
            exit_code=c.exit_code,
            output=c.output,
            duration_ms=max(0, c.duration_ms),
        )
        for c in result.checks
    )


def judge(result: WorkResult, changed: bool) -> HandoffStatus:
    """`complete` only for a run that ended well and left no conflict markers; what was done otherwise is `partial`."""
    if result.harness_status != COMPLETED or result.error:
        return HandoffStatus.PARTIAL if changed else HandoffStatus.FAILED
    if result.status is HandoffStatus.COMPLETE and result.conflict_markers:
        return HandoffStatus.PARTIAL
    return result.status


def concerns(result: WorkResult) -> list[str]:
    """The worker's own, and what the run itself gives reason to say."""
    found = list(result.concerns)
    if result.conflict_markers:
        found.insert(0, f"conflict markers were left in {', '.join(p[:200] for p in result.conflict_markers[:8])}")
    if result.harness_status != COMPLETED:
        found.insert(0, f"the agent did not finish ({result.harness_status}): {result.error or 'no reason given'}")
    return [line[:MAX_LINE] for line in found[:MAX_LIST]]


def failed(task: Task, why: str, tokens: int = 0, duration_ms: int = 0) -> Handoff:
    """The handoff of a task that came to nothing."""
    metrics = HandoffMetrics(tokens_used=tokens, duration_ms=duration_ms)
    return Handoff(
        task_id=task.id,
        status=HandoffStatus.FAILED,
        summary=f"Nothing was done: {why}"[:MAX_LINE],
        concerns=[why[:MAX_LINE]],
        metrics=metrics,
    )


def unplaced(task: Task, why: str, duration_ms: int = 0) -> Handoff:
    """The handoff of a task that nothing configured here can take."""
    return Handoff(
        task_id=task.id,
        status=HandoffStatus.BLOCKED,
        summary=f"No worker was started: {why}. Plan it without these needs, or leave it to a person."[:MAX_TEXT],
        concerns=[why[:MAX_LINE]],
        metrics=HandoffMetrics(duration_ms=duration_ms),
    )


def interrupted_handoff(task: Task, files: list[str], diff: str, metrics: HandoffMetrics) -> Handoff:
    """What a worker had done when it was stopped."""
    return Handoff(
        task_id=task.id,
        status=HandoffStatus.PARTIAL,
        summary=f"Interrupted at work; changed so far: {', '.join(one_line(f, 200) for f in files[:_FILES_NAMED])}",
        diff=diff,
        files_changed=files,
        concerns=["the worker was interrupted before it had finished"],
        metrics=metrics,
    )


def cancelled_handoff(task: Task, done: Handoff | None) -> Handoff:
    """The handoff of a task that a person has cancelled. `done`: what had been done of it; it never lands."""
    if done is None or not done.files_changed:
        metrics = done.metrics if done else HandoffMetrics()
        summary = "Cancelled by a person; nothing was done."
        return Handoff(
            task_id=task.id, status=HandoffStatus.BLOCKED, summary=summary, concerns=[BY_A_PERSON], metrics=metrics
        )
    return done.model_copy(
        update={
            "status": HandoffStatus.PARTIAL,
            "summary": f"Cancelled by a person. {done.summary}"[:MAX_TEXT],
            "concerns": [BY_A_PERSON, *done.concerns][:MAX_LIST],
        }
    )
