"""What stands below `longshot --help` and `longshot COMMAND --help`: examples, narrow enough for 80 columns."""

from collections.abc import Mapping, Sequence

import click

EPILOG = """\b
Examples:
  longshot doctor                           is everything there for a build?
  longshot "Add a --json flag, with tests"  in a checkout: lands on its origin
  longshot "Build what SPEC.md says" --repo https://git.example/me/api.git
  longshot watch --dashboard                the newest build, on one screen
  longshot status todo-api-7f3k             its tasks, and what each waits for
  longshot resume todo-api-7f3k             after a pause or Ctrl-C
  longshot undo todo-api-7f3k.r001-02       take one task back from main

\b
Settings, first wins: UI launchpad, command line, environment, .env in the
folder you are in, .longshot.toml of the target, default.

\b
Exit codes: 0 all landed and checks green; 3 not red, but with leftovers;
4 red; 5 paused; 2 wrong use; 1 unexpected error, or doctor has found
something to do; 130 interrupted.
"""

_EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "build": (
        ('longshot "Add a --json flag, with tests"', "in a checkout: lands on its origin"),
        ('longshot "Fix #12" --land-on fixes --yes', "on another branch; asks nothing"),
        ('longshot "..." --repo ../app --dashboard', "on one screen"),
    ),
    "doctor": (
        ("longshot doctor", "model, sandboxes, versions, disk, ports"),
        ("longshot doctor --repo ../app", "and that repository"),
    ),
    "demo": (
        ("longshot demo", "about two minutes; leaves nothing running"),
        ("longshot demo --look", "afterwards, in the Dagster UI"),
    ),
    "status": (
        ("longshot status", "all builds"),
        ("longshot status todo-api-7f3k", "its tasks, and what each waits for"),
        ("longshot status --json | jq '.builds[].phase'", ""),
    ),
    "watch": (
        ("longshot watch", "the newest build, line by line"),
        ("longshot watch todo-api-7f3k --dashboard", "this one, on one screen"),
    ),
    "logs": (
        ("longshot logs", "the newest build, from its beginning"),
        ("longshot logs todo-api-7f3k --follow", "and what happens from now on"),
        ("longshot logs todo-api-7f3k.r001-02 -f", "what the agent of one task does"),
    ),
    "report": (
        ("longshot report", "the newest build, here"),
        ("longshot report todo-api-7f3k --output r.html", "one page, with the timeline"),
    ),
    "ui": (("longshot ui", "a link that logs in once"),),
    "resume": (
        ("longshot resume todo-api-7f3k", "follow it again"),
        ("longshot resume todo-api-7f3k --max-tokens 0", "without a limit of tokens"),
    ),
    "continue": (("longshot continue todo-api-7f3k", "`longshot watch` shows it"),),
    "cancel": (
        ("longshot cancel todo-api-7f3k", "the build; resume goes on with it"),
        ("longshot cancel todo-api-7f3k.r001-02", "one task; the build goes on"),
    ),
    "retry": (("longshot retry todo-api-7f3k.r001-02", "`longshot status BUILD` lists tasks"),),
    "approve": (("longshot approve todo-api-7f3k.r001-02", "shows the change, asks, lands it"),),
    "undo": (
        ("longshot undo todo-api-7f3k.r001-02", "one task: shows it, then asks"),
        ("longshot undo todo-api-7f3k --yes", "all that the build has landed"),
    ),
    "reset": (("longshot reset --repo ../app --land-on trial", "shows the loss, then asks"),),
    "harnesses": (
        ("longshot harnesses", "which there are, and which are installed"),
        ("longshot harnesses install pi", "the usual one, 204 MB"),
        ("longshot harnesses dockerfile pi codex", "an image that holds both"),
    ),
    "sandboxes": (
        ("longshot sandboxes", "what is alive, and who answers for it"),
        ("longshot sandboxes --reap", "end what nobody answers for; its work is kept"),
    ),
    "clean": (
        ("longshot clean --dry-run", "what would go, and how large it is"),
        ("longshot clean --build todo-api-7f3k", "one finished build"),
    ),
    "up": (
        ("longshot up", "in this terminal, until Ctrl-C"),
        ("longshot up --detach", "in the background, until `longshot down`"),
    ),
    "completion": (
        ("source <(longshot completion bash)", "or in ~/.bashrc"),
        ("source <(longshot completion zsh)", "or in ~/.zshrc, after compinit"),
        ("longshot completion fish | source", "or in ~/.config/fish/config.fish"),
    ),
}


class Exemplified(click.Command):
    """A command whose help ends with its examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if examples := _EXAMPLES.get(self.name or "", ()):
            with formatter.section("Examples"):
                formatter.write_dl(examples, col_max=46)
