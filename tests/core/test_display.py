"""Hostile text on its way to a person's screen."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from longshot_dagster.core.display import code_block, display

HOSTILE = "[/bold] \x1b[31mred\x1b]8;;http://x\x07 <img src=x onerror=y> \u202egnp.exe ![a](http://x) `` ``` \x00"


@settings(deadline=None)  # a busy machine is no wrong answer
@given(st.text() | st.just(HOSTILE))
def test_rich_shows_any_text_literally_and_never_crashes(text):
    shown = Text.from_markup(display(text, "terminal")).plain
    assert "\x1b" not in shown and "\x00" not in shown


@pytest.mark.parametrize("where", ["terminal", "markdown", "html", "plain"])
def test_no_control_or_bidirectional_character_survives(where):
    shown = display(HOSTILE, where)
    assert not set(shown) & set("\x1b\x00\x07\u202e")


def test_html_is_escaped():
    assert "<img" not in display(HOSTILE, "html")


def test_markdown_has_no_image_link_or_tag_left():
    shown = display(HOSTILE, "markdown")
    assert "<img" not in shown.replace("\\<", "") and "](" not in shown.replace("\\", "\\\\").replace("\\\\](", "")
    assert "http://" not in shown


def test_a_long_text_is_cut_and_says_so():
    assert display("x" * 5000, "plain", 100) == "x" * 99 + "…"


@settings(deadline=None)  # a busy machine is no wrong answer
@given(st.text(alphabet="`\nab"))
def test_nothing_inside_a_code_block_closes_it(text):
    block = code_block(text)
    fence = block.split("\n", 1)[0]
    assert all(not line.startswith(fence) for line in block.split("\n")[1:-1])


def test_what_is_printable_as_it_is_holds_none_of_what_is_taken_out() -> None:
    removed = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    assert not [
        c for c in map(chr, range(sys.maxunicode + 1)) if c.isprintable() and unicodedata.category(c) in removed
    ]


def test_what_is_taken_out_of_one_line_leaves_the_others_as_they_were() -> None:
    assert code_block("a\tb\r\n\x1b[1m``\u00a0é\x00\rc\u2028\n\n", "diff") == (
        "```diff\na\tb\n\ufffd[1m``\u00a0éc\n\n\n```"
    )
