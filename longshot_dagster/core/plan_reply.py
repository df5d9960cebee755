"""Reading what a planner answered: JSON in prose or fences, a bare list, or an answer that was cut off."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from longshot_dagster.core.display import display
from longshot_dagster.core.models import MAX_TASKS, PlannedTask, PlanReply

MAX_REPLY = 2_000_000  # characters looked at: a thousand tasks at length
MAX_SCRATCHPAD = 60_000
_MAX_STARTS = 2_000  # places at which JSON is looked for; a hostile answer is nothing but brackets
_MAX_PROBLEMS = 10

SHAPE = 'Answer with one JSON object: {"scratchpad": "...", "tasks": [{"description": "...", "scope": ["path"], "acceptance": "...", "priority": 1, "replaces": []}]}'


@dataclass(frozen=True)
class ReadReply:
    """`reply` holds only valid tasks; `problems` says what is wrong with the rest, in words for the model."""

    reply: PlanReply | None
    problems: tuple[str, ...] = ()
    cut_off: bool = False  # the answer ended early and holds only its complete tasks


def read_reply(text: str) -> ReadReply:
    """A planner's whole answer, read as kindly as is safe."""
    text = text[:MAX_REPLY]
    if not text.strip():
        return ReadReply(None, (f"The answer was empty. {SHAPE}",))
    found = _plan_like(text)
    if found is not None:
        return _validated(found, cut_off=False)
    salvaged = _salvage(text)
    if salvaged is None:
        return ReadReply(None, (f"There is no plan in the answer. {SHAPE}",))
    if not salvaged["tasks"]:
        return ReadReply(
            None,
            ("The answer was cut off before its first task was complete. Answer again, and shorter.",),
            cut_off=True,
        )
    return _validated(salvaged, cut_off=True)


def _plan_like(text: str) -> dict[str, Any] | None:
    """The last JSON value in `text` that looks like a plan: models draft first and answer last."""
    last = None
    for value in _json_values(text):
        if isinstance(value, dict) and "tasks" in value:
            last = value
        elif isinstance(value, list) and value and all(isinstance(v, dict) and "description" in v for v in value):
            last = {"tasks": value}
    return last


def _json_values(text: str) -> Iterator[Any]:
    decoder, position, starts = json.JSONDecoder(strict=False), 0, 0
    while starts < _MAX_STARTS and (found := re.compile(r"[{\[]").search(text, position)):
        starts += 1
        try:
            value, position = decoder.raw_decode(text, found.start())
        except RecursionError:
            return  # no plan is nested that deep
        except ValueError:
            position = found.start() + 1
        else:
            yield value


def _salvage(text: str) -> dict[str, Any] | None:
    """The complete tasks of an answer whose end is missing; None when it is no plan at all."""
    decoder = json.JSONDecoder(strict=False)
    opened = re.search(r'"tasks"\s*:\s*\[', text)
    if opened is None:
        begins = re.match(r'\s*(?:```\w*\s*)?\{\s*"scratchpad"\s*:', text)
        return {"tasks": []} if begins else None
    tasks, position = [], opened.end()
    while True:
        gap = re.compile(r"[\s,]*").match(text, position)
        position = gap.end() if gap else position
        try:
            task, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        tasks.append(task)
    scratchpad = ""
    if before := re.search(r'"scratchpad"\s*:\s*(?=")', text[: opened.start()]):
        try:
            scratchpad = str(decoder.raw_decode(text, before.end())[0])
        except ValueError:
            scratchpad = ""
    return {"scratchpad": scratchpad, "tasks": tasks}


def _validated(found: dict[str, Any], cut_off: bool) -> ReadReply:
    raw = found.get("tasks")
    if not isinstance(raw, list):
        return ReadReply(None, (f"`tasks` is not a list. {SHAPE}",))
    problems: list[str] = []
    if len(raw) > MAX_TASKS:
        problems.append(f"{len(raw)} tasks are too many for one round; plan at most {MAX_TASKS}, the others later")
    tasks = []
    for number, item in enumerate(raw[:MAX_TASKS]):
        task, wrong = _task(item, f"tasks[{number}]")
        problems += wrong
        if task is not None:
            tasks.append(task)
    pad = found.get("scratchpad", "")
    pad = pad if isinstance(pad, str) else json.dumps(pad, ensure_ascii=False)
    return ReadReply(
        PlanReply(scratchpad=pad[:MAX_SCRATCHPAD], tasks=tasks), tuple(problems[:_MAX_PROBLEMS]), cut_off=cut_off
    )


def _task(item: object, where: str) -> tuple[PlannedTask | None, list[str]]:
    """(task, []) or (None, what is wrong with it)."""
    try:
        task = PlannedTask.model_validate(item)
    except ValidationError as e:
        return None, [
            f"{where}{''.join(f'.{part}' for part in error['loc'])}: {display(error['msg'].removeprefix('Value error, '), 'plain', 200)}"
            for error in e.errors(include_url=False, include_input=False, include_context=False)[:4]
        ]
    for name, paths in (("scope", task.scope), ("exclusive", task.alone_on)):
        if patterns := [p for p in paths if "*" in p or "?" in p]:
            shown = display(patterns[0], "plain", 120)
            return None, [f"{where}.{name}: {shown!r} is a pattern; name files, or a directory with a trailing slash"]
    return task, []
