"""`longshot report [BUILD]`: the last word on a build, or how one stands that has not ended, as text, page or JSON."""

import json
import os
import time
from pathlib import Path

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.cli.naming import newest
from longshot_dagster.cli.terminal import say
from longshot_dagster.core.display import display
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.last_word import LastWord
from longshot_dagster.core.report_json import report_document
from longshot_dagster.core.report_text import report_lines

_BY_SUFFIX = {".html": "html", ".htm": "html", ".md": "markdown", ".json": "json"}


def report(build: str | None, form: str | None, output: str | None) -> int:
    """Raises WrongUse for a build that is not here, and for a file that cannot be written."""
    home = settings.home(os.environ, settings.default_dotenv())
    builds = Ledger(home.builds)
    ledger = builds.existing(build or newest(builds))
    from longshot_dagster.adapters.builds.last_word import last_word

    word = last_word(ledger, home, time.time())
    kind = form or (_BY_SUFFIX.get(Path(output).suffix.lower()) if output else None)
    text = _rendered(word, kind)
    if output is None:
        click.echo(text)
        return 0
    try:
        Path(output).expanduser().write_text(f"{text}\n", encoding="utf-8", errors="replace")
    except OSError as e:
        raise WrongUse(f"{output} cannot be written: {e.strerror}") from e
    say(f"{word.build}: {word.standing}; written to {output}")
    return 0


def _rendered(word: LastWord, form: str | None) -> str:
    """Without a form, for a terminal."""
    match form:
        case "html" | "markdown":
            from longshot_dagster.adapters.builds import last_word as writing

            return (writing.page(word) if form == "html" else writing.markdown(word)).rstrip("\n")
        case "json":
            return json.dumps(report_document(word), indent=1)
        case _:
            return "\n".join(display(line, "plain", 2_000).replace("\n", " ") for line in report_lines(word))
