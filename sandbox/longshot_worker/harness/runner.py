"""Runs any harness as a process: feeds it, listens to it, ends it when it may not go on, and says what came of it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from typing import Iterator

from longshot_worker import commands
from longshot_worker.commands import Clip, clipped
from longshot_worker.events import Events
from longshot_worker.handoff import HarnessResult
from longshot_worker.harness.interface import Event, Harness, Invocation, Request, Tally
from longshot_worker.order import Order, Places
from longshot_worker.relay import Relay

# Where sandboxes show what was installed for them outside; images have it on PATH.
_LAYERS = ("/opt/longshot/harness/node_modules/.bin", "/opt/longshot/harness/bin", "/opt/longshot/node/bin")
_KEY = "LONGSHOT_LLM_API_KEY"
_NO_KEY = "longshot"  # the gateway wants none; agents want to send one
_GRACE_S = 10.0
_TICK_S = 0.1
_MODEL_MARGIN_S = 30.0
_REFUSALS = 5  # in a row; what refuses has tried for long already
_MAX_LINE = 8 << 20
_HEAD = 1 << 16
_MAX_READ = 1 << 20
_MAX_EVENTS_OF_LINE = 10_100
_MAX_NOTES = 500
_PROBES = {
    "rg": (["rg", "--version"],),
    "fd": (["fd", "--no-require-git", "--version"], ["fdfind", "--no-require-git", "--version"]),
}


def run(
    harness: Harness, order: Order, places: Places, task: str, relay: Relay, events: Events, until: float
) -> HarnessResult:
    """Work on `task` until the agent is done, `until` (monotonic seconds) at the longest."""
    environment = _environment(order)
    request = _request(harness, order, places, task, relay.url, environment["PATH"])
    try:
        invocation = harness.prepare(request)
        _write(invocation, places)
        process = _start(invocation, environment, places)
    except (OSError, ValueError, KeyError) as e:
        why = f"{harness.name} cannot be started: {_reason(e, harness)}"
        events.add("harness_end", status="config_error", error=why, turns=0, tool_calls=0)
        return HarnessResult("config_error", why)
    result = _Run(harness, order, relay, events, until).attend(process, invocation)
    events.add(
        "harness_end", status=result.status, error=result.error, turns=result.turns, tool_calls=result.tool_calls
    )
    return result


class _Run:
    """One process of an agent, from its start to its end."""

    def __init__(self, harness: Harness, order: Order, relay: Relay, events: Events, until: float) -> None:
        self._harness, self._relay, self._events, self._until = harness, relay, events, until
        self._idle_s, self._llm_s = order.idle_timeout_s, order.llm_timeout_s
        self._tally, self._told = Tally(order.max_turns), _Told(events)
        self._lines, self._stderr = Lines(harness.skips), Clip(20_000)
        self._heard = time.monotonic()
        self._unanswered = False

    def attend(self, process: subprocess.Popen, invocation: Invocation) -> HarnessResult:
        assert process.stdout is not None and process.stderr is not None
        streams = [process.stdout, process.stderr]
        try:
            ended = self._listen(process, [stream.fileno() for stream in streams])
            if ended != "exited":
                self._end(process, listens=ended != "killed")
        finally:
            commands.end_tree(process.pid)
            process.wait()
            for stream in streams:
                stream.close()
            commands.reap()
        if ended != "killed":  # why it was ended stays as it was at that moment
            for line in self._lines.rest():
                self._take(line)
        said = self._stderr.text().strip()
        if said:
            self._events.add("note", text=f"{self._harness.name} on its standard error: {said}")
        files = {path: text for path in invocation.reads if (text := _read(path)) is not None}
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        result = self._with_model(self._harness.finish(self._tally, ended, code, files), ended)
        if result.status == "crashed" and said:
            return replace(result, error=f"{result.error}: {clipped(said.splitlines()[-1], 500)}")
        return result

    def _with_model(self, result: HarnessResult, ended: str) -> HarnessResult:
        """What the relay has seen: some agents ask a model that refuses again and again, and do not say so."""
        if result.status == "completed":
            return result
        if self._unanswered:
            return replace(
                result, status="llm_error", error=f"the model gave no answer within {self._patience():.0f} s"
            )
        if not self._relay.refused:
            return result
        if self._relay.over_budget:
            return replace(result, status="budget")
        if ended == "exited" or result.status == "llm_error":
            return result
        why = (
            f"the model refused {self._relay.refusals} requests in a row, the last one with HTTP {self._relay.refused}"
        )
        return replace(result, status="llm_error", error=why)

    def _must_go(self) -> bool:
        return self._tally.stalled or self._tally.exhausted or self._relay.refusals >= _REFUSALS

    def _listen(self, process: subprocess.Popen, pipes: list[int]) -> str:
        """Until it ends or has to be ended; how."""
        out, open_pipes = pipes[0], list(pipes)
        while True:
            ready = select.select(open_pipes, [], [], _TICK_S)[0] if open_pipes else []
            if not open_pipes:
                time.sleep(_TICK_S)
            for pipe in ready:
                data = os.read(pipe, 1 << 16)
                if not data:
                    open_pipes.remove(pipe)
                elif pipe == out:
                    self._out(data)
                else:
                    self._stderr.add(data)
                    self._heard = time.monotonic()
            if not ready and process.poll() is not None:
                return "exited"  # what it left in the background may hold its pipes open for ever
            if self._must_go():
                return "killed"
            now = time.monotonic()
            if now > self._until:
                return "wall"
            if now - max(self._heard, self._relay.heard) > self._patience():
                self._unanswered = self._relay.waiting
                return "idle"

    def _patience(self) -> float:
        """Seconds without a sign of life; a model that has been asked may take its own time."""
        asked = self._unanswered or self._relay.waiting
        return max(self._idle_s, self._llm_s + _MODEL_MARGIN_S) if asked else self._idle_s

    def _out(self, data: bytes) -> None:
        self._heard = time.monotonic()
        for line in self._lines.add(data):
            self._take(line)
            if self._must_go():
                return

    def _take(self, line: str) -> None:
        try:
            found = list(self._harness.parse(line))[:_MAX_EVENTS_OF_LINE]
        except Exception as e:  # somebody else's parser, on anything at all
            self._told.note(f"a line of {len(line):,} characters that is not understood ({type(e).__name__})")
            return
        if not found and line.strip() and not line.lstrip().startswith("{"):
            self._told.note(line)
        for event in found:
            if self._tally.add(event):
                self._told.tell(event)

    def _end(self, process: subprocess.Popen, listens: bool) -> None:
        """Ask its whole group to go, which lets it end its own children; whoever stays is killed afterwards."""
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except OSError:
            return
        until = time.monotonic() + _GRACE_S
        assert process.stdout is not None and process.stderr is not None
        pipes = [process.stdout.fileno(), process.stderr.fileno()]
        while process.poll() is None and time.monotonic() < until:
            for pipe in select.select(pipes, [], [], _TICK_S)[0] if pipes else []:
                data = os.read(pipe, 1 << 16)  # it may have to say something before it can go
                if not data:
                    pipes.remove(pipe)
                elif listens and pipe == process.stdout.fileno():
                    for line in self._lines.add(data):
                        self._take(line)
            if not pipes:
                time.sleep(_TICK_S)


class Lines:
    """Bytes as lines, each of bounded length; those that begin with one of `skips` are dropped as they come."""

    def __init__(self, skips: tuple[bytes, ...] = (), longest: int = _MAX_LINE) -> None:
        self._skips, self._longest = skips, longest
        self._buffer = bytearray()
        self._cut = False  # the rest of a line that was too long is on its way

    def add(self, data: bytes) -> Iterator[str]:
        """The lines that end in `data`. Of one that is too long, its beginning."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._keep(data[start:end])
            start = end + 1
            yield from self._line()
        self._keep(data[start:])

    def rest(self) -> Iterator[str]:
        yield from self._line()

    def _keep(self, data: bytes) -> None:
        if self._cut:
            return
        self._buffer += data
        if len(self._buffer) > self._longest:
            self._cut = True
            del self._buffer[_HEAD:]

    def _line(self) -> Iterator[str]:
        line, self._buffer, self._cut = bytes(self._buffer), bytearray(), False
        if line and not line.startswith(self._skips):
            yield line.decode("utf-8", "replace")


