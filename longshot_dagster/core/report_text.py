"""The last word for a terminal: what a build's end prints, and the same of a build that has not ended."""

from longshot_dagster.core.display import display
from longshot_dagster.core.last_word import LastWord
from longshot_dagster.core.report import summary_lines
from longshot_dagster.core.reviewing import next_steps


def report_lines(word: LastWord) -> list[str]:
    """Plain text, one fact a line, safe to print as it is."""
    sweep = word.final_sweep
    path = word.places.page if word.final else ""
    first, *lines = summary_lines(word.report, word.request, checks=sweep.checks if sweep else (), report_path=path)
    if not word.final:
        first = display(f"{word.build}: not finished, {word.sentence}", "plain", 700)
    since = [f"undone since: {', '.join(t.task.id for t in word.undone_since)}"] if word.undone_since else []
    go_on = next_steps(word.state, word.build, (left.task for left in word.report.leftovers))
    return [first, *since, *lines, *(f"next   {step.command}" for step in go_on)]
