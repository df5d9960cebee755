"""A git process that is asked again and again: it may die, flood, hang or be left over, and no answer is ever mixed up."""

import gc
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from repositories import bare, git

from longshot_dagster.adapters.repository import git_dialogue
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.git_dialogue import IDLE_S, Dialogue
from longshot_dagster.adapters.repository.object_store import compare, look_up, read
from longshot_dagster.core.errors import RepositoryError


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare(tmp_path_factory.mktemp("dialogue") / "r.git", {f"f{n}": f"{n}\n" for n in range(30)})


@pytest.fixture
def store(repository: Path) -> Iterator[Git]:
    yield Git(repository)
    gc.collect()


def dialogue(store: Git) -> Dialogue:
    return store.dialogue("cat-file", "--batch-command")


def pid(asked: Dialogue) -> int:
    assert asked._talk is not None
    return asked._talk._process.pid


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def echo(script: str) -> Dialogue:
    return Git().dialogue("-c", f"alias.x=!{script}", "x")


def test_one_process_answers_many_threads_each_with_its_own_answer(store, repository):
    blobs = {f"f{n}": git(repository, "rev-parse", f"main:f{n}") for n in range(30)}
    look_up(store, "main")
    first = pid(dialogue(store))
    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(blobs, pool.map(lambda oid: read(store, oid, "blob"), blobs.values()), strict=True))
    assert found == {name: f"{name[1:]}\n".encode() for name in blobs}
    assert pid(dialogue(store)) == first


def test_one_that_was_killed_is_started_again_and_leaves_no_zombie(store):
    there = look_up(store, "main")
    killed = pid(dialogue(store))
    os.kill(killed, signal.SIGKILL)
    assert look_up(store, "main") == there is not None
    assert pid(dialogue(store)) != killed and not alive(killed)


def test_one_that_cannot_answer_says_why(tmp_path):
    with pytest.raises(RepositoryError, match="not a git repository"):
        look_up(Git(tmp_path), "main")


def test_an_answer_without_end_is_cut_and_the_next_one_is_whole():
    asked = echo("while read line; do test $line = flood && yes; echo $line; done")
    assert asked.ask(b"flood\n", b"end\n", keep=1000, timeout_s=30) is None
    assert asked.ask(b"a\nend\n", b"end\n", keep=1000, timeout_s=30) == b"a\n"


def test_one_that_hangs_is_given_up_at_the_timeout():
    asked = echo("exec sleep 60")
    with pytest.raises(RepositoryError, match="did not answer within"):
        asked.ask(b"a\n", b"end\n", keep=1000, timeout_s=0.2)
    assert asked._talk is None


def test_an_idle_one_is_ended_and_one_in_use_is_not(store):
    look_up(store, "main")
    asked, process = dialogue(store), pid(dialogue(store))
    assert asked._talk is not None
    asked.end_if_idle(asked._talk.asked_at + IDLE_S - 1)
    assert alive(process)
    asked.end_if_idle(asked._talk.asked_at + IDLE_S + 1)
    assert not alive(process) and look_up(store, "main") is not None


def test_its_process_ends_with_it(repository):
    store = Git(repository)
    assert compare(store, "main", "main") == b""
    processes = [pid(d) for d in store._dialogues.values()]
    assert len(processes) == 2 and all(map(alive, processes))
    del store
    gc.collect()
    assert not any(map(alive, processes))


def test_a_forked_child_asks_a_process_of_its_own_and_leaves_its_parents_alone(store, monkeypatch):
    look_up(store, "main")
    parents, me = pid(dialogue(store)), os.getpid()
    kept = dialogue(store)._talk
    monkeypatch.setattr(git_dialogue.os, "getpid", lambda: me + 1)
    assert look_up(store, "main") is not None
    assert pid(dialogue(store)) != parents and alive(parents)
    assert kept is not None
    os.kill(parents, signal.SIGKILL)
    os.waitpid(parents, 0)


def test_after_many_questions_it_starts_afresh(store, monkeypatch):
    monkeypatch.setattr(git_dialogue, "MAX_QUESTIONS", 3)
    look_up(store, "main")
    first = pid(dialogue(store))
    for _ in range(3):
        assert look_up(store, "main") is not None
    assert pid(dialogue(store)) != first and not alive(first)
