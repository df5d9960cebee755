"""The guard before publication: every wrong base is caught, and no merge of git's is ever objected to."""

import random
from dataclasses import dataclass, field

import pytest
from repositories import git

from longshot_dagster.adapters.landing.guarding import objection
from longshot_dagster.adapters.repository.branch import Branch, commit
from longshot_dagster.adapters.repository.git import Git
from longshot_dagster.adapters.repository.merger import Clean, Merger
from longshot_dagster.adapters.repository.object_store import Entry, graft
from longshot_dagster.adapters.repository.object_store import write as write_object
from longshot_dagster.core.landing_records import ConcernKind

Files = dict[str, tuple[str, str]]  # path -> (mode, text)


@dataclass
class History:
    """Commits made of nothing but file tables."""

    git: Git
    merger: Merger = field(init=False)

    def __post_init__(self) -> None:
        self.merger = Merger(self.git, 1.0)

    def commit(self, files: Files, *parents: str) -> str:
        entries = [
            Entry(path.encode(), mode, write_object(self.git, "blob", text.encode()))
            for path, (mode, text) in files.items()
        ]
        return commit(self.git, graft(self.git, "", entries), parents, "x", 1.0)

    def objection(self, base: str, tip: str, onto: str, merged: str, exact: frozenset[str] = frozenset()):
        branch = Branch(self.git, base, tip)
        return objection(self.merger, branch, frozenset(c.path for c in branch.changes), onto, merged, exact)


@pytest.fixture
def history(tmp_path):
    git(tmp_path, "init", "-q", "--bare", "o.git")
    return History(Git(tmp_path / "o.git"))


def lines(name: str, count: int = 24) -> list[str]:
    return [f"{name} {n}" if n % 5 else "" for n in range(count)]


def joined(found: list[str]) -> str:
    return "\n".join(found) + "\n"


def plain(**files: str) -> Files:
    return {name.replace("__", "/"): ("100644", text) for name, text in files.items()}


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_commits_from_a_wrong_base_are_caught(history, seed):
    """Ten a time and kind: the branch's whole tree, as GitHub's queue once landed it, or just its version of one file."""
    rng = random.Random(seed)
    for n in range(10):
        texts = {f"f{i}": lines(f"{n} f{i}") for i in range(4)}
        base_files = plain(**{name: joined(text) for name, text in texts.items()})
        base = history.commit(base_files)
        shared = f"f{rng.randrange(4)}"
        places = rng.sample(range(1, 23, 4), 4)
        mine, theirs = dict(base_files), dict(base_files)
        edited = texts[shared].copy()
        edited[places[0]] = "the branch's own"
        mine[shared] = ("100644", joined(edited))
        others = texts[shared].copy()
        others[places[1]] = "somebody else's"
        del others[places[2]]
        theirs[shared] = ("100644", joined(others))
        beside = next(name for name in base_files if name != shared)
        theirs[beside] = ("100644", theirs[beside][1] + "more\n")
        tip, onto = history.commit(mine, base), history.commit(theirs, base)
        right = history.merger.merge(onto, tip, base)
        assert isinstance(right, Clean) and history.objection(base, tip, onto, right.tree) is None
        whole = history.objection(base, tip, onto, history.commit(mine, onto))
        assert whole is not None and whole.kind is ConcernKind.REVERTS and beside in whole.text
        inside = history.objection(base, tip, onto, history.commit(theirs | {shared: mine[shared]}, onto))
        assert inside is not None and inside.kind is ConcernKind.REVERTS and shared in inside.text


def grown(rng: random.Random, files: Files, side: str) -> Files:
    """A few edits, additions, removals, renames and mode changes."""
    found = dict(files)
    for _ in range(rng.randrange(1, 6)):
        name = rng.choice(sorted(found) or ["new"])
        mode, text = found.get(name, ("100644", ""))
        body = text.splitlines()
        match rng.randrange(8):
            case 0:
                found.pop(name, None)
            case 1:
                found[f"moved/{rng.randrange(9)}-{name.replace('/', '-')}"] = found.pop(name, (mode, text))
            case 2:
                found[name] = ("100755" if mode == "100644" else "100644", text)
            case 3:
                found[f"new{rng.randrange(5)}"] = ("100644", joined(lines(side, 6)))
            case 4 if len(body) > 8:
                at = rng.randrange(len(body) - 6)
                found[name] = (mode, joined(body[:at] + body[at + 5 :] + body[at : at + 5]))
            case _:
                for _ in range(rng.randrange(1, 4)):
                    at = rng.randrange(len(body) + 1)
                    body[at : at + rng.randrange(3)] = rng.choice(
                        ([f"{side} {rng.random()}"], ["", "}"], [], ["    pass"])
                    )
                found[name] = (mode, joined(body))
    return found


