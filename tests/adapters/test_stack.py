"""The real thing around a toy code location: supervisor, code server, daemon and the UI behind its guard."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from browser import CHROMIUM, browser

from longshot_dagster.adapters.host import leases, processes
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.settings import STACK_MARK
from longshot_dagster.adapters.stack import stack
from longshot_dagster.adapters.stack.dagster_api import ENDED, DagsterApi, Pool
from longshot_dagster.adapters.stack.ui_access import UiAccess
from longshot_dagster.core.errors import LongshotError

# One stack for all of them, in this order: the last test kills it.
pytestmark = pytest.mark.e2e

LAUNCH = (
    'mutation{launchRun(executionParams:{selector:{repositoryLocationName:"longshot",repositoryName:"__repository__",'
    'jobName:"napping"},runConfigData:{}}){__typename}}'
)
RUNS = "{ runsOrError { ... on Runs { results { runId } } } }"


class Served:
    def __init__(self, home: Home, process: "subprocess.Popen[bytes]") -> None:
        self.home = home
        self.process = process
        self.info = stack.StackInfo(pid=0, port=0, version="", started=0)

    @property
    def api(self) -> DagsterApi:
        return stack.api(self.home, self.info)

    @property
    def port(self) -> int:
        return self.info.port

    def runs(self) -> int:
        return len(self.api.ask(RUNS, {})["runsOrError"]["results"])

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: str = "") -> tuple:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
        connection.close()
        return answer.status, answer.headers, text


def until(true: Callable[[], object], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = Home(tmp_path_factory.mktemp("stack") / "home")
    script = str(Path(__file__).with_name("toy_stack.py"))
    with (home.logs / "toy.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, script, str(home.root)], stdout=log, stderr=log)
    found = Served(home, process)
    try:
        until(lambda: ((i := stack.running(home)) and i.ready) or process.poll() is not None, 90)
        assert process.poll() is None, (home.logs / "toy.log").read_text()
        info = stack.running(home)
        assert info
        found.info = info
        yield found
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_without_a_session_there_is_a_page_that_says_what_to_do(served: Served) -> None:
    status, headers, text = served.get("/", {"accept": "text/html"})
    assert (status, "longshot ui" in text, headers["x-frame-options"]) == (401, True, "DENY")


def test_a_login_link_works_once(served: Served) -> None:
    where = urlsplit(UiAccess(served.home).link(served.port))
    host, path = {"host": where.netloc}, f"/?{where.query}"
    status, headers, _ = served.get(path, host)
    cookie = headers["set-cookie"]
    assert (status, headers["location"], "HttpOnly; SameSite=Strict" in cookie) == (303, "/", True)
    assert "domain" not in cookie.lower()
    assert served.get(path, host)[0] == 403
    session = {"cookie": cookie.partition(";")[0], "accept": "text/html"}
    assert served.get("/", session)[0] == 401  # replayed under 127.0.0.1
    status, headers, text = served.get("/", session | host)
    assert (status, "<script" in text) == (200, True)
    policies = headers.get_all("content-security-policy")
    assert len(policies) == 2
    assert "img-src 'self' data:" in policies[1]
    assert headers["referrer-policy"] == "no-referrer"


def test_a_plain_link_logs_in_under_127_0_0_1(served: Served) -> None:
    where = urlsplit(UiAccess(served.home).link(served.port, plain=True))
    assert where.netloc == f"127.0.0.1:{served.port}"
    cookie = served.get(f"/?{where.query}")[1]["set-cookie"].partition(";")[0]
    assert served.get("/", {"cookie": cookie, "accept": "text/html"})[0] == 200


def test_nobody_else_can_listen_on_our_port_of_any_loopback_address(served: Served) -> None:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other, pytest.raises(OSError, match=r"in use|Cannot assign"):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind((address, served.port))


def test_a_get_mutation_starts_nothing_even_with_the_token(served: Served) -> None:
    token = UiAccess(served.home).token()
    before = served.runs()
    assert served.get(f"/graphql?query={quote(LAUNCH)}", {"x-longshot-token": token})[0] == 405
    assert served.runs() == before


def test_a_rebound_name_and_a_forged_result_are_refused(served: Served) -> None:
    token = UiAccess(served.home).token()
    assert served.get("/", {"host": "evil.example", "x-longshot-token": token})[0] == 421
    forged = served.get("/report_asset_materialization/task_result", {"x-longshot-token": token}, "POST")
    assert forged[0] == 403


def test_the_login_files_are_for_their_owner_only(served: Served) -> None:
    folder = served.home.root / "ui"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(f.stat().st_mode & 0o077 == 0 for f in folder.iterdir())


def test_the_services_are_children_of_the_supervisor_with_a_name_a_session_and_a_log_of_their_own(
    served: Served,
) -> None:
    words = {"code server": b"grpc", "daemon": b"longshot_dagster.defs.daemon", "webserver": b"--port"}
    for name, word in words.items():
        pid = served.info.children[name]
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        assert (int(stat[1]), int(stat[3])) == (served.process.pid, pid)
        assert word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        logged = Path(f"/proc/{pid}/fd/2").readlink()
        assert logged == served.home.logs / f"{name.replace(' ', '-')}.log"
    fds = {str(fd.readlink()) for fd in Path(f"/proc/{served.info.children['run starter']}/fd").iterdir()}
    assert not [fd for fd in fds if fd.endswith(".db")]
    assert len(list(Path(f"/proc/{served.info.children['run starter']}/task").iterdir())) == 1


def test_no_child_holds_a_key(served: Served) -> None:
    for pid in served.info.children.values():
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"sk-not-for-children" not in environ
        assert b"DAGSTER_HOME=" in environ


def test_a_second_supervisor_steps_back(served: Served) -> None:
    script = str(Path(__file__).with_name("toy_stack.py"))
    second = subprocess.run([sys.executable, script, str(served.home.root)], capture_output=True, text=True)
    assert second.returncode != 0
    assert "already running" in second.stderr


def test_a_refused_job_says_its_one_line(served: Served) -> None:
    run = served.api.launch("refusing", {}, {})
    until(lambda: served.api.status(run) in ENDED)
    assert served.api.failure(run) == ("WrongUse", "there is no such repository; give another")


def test_a_pool_says_who_holds_a_slot_and_the_runs_tags_whose_it_is(served: Served) -> None:
    served.api.ask('mutation{setConcurrencyLimit(concurrencyKey:"beds",limit:3)}', {})
    assert served.api.pool("beds") == Pool(3, (), ())
    run = served.api.launch("napping", {"ops": {"nap": {"config": {"seconds": 60}}}}, {"who": "me"})
    until(lambda: served.api.pool("beds").used)
    assert served.api.pool("beds") == Pool(3, ((run, "nap"),), ())
    assert served.api.tags([run])[run]["who"] == "me"
    stat = Path(f"/proc/{leases.holder(served.home, run)}/stat").read_bytes()
    assert int(stat.rpartition(b")")[2].split()[1]) == served.info.children["run starter"]  # it is its fork
    served.api.terminate([run])
    until(lambda: served.api.status(run) in ENDED)


def test_an_ended_run_and_a_partition_are_removed_and_a_second_time_is_no_error(served: Served) -> None:
    api = served.api
    run = api.launch("refusing", {}, {"longshot/build": "old-1111"})
    until(lambda: api.status(run) in ENDED, 120)
    assert [r.id for r in api.every_run() if r.belongs_to("old-1111")] == [run]
    where = 'repositorySelector:{repositoryLocationName:"longshot",repositoryName:"__repository__"}'
    for key in ("old", "young"):
        api.ask(
            f'mutation{{addDynamicPartition({where},partitionsDefName:"beds",partitionKey:"{key}"){{__typename}}}}', {}
        )
    for _ in range(2):
        api.delete_run(run)
        api.delete_partitions("beds", ["old"])
    assert not [r for r in api.every_run() if r.id == run]
    assert api.ask("{assetNodes{partitionKeys}}", {})["assetNodes"] == [{"partitionKeys": ["young"]}]


def test_a_job_that_does_not_exist_is_refused_in_one_line(served: Served) -> None:
    with pytest.raises(LongshotError, match="Dagster would not start nothing"):
        served.api.launch("nothing", {}, {})


HOSTILE = """<!doctype html><title>hostile</title><body><script>
const ui = %(ui)s, q = %(query)s, get = ui + "/graphql?query=" + encodeURIComponent(q);
const body = JSON.stringify({query: q}), waits = [], wait = (f) => waits.push(new Promise(f));
for (const tag of ["img", "script", "iframe"]) wait((done) => {
  const e = document.createElement(tag); e.onload = e.onerror = done; e.src = get; document.body.append(e);
});
wait((done) => { const e = document.createElement("link"); e.rel = "stylesheet"; e.href = get;
  e.onload = e.onerror = done; document.head.append(e); });
