"""The allowlist: only HTTPS, only named hosts, only public addresses, and every connection is written down."""

import contextlib
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes import egress
from longshot_dagster.adapters.sandboxes.egress import EgressProxy, NotAllowed, allowed, is_public, reach
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

NUMBERS = itertools.count()
HOSTS = ("files.example.org", "*.pypi.example")


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """A peer on this host that says what it was told, backwards; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def talk(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data[::-1])

        def accept() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def reached(server: int) -> Callable[[str], socket.socket]:
    """As if every name that is asked for led to the peer."""
    return lambda host: socket.create_connection(("127.0.0.1", server), 5)


@pytest.fixture
def proxy(tmp_path: Path, reached: Callable[[str], socket.socket]) -> Iterator[EgressProxy]:
    with EgressProxy(tmp_path, HOSTS, reached, tmp_path / "egress.jsonl", {"sandbox": "sb-1"}) as found:
        yield found


def asked(proxy: EgressProxy, said: bytes, further: bytes = b"") -> bytes:
    """Everything that comes back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(proxy.socket))
        client.sendall(said)
        answer = client.recv(1 << 16)
        if further:
            client.sendall(further)
        client.shutdown(socket.SHUT_WR)
        while data := client.recv(1 << 16):
            answer += data
    return answer


def audit(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "egress.jsonl").read_bytes().splitlines()]


def connect(target: str) -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


def test_an_allowed_host_is_reached_and_written_down(proxy: EgressProxy, tmp_path: Path) -> None:
    said = asked(proxy, connect("Files.Example.org:443") + b"hel", b"lo")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert sorted(said.partition(b"\r\n\r\n")[2]) == sorted(b"hello")
    proxy.__exit__()
    (line,) = audit(tmp_path)
    known = ("sandbox", "host", "port", "allowed", "sent", "received")
    assert [line[key] for key in known] == ["sb-1", "files.example.org", 443, True, 5, 5]
    assert str(line["at"]) > "1"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (connect("evil.example.com:443"), "not on the list"),
        (connect("files.example.org:80"), "only port 443"),
        (connect("files.example.org.evil.com:443"), "not on the list"),
        (connect("pypi.example:443"), "not on the list"),
        (connect("notpypi.example:443"), "not on the list"),
        (connect("127.0.0.1:443"), "not on the list"),
        (connect("[::1]:443"), "not on the list"),
        (connect("[::ffff:127.0.0.1]:443"), "not on the list"),
        (b"GET http://files.example.org/ HTTP/1.1\r\nHost: files.example.org\r\n\r\n", "not CONNECT"),
        (b"CONNECT files.example.org:443\r\n\r\n", "not CONNECT"),
        (b"CONNECT files.example.org:443 HTTP/1.1\nHost: x\n\n\r\n\r\n", "not CONNECT"),
        (b"CONNECT files.example.org\x00:443 HTTP/1.1\r\n\r\n", "not CONNECT"),
        (b"\x16\x03\x01" + bytes(40) + b"\r\n\r\n", "not CONNECT"),
    ],
)
def test_anything_else_is_refused_with_a_reason(proxy: EgressProxy, tmp_path: Path, said: bytes, why: str) -> None:
    assert asked(proxy, said).startswith(b"HTTP/1.1 403 Forbidden\r\n")
    proxy.__exit__()
    (line,) = audit(tmp_path)
    assert line["allowed"] is False
    assert why in str(line["why"])


def test_a_head_without_end_is_given_up(proxy: EgressProxy) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(proxy.socket))
        client.sendall(b"CONNECT " + b"a" * 20_000)
        assert client.recv(1000).startswith(b"HTTP/1.1 403 ")


def test_only_so_many_connections_at_once(proxy: EgressProxy) -> None:
    proxy._room = threading.BoundedSemaphore(2)
    clients, said = [socket.socket(socket.AF_UNIX) for _ in range(3)], list[bytes]()
    try:
        for client in clients:
            client.settimeout(10)
            client.connect(str(proxy.socket))
            with contextlib.suppress(ConnectionError):
                client.sendall(connect("files.example.org:443"))
                said.append(client.recv(100)[:12])
    finally:
        for client in clients:
            client.close()
    assert [one for one in said if one] == [b"HTTP/1.1 200"] * 2


