"""The outer end of an allowlist: a proxy on a unix socket that connects a sandbox to allowed hosts, by HTTPS and nothing else.

A host is allowed by its name; what the name leads to is looked up here, and every address is checked: a name that leads
to this host, its network or its neighbours is refused, whoever holds that name. The connection is made to an address
that was checked, never to the name again. What is said goes through encrypted, as the sandbox and its peer agree.
"""

import contextlib
import ipaddress
import json
import os
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from longshot_dagster.core.display import one_line
from longshot_dagster.core.errors import SandboxRefused

Resolve = Callable[[str], Sequence[str]]  # addresses of a name; raises OSError
Reach = Callable[[str], socket.socket]  # a connection to port 443 of a name; raises NotAllowed, OSError

MAX_CONNECTIONS = 64  # of one command at once
MAX_AUDIT_BYTES = 16 << 20
_PORT = 443
_MAX_HEAD = 8 << 10
_HEAD_S, _CONNECT_S, _IDLE_S = 10.0, 15.0, 120.0
_LAST_LINES_S = 1.0  # for what is written down, once the command has ended
_REQUEST = re.compile(rb"CONNECT ([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5}) HTTP/1\.[01]\r\n")
_EMBEDS_IPV4 = ipaddress.ip_network("64:ff9b::/96")  # NAT64
_AUDIT = threading.Lock()


class NotAllowed(Exception):
    """Raised for a connection that the allowlist does not cover; its text says why."""


