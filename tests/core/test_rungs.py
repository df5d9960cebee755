"""The rungs of the conflict ladder: what each resolves, and what it leaves to the next."""

import itertools
import json
import random

import pytest

from longshot_dagster.core.keyed_json import merged
from longshot_dagster.core.rungs import KeptLockFile, KeyedJson, Sides, Union, has_markers, pure_rungs
from longshot_dagster.core.settings import RungName, Settings

UNION = Union(Settings().union_patterns)


def union(path: str, base: str | None, ours: str, theirs: str) -> str | None:
    found = UNION.resolve(Sides(path, None if base is None else base.encode(), ours.encode(), theirs.encode()))
    return None if found is None else found.decode()


# --- union -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result"),
    [
        ("# C\n\n- a\n", "# C\n\n- b\n- a\n", "# C\n\n- c\n- a\n", "# C\n\n- b\n- c\n- a\n"),
        ("# C\n", "# C\n- b\n", "# C\n- c\n", "# C\n- b\n- c\n"),
        ("# C\n", "# C\n## Added\n- b\n", "# C\n## Added\n- c\n", "# C\n## Added\n- b\n- c\n"),
        ("a\nz\n", "a\nb\nz\n", "a\nz\ny\n", "a\nb\nz\ny\n"),
        (None, "x\n", "x\ny\n", "x\ny\n"),
        ("", "x", "y", "x\ny"),
        ("a\r\n", "a\r\nb\r\n", "a\r\nc\r\n", "a\r\nb\r\nc\r\n"),
    ],
)
def test_both_sides_new_lines_are_kept_each_once(base, ours, theirs, result):
    assert union("docs/CHANGELOG.md", base, ours, theirs) == result


@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [
        ("a\nb\n", "a\n", "a\nb\nc\n"),  # removed on one side
        ("a\nb\n", "a\nB\n", "a\nb\nc\n"),  # changed on one side
        ("a\nb\n", "b\na\n", "a\nb\nc\n"),  # moved
        ("a\n", "a\r\nb\r\n", "a\nc\n"),  # other line ends
        ("a\n", "a\n\0\n", "a\nc\n"),  # binary
    ],
)
def test_where_a_side_took_a_line_away_union_is_not_asked(base, ours, theirs):
    assert union("CHANGELOG.md", base, ours, theirs) is None


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (".gitignore", True),
        ("packages/a/.gitignore", True),
        ("CHANGELOG.json", False),
        ("package.json", False),
        ("package-lock.json", False),
        ("yarn.lock", False),
        ("src/main.py", False),
    ],
)
def test_only_listed_files_are_strung_together_and_never_json_or_lock_files(path, allowed):
    assert (union(path, "a\n", "a\nb\n", "a\nc\n") is not None) is allowed
    everything = Union(("*", "package.json", "yarn.lock"))
    if path.endswith((".json", ".lock")):
        assert everything.resolve(Sides(path, b"a\n", b"a\nb\n", b"a\nc\n")) is None


def test_of_source_files_only_barrels_are_strung_together():
    one, two, three = (f"export * from './{n}';\n" for n in "abc")
    named = 'export { x, y as z } from "./d"\n// all of it\n'
    assert union("src/index.ts", one, one + two, one + three) == one + two + three
    assert union("src/index.ts", one, one + named, one + three) == one + named + three
    assert union("src/index.ts", one, one + "main();\n", one + three) is None
    assert union("src/other.ts", one, one + two, one + three) is None


def test_every_line_of_both_sides_is_in_a_union_in_its_order():
    draw = random.Random(7)

    def grown(base: list[str], mark: str) -> list[str]:
        side = list(base)
        for n in range(draw.randrange(1, 5)):
            side.insert(draw.randrange(len(side) + 1), f"{mark}{n}")
        return side

    def holds(whole: list[str], part: list[str]) -> bool:
        rest = iter(whole)
        return all(line in rest for line in part)

    for _ in range(300):
        base = [draw.choice(["", "=", f"b{n}"]) for n in range(draw.randrange(8))]
        ours, theirs = grown(base, "o"), grown(base, "t")
        found = union("CHANGES", *("".join(f"{x}\n" for x in side) for side in (base, ours, theirs)))
        assert found is not None
        lines = found.split("\n")[:-1]
        assert holds(lines, ours) and holds(lines, theirs)
        assert len(lines) == len(ours) + len(theirs) - len(base)


