"""How everything else talks to the gateway process: standard library only, over its control socket."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.gateway.token_counts import read_accounts
from longshot_dagster.adapters.host.documents import locked
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.host.supervisor_lock import supervisor_pid
from longshot_dagster.core.clock import Clock, SystemClock
from longshot_dagster.core.display import one_line
from longshot_dagster.core.endpoints import Endpoint, endpoints_to_wire
from longshot_dagster.core.errors import LongshotError, ModelUnavailable, WrongUse
from longshot_dagster.core.model_apis import Api
from longshot_dagster.core.refusals import Kind, advice
from longshot_dagster.core.usage import Usage

# -P: `-m` alone looks for modules in the folder it is started in, which may be anybody's checkout.
_GATEWAY = (sys.executable, "-P", "-m", "longshot_dagster.adapters.gateway.gateway")
_START_S = 60.0
_AWAY_S = 60.0  # until a supervisor has it running again that has seen it die
_STOP_S = 15.0
_LOOK_S = 0.2
_EXAMINE_S = 120.0
_KEPT_LINES = 8
_STOP = "stop"
_NO_ANSWER = (OSError, ValueError)
_NO_ENDPOINTS = "no model endpoint is configured: set LLM_BASE_URL and LLM_API_KEY, or LLM_ENDPOINTS (see .env.example)"
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "LLM_")


@dataclass(frozen=True)
class Examined:
    """How one endpoint answered: `problem` and what to do about it are empty when it did."""

    label: str
    models: tuple[str, ...]
    seconds: float
    problem: str
    remedy: str


class Gateway:
    """The gateway of one home. Storing nothing but the home, it may be used from any thread and process."""

    def __init__(self, home: Home, clock: Clock | None = None) -> None:
        self._home = home
        self._clock = clock or SystemClock()
        self._lines = _Lines(self._clock)

    def ensure(self, endpoints: Sequence[Endpoint] | None = None, tuning: Mapping[str, float] | None = None) -> None:
        """Have the gateway running, serving `endpoints` when given; safe under any number of callers.

        `tuning`: fields of `gateway_upstream.Tuning`, read when it starts. Raises WrongUse when it is not running and
        there are no endpoints to start it with, LongshotError when it does not come up.
        """
        if not self.alive() and not (endpoints is None and self.comes_back()):
            if not endpoints:
                raise WrongUse(_NO_ENDPOINTS)
            with locked(self._home.gateway / ".start.lock"):
                if not self.alive():
                    self._start(endpoints, tuning or {})
                    return
        if endpoints:
            self._call("endpoints", {"endpoints": endpoints_to_wire(endpoints)})

    def alive(self) -> bool:
        """Does a gateway listen on this home's control socket?"""
        if not self._home.has_runtime:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(5)
                probe.connect(str(self._socket))
        except BlockingIOError:
            return True  # so many callers wait for it that its queue is full
        except OSError:
            return False
        return True

    def open(self, build: str, key: str, budget: int, timeout_s: float | None = None, model: str = "") -> str:
        """Path of the unix socket on which `key` (a task, or `planner-<planner>`) reaches the model at `/v1`.

        `budget` is the build's, in tokens; 0 is none. Opened again, a key keeps its counts. `timeout_s` is the time for
        one answer; `model` the only one that answers, any when empty.
        """
        return self.begin(build, key, budget, timeout_s, model)[0]

    def begin(
        self, build: str, key: str, budget: int, timeout_s: float | None = None, model: str = ""
    ) -> tuple[str, Usage]:
        """As `open`, and what `key` has used before."""
        asked = {"build": build, "key": key, "budget": budget, "timeout_s": timeout_s, "model": model}
        opened = self._call("open", asked)
        return str(opened["path"]), Usage(**opened["usage"])

    def close(self, build: str, key: str) -> Usage | None:
        """No more requests from `key`; its counts stay: what it has used. Nothing happens, and it is None, when the gateway
        has gone.
        """
        closed = self._call_if_alive("close", {"build": build, "key": key})
        return None if closed is None else Usage(**closed["usage"])

    def usage(self, build: str, key: str | None = None) -> Usage:
        """Tokens of one key, or of the whole build; from the gateway's file when it is not running."""
        found = self._call_if_alive("usage", {"build": build, "key": key})
        if found is not None:
            return Usage(**found)
        accounts = read_accounts(self._home.gateway, build)
        if key is None:
            return accounts.usage
        return accounts.accounts[key].usage if key in accounts.accounts else Usage()

    def status(self) -> dict[str, Any]:
        """pid, version, endpoints (name, host, weight; never a key), rehearsal, sockets, in_flight, waiting."""
        return self._call("status")

    def probe(self, model: str, api: Api = Api.CHAT) -> tuple[str, ...]:
        """Ask every endpoint early whether address, key and model are right, and whether it speaks `api`; one line per
        endpoint that is not well.

        Raises, in one line, ModelUnavailable when none of them is, WrongUse when none of them speaks `api`.
        """
        found = self._call("probe", {"model": model, "api": api}, timeout_s=120)
        problems = found["problems"]
        if problems and len(problems) >= found["endpoints"]:
            if all(p["kind"] == Kind.OTHER_API for p in problems):
                raise WrongUse(problems[0]["line"])
            raise ModelUnavailable(f"{problems[0]['line']}; {advice(problems[0]['kind'])}")
        return tuple(p["line"] for p in problems)

    def examine(self, model: str, api: Api = Api.CHAT) -> tuple[Examined, ...]:
        """Ask every endpoint for its models and for one short answer of `model`; costs a few tokens at each."""
        asked = {"model": model, "api": api}
        return _examined(self._call("examine", asked, timeout_s=_EXAMINE_S)["endpoints"])

    def comes_back(self) -> bool:
        """Wait for one that has died and is being started again; False when nobody does that, or in vain."""
        deadline = self._clock.monotonic() + _AWAY_S
        # An orderly end takes the socket's file along.
        while self._socket.exists() and supervisor_pid(self._home) and self._clock.monotonic() < deadline:
            if self.alive():
                return True
            self._clock.sleep(_LOOK_S)
        return self.alive()

    def stop(self) -> None:
        """End the process and wait for it; nothing happens when it is not running."""
        if not self.alive():
            return
        self._call(_STOP)
        with claim(self._home.gateway / "gateway.lock", wait_s=_STOP_S) as free:
            if free:
                return
        raise LongshotError("the gateway does not stop; see logs/gateway.log below LONGSHOT_HOME")

    @property
    def _socket(self) -> Path:
        return self._home.runtime / "gateway.sock"

    def _start(self, endpoints: Sequence[Endpoint], tuning: Mapping[str, float]) -> None:
        argv = [*_GATEWAY, "--home", str(self._home.root), "--detach"]
        document = json.dumps({"endpoints": endpoints_to_wire(endpoints), "tuning": dict(tuning)}).encode()
        log = self._home.logs / "gateway.log"
        with log.open("ab") as out:
            try:
                ended = subprocess.run(
                    argv,
                    input=document,
                    stdout=out,
                    stderr=out,
                    env=_environment(),
                    cwd=self._home.root,
                    start_new_session=True,
                    timeout=_START_S,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise LongshotError(f"the gateway does not start within {_START_S:.0f} s; see {log}") from None
        if ended.returncode or not self.alive():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise LongshotError(f"the gateway does not start: {lines[-1][:300] if lines else 'see ' + str(log)}")

    def _call(self, ask: str, more: Mapping[str, object] | None = None, timeout_s: float = 30) -> dict[str, Any]:
        """One request; said again to the next gateway when this one dies. Everything but `stop` may be said twice."""
        try:
            try:
                said = self._asked(ask, more, timeout_s)
            except (ConnectionError, FileNotFoundError):
                if ask == _STOP or not self.comes_back():
                    raise
                said = self._asked(ask, more, timeout_s)
        except _NO_ANSWER as e:
            raise _unavailable(type(e).__name__) from e
        return _accepted(said)

    def _call_if_alive(self, ask: str, more: Mapping[str, object]) -> dict[str, Any] | None:
        """As `_call`, but None when no gateway listens; nobody waits for the next one."""
        if not self._home.has_runtime:
            return None
        try:
            said = self._asked(ask, more)
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except ConnectionError:  # it dies at this moment, or is too busy
            return self._call(ask, more)
        except _NO_ANSWER as e:
            raise _unavailable(type(e).__name__) from e
        return _accepted(said)

    def _asked(self, ask: str, more: Mapping[str, object] | None, timeout_s: float = 30) -> Any:
        line = json.dumps({**(more or {}), "ask": ask}).encode() + b"\n"
        return self._lines.ask(str(self._socket), line, timeout_s, again=ask != _STOP)


def examine(home: Home, endpoints: Sequence[Endpoint], model: str, api: Api = Api.CHAT) -> tuple[Examined, ...]:
    """As `Gateway.examine`, by a process that has a gateway's environment and rules, and ends by itself."""
    argv = [*_GATEWAY, "--home", str(home.root), "--examine"]
    document = json.dumps({"endpoints": endpoints_to_wire(endpoints), "model": model, "api": api}).encode()
    try:
        ended = subprocess.run(
            argv, input=document, capture_output=True, env=_environment(), timeout=_EXAMINE_S, check=False
        )
        return _examined(json.loads(ended.stdout)["endpoints"])
    except subprocess.TimeoutExpired:
        raise LongshotError(f"the endpoints gave no answer within {_EXAMINE_S:.0f} s") from None
    except (ValueError, KeyError):
        said = ended.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise LongshotError(f"the endpoints could not be asked: {one_line(said, 300)}") from None


def _examined(found: Sequence[Mapping[str, Any]]) -> tuple[Examined, ...]:
    return tuple(
        Examined(
            one_line(e["label"]),
            tuple(one_line(m, 100) for m in e["models"]),
            e["seconds"],
            e["line"],
            advice(e["kind"]) if e["line"] else "",
        )
        for e in found
    )


def _unavailable(why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the gateway to the model does not answer ({why}); start it with `longshot up`, then `longshot resume BUILD`"
    )


def _accepted(said: Any) -> dict[str, Any]:
    """Raises WrongUse, in the gateway's words, when it refused; ModelUnavailable when it could not."""
    if "answer" in said:
        return dict(said["answer"])
    if "refused" in said:
        raise WrongUse(str(said["refused"])[:500])
    raise _unavailable(str(said.get("failed"))[:100])


class _Lines:
    """Connections to the gateway, each used by one thread at a time; a few are kept for whoever asks next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._owner = os.getpid()
        self._kept: deque[_Line] = deque()
        weakref.finalize(self, _close_all, self._kept)

    def ask(self, socket_path: str, said: bytes, timeout_s: float, *, again: bool) -> Any:
        """The answer. `again`: what is asked may be said twice."""
        if self._owner != os.getpid():  # two processes on one line would read each other's answers
            _close_all(self._kept)
            self._owner = os.getpid()
        while again:
            try:
                line = self._kept.pop()
            except IndexError:
                break
            with contextlib.suppress(ConnectionError):  # of a gateway that has gone, or has hung up meanwhile
                return self._asked(line, said, timeout_s)
        return self._asked(_Line(socket_path, timeout_s, self._clock), said, timeout_s)

    def _asked(self, line: "_Line", said: bytes, timeout_s: float) -> Any:
        kept = False
        try:
            answer = line.ask(said, timeout_s)
            kept = len(self._kept) < _KEPT_LINES
            if kept:
                self._kept.append(line)
            return answer
        finally:
            if not kept:
                line.close()


def _close_all(lines: "deque[_Line]") -> None:
    while lines:
        lines.pop().close()


class _Line:
    """One connection."""

    def __init__(self, path: str, timeout_s: float, clock: Clock) -> None:
        self._socket = _connected(path, timeout_s, clock)
        self._answers = self._socket.makefile("rb")

    def ask(self, said: bytes, timeout_s: float) -> Any:
        """Raises ConnectionError when the gateway hangs up."""
        self._socket.settimeout(timeout_s)
        self._socket.sendall(said)
        answer = self._answers.readline()
        if not answer.endswith(b"\n"):
            raise ConnectionResetError("the gateway has hung up")
        return json.loads(answer)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def _connected(path: str, timeout_s: float, clock: Clock) -> socket.socket:
    for attempt in range(50):
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(timeout_s)
        try:
            line.connect(path)
            return line
        except BlockingIOError:  # the queue of the listening socket is full; a thousand tasks may open at once
            line.close()
            clock.sleep(0.02 * (attempt + 1))
        except OSError:
            line.close()
            raise
    raise ConnectionAbortedError("the gateway is busy")


def _environment() -> dict[str, str]:
    """Ours without anything that looks like a secret: the keys travel through the pipe only."""
    kept = {k: v for k, v in os.environ.items() if not any(w in k.upper() for w in _SECRET_WORDS)}
    # An endpoint on this machine is never behind a proxy.
    kept["NO_PROXY"] = kept["no_proxy"] = ",".join(
        x for x in (kept.get("NO_PROXY") or kept.get("no_proxy"), "127.0.0.1", "localhost") if x
    )
    return kept