class EgressProxy:
    """A proxy for one command, listening from its start to its end. Use as a context manager.

    `folder` holds its socket; `audit` gets one line of JSON for each connection, with what `marks` says.
    """

    def __init__(
        self, folder: Path, hosts: Sequence[str], reach: Reach, audit: Path, marks: dict[str, str] | None = None
    ) -> None:
        self.socket = folder / "proxy.sock"
        self._hosts = tuple(host.lower() for host in hosts)
        self._reach = reach
        self._audit = audit
        self._marks = marks or {}
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._ended = threading.Event()
        self._open: set[socket.socket] = set()
        self._serving: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._accept, name="egress", daemon=True)

    def __enter__(self) -> "EgressProxy":
        folder = os.open(self.socket.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # a unix socket's path has at most 107 bytes, and this one may be longer
            self._server.bind(f"/proc/self/fd/{folder}/{self.socket.name}")
        finally:
            os.close(folder)
        self._server.listen(MAX_CONNECTIONS)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept()
        self._server.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        deadline = time.monotonic() + _LAST_LINES_S
        for thread in list(self._serving):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                inner = self._server.accept()[0]
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                inner.close()
                continue
            thread = threading.Thread(target=self._serve, args=(inner,), name="egress", daemon=True)
            self._serving.add(thread)
            thread.start()

    def _serve(self, inner: socket.socket) -> None:
        said: dict[str, object] = {"at": round(time.time(), 3), **self._marks}
        try:
            with self._kept(inner), contextlib.suppress(OSError):
                host = self._asked(inner, said)
                if host is None:
                    return
                try:
                    outer = self._reach(host)
                except NotAllowed as e:
                    said |= {"allowed": False, "why": str(e)}
                    _answer(inner, "403 Forbidden", str(e))
                    return
                except OSError as e:
                    said |= {"allowed": True, "why": f"not reached: {e.strerror or e}"}
                    _answer(inner, "502 Bad Gateway", "the host could not be reached")
                    return
                with self._kept(outer):
                    inner.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    said |= {"allowed": True, "sent": 0, "received": 0}
                    _exchange(inner, outer, said)
        finally:
            if len(said) > 1 + len(self._marks):
                self._note(said)
            self._room.release()
            self._serving.discard(threading.current_thread())

    def _asked(self, inner: socket.socket, said: dict[str, object]) -> str | None:
        """The host that is to be reached; None when it was refused."""
        head = _head(inner)
        found = _REQUEST.match(head)
        if found is None:
            said |= {"allowed": False, "why": "it is not CONNECT", "asked": one_line(head.decode("latin-1"), 200)}
            _answer(inner, "403 Forbidden", "only HTTPS to allowed hosts leaves this sandbox")
            return None
        host, port = found[1].decode("ascii").lower().removesuffix("."), int(found[2])
        said |= {"host": host, "port": port}
        if port != _PORT or not allowed(host, self._hosts):
            said |= {"allowed": False, "why": "it is not on the list" if port == _PORT else "only port 443 is allowed"}
            _answer(inner, "403 Forbidden", f"{host}:{port} is not allowed by SANDBOX_ALLOW")
            return None
        return host

    @contextlib.contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[None]:
        """Closed at the end, and cut off before when the command has ended."""
        with connection:
            with self._lock:
                self._open.add(connection)
            try:
                if not self._ended.is_set():
                    yield
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _note(self, said: dict[str, object]) -> None:
        line = json.dumps(said).encode() + b"\n"
        with _AUDIT, contextlib.suppress(OSError):
            if self._audit.exists() and self._audit.stat().st_size > MAX_AUDIT_BYTES:
                self._audit.replace(self._audit.with_suffix(".1.jsonl"))
            with self._audit.open("ab", buffering=0) as file:
                file.write(line)


def allowed(host: str, hosts: Sequence[str]) -> bool:
    """Is `host` one of `hosts`, or below one of the form `*.name`?"""
    return any(
        host == one or (one.startswith("*.") and host.endswith(one[1:]) and len(host) >= len(one)) for one in hosts
    )


def reach(host: str, resolve: Resolve | None = None) -> socket.socket:
    """A connection to `host` by one of its addresses. Raises NotAllowed when any of them is none of the public internet."""
    addresses = (resolve or _resolved)(host)
    for address in addresses:
        if not is_public(address):
            raise NotAllowed(f"{host} leads to {address}, which is not a public address")
    failed: OSError = OSError("it has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, _PORT), _CONNECT_S)
        except OSError as e:
            failed = e
    raise failed


def is_public(address: str) -> bool:
    """Does `address` lead to the public internet, also when it carries another address within it?"""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found in _EMBEDS_IPV4:
        return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    if not found.is_global or found.is_multicast or found.is_reserved or found.is_unspecified or "%" in address:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return True
    if found.is_site_local:
        return False
    within = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
    if int(found) >> 32 == 0:
        within.append(ipaddress.IPv4Address(int(found)))
    return all(one is None or is_public(str(one)) for one in within)


def refuse_bad_hosts(hosts: Sequence[str]) -> None:
    """Raises SandboxRefused for what is not a host name or `*.name`."""
    if not hosts:
        raise SandboxRefused("SANDBOX_NETWORK=allowlist needs hosts: set SANDBOX_ALLOW, or SANDBOX_NETWORK=none")
    for host in hosts:
        name = host.removeprefix("*.")
        if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) or name.rpartition(".")[2].isdigit():
            raise SandboxRefused(f"{host[:80]!r} is no host name; an allowlist holds names and `*.name`")


def _resolved(host: str) -> list[str]:
    found = socket.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _head(inner: socket.socket) -> bytes:
    """What comes before an empty line; less when it is too long or does not come. Byte by byte: what follows is TLS."""
    deadline, head = time.monotonic() + _HEAD_S, bytearray()
    while len(head) < _MAX_HEAD and not head.endswith(b"\r\n\r\n"):
        inner.settimeout(max(0.01, deadline - time.monotonic()))
        waiting = inner.recv(_MAX_HEAD, socket.MSG_PEEK)
        if not waiting or time.monotonic() > deadline:
            return b""
        end = (head + waiting).find(b"\r\n\r\n")
        head += inner.recv(len(waiting) if end < 0 else end + 4 - len(head))
    return bytes(head) if head.endswith(b"\r\n\r\n") else b""


def _answer(inner: socket.socket, status: str, why: str) -> None:
    body = f"longshot: {one_line(why, 300)}\n".encode()
    inner.settimeout(_HEAD_S)
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    inner.sendall(head.encode("ascii") + body)


def _exchange(inner: socket.socket, outer: socket.socket, said: dict[str, object]) -> None:
    """Copy both ways until both have ended, or neither has said anything for a while."""
    ways = {inner: (outer, "sent"), outer: (inner, "received")}
    counts = {"sent": 0, "received": 0}
    for one in ways:
        one.settimeout(_IDLE_S)
    with selectors.DefaultSelector() as selector:
        for one in ways:
            selector.register(one, selectors.EVENT_READ)
        try:
            while selector.get_map() and (ready := selector.select(_IDLE_S)):
                for key, _ in ready:
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    sink, way = ways[source]
                    data = source.recv(1 << 16)
                    if data:
                        sink.sendall(data)
                        counts[way] += len(data)
                    else:
                        selector.unregister(source)
                        sink.shutdown(socket.SHUT_WR)
        finally:
            said |= counts
