"""What an item's file says, and one line for everything that is no item."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_dagster.core.backlog_item import Item, is_item, parse_item
from longshot_dagster.core.errors import WrongUse


def item(front: str, body: str = "Build it", name: str = "todo.md") -> Item:
    return parse_item(f"/backlog/{name}", f"---\n{front}\n---\n{body}\n")


def test_every_field_is_read_and_the_body_is_the_request() -> None:
    found = item(
        "repository: ../api   # beside the folder\npriority: 2\ncron: 0 3 * * 1-5\nland-on: nightly\n"
        "settings:\n  MAX_WORKERS: 3\n  # a comment\n  check_test: 'it''s # a test'\nenabled: no",
        "# Nightly\n\nUpdate it.\n---\nAnd this belongs to it.",
    )
    assert found.model_dump(exclude={"contents"}) == {
        "name": "todo.md",
        "place": "/backlog/todo.md",
        "request": "# Nightly\n\nUpdate it.\n---\nAnd this belongs to it.",
        "repository": "../api",
        "priority": 2,
        "cron": "0 3 * * 1-5",
        "land_on": "nightly",
        "settings": {"MAX_WORKERS": "3", "check_test": "it's # a test"},
        "enabled": False,
    }


def test_an_item_that_says_nothing_of_itself_is_of_usual_priority_and_started_once() -> None:
    found = item("")
    assert (found.repository, found.priority, found.cron, found.enabled) == ("", 5, "", True)


def test_line_ends_and_a_byte_order_mark_do_not_make_another_item() -> None:
    unix, windows = "---\npriority: 1\n---\nBuild it\n", "\ufeff---\r\npriority: 1\r\n---\r\nBuild it\r\n"
    assert parse_item("/b/a.md", unix) == parse_item("/b/a.md", windows)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("*/5 * * * *", "*/5 * * * *"),
        ('"*/5 * * * *"  # quoted, as YAML wants it', "*/5 * * * *"),
        ("@daily", "@daily"),
        ('"a \\"b\\" \\u00e9"', 'a "b" é'),
        ("'#1'", "#1"),
        ("", ""),
    ],
)
def test_a_value_is_plain_or_quoted_and_ends_at_a_comment(value: str, read: str) -> None:
    assert item(f"cron: {value}").cron == read


MISTAKES = [
    ("Build it", "it does not begin with front matter: a line ---, its fields, and a line ---"),
    ("", "it does not begin with front matter: a line ---, its fields, and a line ---"),
    ("---\npriority: 1\nBuild it", "its front matter is not closed by a line --- within 200 lines"),
    ("---\n---\n \n", "there is no request below its front matter; say there what to build"),
    ("---\n---\n" + "x" * 100_001, "its request has 100,001 characters, at most 100,000"),
    ("---\nprio: 1\n---\nx", "line 2: prio is not a field; did you mean priority?"),
    (
        "---\nfruit: 1\n---\nx",
        "line 2: fruit is not a field; there are repository, priority, cron, land_on, settings, enabled",
    ),
    ("---\n\npriority: high\n---\nx", "priority is 1 (first) to 10 (last), not high"),
    ("---\npriority: 0\n---\nx", "priority is 1 (first) to 10 (last), not 0"),
    ("---\npriority: 1\npriority: 2\n---\nx", "line 3: priority is there twice"),
    ("---\nenabled: maybe\n---\nx", "enabled is true or false, not maybe"),
    ("---\n- a\n---\nx", "line 2 is not `name: value`: - a"),
    ("---\nrepository:x\n---\nx", "line 2 is not `name: value`: repository:x"),
    ("---\nrepository: |\n---\nx", "line 2: a value is a text on one line; put | in quotes"),
    ("---\nrepository: &a x\n---\nx", "line 2: a value is a text on one line; put &a x in quotes"),
    ("---\nrepository: 'x\n---\nx", "line 2: a value is a text on one line; put 'x in quotes"),
    ('---\nrepository: "x" y\n---\nx', "line 2: something is wrong inside the quotes, or follows them"),
    ('---\nrepository: "\\q"\n---\nx', "line 2: something is wrong inside the quotes, or follows them"),
    ("---\nrepository: a\x1b[31m\n---\nx", "line 2: a value has no control or invisible characters"),
    ('---\nland_on: "\\ud800"\n---\nx', "line 2: a value has no control or invisible characters"),
    ("---\nrepository: a\u202eb\n---\nx", "line 2: a value has no control or invisible characters"),
    ('---\nland_on: "\\u009b2J"\n---\nx', "line 2: a value has no control or invisible characters"),
    ("---\n  MAX_WORKERS: 1\n---\nx", "line 2 is indented, and only what stands below `settings:` may be"),
    ("---\nsettings: {}\n---\nx", "line 2: a value is a text on one line; put {} in quotes"),
    ("---\nsettings: a\n---\nx", "line 2: write the settings below `settings:`, one indented `NAME: value` a line"),
    (
        "---\nsettings:\n" + "".join(f"  a{n}: 1\n" for n in range(51)) + "---\nx",
        "line 53: an item has at most 50 settings",
    ),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES)
def test_a_mistake_is_one_line_that_says_where(text: str, line: str) -> None:
    with pytest.raises(WrongUse) as raised:
        parse_item("/backlog/todo.md", text)
    assert str(raised.value) == line


@pytest.mark.parametrize("name", ["a\x1b.md", "-rf.md", "a" * 120 + ".md", "a\u202eb.md", "[x].md"])
def test_a_name_that_could_not_be_shown_is_refused(name: str) -> None:
    with pytest.raises(WrongUse, match="its name may have letters"):
        parse_item(f"/backlog/{name}", "---\n---\nx")


def test_other_files_of_the_folder_are_no_items() -> None:
    names = (
        "todo.md",
        "Überblick 2.MD",
        "README.md",
        "readme.MD",
        ".todo.md.swp",
        ".todo.md",
        "_draft.md",
        "a.md.off",
        "a.txt",
    )
    assert [n for n in names if is_item(n)] == ["todo.md", "Überblick 2.MD"]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("-:#'\"\\ \n\tab*|\x00[é"), max_size=60), st.text(max_size=20))
def test_whatever_a_file_holds_it_is_an_item_or_one_line(front: str, body: str) -> None:
    try:
        found = parse_item("/backlog/a.md", f"---\n{front}\n---\n{body}")
    except WrongUse as e:
        assert "\n" not in str(e) and "\x00" not in str(e)
    else:
        assert found.request == found.request.strip() != ""


def test_a_hostile_line_is_read_in_no_time() -> None:
    for line in (
        "a" * 500_000,
        "repository: " + " " * 500_000 + "x",
        'repository: "' + "\\" * 500_000,
        "a: " + "'" * 499_999,
    ):
        with pytest.raises(WrongUse):
            item(line)
