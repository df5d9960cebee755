"""Which requests may reach the Dagster UI: decided from the request alone.

The UI starts processes on this machine, and Dagster asks nobody who they are. Measured without this: a GET from any web
page launched a build, and a POST without a body forged a task's result. So, in order:

1. only this machine, and only under our own host names (a rebound DNS name is neither). Browsers get a name of this
   installation's own below `.localhost`, which they resolve to this machine themselves: under 127.0.0.1 a cookie goes
   to every port, so any server here that the person visits could replay it;
2. recording results from outside (`report_asset_*`) is off;
3. everything but static files needs a session: the cookie that a one-time login link sets, good for one host name and
   one run of the stack, or the token of our own command line. Cookies are not given to anybody who asks, because a
   sandbox with SANDBOX_NETWORK=open shares the host's loopback;
4. GraphQL runs by POST with JSON from our own origin only. Under 127.0.0.1 (`longshot ui --plain`) any page served on
   this host is "same site", so SameSite alone would not keep it out.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import parse_qs

TOKEN_HEADER = "x-longshot-token"  # noqa: S105 - a header's name
_STATIC = ("/_next/", "/vendor/")
_STATIC_FILES = frozenset(["/manifest.json", "/robots.txt", "/404.html"])
_LOOPBACK = frozenset(["127.0.0.1", "::1"])

# Beside the UI's own policy, not instead of it: a browser enforces both.
CONTENT_SECURITY_POLICY = (
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'; base-uri 'none'"
)
HEADERS = {
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True)
class WebRequest:
    """What arrived; header names in lower case, `client` is the peer's address."""

    kind: Literal["http", "websocket"]
    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    client: str = "127.0.0.1"


@dataclass(frozen=True)
class Allow:
    """Passed on to Dagster."""


@dataclass(frozen=True)
class Deny:
    """Answered here; `page` asks for the readable page that says how to log in."""

    status: int
    reason: str
    page: bool = False


@dataclass(frozen=True)
class RedeemLogin:
    """A one-time link: if its code is still good, set the cookie and redirect to `/`."""

    code: str


Decision = Allow | Deny | RedeemLogin


def host_name(token: str) -> str:
    """The name under which this installation's UI is opened. Nobody else knows it, so no other server here is sent to
    under it, and with it the cookie."""
    return f"longshot-{_derived(token, 'host')[:16]}.localhost"


def allowed_hosts(port: int, token: str) -> frozenset[str]:
    """Values of the Host header under which a UI on `port` of this machine answers."""
    return frozenset(f"{name}:{port}" for name in (host_name(token), "127.0.0.1", "localhost", "[::1]"))


def cookie_name(host: str) -> str:
    """One per port, because browsers send a host's cookies to all its ports."""
    return f"longshot_{host.rpartition(':')[2]}"


def cookie_value(token: str, host: str, session: str) -> str:
    """What the cookie holds: derived, so that a stolen cookie is not the command line's token, and is of no use under
    another name or after a restart, while somebody else may have listened on our port."""
    return _derived(token, f"cookie {session} {host}")


def _derived(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), purpose.encode(), sha256).hexdigest()


def decide(request: WebRequest, token: str, hosts: frozenset[str], session: str = "") -> Decision:
    """`token` is this installation's, `hosts` its `allowed_hosts`, `session` what the stack's run is called."""
    headers = request.headers
    host = headers.get("host", "")
    if request.client not in _LOOPBACK:
        return Deny(403, "only this machine may use this server")
    if host not in hosts:
        return Deny(421, "this server answers only under its own names; `longshot ui` prints a link")
    if not _plain(request.path):
        return Deny(400, "not a path")
    if request.path.startswith("/report_asset"):
        return Deny(403, "results are recorded by builds only; this route is off")
    by_token = _same(headers.get(TOKEN_HEADER, ""), token)
    if not by_token and _foreign(headers):
        return Deny(403, "another web page may not use this server")
    origin = headers.get("origin")
    from_here = origin is not None and origin.removeprefix("http://") in hosts and origin.startswith("http://")
    if origin is not None and not from_here:
        return Deny(403, "another web page may not use this server")
    if request.kind == "http" and request.method in ("GET", "HEAD"):
        if _static(request.path):
            return Allow()
        if request.path == "/" and (code := parse_qs(request.query).get("login")):
            return RedeemLogin(code[0][:200])
    cookie = _cookie(headers.get("cookie", ""), cookie_name(host))
    if not by_token and not (token and _same(cookie, cookie_value(token, host, session))):
        return Deny(401, "no session: open the link that `longshot ui` prints", page=True)
    if request.kind == "websocket":
        if request.path != "/graphql":
            return Deny(404, "no websocket here")
        return Allow() if from_here or by_token else Deny(403, "a websocket must come from this server's own pages")
    match request.method:
        case "GET" | "HEAD":
            if request.path.rstrip("/") == "/graphql" and not _playground(request):
                return Deny(405, "GraphQL is asked by POST here")
            return Allow()
        case "POST":
            return _decide_post(request, from_here or by_token)
        case _:
            return Deny(405, "GET and POST only")


def _decide_post(request: WebRequest, from_here: bool) -> Decision:
    if not from_here:
        return Deny(403, "a POST must come from this server's own pages")
    if request.path != "/graphql":
        return Deny(405, "nothing is posted here")
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return Deny(415, "GraphQL is asked with content-type application/json here")
    return Allow()


def _playground(request: WebRequest) -> bool:
    """Dagster shows its GraphQL page, and runs nothing, when a browser navigates there."""
    return "text/html" in request.headers.get("accept", "") and not request.query


def _foreign(headers: Mapping[str, str]) -> bool:
    """The browser's own word for who asks; a person following a link is no foreign page's doing."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return not (headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document")


def _plain(path: str) -> bool:
    return path.startswith("/") and not {"..", "."} & set(path.split("/")) and "\\" not in path and "\0" not in path


def _static(path: str) -> bool:
    return path.startswith(_STATIC) or path in _STATIC_FILES or (path.startswith("/favicon") and path.count("/") == 1)


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header[:8192]).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _same(given: str, wanted: str) -> bool:
    return bool(wanted) and hmac.compare_digest(given.encode(), wanted.encode())