# --- manifests -------------------------------------------------------------------------------------------------------

BASE = """{
    "name": "x",
    "files": ["dist"],
    "dependencies": {
        "b": "1",
        "m": "1.0"
    },
    "version": 1.50
}
"""


def test_two_dependencies_land_beside_each_other_in_order_and_everything_else_stays_as_it_was_written():
    ours = BASE.replace('"b": "1",', '"a": "1",\n        "b": "1",')
    theirs = BASE.replace('"m": "1.0"', '"m": "1.0",\n        "n": "2"')
    assert merged(BASE, ours, theirs) == BASE.replace('"b": "1",', '"a": "1",\n        "b": "1",').replace(
        '"m": "1.0"', '"m": "1.0",\n        "n": "2"'
    )


def test_line_ends_indent_and_the_missing_last_newline_are_kept():
    base = '{\r\n\t"a": 1\r\n}'
    assert (
        merged(base, base.replace('"a": 1', '"a": 1,\r\n\t"b": 2'), base.replace('"a": 1', '"a": 1,\r\n\t"c": {}'))
        == '{\r\n\t"a": 1,\r\n\t"b": 2,\r\n\t"c": {}\r\n}'
    )


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result"),
    [
        ({"v": 1}, {"v": 2}, {"v": 3}, None),
        ({"v": 1}, {"v": 2}, {"v": 2}, {"v": 2}),
        ({"v": 1}, {"v": True}, {"v": 1, "w": 0}, {"v": True, "w": 0}),
        ({"d": {"a": 1}}, {"d": {}}, {"d": {"a": 2}}, None),
        ({"d": {"a": 1, "b": 1}}, {"d": {"b": 1}}, {"d": {"a": 1, "b": 1, "c": 1}}, {"d": {"b": 1, "c": 1}}),
        (None, {"a": {"x": 1}}, {"a": {"y": 1}, "b": 2}, {"a": {"x": 1, "y": 1}, "b": 2}),
        (None, {"a": 1}, {"a": 2}, None),
        ({}, {"a": {"x": 1}}, {"a": [1]}, None),
        ({"l": [1]}, {"l": [1, 2]}, {"l": [1, 3]}, None),
        ({"files": ["a", "b"]}, {"files": ["a", "b", "c"]}, {"files": ["b", "d"]}, {"files": ["b", "c", "d"]}),
        ({"files": [1]}, {"files": [1, 2]}, {"files": [1, 3]}, None),
        ({"s": {"files": ["a"]}}, {"s": {"files": ["a", "b"]}}, {"s": {"files": ["a", "c"]}}, None),
    ],
)
def test_keys_are_merged_and_the_same_key_with_two_values_stays_a_conflict(base, ours, theirs, result):
    texts = [None if v is None else json.dumps(v, indent=2) for v in (base, ours, theirs)]
    found = merged(*texts)
    assert (None if found is None else json.loads(found)) == result


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "[]",
        "{} {}",
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": 01}',
        '{"a": "\t"}',
        "{'a': 1}",
        '{"a": 1,}',
        '\ufeff{"a": 1}',
        '{"a": "\\x"}',
        '{"a":' + "[" * 100_000,
        '{"a": ' + "[" * 60 + "]" * 60 + "}",
        "{" + ",".join(f'"k{n}":1' for n in range(6_000)) + "}",
    ],
)
def test_what_is_not_plain_json_is_left_alone(odd):
    for place in range(3):
        texts = ['{"a": 0}', '{"a": 0, "b": 1}', '{"a": 0, "c": 1}']
        texts[place] = odd
        assert merged(*texts) is None