def clean_merges(history: History, seeds: range) -> int:
    """How many of these random histories git merges; asserts that the guard has nothing against any."""
    clean = 0
    for seed in seeds:
        rng = random.Random(seed)
        body = [rng.choice(["", "}", "    pass", f"line {n}"]) for n in range(30)]
        files = {f"d{n % 3}/f{n}": ("100644", joined(body[n:] + [f"{n} {i}" for i in range(12)])) for n in range(6)}
        base = history.commit(files)
        tip = history.commit(grown(rng, files, "mine"), base)
        onto = history.commit(grown(rng, files, "theirs"), base)
        merged = history.merger.merge(onto, tip, base)
        if isinstance(merged, Clean):
            clean += 1
            assert history.objection(base, tip, onto, merged.tree) is None, seed
    return clean


def test_no_merge_of_gits_is_objected_to(history):
    assert clean_merges(history, range(40)) > 12


def test_a_rename_on_either_side_carries_the_others_lines_along(history):
    text = lines("x")
    early, late = text.copy(), text.copy()
    early[2], late[21] = "mine", "theirs"
    base = history.commit(plain(old=joined(text)))
    for tip_files, onto_files in (
        (plain(new=joined(early)), plain(old=joined(late))),
        (plain(old=joined(early)), plain(new=joined(late))),
    ):
        tip, onto = history.commit(tip_files, base), history.commit(onto_files, base)
        merged = history.merger.merge(onto, tip, base)
        assert isinstance(merged, Clean) and history.objection(base, tip, onto, merged.tree) is None
        wrong = history.commit(plain(new=joined(early)), onto)
        assert history.objection(base, tip, onto, wrong).kind is ConcernKind.REVERTS


def test_a_file_that_others_changed_is_not_deleted_nor_one_they_deleted_brought_back(history):
    base = history.commit(plain(a="1\n", b="1\n"))
    gone, changed = history.commit(plain(b="1\n"), base), history.commit(plain(a="2\n", b="1\n"), base)
    assert history.objection(base, gone, changed, gone).kind is ConcernKind.REVERTS
    assert history.objection(base, changed, gone, changed).kind is ConcernKind.REVERTS


def test_a_mode_or_a_binary_file_of_others_is_not_taken_back(history):
    base = history.commit(plain(a=joined(lines("a")), b="\0base"))
    mine = {"a": ("100644", "mine\n" + joined(lines("a"))), "b": ("100644", "\0mine")}
    others = {"a": ("100755", joined(lines("a"))), "b": ("100644", "\0others")}
    tip, onto = history.commit(mine, base), history.commit(others, base)
    assert history.objection(base, tip, onto, history.commit(others | {"a": mine["a"]}, onto)) is not None
    assert history.objection(base, tip, onto, history.commit(others | {"a": ("100755", mine["a"][1])}, onto)) is None
    assert history.objection(base, tip, onto, history.commit(others | {"b": mine["b"]}, onto)) is not None


def test_a_manifest_merged_key_by_key_is_held_against_its_keys(history):
    base = history.commit({"package.json": ("100644", '{\n "d": {\n  "m": "1"\n }\n}\n')})
    tip = history.commit({"package.json": ("100644", '{\n "d": {\n  "m": "1",\n  "z": "1"\n }\n}\n')}, base)
    onto = history.commit({"package.json": ("100644", '{\n "d": {\n  "m": "1",\n  "y": "1"\n }\n}\n')}, base)
    both = {"package.json": ("100644", '{\n "d": {\n  "m": "1",\n  "y": "1",\n  "z": "1"\n }\n}\n')}
    assert history.objection(base, tip, onto, history.commit(both, onto)) is None
    assert history.objection(base, tip, onto, tip).kind is ConcernKind.REVERTS


def test_conflict_markers_land_only_where_there_were_some_before(history):
    marked = "a\n<<<<<<< ours\nb\n=======\nc\n>>>>>>> theirs\n"
    base = history.commit(plain(a="1\n", lesson=marked))
    tip = history.commit(plain(a=marked, lesson=marked + "more\n"), base)
    found = history.objection(base, tip, base, tip)
    assert found.kind is ConcernKind.MARKERS and found.text == "conflict markers are in a"


def test_what_was_approved_lands_as_it_is_or_not_at_all(history):
    text = joined(lines("ci"))
    base = history.commit(plain(ci=text))
    tip, onto = history.commit(plain(ci="mine\n" + text), base), history.commit(plain(ci=text + "theirs\n"), base)
    merged = history.merger.merge(onto, tip, base)
    assert isinstance(merged, Clean) and history.objection(base, tip, onto, merged.tree) is None
    found = history.objection(base, tip, onto, merged.tree, frozenset(["ci"]))
    assert found.kind is ConcernKind.CONFLICT and "has changed on the landing branch" in found.text
    assert history.objection(base, tip, base, tip, frozenset(["ci"])) is None
