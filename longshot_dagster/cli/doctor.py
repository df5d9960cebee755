"""`longshot doctor`: every setting with its origin, then everything a build needs, looked at for real."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from longshot_dagster.adapters import settings
from longshot_dagster.adapters.builds import examining
from longshot_dagster.adapters.builds.examining_agent import agents_api, examine_agent
from longshot_dagster.adapters.builds.examining_builds import examine_builds
from longshot_dagster.adapters.builds.examining_repository import Looked, examine_repository
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.settings import PROCESS, Resolved
from longshot_dagster.cli.building import given_repository
from longshot_dagster.cli.following import interruptible
from longshot_dagster.cli.terminal import say, say_under, waiting
from longshot_dagster.core.endpoints import Endpoint
from longshot_dagster.core.errors import WrongUse
from longshot_dagster.core.findings import Finding, Standing, exit_code, left_out, to_do
from longshot_dagster.core.settings import Origin, Settings
from longshot_dagster.version import __version__

MASK = "********"
_NAME_WIDTH = max(map(len, (*settings.FIELDS, *PROCESS))) + 2
_SUBJECT_WIDTH = 14

T = TypeVar("T")


class Row(NamedTuple):
    """One setting as it may be shown."""

    name: str
    value: str
    origin: Origin


class Given(NamedTuple):
    """What could be made of the person's settings; None where a line of `wrong` says why not."""

    values: Mapping[str, tuple[str, Origin]] | None
    home: Home | None
    port: int | None
    endpoints: tuple[Endpoint, ...] | None
    resolved: Resolved | None
    wrong: list[Finding]


def doctor(repo: str | None, land_on: str | None, as_json: bool) -> int:
    """0 when everything a build needs is there, 1 when something is to do. Leaves nothing running, and no file."""
    with interruptible():  # what is stopped half-way still ends its sandbox
        return _doctor(_given(), repo, land_on, as_json)


def _doctor(given: Given, repo: str | None, land_on: str | None, as_json: bool) -> int:
    with waiting("looking at the repository ..."):
        looked = _repository(given, repo, land_on)
    resolved = _with_target(given, looked.target_toml)
    rows = [*_process_rows(given), *(_rows(resolved) if resolved else ())]
    found: list[Finding] = []
    if not as_json:
        _show_settings(rows)
    for finding in _findings(given._replace(resolved=resolved), looked):
        found.append(finding)
        if not as_json:
            _show(finding)
    code = exit_code(found)
    if as_json:
        click.echo(json.dumps(_document(rows, found, code), indent=1))
        return code
    count = sum(f.standing is Standing.TO_DO for f in found)
    say("everything that was looked at is well" if not count else f"{count} thing{'s' * (count > 1)} to do")
    return code


# --- what the person has set -----------------------------------------------------------------------------------------


def _given() -> Given:
    wrong: list[Finding] = []
    environ = os.environ
    dotenv = settings.default_dotenv()
    values = _tried(lambda: settings.process_origins(environ, dotenv), wrong)
    if values is None:  # the .env itself: everything else would say the same again
        return Given(None, settings.home(environ), None, None, None, wrong)
    return Given(
        values,
        settings.home(environ, dotenv),
        _tried(lambda: settings.ui_port(environ, dotenv), wrong),
        _tried(lambda: settings.endpoints(environ, dotenv), wrong),
        _tried(lambda: settings.resolve({}, {}, environ, dotenv, None), wrong),
        wrong,
    )


def _tried(read: Callable[[], T], wrong: list[Finding]) -> T | None:
    try:
        return read()
    except WrongUse as e:
        wrong.append(to_do("setting", str(e)))
        return None


def _repository(given: Given, repo: str | None, land_on: str | None) -> Looked:
    if given.resolved is None:
        return Looked([left_out("repository", "not looked at before the settings are right")])
    try:
        repository, _ = given_repository(repo or given.resolved.settings.git_repo_url)
    except WrongUse:  # it is not an error to ask about the machine alone
        repository = ""
    return examine_repository(repository, given.resolved, land_on)


