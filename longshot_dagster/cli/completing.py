"""`longshot completion SHELL`: the script that completes commands, options, builds and tasks in bash, zsh and fish.

The script is click's own, but asks `longshot completion SHELL` back, with the words so far in COMP_WORDS: so everything
about completion is here, and nobody else pays for it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from longshot_dagster.adapters import settings
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.ids import check_build_id, check_task_id

_NEWEST = 50  # builds that are offered
_SPREAD = 5  # builds whose tasks are offered, where a task of any build will do


def completion(shell: str) -> int:
    """Print the script; or, asked by the script, what could come next."""
    from longshot_dagster.cli.main import cli

    completer = _SHELLS[shell](cli, {}, "longshot", "_LONGSHOT_COMPLETE")
    asked = "COMP_WORDS" in os.environ and "COMP_CWORD" in os.environ
    click.echo(completer.complete() if asked else completer.source())
    return 0


class _Ours(ShellComplete):
    """A first word is a command or begins a request, whose options belong to the hidden command `build`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        assert isinstance(self.cli, click.Group)
        _name_parameters(self.cli, args)
        first = not args
        found = super().get_completions(args, incomplete)
        if incomplete.startswith("-"):
            if first:
                build = self.cli.commands["build"]
                found = [*build.shell_complete(click.Context(build), incomplete), *found]
            found = [*found, CompletionItem("--debug", help="show the traceback of an error")]
        offered = {i.value: i for i in found if i.type != "plain" or i.value.startswith(incomplete)}
        return list(offered.values())


class _Bash(_Ours, BashComplete):
    source_template = BashComplete.source_template.replace("%(complete_var)s=bash_complete $1", "$1 completion bash")


class _Zsh(_Ours, ZshComplete):
    source_template = ZshComplete.source_template.replace(
        "%(complete_var)s=zsh_complete %(prog_name)s", "%(prog_name)s completion zsh"
    )


class _Fish(_Ours, FishComplete):
    source_template = FishComplete.source_template.replace("%(complete_var)s=fish_complete ", "").replace(
        "(commandline -t) %(prog_name)s", "(commandline -t) %(prog_name)s completion fish"
    )


_SHELLS: dict[str, type[_Ours]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def _name_parameters(cli: click.Group, args: Sequence[str]) -> None:
    """Let what names a build, a task or a folder complete as such. Only a process that completes and then ends does this."""
    for name, command in cli.commands.items():
        for parameter in command.params:
            if parameter.name == "repo":
                parameter.type = click.Path()
            elif parameter.name == "build" and name != "build":
                parameter.type = _BuildName()
            elif parameter.name == "task":
                parameter.type = _TaskName(args) if isinstance(parameter, click.Option) else _TaskAnywhere()
            elif parameter.name == "name":
                parameter.type = _BuildOrTask()


class _BuildName(click.types.StringParamType):
    name = "build"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return _items(_builds(incomplete))


class _TaskName(click.types.StringParamType):
    """A bare task of the build that the command line names already."""

    name = "task"

    def __init__(self, args: Sequence[str]) -> None:
        self._args = args  # not `ctx.params`: an option that lacks its value keeps click from reading the arguments

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        return _items(t for word in self._args[1:] for t in _tasks(word) if t.startswith(incomplete))


class _TaskAnywhere(click.types.StringParamType):
    name = "build.task"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        builds = list(_builds(incomplete.partition(".")[0]))[:_SPREAD]
        names = (f"{b}.{t}" for b in builds for t in _tasks(b))
        return _items(n for n in names if n.startswith(incomplete))


class _BuildOrTask(_TaskAnywhere):
    """Builds first; tasks once the build is written and its dot."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        if "." in incomplete:
            return super().shell_complete(ctx, param, incomplete)
        return _items(_builds(incomplete))


def _items(names: Iterator[str]) -> list[CompletionItem[str]]:
    return [CompletionItem(n) for n in names]


def _builds(beginning: str) -> Iterator[str]:
    """Newest first. Nothing is created and nothing complained of: somebody is typing."""
    folder = _folder()
    try:
        found = [(e.stat().st_mtime, e.name) for e in os.scandir(folder) if e.name.startswith(beginning)]
    except OSError:
        return
    for _, name in sorted(found, reverse=True)[:_NEWEST]:
        if _legal(name) and (folder / name / "request.json").exists():
            yield name


def _tasks(build: str) -> Iterator[str]:
    if _legal(build):
        folder = _folder() / build / "tasks"
        for path in sorted(folder.glob("*/task.json")):
            try:
                yield check_task_id(path.parent.name)
            except WrongUse:
                continue


def _legal(build: str) -> bool:
    try:
        return bool(check_build_id(build))
    except WrongUse:
        return False


def _folder() -> Path:
    try:
        return settings.home(os.environ, settings.default_dotenv()).root / "builds"
    except LongshotError:
        return Path(os.devnull)