const tries = [
  [get, {mode: "no-cors", credentials: "include"}],
  [ui + "/graphql", {method: "POST", mode: "no-cors", credentials: "include", body}],
  [ui + "/graphql", {method: "POST", credentials: "include", body, headers: {"content-type": "application/json"}}],
  [get, {method: "POST", mode: "no-cors", credentials: "include"}],
  [ui + "/report_asset_materialization/x", {method: "POST", mode: "no-cors", credentials: "include"}],
];
for (const [url, init] of tries) waits.push(fetch(url, init).catch(() => 0));
for (const action of [get, ui + "/graphql"]) wait((done) => {
  const frame = document.createElement("iframe"), form = document.createElement("form");
  frame.name = "f" + waits.length; frame.onload = done; form.target = frame.name; form.method = "POST";
  form.enctype = "text/plain"; form.action = action;
  const field = document.createElement("input"); field.name = body.slice(0, -1) + ',"x":"'; field.value = '"}';
  form.append(field); document.body.append(frame, form); form.submit();
});
navigator.sendBeacon(ui + "/graphql", new Blob([body], {type: "text/plain"}));
window.opened = 0;
wait((done) => {
  const s = new WebSocket(ui.replace("http", "ws") + "/graphql", "graphql-ws");
  s.onopen = () => { window.opened++; s.send(JSON.stringify({type: "start", id: "1", payload: {query: q}})); };
  s.onclose = s.onerror = done;
});
Promise.all(waits).then(() => setTimeout(() => { document.title = "tried everything"; }, 300));
</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("plain", [False, True], ids=["own-name", "plain"])
def test_a_hostile_page_on_another_port_starts_no_run(served: Served, tmp_path: Path, plain: bool) -> None:
    link = UiAccess(served.home).link(served.port, plain=plain)
    ui = f"http://{urlsplit(link).netloc}"
    page = (HOSTILE % {"ui": json.dumps(ui), "query": json.dumps(LAUNCH)}).encode()
    cookies: list[str] = []

    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cookies.append(self.headers.get("cookie", ""))
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    before = served.runs()

    async def visit() -> None:
        async with browser(tmp_path / "profile") as tab:
            await tab.open(link)
            await tab.until("document.querySelector('#root')?.innerText.length > 20", 60)
            # The control: what the hostile page tries does start a run when our own page asks for it.
            ours = f"fetch('/graphql', {{method: 'POST', headers: {{'content-type': 'application/json'}}, body: {json.dumps(json.dumps({'query': LAUNCH}))}}}).then(r => r.text())"
            assert "LaunchRunSuccess" in await tab.eval(ours)
            assert await tab.eval("document.cookie") == ""
            await tab.open(f"http://127.0.0.1:{server.server_port}/")
            await tab.until("document.title === 'tried everything'", 60)
            assert await tab.eval("window.opened") == 0

    try:
        asyncio.run(visit())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert served.runs() == before + 1
    # A cookie knows no port: that is what the name of its own is for.
    assert [bool(c) for c in cookies[:1]] == [plain]
    assert plain or not any(cookies)


def test_everything_killed_comes_back_and_an_orderly_stop_leaves_nothing(served: Served) -> None:
    before = served.info.children
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        now = stack.running(served.home)
        return bool(now and not set(now.children.values()) & set(before.values()) and served.api.answers())

    until(back)
    run = ""

    def launched() -> bool:
        nonlocal run
        try:
            run = served.api.launch("napping", {"ops": {"nap": {"config": {"seconds": 600.0}}}}, {})
        except LongshotError:
            return False
        return True

    until(launched)
    until(lambda: served.api.status(run) == "STARTED")
    started = [(p, processes.start_time(p)) for p in processes.carrying(STACK_MARK, served.info.mark)]
    assert len(started) >= 4
    begun = time.monotonic()
    assert stack.stop(served.home)
    assert time.monotonic() - begun < 15  # 10 s on a quiet machine
    assert [p for p, at in started if processes.start_time(p) == at] == []
    assert stack.running(served.home) is None
    assert not stack.stop(served.home)
