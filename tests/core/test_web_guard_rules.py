"""Which requests reach the UI: the rules as a truth table."""

import re
from typing import Any

import pytest

from longshot_dagster.core.web_guard import (
    Allow,
    Decision,
    Deny,
    RedeemLogin,
    WebRequest,
    allowed_hosts,
    cookie_name,
    cookie_value,
    decide,
    host_name,
)

TOKEN = "the-token"
NAME = host_name(TOKEN)
HOST = f"{NAME}:3000"
HERE = f"http://{HOST}"
PLAIN = "127.0.0.1:3000"
HOSTS = allowed_hosts(3000, TOKEN)
SESSION = "this-run"
VALUE = cookie_value(TOKEN, HOST, SESSION)
COOKIE = {"cookie": f"other=1; {cookie_name(HOST)}={VALUE}"}
PLAIN_COOKIE = {"cookie": f"{cookie_name(PLAIN)}={cookie_value(TOKEN, PLAIN, SESSION)}"}
HEADER = {"x-longshot-token": TOKEN}
JSON = {"content-type": "application/json"}
ORIGIN = {"origin": HERE}


def asked(method: str = "GET", path: str = "/", **more: Any) -> Decision:
    headers = {"host": HOST, **more.pop("headers", {})}
    return decide(WebRequest("http", method, path, headers=headers, **more), TOKEN, HOSTS, SESSION)


def socket(headers: dict[str, str], path: str = "/graphql") -> Decision:
    return decide(WebRequest("websocket", "GET", path, headers={"host": HOST, **headers}), TOKEN, HOSTS, SESSION)


def status(decision: Decision) -> int:
    return decision.status if isinstance(decision, Deny) else 0


