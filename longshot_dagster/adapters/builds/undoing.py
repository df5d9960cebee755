"""Taking back what a build has landed: reverts made in the mirror, newest landing first, published with one push."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longshot_dagster.adapters.builds.last_word import write_last_word
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.landing.landing_round import Batch
from longshot_dagster.adapters.landing.lock_files import LockFiles
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.branch import commit
from longshot_dagster.adapters.repository.landing_history import Past, steps_since
from longshot_dagster.adapters.repository.merger import Clean, Conflicted, Merger
from longshot_dagster.adapters.repository.mirror import Mirror, Remote
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import LedgerError, WrongUse
from longshot_dagster.core.landing import guard
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import BuildReport
from longshot_dagster.core.undoing import Step, refusal, related, retold, undo_message, wanted


@dataclass(frozen=True)
class Undone:
    """What an undo does, or has done: outcomes, the newest landing first, and the landing branch before and after."""

    outcomes: tuple[LandingOutcome, ...]
    before: str
    head: str


class Undoing:
    """Undoes landings of one build. Raises WrongUse when it cannot; then nothing has changed anywhere."""

    def __init__(self, home: Home, ledger: BuildLedger, clock: Clock, locks: LockFiles | None = None) -> None:
        self._home = home
        self._locks = locks
        self._builds = Ledger(home.builds)
        self._ledger = ledger
        self._clock = clock
        self.request = ledger.request()
        self._mirror = Mirror(home, self.request.target)
        self._queue = LandingQueue(ledger, self.request, self._mirror, clock)

    def concerned(self, task: str | None) -> tuple[str, ...]:
        """The tasks that an undo of `task`, or of the whole build, takes back. Raises WrongUse when there is none."""
        return wanted(self._ledger.build, task, self._landings())

    def preview(self, tasks: Sequence[str]) -> Undone:
        """What `carry_out` would do now; its commits are made in the mirror and published nowhere."""
        return _told(self._reverted(tasks, self._mirror.read_remote()))

    def carry_out(self, tasks: Sequence[str]) -> Undone:
        """Revert `tasks` on the landing branch as it is, all or none, and write that down.

        Raises RepositoryError when the target cannot be reached or refuses the push.
        """
        done = _told(self._queue.publish(lambda remote: self._reverted(tasks, remote)))
        self.retell(done.head)
        return done

    def retell(self, head: str | None = None) -> None:
        """Bring the report of a finished build in line with what is undone, also after a crash before that; idempotent."""
        report = self._retold(self._landings(), head)
        if report is not None and report != self._ledger.report():
            self._ledger.save_report(report)
            self._ledger.update_state(lambda s: s.model_copy(update={"verdict": report.verdict}))
            with contextlib.suppress(OSError):  # `longshot report` makes the page again
                write_last_word(self._ledger, self._home, self._clock.now())

    # --- one attempt -------------------------------------------------------------------------------------------------

    def _reverted(self, tasks: Sequence[str], remote: Remote) -> Batch:
        if self._ledger.state().under_way:
            build = self._ledger.build
            raise WrongUse(f"{build} is under way; `longshot cancel {build}` first, then nothing lands meanwhile")
        batch = Batch(remote, remote.head)
        past = Past.read(self._mirror, remote.head, self._ledger.build, self.request.base)
        landings = [o for t in tasks if (o := self._ledger.landing(t)) and o.state is LandingState.LANDED]
        for outcome in sorted(landings, key=lambda o: past.places.get(o.commits[-1], -1)):
            batch.outcomes[outcome.task] = self._undo(outcome, batch, past)
        if self._locks and batch.head != remote.head:
            made = self._locks.made_anew(self._mirror.git, batch.head, batch.outcomes, self._clock.now())
            if made is not None:
                batch.head = made.head
                batch.outcomes |= made.outcomes
        report = self._retold(self._landings() | batch.outcomes, batch.head)
        if report is not None:
            batch.documents["report.json"] = report
        return batch

    def _undo(self, outcome: LandingOutcome, batch: Batch, past: Past) -> LandingOutcome:
        """Put the revert of one landing on the batch's head, unless there is nothing of it left to revert."""
        after = outcome.commits[-1]
        branch = self.request.target.branch
        if after not in past.places:
            return self._ended(outcome, f"its commits were not on {branch} any more")
        merger = Merger(self._mirror.git, self._clock.now())
        spans = self._spans(outcome)
        if len(spans) > 1:
            return self._undo_apart(outcome, spans, batch, merger)
        before, after = spans[0]
        if earlier := next(
            (oid for oid in past.undone_by(outcome.task, after) if _lacks(oid, before, after, merger)), ""
        ):
            return self._ended(outcome, f"taken back by {earlier[:12]}", earlier)
        merged = merger.taken_back(batch.head, before, after)
        if isinstance(merged, Conflicted):
            paths = {f.path for f in merged.files}
            raise refusal(outcome.task, paths, self._dependants(batch.head, before, after, paths, merger))
        changed = merger.changed(batch.head, merged.tree)
        if not changed:
            return self._ended(outcome, f"{branch} held nothing of it any more")
        own = frozenset(merger.changed(before, after))
        strayed = guard(changed, own, {})
        if strayed and (strayed := guard(strayed, own, merger.renamed(after, batch.head))):
            raise refusal(outcome.task, strayed, ())
        message = undo_message(self._ledger.build, self._ledger.existing_task(outcome.task), outcome.commits)
        batch.head = commit(self._mirror.git, merged.tree, (batch.head,), message, self._clock.now())
        return self._ended(outcome, f"taken back by {batch.head[:12]}", batch.head)

    def _undo_apart(
        self, outcome: LandingOutcome, spans: Sequence[tuple[str, str]], batch: Batch, merger: Merger
    ) -> LandingOutcome:
        """The same of a landing in several places, as when a part of it was approved later: newest first, as one commit."""
        at, own = batch.head, set[str]()
        for before, after in reversed(spans):
            merged = merger.taken_back(at, before, after)
            if isinstance(merged, Conflicted):
                paths = {f.path for f in merged.files}
                raise refusal(outcome.task, paths, self._dependants(at, before, after, paths, merger))
            own |= set(merger.changed(before, after))
            at = commit(self._mirror.git, merged.tree, (at,), "stand-in", self._clock.now())
        changed = merger.changed(batch.head, at)
        if not changed:
            return self._ended(outcome, f"{self.request.target.branch} held nothing of it any more")
        if strayed := guard(changed, frozenset(own), merger.renamed(spans[0][1], batch.head)):
            raise refusal(outcome.task, strayed, ())
        message = undo_message(self._ledger.build, self._ledger.existing_task(outcome.task), outcome.commits)
        batch.head = commit(self._mirror.git, f"{at}^{{tree}}", (batch.head,), message, self._clock.now())
        return self._ended(outcome, f"taken back by {batch.head[:12]}", batch.head)

    def _spans(self, outcome: LandingOutcome) -> list[tuple[str, str]]:
        """(before, after) of each stretch of the landing branch that is the task's, oldest first."""
        found = [(self._before(outcome), outcome.commits[0])]
        for oid in outcome.commits[1:]:
            parent = self._mirror.git.run("rev-parse", "--verify", f"{oid}^1^{{commit}}").text
            if parent == found[-1][1]:
                found[-1] = (found[-1][0], oid)
            else:
                found.append((parent, oid))
        return found

    def _ended(self, outcome: LandingOutcome, reason: str, by: str | None = None) -> LandingOutcome:
        return outcome.moved(LandingState.UNDONE, self._clock.now(), reason=reason, undone_by=by)

    def _before(self, outcome: LandingOutcome) -> str:
        """The landing branch's commit just before the task landed."""
        run = self._ledger.run(outcome.task)
        if run is not None and outcome.commits == (run.head,):  # a fast-forward, of which only the tip may be recorded
            return run.base
        return self._mirror.git.run("rev-parse", "--verify", f"{outcome.commits[0]}^1^{{commit}}").text

    def _dependants(self, head: str, before: str, after: str, paths: set[str], merger: Merger) -> tuple[Step, ...]:
        """What has to go first: later steps that cannot be repeated on a branch without the task, oldest first.

        Where that finds nobody, those that touch the conflicted `paths`.
        """
        steps = steps_since(self._mirror.git, after, head, self._landed_anywhere())
        found = []
        without = before
        for step in related(steps, merger.changed(before, after)):
            merged = merger.merge(without, step.after, step.before)
            if isinstance(merged, Clean):
                without = commit(self._mirror.git, merged.tree, (without,), "stand-in", self._clock.now())
            else:
                found.append(step)
        return tuple(found) or tuple(s for s in steps if paths & s.paths)

    def _landed_anywhere(self) -> dict[str, tuple[str, str]]:
        """commit -> (build, task), for every build of this home on the same repository."""
        found: dict[str, tuple[str, str]] = {}
        for name in self._builds.builds():
            ledger = self._builds.build(name)
            try:
                if ledger.request().target.url == self.request.target.url:
                    outcomes = [o for t in ledger.task_ids() if (o := ledger.landing(t))]
                    found |= {c: (name, o.task) for o in outcomes for c in o.commits}
            except LedgerError:
                continue  # one that cannot be read names nobody
        return found

    # --- the ledger --------------------------------------------------------------------------------------------------

    def _landings(self) -> dict[str, LandingOutcome]:
        return {t: o for t in self._ledger.task_ids() if (o := self._ledger.landing(t))}

    def _retold(self, landings: Mapping[str, LandingOutcome], head: str | None) -> BuildReport | None:
        report, names = self._ledger.report(), self._ledger.task_ids()
        if report is None or not any(o.state is LandingState.UNDONE for o in landings.values()):
            return None
        return retold(
            report,
            tasks=[self._ledger.existing_task(t) for t in names],
            handoffs={t: h for t in names if (h := self._ledger.handoff(t))},
            landings=landings,
            plans=[p for k in self._ledger.iterations() if (p := self._ledger.plan(k))],
            head=head or report.head,
        )


def _lacks(commit: str, before: str, after: str, merger: Merger) -> bool:
    """Is nothing left in `commit` of the way from `before` to `after`? Its trailer alone could be anybody's."""
    merged = merger.taken_back(commit, before, after)
    return isinstance(merged, Clean) and not merger.changed(commit, merged.tree)


def _told(batch: Batch) -> Undone:
    return Undone(tuple(batch.outcomes.values()), batch.remote.head, batch.head)