def test_a_name_that_leads_home_is_refused(tmp_path: Path) -> None:
    for address in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:192.168.0.1", "64:ff9b::7f00:1"):
        with pytest.raises(NotAllowed, match="not a public address"):
            reach("files.example.org", lambda host, found=address: ["93.184.215.14", found])  # type: ignore[misc]
    with pytest.raises(OSError, match="no address"):
        reach("files.example.org", lambda host: [])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("198.18.0.1", False),
        ("::", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::93.184.215.14", True),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_names_and_what_lies_below_them() -> None:
    assert allowed("files.example.org", HOSTS)
    assert allowed("a.b.pypi.example", HOSTS)
    assert not any(
        allowed(host, HOSTS) for host in ("", "example.org", ".pypi.example", "pypi.example", "xpypi.example")
    )


# --- from inside -----------------------------------------------------------------------------------------------------

_TALK = """
import os, socket, sys
proxy = os.environ["HTTPS_PROXY"].rpartition("/")[2].split(":")
def told(target, more=b""):
    with socket.create_connection((proxy[0], int(proxy[1])), 5) as s:
        s.sendall(b"CONNECT %s HTTP/1.1\\r\\n\\r\\n" % target + more)
        s.shutdown(socket.SHUT_WR)
        found = b""
        while data := s.recv(65536):
            found += data
    return found
print(told(b"files.example.org:443", b"abc").splitlines()[0].decode(), told(b"files.example.org:443", b"abc")[-3:].decode())
print(told(b"evil.example.com:443").splitlines()[0].decode())
def direct(where):
    try:
        socket.create_connection((where, int(sys.argv[1])), 1).close()
        return "reached"
    except OSError:
        return "refused"
print(direct("127.0.0.1"), direct("192.0.2.1"))
try:
    print(socket.getaddrinfo("files.example.org", 443))
except OSError:
    print("no names")
print(os.environ["https_proxy"] == os.environ["HTTP_PROXY"] == os.environ["ALL_PROXY"], os.environ["NO_PROXY"])
"""


def begun(provider: LocalProvider, hosts: Sequence[str] = HOSTS) -> LocalSandbox:
    return provider.create(SandboxSpec(name=f"e{next(NUMBERS)}", network="allowlist", hosts=tuple(hosts)))


def test_every_command_reaches_what_is_allowed_and_nothing_else(
    tmp_path: Path, reached: Callable[[str], socket.socket], server: int
) -> None:
    base = tmp_path / ("long" * 30)  # longer than a unix socket's path may be
    provider = LocalProvider(base, Isolation.AUTO, reached)
    sandbox = begun(provider)
    for one in (sandbox, LocalProvider(base, Isolation.AUTO, reached).attach(sandbox.id)):
        ran = one.exec(["python3", "-I", "-c", _TALK, str(server)], timeout_s=20)
        assert ran.exit_code == 0, ran.stderr
        assert ran.stdout.decode().splitlines() == [
            "HTTP/1.1 200 Connection established cba",
            "HTTP/1.1 403 Forbidden",
            "refused refused",
            "no names",
            "True localhost,127.0.0.1,::1",
        ]
    assert sandbox.exec(["no-such-command"], timeout_s=10).exit_code == 127
    assert sandbox.exec(["sh", "-c", "cat; exit 3"], timeout_s=10, stdin=b"fed").exit_code == 3
    sandbox.terminate()
    told = [(line.get("host"), line["allowed"], line["sandbox"]) for line in audit(base)]
    assert told[:3] == [("files.example.org", True, sandbox.id)] * 2 + [("evil.example.com", False, sandbox.id)]
    assert [p.name for p in base.iterdir()] == ["egress.jsonl"]


def test_what_serves_the_proxy_is_nobodys_child(tmp_path: Path, reached: Callable[[str], socket.socket]) -> None:
    """A command that waits for its children, or ends them, has only its own."""
    sandbox = begun(LocalProvider(tmp_path / "s", Isolation.AUTO, reached))
    code = """
import os, sys
try:
    os.waitpid(-1, os.WNOHANG)
    print("a child")
except ChildProcessError:
    print("none")
print(len([n for n in os.listdir("/proc") if n.isdigit()]) <= 4, sorted(os.listdir("/proc/self/fd"))[:3])
"""
    ran = sandbox.exec(["python3", "-I", "-c", code], timeout_s=20)
    assert ran.stdout.decode().splitlines() == ["none", "True ['0', '1', '2']"], ran.stderr
    sandbox.terminate()


def test_the_audit_does_not_grow_for_ever(tmp_path: Path, proxy: EgressProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "MAX_AUDIT_BYTES", 10)
    for _ in range(3):
        asked(proxy, connect("evil.example.com:443"))
    proxy.__exit__()
    assert len(audit(tmp_path)) == 1
    assert (tmp_path / "egress.1.jsonl").read_bytes().count(b"\n") == 1
