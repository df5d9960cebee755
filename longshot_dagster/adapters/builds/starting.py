"""From what a person asked for to a build's `request.json`: everything that can be wrong is found before any work."""

import secrets

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import BuildLedger, Ledger
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.repository.targets import prepare_target, resolve_target
from longshot_dagster.adapters.sandboxes.fleet import members_of
from longshot_dagster.adapters.sandboxes.installed_harnesses import harness_facts
from longshot_dagster.adapters.sandboxes.providers import decided, make_provider
from longshot_dagster.adapters.settings import Resolved, with_target
from longshot_dagster.adapters.workers.harness_layers import HarnessLayers
from longshot_dagster.core.clock import Clock
from longshot_dagster.core.errors import ModelUnavailable, WrongUse
from longshot_dagster.core.harnesses import check_harness
from longshot_dagster.core.ids import new_build_id
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.models import MAX_REQUEST, BuildPhase, BuildRequest, Target
from longshot_dagster.core.refusals import Kind, advice
from longshot_dagster.core.settings import HarnessName, Settings

TARGET_SETTINGS = ".longshot.toml"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # nothing that looks like something else when read aloud


def new_build_name(request: str) -> str:
    """A name for a build that was not given one."""
    return new_build_id(request, "".join(secrets.choice(_ALPHABET) for _ in range(4)))


def check_request(request: str) -> str:
    """`request` without surrounding white space; raises WrongUse."""
    text = request.strip()
    if not text:
        raise WrongUse('the request is empty; say what to build, like longshot "Build a REST API according to SPEC.md"')
    if len(text) > MAX_REQUEST:
        raise WrongUse(
            f"the request has {len(text):,} characters, at most {MAX_REQUEST:,}; put the rest into SPEC.md of the repository"
        )
    return text


def start_build(
    home: Home,
    *,
    request: str,
    repository: str,
    resolved: Resolved,
    build: str | None = None,
    land_on: str | None = None,
    gateway: Gateway,
    clock: Clock,
) -> BuildRequest:
    """Check everything, prepare the target, write `request.json`; started again under its name it is the same build.

    Raises WrongUse. A model that does not answer is no reason not to start: the build is then paused from its first
    moment, with the reason, so that `longshot resume` is all it takes.
    """
    text = check_request(request)
    ledger = Ledger(home.builds).build(build or new_build_name(text))
    if ledger.exists():
        return _again(ledger, text)
    target = _target(repository, resolved, ledger.build, land_on)
    make_provider(resolved.settings, resolved.origins, home)
    gateway.ensure(None)
    target, base, resolved = prepared(home, target, repository, resolved, ledger.build, land_on, clock)
    provider, _ = make_provider(resolved.settings, resolved.origins, home)
    check_harness(resolved.settings)
    HarnessLayers(home).agents(resolved.settings).check(member for member, _ in members_of(provider))
    silent = _model_trouble(gateway, resolved.settings)
    if silent:
        ledger.update_state(lambda state: state.moved(BuildPhase.PAUSED, silent))
    made = BuildRequest(
        build=ledger.build,
        request=text,
        target=target,
        base=base,
        settings=decided(resolved.settings),
        origins=resolved.origins,
        created_at=clock.now(),
        rehearsal=bool(gateway.status().get("rehearsal", False)),
    )
    ledger.save_request(made)
    return ledger.request()  # as the ledger has it, with the version that wrote it


def _again(ledger: BuildLedger, text: str) -> BuildRequest:
    earlier = ledger.request()
    if earlier.request != text:
        raise WrongUse(f"there is already a build {ledger.build!r} with another request; give this one another name")
    return earlier


def _target(repository: str, resolved: Resolved, build: str, land_on: str | None) -> Target:
    where = repository.strip() or resolved.settings.git_repo_url
    return resolve_target(where, resolved.settings, build, (land_on or "").strip() or None)


def prepared(
    home: Home, target: Target, repository: str, resolved: Resolved, build: str, land_on: str | None, clock: Clock
) -> tuple[Target, str, Resolved]:
    """(target, commit to start from, settings with the target's own below the person's); an empty one gets its first commit."""
    base = prepare_target(target, clock)
    mirror = Mirror(home, target)
    mirror.fetch()
    if TARGET_SETTINGS not in mirror.list_dir(base):
        return target, base, resolved
    with_its_own = with_target(resolved, mirror.read_file(base, TARGET_SETTINGS, 100_000))
    if with_its_own.settings.git_main_branch != resolved.settings.git_main_branch:
        target = _target(repository, with_its_own, build, land_on)
        base = prepare_target(target, clock)
    return target, base, with_its_own


def _model_trouble(gateway: Gateway, settings: Settings) -> str:
    """Why no endpoint answers, or nothing. Raises WrongUse when none speaks what the planners or the harness do."""
    spoken = None if settings.harness == HarnessName.AUTO else harness_facts(settings.harness).api
    speakers = {Api.CHAT: "the planners speak"}
    if spoken not in (None, Api.CHAT):
        speakers[spoken] = f"HARNESS={settings.harness} speaks"
    for api, who in speakers.items():
        try:
            gateway.probe(settings.llm_model, api)
        except ModelUnavailable as e:
            return str(e)
        except WrongUse as e:
            raise WrongUse(f"{e}, and {who} nothing else: {advice(Kind.OTHER_API)}") from e
    return ""
