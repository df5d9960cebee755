"""Any agent as a process: what it is given, how long it may go on, what is left of it, and what the transcript says."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest
from longshot_worker import commands
from longshot_worker.events import Events
from longshot_worker.handoff import HarnessResult
from longshot_worker.harness import known, runner
from longshot_worker.harness.interface import Event, Harness, Invocation, Request, Usage, json_line
from longshot_worker.order import Order, Places
from longshot_worker.relay import Relay


class Toy(Harness):
    """A Python program as an agent; each line it prints is `[kind, text, tokens]`."""

    name = "toy"
    tools = ("rg", "no-such-program")

    def __init__(self, program: str, **more: Any) -> None:
        self.program, self.more = program, more
        self.request: Request | None = None

    def prepare(self, request: Request) -> Invocation:
        self.request = request
        usual = Invocation([sys.executable, "-c", self.program], request.repo, stdin=request.prompt)
        return replace(usual, **self.more)

    def parse(self, line: str) -> list[Event]:
        if line == "burst":
            raise ZeroDivisionError
        wire = json_line(f'{{"event": {line}}}').get("event")
        if not isinstance(wire, list):
            return []
        kind, text, tokens = (*wire, "", None)[:3] if len(wire) == 1 else (*wire, None)[:3]
        return [Event(kind, text, name=text, id=text, usage=None if tokens is None else Usage(tokens))]


FINISHED = 'print(\'["text", "all done"]\'); print(\'["turn", "", 5]\'); print(\'["done"]\')\n'


@dataclass
class Ran:
    result: HarnessResult
    events: list[dict[str, Any]]
    places: Places
    harness: Toy
    took_s: float

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


Run = Callable[..., Ran]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places(str(tmp_path))
    Path(places.repo, ".git/info").mkdir(parents=True)
    Path(places.out).mkdir(parents=True)
    return places


@pytest.fixture
def ran(places: Places) -> Iterator[Run]:
    commands.adopt_orphans()

    def run(program: str, *, within_s: float = 20, order: Order | None = None, **more: Any) -> Ran:
        harness, events = Toy(program, **more), Events(places.transcript)
        began = time.monotonic()
        with Relay(places.socket) as relay:
            result = runner.run(
                harness, order or Order("t", "base", 60), places, "Do it: ü.", relay, events, began + within_s
            )
        events.close()
        took_s = time.monotonic() - began
        said = [json.loads(line) for line in Path(places.transcript).read_text().splitlines()]
        return Ran(result, said, places, harness, took_s)

    yield run
    assert commands._below(os.getpid()) == set()


# --- what it is given ------------------------------------------------------------------------------------------------


def test_an_agent_gets_its_files_its_input_its_variables_and_its_place(ran: Run, places: Places) -> None:
    program = (
        "import json, os, sys\n"
        "names = ['LONGSHOT_LLM_API_KEY', 'OTHER_KEY', 'TOY', 'NO_PROXY', 'PWD']\n"
        "said = {n: os.environ.get(n) for n in names} | {'in': sys.stdin.read(), 'cwd': os.getcwd(), 'file': open(os.environ['TOY']).read()}\n"
        "print(json.dumps(['text', json.dumps(said)]))\n" + FINISHED.replace("all done", "")
    )
    path = f"{places.agent}/deep/config.json"
    toy = {"env": {"TOY": path}, "files": {path: "{}"}, "key_env": ("OTHER_KEY",), "excludes": ("/.toy/", "*.toy")}
    found = ran(program.replace('print(\'["text", ""]\')', "pass"), **toy)
    said = json.loads(found.of("said")[0]["text"])
    assert said["in"] == "Do it: ü." and said["cwd"] == said["PWD"] == places.repo and said["file"] == "{}"
    assert (said["OTHER_KEY"], said["LONGSHOT_LLM_API_KEY"]) == ("longshot", None)
    assert "127.0.0.1" in said["NO_PROXY"]
    assert Path(places.repo, ".git/info/exclude").read_text() == "/.toy/\n*.toy\n"
    assert [entry.name for entry in Path(places.repo).iterdir()] == [".git"]


def test_a_long_prompt_arrives_whole_though_nobody_feeds_it(ran: Run) -> None:
    program = "import sys, json; print(json.dumps(['text', str(len(sys.stdin.read()))])); print('[\"done\"]')"
    assert ran(program, stdin="ü" * 2_000_000).result.final == "2000000"


def test_folders_of_the_order_come_first_on_path_and_one_that_is_missing_is_passed_over(
    ran: Run, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    order = Order("t", "base", 60, harness_bin=["/nowhere", str(tmp_path / "bin")])
    found = ran("import os, json; print(json.dumps(['text', os.environ['PATH']])); print('[\"done\"]')", order=order)
    assert found.result.final.startswith(f"{tmp_path}/bin:") and "/nowhere" not in found.result.final


def test_only_programs_that_are_there_are_told_of(ran: Run) -> None:
    found = ran(FINISHED)
    assert found.harness.request is not None and "no-such-program" not in found.harness.request.tools


def test_an_agent_that_is_not_there_is_a_matter_of_configuration(ran: Run) -> None:
    result = ran("", argv=["no-such-agent"]).result
    assert result.status == "config_error" and "no no-such-agent on PATH; is toy installed" in result.error


def test_a_harness_nobody_knows_is_a_matter_of_configuration(places: Places) -> None:
    events = Events(places.transcript)
    with Relay(places.socket) as relay:
        result = known.work_with(Order("t", "b", 60, harness="mine"), places, "", relay, events, 0)
    events.close()
    assert (result.status, result.error) == ("config_error", "there is no harness 'mine' in this sandbox")


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_an_agent_that_says_it_is_done_has_completed_whatever_its_exit_code(ran: Run) -> None:
    found = ran(FINISHED + "raise SystemExit(3)")
    assert (found.result.status, found.result.final, found.result.turns) == ("completed", "all done", 1)
    assert found.of("turn")[0]["tokens_in"] == 5 and found.of("harness_end")[0]["status"] == "completed"


def test_one_that_ends_in_the_middle_has_crashed_and_its_last_words_are_kept(ran: Run) -> None:
    found = ran("import sys; print('[\"text\", \"I begin\"]', flush=True); sys.exit('no memory left')")
    assert found.result.status == "crashed" and found.result.error.endswith(": no memory left")
    assert "exit code 1" in found.result.error and "no memory left" in found.of("note")[0]["text"]


def test_one_that_is_killed_by_somebody_else_has_crashed(ran: Run) -> None:
    found = ran("import os; os.kill(os.getpid(), 9)")
    assert (found.result.status, "exit code 137" in found.result.error) == ("crashed", True)


def test_when_its_time_is_up_it_is_asked_to_go(ran: Run) -> None:
    program = (
        "import signal, sys, time\n"
        'signal.signal(signal.SIGTERM, lambda *_: (print(\'["text", "I go"]\', flush=True), sys.exit(0)))\n'
        'print(\'["tool_start", "bash"]\', flush=True); time.sleep(60)'
    )
    found = ran(program, within_s=2.5)
    assert (found.result.status, found.result.tool_calls, found.result.final) == ("timeout", 1, "I go")
    assert found.took_s < 15


def test_one_that_does_not_go_is_killed_with_all_it_has_started(ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_GRACE_S", 0.5)
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for session in (False, True): subprocess.Popen(['sleep', '600'], start_new_session=session)\n"
        "time.sleep(60)"
    )
    found = ran(program, within_s=1.0)  # the fixture looks for what is left
    assert found.result.status == "timeout" and found.took_s < 15


def test_what_it_leaves_in_the_background_ends_with_it_and_is_not_waited_for(ran: Run) -> None:
    found = ran(FINISHED + "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
    assert found.result.status == "completed" and found.took_s < 15


def test_silence_ends_it(ran: Run) -> None:
    order = Order("t", "base", 60, idle_timeout_s=0.6)
    found = ran('import time; print(\'["text", "let me think"]\', flush=True); time.sleep(60)', order=order)
    assert found.result.status == "stalled" and "no sign of life" in found.result.error and found.took_s < 15


def test_three_turns_without_a_token_end_it(ran: Run) -> None:
    found = ran('while True: print(\'["turn", "", 0]\', flush=True)')
    assert (found.result.status, found.result.turns) == ("stalled", 3) and found.took_s < 15


def test_turns_and_tool_calls_are_bounded(ran: Run) -> None:
    turns = ran('while True: print(\'["turn", "", 9]\', flush=True)', order=Order("t", "b", 60, max_turns=7))
    assert (turns.result.status, turns.result.turns) == ("limit", 8)
    calls = ran(
        'n = 0\nwhile True: n += 1; print(f\'["tool_start", "{n}"]\', flush=True)',
        order=Order("t", "b", 60, max_turns=7),
    )
    assert (calls.result.status, calls.result.tool_calls) == ("limit", 22)


def test_output_of_any_kind_breaks_nothing_and_fills_nothing(ran: Run) -> None:
    program = (
        "import sys, os\n"
        "out = sys.stdout.buffer\n"
        "out.write(b'burst\\n' + bytes(range(256)) * 40 + b'\\n')\n"
        "out.write(b'[\"tool_start\", \"' + b'x' * 300_000 + b'\"]\\n')\n"
        "for n in range(3_000): out.write(b'chatter %d\\n' % n)\n"
        "out.write(b'y' * (9 << 20) + b'\\n')\n"
        "sys.stderr.write('e' * 500_000 + '\\n')\n"
        "out.flush()\n" + FINISHED
    )
    found = ran(program)
    assert (found.result.status, found.result.tool_calls) == ("completed", 1)
    assert Path(found.places.transcript).stat().st_size < 400_000
    assert sum("chatter" in note["text"] for note in found.of("note")) < 500
    assert found.of("note")[-2]["text"] == "no more of such lines are kept"


def test_files_that_are_read_back_may_be_anything(ran: Run, places: Places) -> None:
    seen: dict[str, str] = {}
    names = [f"{places.agent}/{n}" for n in ("good", "link", "pipe", "folder", "missing")]

    def finish(tally: object, ended: str, code: int, files: dict[str, str]) -> HarnessResult:
        seen.update(files)
        return HarnessResult("completed")

    program = (
        f"import os; os.chdir({places.agent!r}); open('good', 'w').write('yes'); os.symlink('/etc/passwd', 'link')\n"
        "os.mkfifo('pipe'); os.mkdir('folder')"
    )
    harness = Toy(program, reads=tuple(names))
    harness.finish = finish  # type: ignore[method-assign, assignment]
    events = Events(places.transcript)
    with Relay(places.socket) as relay:
        runner.run(harness, Order("t", "b", 60), places, "", relay, events, time.monotonic() + 20)
    events.close()
    assert {Path(path).name: text for path, text in seen.items() if text} == {"good": "yes"}


# --- its model -------------------------------------------------------------------------------------------------------


@dataclass
class Gateway:
    """Answers as it is told, by unix socket."""

    status: int = 200
    body: bytes = b"{}"
    hangs: threading.Event = field(default_factory=threading.Event)
    asked: int = 0


@pytest.fixture
def gateway(places: Places) -> Iterator[Gateway]:
    gateway = Gateway()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            gateway.asked += 1
            if gateway.status == 0:
                gateway.hangs.wait(30)
                return
            self.send_response(gateway.status)
            self.send_header("Content-Length", str(len(gateway.body)))
            self.end_headers()
            self.wfile.write(gateway.body)

    class Server(ThreadingUnixStreamServer):
        daemon_threads = True

        def get_request(self) -> tuple[socket.socket, Any]:
            return self.socket.accept()[0], ("", 0)

    Path(places.socket).parent.mkdir(parents=True, exist_ok=True)
    with Server(places.socket, Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield gateway
        gateway.hangs.set()
        server.shutdown()
        thread.join()


ASKS = (
    "import http.client, os, sys, time\n"
    "from urllib.parse import urlsplit\n"
    "url = urlsplit(os.environ['TOY_URL']); c = http.client.HTTPConnection(url.hostname, url.port)\n"
    "def ask():\n"
    "    c.request('POST', url.path + '/chat/completions', b'{}'); r = c.getresponse(); r.read(); return r.status\n"
)


class Asking(Toy):
    def prepare(self, request: Request) -> Invocation:
        return Invocation([sys.executable, "-c", self.program], request.repo, env={"TOY_URL": request.base_url})


def asking(program: str, places: Places, order: Order) -> HarnessResult:
    commands.adopt_orphans()
    events = Events(places.transcript)
    with Relay(places.socket) as relay:
        result = runner.run(Asking(ASKS + program), order, places, "", relay, events, time.monotonic() + 20)
    events.close()
    return result


def test_an_agent_that_asks_a_refusing_model_for_ever_is_ended(gateway: Gateway, places: Places) -> None:
    gateway.status = 500
    result = asking("while True: ask(); time.sleep(0.05)", places, Order("t", "b", 60))
    assert result.status == "llm_error" and "last one with HTTP 500" in result.error
    assert 5 <= gateway.asked < 60


def test_refusals_that_pass_are_forgotten(gateway: Gateway, places: Places) -> None:
    gateway.status = 404
    program = "[ask() for _ in range(4)]\n" + FINISHED
    assert asking(program, places, Order("t", "b", 60)).status == "completed"


def test_a_spent_budget_is_seen_whatever_the_agent_makes_of_it(gateway: Gateway, places: Places) -> None:
    gateway.status, gateway.body = 403, b'{"error": {"type": "budget_exhausted", "message": "enough"}}'
    program = 'ask(); print(\'["error", "please log in"]\'); print(\'["done"]\')'
    assert asking(program, places, Order("t", "b", 60)).status == "budget"


def test_a_model_may_think_longer_than_an_agent_may_be_silent(
    gateway: Gateway, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_MODEL_MARGIN_S", 0.2)
    gateway.status = 0
    order = Order("t", "b", 60, idle_timeout_s=2, llm_timeout_s=2.5)
    began = time.monotonic()
    result = asking("ask()", places, order)
    assert result.status == "llm_error" and "no answer within 3 s" in result.error
    assert time.monotonic() - began > 2.5