def test_a_merge_of_random_objects_is_that_of_their_values():
    draw = random.Random(11)

    def value(depth: int = 0) -> object:
        if depth < 3 and draw.random() < 0.5:
            return {k: value(depth + 1) for k in draw.sample("abcdef", draw.randrange(5))}
        return draw.choice([0, 1, "x", None, True, [], ["x"], 1.5])

    def three_way(base: object, ours: object, theirs: object, none: object) -> object:
        def same(a: object, b: object) -> bool:
            return a is b if none in (a, b) else json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)

        if same(ours, theirs) or same(theirs, base):
            return ours
        if same(ours, base):
            return theirs
        if isinstance(ours, dict) and isinstance(theirs, dict) and (isinstance(base, dict) or base is none):
            before = base if isinstance(base, dict) else {}
            keys = {**ours, **theirs}
            made = {k: three_way(*(s.get(k, none) for s in (before, ours, theirs)), none) for k in keys}
            return {k: v for k, v in made.items() if v is not none}
        raise ArithmeticError

    clean = 0
    for _ in range(1_500):
        base = {k: value(1) for k in draw.sample("abcdef", 4)}
        sides = []
        for _ in range(2):
            side = json.loads(json.dumps(base))
            where = side
            while (inner := [v for v in where.values() if isinstance(v, dict)]) and draw.random() < 0.6:
                where = draw.choice(inner)
            for key in draw.sample("abcdef", 2):
                if draw.random() < 0.3:
                    where.pop(key, None)
                else:
                    where[key] = value(2)
            sides.append(side)
        try:
            wanted = three_way(base, *sides, object())
        except ArithmeticError:
            wanted = None
        indents = itertools.cycle([2, 4])
        found = merged(*(json.dumps(v, indent=next(indents)) for v in (base, *sides)))
        assert (None if found is None else json.loads(found)) == wanted
        clean += wanted is not None
    assert clean > 500


def test_only_manifests_are_merged_by_key_and_a_lock_file_stays_as_it_is_for_now():
    base, ours, theirs = b'{"a": 1}', b'{"a": 1, "b": 1}', b'{"a": 1, "c": 1}'
    assert KeyedJson().resolve(Sides("web/package.json", base, ours, theirs)) == b'{"a": 1, "b": 1, "c": 1}'
    assert KeyedJson().resolve(Sides("data.json", base, ours, theirs)) is None
    assert KeyedJson().resolve(Sides("package.json", b"\xff", ours, theirs)) is None
    assert KeptLockFile().resolve(Sides("a/uv.lock", None, b"1", b"2")) == b"1"
    assert KeptLockFile().resolve(Sides("a/uv.toml", None, b"1", b"2")) is None


def test_each_rung_can_be_switched_off():
    def names(rungs: str) -> list[str]:
        settings = Settings(conflict_rungs=rungs)
        return [r.name.value for r in pure_rungs(settings.rungs, settings.union_patterns)]

    assert names(Settings().conflict_rungs) == ["union", "json", "lock-files"]
    assert names("json, fix") == ["json"] and names("none") == []
    assert Settings().rungs == frozenset(RungName)


@pytest.mark.parametrize("name", ["conflict_rungs", "union_paths"])
def test_what_no_rung_may_do_is_refused(name):
    for value in {"conflict_rungs": ["unions", "json,guess"], "union_paths": ["*", "*.json", "uv.lock"]}[name]:
        with pytest.raises(ValueError, match=r"no way out of a conflict|cannot hold"):
            Settings(**{name: value})


def test_conflict_markers_are_seen_at_the_beginning_of_a_line_only():
    assert has_markers(b"a\n<<<<<<< ours\n") and has_markers(b">>>>>>> x") and has_markers(b"|||||||\r\n")
    assert not has_markers(b"a <<<<<<< b\n=======\n<<<<<<<<\n")