def _with_target(given: Given, toml: str | None) -> Resolved | None:
    """The settings as a build in this repository would have them."""
    person = given.resolved
    if person is None or toml is None:
        return person
    return _tried(lambda: settings.with_target(person, toml), given.wrong) or person


def _process_rows(given: Given) -> list[Row]:
    rows = []
    for name, (value, origin) in (given.values or {}).items():
        shown = _masked(name, value)
        if name == "LLM_ENDPOINTS" and value and given.endpoints:
            shown = f"{', '.join(e.label for e in given.endpoints)}; keys {MASK}"
        rows.append(Row(name, shown, origin))
    return rows


def _masked(name: str, value: str) -> str:
    """`value` without what nobody else may read; LLM_ENDPOINTS holds keys among its addresses."""
    if name in ("LLM_API_KEY", "LLM_ENDPOINTS"):
        return MASK if value else ""
    if name == "LLM_BASE_URL" and value and not value.startswith(("http://", "https://")):
        return MASK  # no URL: most likely the key, in the wrong place
    hidden = re.sub(r"://\S*@", f"://{MASK}@", value)
    return re.sub(r"(://[^\s?#]*[?#])\S+", rf"\g<1>{MASK}", hidden)


def _rows(resolved: Resolved) -> list[Row]:
    def row(name: str, value: object) -> Row:
        return Row(
            name.upper(),
            _masked(name.upper(), settings.written(value)),
            resolved.origins.get(name, Origin.DEFAULT),
        )

    return [row(name, getattr(resolved.settings, name)) for name in Settings.model_fields]


# --- looking ---------------------------------------------------------------------------------------------------------


def _findings(given: Given, looked: Looked) -> Iterator[Finding]:
    """In the order in which one thing needs another."""
    yield from given.wrong
    yield from examining.examine_versions()
    home = given.home
    if home is None:
        return
    with examining.leaving_no_folder(home):
        at_home = examining.examine_home(home)
        yield from at_home
        well = exit_code(at_home) == 0
        if well:
            yield from examine_builds(home)
            yield from examining.examine_stack(home, given.port or settings.DEFAULT_UI_PORT)
        if given.resolved is None or not well:
            why = "not looked at before the settings are right" if well else "not looked at without a home"
            yield left_out("sandbox", why)
        else:
            with waiting("making a sandbox ..."):
                sandbox = examining.examine_sandbox(home, given.resolved)
            yield from sandbox
            yield from examine_agent(home, given.resolved)
        if given.endpoints is None or given.resolved is None:
            yield left_out("endpoint", "not looked at before the settings are right")
        else:
            with waiting("asking the model ..."):
                model = given.resolved.settings.llm_model
                answers = examining.examine_endpoints(home, given.endpoints, model, agents_api(given.resolved))
            yield from answers
    yield from looked.findings


# --- showing ---------------------------------------------------------------------------------------------------------


def _show_settings(rows: list[Row]) -> None:
    say("settings")
    for row in rows:
        say(f"  {row.name:<{_NAME_WIDTH}}{row.value or '(not set)'}  [{row.origin.value}]")
    say("")
    say("what a build needs")


def _show(finding: Finding) -> None:
    mark = finding.standing.value.upper() if finding.standing is Standing.TO_DO else finding.standing.value
    text = f"{finding.what}; {finding.remedy}" if finding.remedy else finding.what
    say_under(f"  {mark:<7}{finding.subject:<{_SUBJECT_WIDTH}}", text)


def _document(rows: list[Row], found: list[Finding], code: int) -> dict[str, object]:
    return {
        "version": __version__,
        "ok": code == 0,
        "folder": str(Path.cwd()),
        "settings": [{"name": r.name, "value": r.value, "origin": r.origin.value} for r in rows],
        "findings": [
            {"subject": f.subject, "standing": f.standing.value, "what": f.what, "remedy": f.remedy} for f in found
        ],
    }
