"""The `longshot` command: its words, and the one place where an error becomes a line and an exit code."""

import difflib
import sys
from collections.abc import Sequence

import click

from longshot_dagster.cli.examples import EPILOG, Exemplified
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.version import __version__

# Commands import what they need when they run: `longshot --version` should not pay for a build.

_LONGEST_TYPO = 20
_SECTIONS = {
    "First": ("doctor", "demo"),
    "Look": ("status", "watch", "logs", "report", "ui"),
    "Steer": ("resume", "continue", "cancel", "retry", "approve", "undo", "reset"),
    "Keep": ("up", "down", "backlog", "sandboxes", "harnesses", "clean", "completion"),
}


class _Commands(click.Group):
    """A first word that is no command begins a request."""

    command_class = Exemplified

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["build", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options of a build"):
            params = [p for p in self.commands["build"].params if isinstance(p, click.Option)]
            formatter.write_dl([r for p in params if (r := p.get_help_record(ctx))])
        super().format_options(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in _SECTIONS.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in _SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(n, self.commands[n].get_short_help_str(90)) for n in names])


class _Build(Exemplified):
    """Its name is never typed: the request stands in its place."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("longshot", '"REQUEST" [OPTIONS]')


_repo = click.option(
    "--repo", metavar="PATH_OR_URL", help="repository (default: GIT_REPO_URL, else the checkout you are in)"
)
_land_on = click.option("--land-on", metavar="BRANCH", help="branch that finished work lands on")
_yes = click.option("--yes", is_flag=True, help="ask nothing")
_json = click.option("--json", "as_json", is_flag=True, help="for programs")


@click.group(
    cls=_Commands,
    epilog=EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    options_metavar='"REQUEST" [OPTIONS]',
    subcommand_metavar="| COMMAND ...",
)
@click.version_option(__version__, prog_name="longshot")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error; goes anywhere.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Build what REQUEST says in a git repository, with a fleet of coding agents, watched in Dagster.

    The repository is a URL, a bare repository or a checkout. `longshot COMMAND --help` has more, with examples.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(hidden=True, cls=_Build)
@click.argument("words", nargs=-1, metavar='"REQUEST"')
@_repo
@_land_on
@click.option("--max-workers", metavar="N", help="tasks worked on at once (MAX_WORKERS); 0 pauses")
@click.option("--provider", metavar="NAME", help="where workers run (SANDBOX_PROVIDER)")
@click.option("--harness", metavar="NAME", help="coding agent inside a sandbox (HARNESS)")
@click.option("--reset", is_flag=True, help="first set the branch back to its first commit; a backup ref is kept")
@click.option("--dashboard", is_flag=True, help="follow the build on one screen")
@_yes
def build(
    words: tuple[str, ...],
    repo: str | None,
    land_on: str | None,
    max_workers: str | None,
    provider: str | None,
    harness: str | None,
    reset: bool,
    dashboard: bool,
    yes: bool,
) -> int:
    """Build what REQUEST says."""
    if reset and not words:
        return _reset(repo, land_on, yes)
    request = _one_request(words)
    if reset and (code := _reset(repo, land_on, yes)):
        return code
    from longshot_dagster.cli import building

    flags = {"max_workers": max_workers, "sandbox_provider": provider, "harness": harness}
    return building.build(request, repo=repo, land_on=land_on, flags=flags, yes=yes, dashboard=dashboard)


@cli.command()
@click.option("--look", is_flag=True, help="open the UI on the last demo")
@click.option(
    "--provider",
    type=click.Choice(["local", "modal-loopback"]),
    default="local",
    show_default=True,
    help="where workers run; modal-loopback rehearses Modal on this machine, twenty workers at once",
)
def demo(look: bool, provider: str) -> int:
    """Build the example with a scripted model: no keys, no account."""
    from longshot_dagster.cli import demo as demonstrating

    return demonstrating.demo(look, provider)


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
@click.argument("name", metavar="[BUILD|TASK]", required=False)
@_json
def status(name: str | None, as_json: bool) -> int:
    """List all builds, or one build's tasks and what they wait for."""
    from longshot_dagster.cli import status as listing

    return listing.status(name, as_json)


