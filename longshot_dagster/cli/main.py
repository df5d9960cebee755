"""The `longshot` command: its words, and the one place where an error becomes a line and an exit code."""

import difflib
import sys
from collections.abc import Sequence

import click

from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.version import __version__

# Commands import what they need when they run: `longshot --version` should not pay for a build.

_EPILOG = """\b
Examples:
  longshot "Build a REST API according to SPEC.md" --repo https://git.example/me/api.git
  longshot "Add a --json flag to every command"        in a checkout: lands on its origin
  longshot status                                      all builds
  longshot resume todo-api-7f3k                        after a pause or Ctrl-C

\b
Settings: launch field > command line > environment > .env > .longshot.toml of the target > default.
Exit codes: 0 all landed and checks green, 3 green with leftovers, 4 red, 5 paused, 2 wrong use, 130 interrupted.
"""


class _Commands(click.Group):
    """A first word that is no command begins a request."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["build", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["demo", "up", "down", "ui", "status", "resume"]


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    options_metavar='"REQUEST" [OPTIONS]',
    subcommand_metavar="| COMMAND ...",
)
@click.version_option(__version__, prog_name="longshot")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build what REQUEST says in a git repository, with a fleet of coding agents, watched in Dagster.

    --repo is a URL, a bare repository or a checkout (default: GIT_REPO_URL, else the checkout you are in).
    --land-on is the branch finished work lands on. --max-workers is MAX_WORKERS for this build. --yes asks nothing.
    --debug shows the traceback of an error.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(hidden=True)
@click.argument("words", nargs=-1, metavar='"REQUEST"')
@click.option(
    "--repo", metavar="PATH_OR_URL", help="repository to build in (default: GIT_REPO_URL, else this checkout)"
)
@click.option("--land-on", metavar="BRANCH", help="branch that finished work lands on")
@click.option("--max-workers", metavar="N", help="tasks worked on at once (MAX_WORKERS)")
@click.option("--yes", is_flag=True, help="ask nothing")
def build(words: tuple[str, ...], repo: str | None, land_on: str | None, max_workers: str | None, yes: bool) -> int:
    """Build what REQUEST says."""
    request = _one_request(words)
    from longshot_dagster.cli import building

    return building.build(request, repo=repo, land_on=land_on, max_workers=max_workers, yes=yes)


@cli.command()
@click.option("--look", is_flag=True, help="open the UI on the last demo")
def demo(look: bool) -> int:
    """Build the example with a scripted model: no keys, no account."""
    from longshot_dagster.cli import demo as demonstrating

    return demonstrating.demo(look)


@cli.command()
@click.option("--detach", is_flag=True, help="in the background")
def up(detach: bool) -> int:
    """Run the Dagster UI, daemon, code server and gateway until Ctrl-C."""
    from longshot_dagster.cli import serving

    return serving.up(detach)


@cli.command()
def down() -> int:
    """Stop them; builds under way are paused."""
    from longshot_dagster.cli import serving

    return serving.down()


@cli.command()
@click.option("--plain", is_flag=True, help="under 127.0.0.1, for browsers that do not know names ending in .localhost")
def ui(plain: bool) -> int:
    """Print a link that logs a browser in."""
    from longshot_dagster.cli import serving

    return serving.ui(plain)


@cli.command()
@click.argument("build", required=False)
@click.option("--json", "as_json", is_flag=True, help="for programs")
def status(build: str | None, as_json: bool) -> int:
    """List all builds, or one build's tasks and what they wait for."""
    from longshot_dagster.cli import status as listing

    return listing.status(build, as_json)


@cli.command()
@click.argument("build")
@click.option("--max-tokens", metavar="N", help="new budget of the build (MAX_TOKENS_PER_BUILD; 0: none)")
def resume(build: str, max_tokens: str | None) -> int:
    """Go on with a paused or interrupted build."""
    from longshot_dagster.cli import resuming

    return resuming.resume(build, max_tokens)


def _one_request(words: Sequence[str]) -> str:
    """The request; a word that looks like a mistyped command is not one."""
    if not words:
        raise WrongUse('no request; longshot "REQUEST" starts a build, longshot --help lists the commands')
    first = words[0]
    close = difflib.get_close_matches(first.lower(), list(cli.commands), 1, 0.7) if first.isidentifier() else []
    if close and len(words) <= 2:
        raise WrongUse(f"{first!r} is no command; did you mean `longshot {close[0]}`?")
    if len(words) > 1:
        raise WrongUse('put the request in quotes: longshot "..."')
    return first


def run(arguments: Sequence[str]) -> int:
    """The exit code of `longshot ARGUMENTS`; every error is one line on stderr."""
    cut = list(arguments).index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:cut]
    args = [a for i, a in enumerate(arguments) if i > cut or a != "--debug"]
    from longshot_dagster.cli.terminal import complain

    try:
        return int(cli.main(args, prog_name="longshot", standalone_mode=False) or 0)
    except LongshotError as e:
        if debug:
            _show_traceback()
        complain(str(e) or type(e).__name__)
        return e.exit_code
    except click.exceptions.Exit as e:
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return 130
    except click.ClickException as e:
        complain(f"{e.format_message().rstrip('.')}; longshot --help shows how")
        return WrongUse.exit_code
    except BrokenPipeError:  # `longshot status | head`
        sys.stderr.close()
        return 0
    except Exception as e:
        if debug:
            _show_traceback()
        complain(f"unexpected {type(e).__name__}: {e}; the whole story is in {_written_traceback()}")
        return 1


def _show_traceback() -> None:
    import traceback

    traceback.print_exc()


def _written_traceback() -> str:
    """Where the traceback of the error under way was written."""
    import tempfile
    import traceback
    from pathlib import Path

    with tempfile.NamedTemporaryFile("w", prefix="longshot-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"longshot {__version__}, Python {sys.version}\n{traceback.format_exc()}")
        return str(Path(file.name))


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
