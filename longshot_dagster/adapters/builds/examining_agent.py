"""A look at the coding agent that tasks would be given to: is it there, and does it find the programs it likes to have?"""

import shutil

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.sandboxes.fleet import members_of
from longshot_dagster.adapters.sandboxes.installed_harnesses import harness_facts
from longshot_dagster.adapters.sandboxes.providers import make_provider
from longshot_dagster.adapters.settings import Resolved
from longshot_dagster.adapters.workers.harness_layers import HarnessLayers
from longshot_dagster.core.errors import LongshotError, WrongUse
from longshot_dagster.core.findings import Finding, fine, to_do
from longshot_dagster.core.harnesses import check_harness
from longshot_dagster.core.image import DEFAULT_HARNESSES
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.settings import HarnessName, Provider

_SANDBOX_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def agents_api(resolved: Resolved) -> Api:
    """The language that an endpoint has to speak for the harness; that of the planners where it does not matter."""
    try:
        return harness_facts(_chosen(resolved)).api or Api.CHAT
    except WrongUse:  # told by `examine_agent`
        return Api.CHAT


def examine_agent(home: Home, resolved: Resolved) -> list[Finding]:
    """Installs nothing and starts nothing."""
    settings, name = resolved.settings, _chosen(resolved)
    agents = HarnessLayers(home).agents(settings)
    try:
        check_harness(settings)
        facts = harness_facts(name)
        provider, _ = make_provider(settings, resolved.origins, home)
    except WrongUse as e:
        return [to_do("agent", str(e))]
    except LongshotError:  # the sandbox's own finding
        return []
    members = [member for member, _ in members_of(provider)]
    try:
        agents.check(members)
    except WrongUse as e:
        return [to_do("agent", str(e))]
    here = any(member.name == Provider.LOCAL and not agents.missing(name, member) for member in members)
    lacking = [tool for tool in facts.tools if here and not _found(tool)]
    without = f"; it would use {', '.join(lacking)}, which local sandboxes do not have" if lacking else ""
    return [fine("agent", f"{agents.note(provider).removeprefix('agent ')}{without}")]


def _chosen(resolved: Resolved) -> str:
    name = resolved.settings.harness
    return DEFAULT_HARNESSES[0] if name == HarnessName.AUTO else name


def _found(tool: str) -> bool:
    """Debian's fd has another name."""
    names = (tool, "fdfind") if tool == "fd" else (tool,)
    return any(shutil.which(name, path=_SANDBOX_PATH) for name in names)