ALLOWED: list[tuple[str, dict[str, Any]]] = [
    ("a page with the cookie", {"headers": COOKIE}),
    ("a page with the token", {"headers": HEADER}),
    ("the command line under 127.0.0.1", {"headers": HEADER | {"host": PLAIN}}),
    ("a plain login's cookie under 127.0.0.1", {"headers": PLAIN_COOKIE | {"host": PLAIN}}),
    ("a deep link with the cookie", {"path": "/runs/1", "headers": COOKIE}),
    ("a link followed from another site", {"headers": COOKIE | {"sec-fetch-site": "cross-site"} | {
        "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}}),
    ("a static file without anything", {"path": "/_next/static/a.js"}),
    ("an icon without anything", {"path": "/favicon.svg"}),
    ("GraphQL from our page", {"method": "POST", "path": "/graphql", "headers": COOKIE | JSON | ORIGIN}),
    ("GraphQL from localhost's page", {"method": "POST", "path": "/graphql", "headers": HEADER | JSON | {
        "origin": "http://localhost:3000"}}),
    ("GraphQL from the command line", {"method": "POST", "path": "/graphql", "headers": HEADER | JSON}),
    ("JSON with a charset", {"method": "POST", "path": "/graphql", "headers": HEADER | {
        "content-type": "application/json; charset=utf-8"}}),
    ("the GraphQL page", {"path": "/graphql", "headers": COOKIE | {"accept": "text/html"}}),
]  # fmt: skip

DENIED: list[tuple[str, int, dict[str, Any]]] = [
    ("nobody", 401, {}),
    ("a wrong cookie", 401, {"headers": {"cookie": f"{cookie_name(HOST)}=x"}}),
    ("the token as a cookie", 401, {"headers": {"cookie": f"{cookie_name(HOST)}={TOKEN}"}}),
    ("the cookie of another port", 401, {"headers": {"cookie": f"longshot_3001={VALUE}"}}),
    ("the cookie replayed under 127.0.0.1", 401, {"headers": COOKIE | {"host": PLAIN}}),
    ("127.0.0.1's cookie replayed under our name", 401, {"headers": PLAIN_COOKIE}),
    ("the cookie of an earlier run", 401, {"headers": {
        "cookie": f"{cookie_name(HOST)}={cookie_value(TOKEN, HOST, 'earlier')}"}}),
    ("another installation's name", 421, {"headers": HEADER | {"host": f"{host_name('other')}:3000"}}),
    ("a name below ours", 421, {"headers": HEADER | {"host": f"x.{HOST}"}}),
    ("an empty token", 401, {"headers": {"x-longshot-token": ""}}),
    ("a broken cookie header", 401, {"headers": {"cookie": "\x00=;;=; a b c"}}),
    ("another machine", 403, {"client": "192.0.2.7", "headers": HEADER}),
    ("no peer address", 403, {"client": "", "headers": HEADER}),
    ("a rebound name", 421, {"headers": HEADER | {"host": "evil.example:3000"}}),
    ("our name on another port", 421, {"headers": HEADER | {"host": "127.0.0.1:3001"}}),
    ("no host", 421, {"headers": HEADER | {"host": ""}}),
    ("a static file under a rebound name", 421, {"path": "/_next/a.js", "headers": {"host": "evil.example"}}),
    ("a path that climbs out of static", 400, {"path": "/_next/../graphql", "headers": HEADER}),
    ("recording a result", 403, {"method": "POST", "path": "/report_asset_materialization/task_result",
        "headers": HEADER | JSON}),
    ("recording a check", 403, {"method": "POST", "path": "/report_asset_check/x", "headers": COOKIE | ORIGIN | JSON}),
    ("a GET query", 405, {"path": "/graphql", "query": "query={x}", "headers": COOKIE}),
    ("a GET query that says it wants a page", 405, {"path": "/graphql", "query": "query={x}",
        "headers": COOKIE | {"accept": "text/html"}}),
    ("a GET query with the token", 405, {"path": "/graphql", "query": "query={x}", "headers": HEADER}),
    ("a GET query to the slashed path", 405, {"path": "/graphql/", "query": "query={x}", "headers": COOKIE}),
    ("a HEAD query", 405, {"method": "HEAD", "path": "/graphql", "query": "query={x}", "headers": COOKIE}),
    ("a form's POST", 415, {"method": "POST", "path": "/graphql", "headers": COOKIE | ORIGIN | {
        "content-type": "text/plain"}}),
    ("a POST without a type", 415, {"method": "POST", "path": "/graphql", "headers": COOKIE | ORIGIN}),
    ("application/graphql", 415, {"method": "POST", "path": "/graphql", "headers": COOKIE | ORIGIN | {
        "content-type": "application/graphql"}}),
    ("JSON in name only", 415, {"method": "POST", "path": "/graphql", "headers": COOKIE | ORIGIN | {
        "content-type": "text/plain; application/json"}}),
    ("a POST with the cookie and no origin", 403, {"method": "POST", "path": "/graphql", "headers": COOKIE | JSON}),
    ("a POST from another port's page", 403, {"method": "POST", "path": "/graphql", "headers": COOKIE | JSON | {
        "origin": "http://127.0.0.1:8000"}}),
    ("a POST from a sandboxed frame", 403, {"method": "POST", "path": "/graphql", "headers": COOKIE | JSON | {
        "origin": "null"}}),
    ("a POST from https under our name", 403, {"method": "POST", "path": "/graphql", "headers": COOKIE | JSON | {
        "origin": f"https://{HOST}"}}),
    ("an image on another port's page", 403, {"path": "/runs", "headers": COOKIE | {
        "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}}),
    ("a frame on another page", 403, {"headers": COOKIE | {
        "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}}),
    ("another method", 405, {"method": "PUT", "headers": HEADER}),
    ("a preflight", 405, {"method": "OPTIONS", "path": "/graphql", "headers": COOKIE}),
    ("a POST elsewhere", 405, {"method": "POST", "path": "/runs", "headers": HEADER | JSON}),
]  # fmt: skip


@pytest.mark.parametrize(("request_",), [(a,) for _, a in ALLOWED], ids=[name for name, _ in ALLOWED])
def test_is_allowed(request_: dict[str, Any]) -> None:
    assert asked(**request_) == Allow()


@pytest.mark.parametrize(("code", "request_"), [d[1:] for d in DENIED], ids=[d[0] for d in DENIED])
def test_is_denied(code: int, request_: dict[str, Any]) -> None:
    assert status(asked(**request_)) == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (COOKIE | ORIGIN, 0),
        (HEADER, 0),
        (COOKIE, 403),
        (ORIGIN, 401),
        (COOKIE | {"origin": "http://127.0.0.1:8000"}, 403),
        (HEADER | {"origin": "http://evil.example"}, 403),
        (COOKIE | ORIGIN | {"host": "evil.example:3000"}, 421),
    ],
)
def test_websockets_need_a_session_and_our_own_page(headers: dict[str, str], code: int) -> None:
    assert status(socket(headers)) == code


def test_a_login_link_is_redeemed_without_a_session() -> None:
    assert asked(query="login=abc") == RedeemLogin("abc")
    assert status(asked(path="/runs", query="login=abc")) == 401


def test_a_login_link_in_another_pages_image_is_not_redeemed() -> None:
    foreign = {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert status(asked(query="login=abc", headers=foreign)) == 403


def test_without_a_token_nobody_gets_in() -> None:
    request = WebRequest("http", "GET", "/", headers={"host": HOST, "x-longshot-token": ""})
    assert status(decide(request, "", HOSTS)) == 401
    forged = {"cookie": f"{cookie_name(HOST)}={cookie_value('', HOST, '')}", "host": HOST}
    assert status(decide(WebRequest("http", "GET", "/", headers=forged), "", HOSTS)) == 401


def test_the_name_is_one_label_below_localhost_and_says_nothing_of_the_token() -> None:
    assert re.fullmatch(r"longshot-[0-9a-f]{16}\.localhost", NAME)
    assert TOKEN not in NAME
    assert host_name("another") != NAME
    assert NAME not in str(decide(WebRequest("http", "GET", "/", headers={"host": "127.0.0.1:1"}), TOKEN, HOSTS))
