"""The one boundary through which any text of a model, agent, repository or issue reaches a person's screen.

Measured before it existed: `[/bold]` in a summary crashed the terminal renderer, and an `<img>` in a Markdown field made
the Dagster UI start a run by GET.
"""

import html
import re
import unicodedata
from typing import Literal

Where = Literal["terminal", "markdown", "html", "plain"]

_BACKTICKS = re.compile("`+")
_MARKDOWN = str.maketrans({c: "\\" + c for c in r"\`*_{}[]()#+-.!|~<>&"})


def display(text: object, where: Where, limit: int = 2_000) -> str:
    """`text` on one screen: no control or bidirectional characters, no markup, links or images, at most `limit` characters.

    `plain` is for logs and Dagster's plain-text metadata. Newlines and tabs stay, except in `markdown`, where a newline
    becomes a space, so that a text cannot begin a block of its own; use `code_block` for many lines.
    """
    clean = _printable(str(text)[: limit + 1])
    if len(clean) > limit:
        clean = clean[: limit - 1] + "…"
    match where:
        case "terminal":
            return clean.replace("[", "\\[")  # rich's own escape
        case "markdown":
            return (
                " ".join(clean.split())
                .translate(_MARKDOWN)
                .replace("://", ":\u200b//")
                .replace("www\\.", "www\u200b\\.")
            )
        case "html":
            return html.escape(clean, quote=True)
        case "plain":
            return clean


def one_line(text: object, limit: int = 300) -> str:
    """`text` as one plain line of at most `limit` characters, white space squeezed."""
    return " ".join(display(text, "plain", limit).split())


def code_block(text: object, language: str = "", limit: int = 20_000) -> str:
    """`text` as a fenced Markdown block that nothing inside can close."""
    clean = display(text, "plain", limit)
    longest = max(map(len, _BACKTICKS.findall(clean)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{clean}\n{fence}"


def _printable(text: str) -> str:
    # No character of the categories below is printable; most lines are, and a diff has thousands.
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(ln if ln.replace("\t", "").isprintable() else "".join(map(_shown, ln)) for ln in lines)


def _shown(c: str) -> str:
    if c != "\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return "\ufffd" if c in "\x1b\u202e" else ""
    return c