@cli.command()
@click.argument("build", required=False)
@click.option("--max-tokens", metavar="N", help="new budget of the build (MAX_TOKENS_PER_BUILD; 0: none)")
@click.option("--dashboard", is_flag=True, help="follow it on one screen")
@click.option("--repo", metavar="PATH|URL", help="where a build of another machine has its checkpoint")
@_land_on
@click.option("--take-over", is_flag=True, help="though another installation drives it; that one stops")
@_yes
def resume(
    build: str | None,
    max_tokens: str | None,
    dashboard: bool,
    repo: str | None,
    land_on: str | None,
    take_over: bool,
    yes: bool,
) -> int:
    """Go on with a paused or interrupted build, also with one of another machine.

    Without BUILD, list what the repository (--repo, or the checkout you are in) has to be resumed.
    """
    from longshot_dagster.cli import resuming

    elsewhere = resuming.Elsewhere(repo, land_on, take_over, yes)
    return resuming.resume(build, max_tokens, dashboard, elsewhere)


@cli.command("continue")
@click.argument("build")
def go_on(build: str) -> int:
    """Like resume, without following it: the command ends, the build goes on."""
    from longshot_dagster.cli import resuming

    return resuming.go_on(build)


@cli.command()
@click.argument("name", metavar="BUILD|TASK")
@_json
def cancel(name: str, as_json: bool) -> int:
    """Stop a build, or one of its tasks (BUILD.TASK); what was done is kept."""
    from longshot_dagster.cli import steering

    return steering.cancel(name, as_json)


@cli.command()
@click.argument("task", metavar="TASK")
@click.option("--detach", is_flag=True, help="do not wait for it")
@_json
def retry(task: str, detach: bool, as_json: bool) -> int:
    """Give a task (BUILD.TASK) that did not land to a new worker."""
    from longshot_dagster.cli import steering

    return steering.retry(task, detach, as_json)


@cli.command()
@click.argument("task", metavar="TASK")
@click.option("--build", metavar="BUILD", help="whose task it is (or BUILD.TASK)")
@_yes
@_json
def approve(task: str, build: str | None, yes: bool, as_json: bool) -> int:
    """Let a task (BUILD.TASK) land what it changed in protected paths; shows it and asks first."""
    from longshot_dagster.cli import approving

    return approving.approve(task, build, yes, as_json)


@cli.command()
@click.argument("name", metavar="TASK|BUILD")
@_yes
@_json
def undo(name: str, yes: bool, as_json: bool) -> int:
    """Take back what a task (BUILD.TASK) or a whole build has landed."""
    from longshot_dagster.cli import undoing

    return undoing.undo(name, yes, as_json)


@cli.command()
@_repo
@_land_on
@_yes
def reset(repo: str | None, land_on: str | None, yes: bool) -> int:
    """Set a branch back to its first commit; a backup ref is kept."""
    return _reset(repo, land_on, yes)


@cli.command()
@click.argument("build", required=False)
@click.option("--dashboard", is_flag=True, help="as one screen: q leaves it")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def watch(build: str | None, dashboard: bool, as_json: bool) -> int:
    """Follow a build (default: the newest); Ctrl-C only ends the watching."""
    from longshot_dagster.cli import attaching

    return attaching.watch(build, dashboard, as_json)


@cli.command()
@click.argument("name", metavar="[BUILD|TASK]", required=False)
@click.option("--task", metavar="TASK", help="what the agent of one task did")
@click.option("--follow", "-f", is_flag=True, help="go on until it ends")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def logs(name: str | None, task: str | None, follow: bool, as_json: bool) -> int:
    """What happened in a build (default: the newest), or in one of its tasks, in order."""
    from longshot_dagster.cli import logs as telling

    return telling.logs(name, task, follow, as_json)


@cli.command()
@click.argument("build", required=False)
@click.option("--html", "form", flag_value="html", help="one self-contained page, with the timeline")
@click.option("--markdown", "form", flag_value="markdown", help="the same as Markdown")
@click.option("--json", "form", flag_value="json", help="for programs")
@click.option("--output", metavar="FILE", help="write it there instead of printing it")
def report(build: str | None, form: str | None, output: str | None) -> int:
    """The last word on a build (default: the newest), or how it stands while it is under way."""
    from longshot_dagster.cli import reporting

    return reporting.report(build, form, output)


