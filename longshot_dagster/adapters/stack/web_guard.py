"""The layer in front of the Dagster UI: plain ASGI, asks core/web_guard.py about every request and websocket."""

from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any

from longshot_dagster.core.web_guard import (
    CONTENT_SECURITY_POLICY,
    HEADERS,
    Allow,
    Deny,
    RedeemLogin,
    WebRequest,
    cookie_name,
    cookie_value,
    decide,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_PAGE = """<!doctype html><meta charset="utf-8"><title>Longshot</title>
<body style="font: 17px/1.5 system-ui, sans-serif; max-width: 36em; margin: 15vh auto; padding: 0 1em">
<h1 style="font-size: 1.3em">Longshot</h1><p>{text}</p>
<p>In a terminal, run <code>longshot ui</code> and open the link that it prints. It works once and logs this browser in;
it is asked for because this page can start programs on your machine.</p></body>
"""


class WebGuard:
    """Wraps `app`. `redeem` uses a one-time login code up and says whether it was good; cookies end with `session`."""

    def __init__(
        self, app: App, token: str, hosts: frozenset[str], redeem: Callable[[str], bool], session: str
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._redeem = redeem
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = _request(scope)
        match decide(request, self._token, self._hosts, self._session):
            case Allow():
                await self._app(scope, receive, _with_headers(send))
            case Deny(status, reason, page):
                html = page and "text/html" in request.headers.get("accept", "")
                await _answer(scope, receive, send, status, _page(reason) if html else f"{reason}\n", html=html)
            case RedeemLogin(code) if self._redeem(code):
                host = request.headers["host"]
                value = cookie_value(self._token, host, self._session)
                # No Domain: the cookie goes to this very host name and to none below it.
                cookie = f"{cookie_name(host)}={value}; Path=/; HttpOnly; SameSite=Strict"
                more = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
                await _answer(scope, receive, send, 303, "", html=False, more=more)
            case RedeemLogin():
                text = _page("This link has been used already, or is older than an hour.")
                await _answer(scope, receive, send, 403, text, html=True)


def _request(scope: Scope) -> WebRequest:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # Two Host or Origin headers agree with nothing; two Cookie headers are one (HTTP/2 splits them).
        headers[name] = value if name not in headers else f"{headers[name]}; {value}"
    return WebRequest(
        kind=scope["type"],
        method=scope.get("method", "GET"),
        path=scope["path"],
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        client=(scope.get("client") or ("", 0))[0],
    )


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = _protected(list(message.get("headers", [])))
        await send(message)

    return guarded


def _protected(headers: RawHeaders) -> RawHeaders:
    kept = [(n, v) for n, v in headers if n.decode("latin-1").lower() not in HEADERS]
    ours = [(n.encode(), v.encode()) for n, v in HEADERS.items()]
    return [*kept, *ours, (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())]


def _page(text: str) -> str:
    return _PAGE.format(text=escape(text))


async def _answer(
    scope: Scope, receive: Receive, send: Send, status: int, text: str, *, html: bool, more: RawHeaders | None = None
) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send({"type": "websocket.close", "code": 1008, "reason": text.strip()[:100]})
        return
    body = text.encode()
    kind = b"text/html; charset=utf-8" if html else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    start = {"type": "http.response.start", "status": status, "headers": _protected([*headers, *(more or [])])}
    await send(start)
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