class _Told:
    """The transcript of what an agent does, in the words of every transcript."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._notes = 0

    def tell(self, event: Event) -> None:
        add, kind, usage = self._events.add, event.kind, event.usage
        if kind == "text":
            if event.text.strip():
                add("said", text=event.text)
        elif kind == "line":
            self.note(event.text)
        elif kind == "turn" and usage is not None:
            add("turn", text="", tokens_in=usage.input + usage.cache_read + usage.cache_write, tokens_out=usage.output)
        elif kind == "tool_start":
            add("tool_start", id=event.id[:200], name=event.name[:200], arguments=_shown(event.arguments))
        elif kind == "tool_end":
            add("tool_end", id=event.id[:200], ok=event.ok, text=event.text)
        elif kind in ("error", "retry", "limit"):
            add("error", what=kind, text=event.text[:2_000])
        elif kind == "note":
            self.note(event.text)

    def note(self, text: str) -> None:
        """An agent that says nothing but notes does not fill the transcript with them."""
        self._notes += 1
        if self._notes <= _MAX_NOTES and text.strip():
            self._events.add("note", text=clipped(text, 2_000))
        elif self._notes == _MAX_NOTES + 1:
            self._events.add("note", text="no more of such lines are kept")


def _shown(arguments: object) -> object:
    if not isinstance(arguments, dict):
        return clipped(str(arguments), 2_000) if arguments is not None else None
    found = {}
    for key, value in list(arguments.items())[:50]:
        plain = isinstance(value, (int, float, bool)) or value is None
        found[str(key)[:200]] = value if plain else clipped(value if isinstance(value, str) else str(value), 2_000)
    return found


# --- its beginning ---------------------------------------------------------------------------------------------------


def _request(harness: Harness, order: Order, places: Places, task: str, base_url: str, path: str) -> Request:
    return Request(
        order.system_prompt,
        task,
        places.repo,
        places.agent,
        order.model,
        base_url,
        order.max_tokens,
        order.context_tokens,
        order.temperature,
        order.llm_timeout_s,
        order.max_turns,
        order.harness_command,
        frozenset(tool for tool in harness.tools if _works(tool, path)),
    )


def _environment(order: Order) -> dict[str, str]:
    folders = [folder for folder in (*order.harness_bin, *_LAYERS) if os.path.isdir(folder)]
    # The relay is on this side of any proxy.
    direct = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1,localhost"]))
    return {
        **os.environ,
        "PATH": os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]),
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


def _works(tool: str, path: str) -> bool:
    """Is the program there, and recent enough for what agents ask of it?"""
    for argv in _PROBES.get(tool, ()):
        program = shutil.which(argv[0], path=path)
        if program is None:
            continue
        try:
            if commands.run([program, *argv[1:]], "/", 10).code == 0:
                return True
        except OSError:
            continue
    return tool not in _PROBES and shutil.which(tool, path=path) is not None


def _write(invocation: Invocation, places: Places) -> None:
    for path, content in invocation.files.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(content)
    if invocation.excludes:
        with open(os.path.join(places.repo, ".git", "info", "exclude"), "a", encoding="utf-8") as file:
            file.write("\n".join(invocation.excludes) + "\n")


def _start(invocation: Invocation, environment: dict[str, str], places: Places) -> subprocess.Popen:
    # Not everybody asks the system where he is.
    env = {**environment, **invocation.env, "PWD": invocation.cwd}
    for name in invocation.key_env:
        env[name] = os.environ.get(_KEY) or _NO_KEY
    program = shutil.which(invocation.argv[0], path=env["PATH"])
    if program is None:
        raise FileNotFoundError(f"there is no {invocation.argv[0]} on PATH")
    # From a file: a pipe would have to be fed while the agent is listened to.
    os.makedirs(places.agent, exist_ok=True)
    with open(os.path.join(places.agent, "stdin"), "w+b") as stdin:
        stdin.write(invocation.stdin.encode("utf-8", "replace"))
        stdin.seek(0)
        return subprocess.Popen(
            [program, *invocation.argv[1:]],
            cwd=invocation.cwd,
            env=env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


def _reason(error: Exception, harness: Harness) -> str:
    if isinstance(error, FileNotFoundError) and not error.filename:
        return f"{error}; is {harness.name} installed in this sandbox?"
    return " ".join(str(error).split())[:500] or type(error).__name__


def _read(path: str) -> str | None:
    """The text of a file that an agent may have made: a link is not followed, and a pipe is not waited for."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, _MAX_READ).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(file)
