"""The host of all sandboxes of a fleet: one process in which a thousand trivial workers wait and each hand over one file.

    python -m fleeting.host --socket PATH --repository BARE --task-seconds S --requests N --log FILE

A worker asks the model N times through the socket it is given, waits, and leaves what any worker leaves: result.json,
a transcript, a bundle with one commit. At SIGTERM the host writes to FILE what it saw: when every worker began and ended.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleeting import wire
from fleeting.bundles import Objects, one_file_bundle
from longshot_dagster.core import contract

_LIMIT = 64 << 20
_BACKLOG = 1024


@dataclass
class _Sandbox:
    id: str
    tags: dict[str, str]
    sockets: dict[str, str]
    created_at: float
    files: dict[str, bytes] = field(default_factory=dict)
    command: "asyncio.Task[int] | None" = None


class Host:
    def __init__(self, objects: Objects, task_seconds: float, requests: int) -> None:
        self._objects = objects
        self._task_seconds = task_seconds
        self._requests = requests
        self._sandboxes: dict[str, _Sandbox] = {}
        self._numbers = itertools.count(1)
        self.worked: list[
            dict[str, Any]
        ] = []  # task, began, ended (monotonic seconds of this host); ended None: killed

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here: list[_Sandbox] = []
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                header, data = await _receive(reader)
                if header["op"] == "exec":  # what follows may be its `kill`
                    running.add(asyncio.create_task(self._exec(here[0], writer)))
                    continue
                writer.write(self._answer(header, data, here))
                await writer.drain()
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the host is being ended
        finally:
            for sandbox in here:  # its client has died, and with it, as with most providers, the command it waited for
                _kill(sandbox)
            await asyncio.gather(*running, return_exceptions=True)
            writer.close()

    def _answer(self, header: dict[str, Any], data: bytes, here: list[_Sandbox]) -> bytes:
        match header["op"]:
            case "create":
                name = f"fleet-{next(self._numbers)}"
                tags = {**header["tags"], "name": header["name"]}
                here.append(_Sandbox(name, tags, header["sockets"], time.time()))
                self._sandboxes[name] = here[0]
                return wire.message({"id": name})
            case "attach" if header["id"] in self._sandboxes:
                here.append(self._sandboxes[header["id"]])
                return wire.message({})
            case "list":
                wanted = header["tags"].items()
                found = [s for s in self._sandboxes.values() if wanted <= s.tags.items()]
                shown = [{"id": s.id, "tags": s.tags, "created_at": s.created_at} for s in found]
                return wire.message({"sandboxes": shown, "at_work": sum(map(_is_at_work, found))})
            case "terminate":
                _kill(here[0])
                self._sandboxes.pop(here[0].id, None)
                return wire.message({})
            case "kill" if here:
                _kill(here[0])
                return wire.message({})
            case "write" if here:
                # What is not looked at again is not kept: a thousand bundles of a whole repository are much memory.
                here[0].files[header["path"]] = data if header["path"] == contract.ORDER else b""
                return wire.message({})
            case "read" if here:
                content = here[0].files.get(header["path"])
                if content is None:
                    return wire.message({"missing": True})
                return (
                    wire.message({}, content)
                    if len(content) <= header["max_bytes"]
                    else wire.message({"too_large": True})
                )
        return wire.message({"gone": "there is no such sandbox"})

    async def _exec(self, sandbox: _Sandbox, writer: asyncio.StreamWriter) -> None:
        sandbox.command = asyncio.create_task(self._work(sandbox, writer))
        try:
            code = await sandbox.command
        except asyncio.CancelledError:
            code = 137
        writer.write(wire.message({"exit": code}))
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def _work(self, sandbox: _Sandbox, writer: asyncio.StreamWriter) -> int:
        order = json.loads(sandbox.files[contract.ORDER])
        if order["mode"] != "work":
            _leave(sandbox, order, {"harnessStatus": "completed" if order["mode"] == "sweep" else "cancelled"})
            return 0
        entry: dict[str, Any] = {"task": order["taskId"], "began": time.monotonic(), "ended": None}
        self.worked.append(entry)
        line = json.dumps({"type": "note", "text": f"{order['taskId']} is worked on"}).encode() + b"\n"
        writer.write(wire.message({"stream": "stdout"}, line))
        until = entry["began"] + self._task_seconds
        for _ in range(self._requests):
            await _ask_model(sandbox.sockets[contract.SOCKET], order)
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        path = order["scope"][0]
        content = f"{order['taskId']}\n".encode()
        head, bundle = one_file_bundle(self._objects, order["base"], path, content, order["title"], int(time.time()))
        sandbox.files[contract.BUNDLE_OUT] = bundle
        sandbox.files[contract.TRANSCRIPT] = line
        summary = f"Added {path}."
        _leave(sandbox, order, {"harnessStatus": "completed", "head": head, "commits": 1, "summary": summary})
        entry["ended"] = time.monotonic()
        return 0


def _leave(sandbox: _Sandbox, order: dict[str, Any], result: dict[str, Any]) -> None:
    whole = {"taskId": order["taskId"], "status": "complete", **result}
    sandbox.files[contract.RESULT] = json.dumps(whole).encode()


def _is_at_work(sandbox: _Sandbox) -> bool:
    return sandbox.command is not None and not sandbox.command.done()


def _kill(sandbox: _Sandbox) -> None:
    if sandbox.command is not None:
        sandbox.command.cancel()


async def _receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    line = await reader.readline()
    if not line:
        raise EOFError
    header = json.loads(line)
    return header, await reader.readexactly(header["size"]) if header["size"] else b""


async def _ask_model(path: str, order: dict[str, Any]) -> None:
    """One chat completion through the gateway, as the agent in a sandbox would ask for it."""
    messages = [
        {"role": "system", "content": order["systemPrompt"]},
        {"role": "user", "content": order["prompt"]},
    ]
    body = json.dumps({"model": order["model"], "messages": messages, "max_tokens": 100}).encode()
    reader, writer = await asyncio.open_unix_connection(path, limit=_LIMIT)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: model\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer[:200])
    finally:
        writer.close()


async def _run(given: argparse.Namespace) -> None:
    objects = Objects(given.repository)
    host = Host(objects, given.task_seconds, given.requests)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    server = await asyncio.start_unix_server(host.serve, given.socket, limit=_LIMIT, backlog=_BACKLOG)
    print("ready", flush=True)
    await over.wait()
    server.close()
    given.log.write_text(json.dumps(host.worked), "utf-8")
    objects.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--task-seconds", type=float, required=True)
    parser.add_argument("--requests", type=int, default=1)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
