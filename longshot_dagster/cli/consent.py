"""A person's consent to what takes something away."""

import sys

import click

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import WrongUse


def consent(question: str, otherwise: str) -> None:
    """Returns once the person has agreed. Raises WrongUse, beginning with `otherwise`, for a no and where nobody can be asked.

    Asked on stderr: stdout may be somebody's JSON.
    """
    if not sys.stdin.isatty():
        raise WrongUse(f"{otherwise}: there is no terminal to ask on; --yes does it without asking")
    if not click.confirm(one_line(question), default=False, err=True):  # it may name a branch of anybody's
        raise WrongUse(otherwise)
