"""Reads a build's whole ledger into its last word, and writes that down as a page and as Markdown beside the report."""

import base64
import contextlib
from collections.abc import Iterable, Mapping, Sequence

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.documents import write_atomically
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.checkpoint import Checkpoint, Form, checkpoint_ref
from longshot_dagster.adapters.ledger.figures import figures_of
from longshot_dagster.adapters.ledger.ledger import REPORT_PAGE, BuildLedger
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.intake import work_ref
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.last_word import LastWord, Pause, Places, Round, TaskFacts, newest_head
from longshot_dagster.core.models import BuildPhase, BuildReport, BuildRequest, BuildState, Sweep, Task
from longshot_dagster.core.report import make_report
from longshot_dagster.core.report_markdown import report_markdown
from longshot_dagster.core.report_page import report_page
from longshot_dagster.core.settings import Checkpoint as CheckpointSetting
from longshot_dagster.core.timeline import timeline
from longshot_dagster.core.timeline_svg import timeline_svg
from longshot_dagster.core.usage import Usage
from longshot_dagster.version import __version__

MARKDOWN, DOCUMENT = "report.md", "report.json"
_MAX_PICTURE = 400_000


def last_word(ledger: BuildLedger, home: Home, now: float) -> LastWord:
    """Raises LedgerError when a document cannot be read. git is not asked: an unfinished build is told as last seen."""
    request, state = ledger.request(), ledger.state()
    rounds = tuple(_round(ledger, key) for key in ledger.iterations())
    worked = {t.id: t for r in rounds if r.plan for t in r.plan.dispatched}
    tasks = tuple(_facts(ledger, name, worked) for name in ledger.task_ids())
    sweeps = tuple(ledger.sweeps())
    report = ledger.report()
    final = report is not None
    if report is not None and state.phase is not BuildPhase.PAUSED:
        state = state.model_copy(update={"phase": BuildPhase.FINISHED, "verdict": report.verdict})  # or is about to be
    if report is None:
        ended = now if state.under_way else _last_sign(request, tasks, rounds, sweeps)
        report = _so_far(ledger, request, tasks, rounds, sweeps, ended, spent(home, request))
    places, pauses = _places(ledger, home, request), _pauses(ledger.phases(), now)
    return LastWord(request, state, report, final, tasks, rounds, sweeps, pauses, places, now)


def spent(home: Home, request: BuildRequest) -> Usage | None:
    """What the gateway has counted for the whole build, planners included, at the build's prices; None: it knows nothing."""
    with contextlib.suppress(LongshotError):
        usage = Gateway(home).usage(request.build)
        return usage.priced(request.settings) if usage.requests else None
    return None


def page(word: LastWord) -> str:
    """One self-contained HTML file."""
    return report_page(word, timeline(word), figures_of(word), __version__)


def markdown(word: LastWord, *, picture: bool = False) -> str:
    """`picture`: with the timeline inside, for the Dagster UI."""
    return report_markdown(word, figures_of(word), picture=_picture(word) if picture else "")


def write_last_word(ledger: BuildLedger, home: Home, now: float) -> LastWord:
    """Write the page and the Markdown anew. Raises LedgerError, and OSError when they cannot be written."""
    word = last_word(ledger, home, now)
    for name, text in ((REPORT_PAGE, page(word)), (MARKDOWN, markdown(word))):
        write_atomically(ledger.directory / name, text.encode("utf-8", "replace"))
    return word


def _so_far(
    ledger: BuildLedger,
    request: BuildRequest,
    tasks: Sequence[TaskFacts],
    rounds: Sequence[Round],
    sweeps: Sequence[Sweep],
    ended: float,
    usage: Usage | None,
) -> BuildReport:
    return make_report(
        request,
        tasks=[ledger.existing_task(t.task.id) for t in tasks],
        handoffs={t.task.id: t.handoff for t in tasks if t.handoff},
        landings={t.task.id: t.landing for t in tasks if t.landing},
        runs=[t.run for t in tasks if t.run],
        plans=[r.plan for r in rounds if r.plan],
        sweep=sweeps[-1] if sweeps else None,
        head=newest_head(request, tasks, sweeps),
        finalization_attempts=ledger.view().finalize_attempt,
        now=ended,
        spent=usage,
    )


def _facts(ledger: BuildLedger, name: str, worked: Mapping[str, Task]) -> TaskFacts:
    # An atomic delegated task appears as its subplanner's plan has it: it was worked on.
    task = worked.get(name) or ledger.existing_task(name)
    earlier = tuple(run for _, run, _ in ledger.earlier_work(name) if run)
    handoff, run = ledger.handoff(name), ledger.run(name)
    interrupted = handoff is None and ledger.interrupted(name) is not None
    return TaskFacts(task, handoff, ledger.landing(name), run, earlier, interrupted)


def _round(ledger: BuildLedger, key: IterationKey) -> Round:
    plan = ledger.plan(key)
    ended = plan.planned_at if plan else None
    if plan and ended is None:  # planned before plans said when
        ended = (ledger.directory / f"iterations/{key.short}/plan.json").stat().st_mtime
    return Round(key, plan, ended, ledger.failure(key))


def _pauses(phases: Sequence[tuple[float, BuildState]], now: float) -> tuple[Pause, ...]:
    ends = [*(at for at, _ in phases[1:]), now]
    return tuple(
        Pause(at, until, state.reason)
        for (at, state), until in zip(phases, ends, strict=False)
        if state.phase is BuildPhase.PAUSED
    )


def _last_sign(
    request: BuildRequest, tasks: Iterable[TaskFacts], rounds: Iterable[Round], sweeps: Iterable[Sweep]
) -> float:
    """When a build that stands still last did something."""
    seen = [request.created_at, *(s.ended_at for s in sweeps), *(r.ended_at for r in rounds if r.ended_at)]
    for facts in tasks:
        seen += [facts.run.ended_at] if facts.run else []
        seen += [at for _, at in facts.landing.history] if facts.landing else []
    return max(seen)


def _places(ledger: BuildLedger, home: Home, request: BuildRequest) -> Places:
    directory, mirror = ledger.directory, Mirror(home, request.target).path
    form = Checkpoint(Git(mirror), mirror, directory, ledger.build).form()
    local = request.settings.checkpoint is CheckpointSetting.LOCAL or form is Form.NONE
    kept = checkpoint_ref(ledger.build, form, request.target.branch)
    return Places(
        ledger=str(directory),
        page=str(directory / REPORT_PAGE),
        markdown=str(directory / MARKDOWN),
        document=str(directory / DOCUMENT),
        mirror=str(mirror),
        work_refs=work_ref(ledger.build, ""),
        checkpoint=f"{mirror} alone" if local else f"{kept} of {request.target.url}",
    )


def _picture(word: LastWord) -> str:
    """The timeline as a `data:` URL; empty when there is none, or when it is too large to be a mere picture."""
    found = timeline(word)
    drawn = timeline_svg(found, alone=True).encode() if found else b""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}" if 0 < len(drawn) <= _MAX_PICTURE else ""