@cli.command()
@_repo
@_land_on
@_json
def doctor(repo: str | None, land_on: str | None, as_json: bool) -> int:
    """Check everything a build needs, really; each line is ok or says what to do."""
    from longshot_dagster.cli import doctor as examining

    return examining.doctor(repo, land_on, as_json)


@cli.command()
@_json
def backlog(as_json: bool) -> int:
    """List the backlog's items, and the builds they became."""
    from longshot_dagster.cli import backlog as listing

    return listing.backlog(as_json)


@cli.command()
@click.option("--older-than", metavar="DAYS", default="30", show_default=True, help="finished builds older than this")
@click.option("--build", metavar="BUILD", help="this finished build alone, whatever its age")
@click.option("--dry-run", is_flag=True, help="only say what would be removed")
@_yes
@_json
def clean(older_than: str, build: str | None, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove finished builds with their branches and refs, and what crashes left; asks first."""
    from longshot_dagster.cli import cleaning

    return cleaning.clean(older_than, build, dry_run, yes, as_json)


@cli.command()
@click.option("--reap", is_flag=True, help="end those that nobody answers for; what they hold is kept first")
@_json
def sandboxes(reap: bool, as_json: bool) -> int:
    """List the living sandboxes of every provider in use, and who answers for each."""
    from longshot_dagster.cli import sandboxes as listing

    return listing.sandboxes(reap, as_json)


@cli.command()
@click.argument("do", metavar="[install|remove|dockerfile]", required=False)
@click.argument("names", metavar="[NAME]", nargs=-1)
@click.option("--package", metavar="NAME@VERSION", help="another npm package or version (HARNESS_PACKAGE)")
@_json
def harnesses(do: str | None, names: tuple[str, ...], package: str | None, as_json: bool) -> int:
    """List the coding agents, install one for local sandboxes, or write the image's Dockerfile."""
    if do not in (None, "install", "remove", "dockerfile"):
        raise WrongUse(f"{do!r} is not one of install, remove and dockerfile; longshot harnesses --help shows how")
    from longshot_dagster.cli import harnesses as agents

    return agents.harnesses(do, names, package, as_json)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of a shell: source <(longshot completion bash)."""
    from longshot_dagster.cli import completing

    return completing.completion(shell)


def _reset(repo: str | None, land_on: str | None, yes: bool) -> int:
    from longshot_dagster.cli import resetting

    return resetting.reset(repo, land_on, yes)


def _one_request(words: Sequence[str]) -> str:
    """The request; a word that looks like a mistyped command is not one."""
    if not words:
        raise WrongUse('no request; longshot "REQUEST" starts a build, longshot --help lists the commands')
    first = words[0]
    close = []
    if first.isidentifier() and len(first) <= _LONGEST_TYPO:
        close = difflib.get_close_matches(first.lower(), list(cli.commands), 1, 0.7)
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
        if not {"--help", "-h", "--version"} & set(args):
            _check_platform()
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
        complain(f"{e.format_message().rstrip('.')}; {_command_of(e)} --help shows how")
        return WrongUse.exit_code
    except BrokenPipeError:  # `longshot status | head`
        sys.stderr.close()
        return 0
    except Exception as e:
        from longshot_dagster.cli.unwritable import unwritable

        if debug:
            _show_traceback()
        if line := unwritable(e):
            complain(line)
            return WrongUse.exit_code
        complain(f"unexpected {type(e).__name__}: {e}; the whole story is {_written_traceback()}")
        return 1


def _command_of(error: click.ClickException) -> str:
    """`longshot resume`; a request has no command."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    return context.command_path if context and context.info_name != "build" else "longshot"


def _check_platform() -> None:
    from longshot_dagster.core.host import not_a_system_for_longshot

    if line := not_a_system_for_longshot(sys.platform):
        raise WrongUse(line)


def _show_traceback() -> None:
    import traceback

    traceback.print_exc()


def _written_traceback() -> str:
    """Where the traceback of the error under way is."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="longshot-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"longshot {__version__}, Python {sys.version}\n{traceback.format_exc()}")
            return f"in {file.name}"
    except OSError:
        return "shown with --debug"


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
