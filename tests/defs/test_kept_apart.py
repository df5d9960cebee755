"""Exclusive work through the real executor, pool and ledger: whoever it holds back takes no slot, and nobody idles."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster_doubles import BUILD, Script, begin

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.apart import Apart
from longshot_dagster.adapters.ledger.ledger import BuildLedger
from longshot_dagster.core.apart import HeldBack, Start
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Plan, Task
from longshot_dagster.defs.event_storage import KeptSqliteEventLogStorage
from longshot_dagster.defs.ready_steps import PromptClaims, keep_apart


def test_exclusive_work_is_alone_in_its_files_in_all_runs_of_the_build_while_the_others_go_on(
    instance: dg.DagsterInstance, home: Home
) -> None:
    """Two slots, three tasks that wait for exclusive work here and in another process, and two that need not."""
    free = {"r001-03", "r001-05"}
    script = Script(
        plans={"root.001": ["src/", "src/a.py", "docs/a.md", "lib/c.py", "docs/b.md"]}, exclusive={"r001-01": ("src/",)}
    )
    ledger = begin(home, script)
    elsewhere(ledger, "r002-01", "lib/")

    def all_is_done_that_need_not_wait(_: Script) -> bool:
        if not free <= set(script.landed):
            return False
        script.in_order.append("lands r002-01")
        queued = LandingOutcome(task="r002-01", state=LandingState.QUEUED)
        ledger.save_landing(queued.moved(LandingState.LANDED, 2.0))
        return True

    script.works_until = {"r001-01": all_is_done_that_need_not_wait}
    instance.event_log_storage.set_concurrency_slots("sandbox", 2)
    key = str(IterationKey(BUILD, "root", 1))
    instance.add_dynamic_partitions("iterations", [key])
    job = dg.build_reconstructable_job(
        "dagster_doubles",
        "job",
        (str(home.root), "planning_iteration"),
        reconstructor_working_directory=str(Path(__file__).parent),
    )
    with dg.execute_job(job, instance=instance, tags={"dagster/partition": key}) as result:
        assert result.success
    order = script.in_order
    assert {order.index(f"lands {task}") < order.index("lands r002-01") for task in free} == {True}
    assert order.index("begins r001-02") > order.index("lands r001-01") > order.index("lands r002-01")
    assert order.index("begins r001-04") > order.index("lands r002-01")
    info = instance.event_log_storage.get_concurrency_info("sandbox")
    assert (info.claimed_slots, info.pending_steps) == ([], [])
    said = [e.message for e in result.all_events if e.event_type_value == "ENGINE_EVENT"]
    assert said.count("r001-02 waits for r001-01, which works alone on src/") == 1
    assert said.count("r001-04 waits for r002-01, which works alone on lib/") == 1


def elsewhere(ledger: BuildLedger, name: str, path: str) -> None:
    """Another process of the build has begun exclusive work."""
    key = IterationKey(BUILD, "root", 2)
    facts = {"build": BUILD, "iteration": key.short, "planner": "root", "description": "d", "branch": "w"}
    task = Task(id=name, scope=(path,), exclusive=(path,), **facts)
    ledger.open_iteration(key)
    ledger.freeze_plan(key, Plan(iteration=key.short, tasks=(task,), base="a" * 40, planned_at=1.0))
    Apart(ledger, 1000.0, SystemClock()).begun([name])


@pytest.fixture
def pool(instance: dg.DagsterInstance) -> KeptSqliteEventLogStorage:
    storage = instance.event_log_storage
    assert isinstance(storage, KeptSqliteEventLogStorage)
    storage.set_concurrency_slots("two", 2)
    return storage


def test_a_run_gives_its_slots_to_those_it_prefers_and_takes_no_more_and_nothing_more_urgent_waits(
    pool: KeptSqliteEventLogStorage,
) -> None:
    pool.claim_slots("two", "a", {"a1": 0, "a2": 0, "a3": 0, "a4": 1}, 0, 0)
    assert pool.claim_slots("two", "b", {"b1": 0}, 0, None).steps == ()
    found = pool.claim_slots("two", "a", {"a3": 0, "a1": 0, "a2": 0, "a4": 1}, 0, None)
    assert found.steps == ("a4", "a3")
    pool.free_concurrency_slot_for_step("a", "a3")
    assert pool.claim_slots("two", "b", {"b1": 0}, 0, None).steps == ()  # `a` came first
    assert pool.claim_slots("two", "a", {"a2": 0, "a1": 0}, 1, None).steps == ("a2",)


def in_line(pool: KeptSqliteEventLogStorage) -> set[str]:
    return {step.run_id for step in pool.get_concurrency_info("two").pending_steps}


class Gate:
    """Holds everybody back while it is shut."""

    shut = False

    @contextmanager
    def starting(self, waiting: Sequence[str]) -> Iterator[Start]:
        held = {task: HeldBack(task, "r009-01", "src/", False, True) for task in waiting if self.shut}
        yield Start(() if self.shut else tuple(waiting), held)

    def begun(self, tasks: Iterable[str]) -> None:
        assert not (self.shut and list(tasks))


def test_who_is_held_back_while_in_line_leaves_it_and_gets_in_again(
    pool: KeptSqliteEventLogStorage, instance: dg.DagsterInstance
) -> None:
    pool.set_concurrency_slots("two", 1)
    assert pool.claim_slots("two", "z", {"z1": 0}, 0, None).steps == ("z1",)
    gate = Gate()
    with PromptClaims(instance, dg.DagsterRun("any", run_id="a")) as claims:
        keep_apart("a", gate)
        claims.wait_for("two", "work[r001_01]", "r001_01", 0)
        assert claims.granted(None) == []
        assert "a" in in_line(pool)
        gate.shut = True
        claims.wait_for("two", "work[r001_02]", "r001_02", 0)  # has it look at once
        assert claims.granted(None) == []
        assert "a" not in in_line(pool)
        assert claims.has_pending_claims()
        pool.free_concurrency_slot_for_step("z", "z1")
        assert pool.claim_slots("two", "b", {"b1": 0}, 0, None).steps == ("b1",)
        pool.free_concurrency_slot_for_step("b", "b1")
        gate.shut = False
        claims.wait_for("two", "work[r001_03]", "r001_03", 0)
        assert claims.granted(None) == ["work[r001_01]"]
