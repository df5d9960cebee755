"""The contract of sandbox providers, as core/sandbox.py words it. Every provider passes all of it.

CONTRACT_SANDBOXES=local,docker pytest tests/contract    checks those; a provider of an installed package by its name
"""

import contextlib
import hashlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from places import Place, in_short

from longshot_dagster.core.errors import Cancelled, FileMissing, SandboxError, SandboxGone, SandboxRefused, TooLarge
from longshot_dagster.core.sandbox import ExecResult, Sandbox

HERE = Path(__file__).parent
BEAT = "while :; do echo >> beat; sleep 0.05; done"
ESCAPEES = f"""
trap '' TERM HUP INT
setsid -f sh -c '{BEAT}'
nohup sh -c '{BEAT}' >/dev/null 2>&1 &
( ( {BEAT} ) & )
env -i setsid -f /bin/sh -c '{BEAT.replace("sleep", "/bin/sleep")}'
while [ ! -s beat ]; do sleep 0.02; done
echo up
{BEAT}
"""


def sh(sandbox: Sandbox, script: str, timeout_s: float = 30, **more: Any) -> ExecResult:
    return sandbox.exec(["sh", "-c", script], timeout_s=timeout_s, **more)


def python(sandbox: Sandbox, code: str, **more: Any) -> str:
    ran = sandbox.exec(["python3", "-I", "-W", "ignore", "-c", code], timeout_s=30, **more)
    assert ran.exit_code == 0, ran.stderr.decode(errors="replace")
    return ran.stdout.decode().strip()


def grows(sandbox: Sandbox, path: str = "/workspace/beat") -> bool:
    """Is somebody still writing there?"""
    before = len(sandbox.read(path))
    time.sleep(0.4)
    return len(sandbox.read(path)) > before


def wait_until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_exit_code_and_streams_come_apart(shared: Sandbox) -> None:
    ran = sh(shared, "echo out; echo err >&2; exit 7")
    assert (ran.exit_code, ran.stdout, ran.stderr) == (7, b"out\n", b"err\n")
    assert (ran.timed_out, ran.truncated) == (False, False)
    assert 0 < ran.duration_s < 30


@pytest.mark.core
def test_words_are_not_read_by_a_shell(shared: Sandbox) -> None:
    words = ["$HOME; exit 3", "a b", "*", "", "'\"\\", "-n", "é\n"]
    code = "import sys; sys.stdout.buffer.write(repr(sys.argv[1:]).encode())"
    ran = shared.exec(["python3", "-I", "-X", "utf8", "-c", code, *words], timeout_s=30)
    assert ran.stdout.decode() == repr(words)


def test_a_command_has_the_sandboxs_folder_and_variables_and_its_own(shared: Sandbox) -> None:
    assert sh(shared, "pwd; echo $GIVEN/$MORE").stdout.splitlines()[1] == b"by the sandbox/"
    ran = sh(shared, 'echo "$(basename "$PWD")/$GIVEN/$MORE"', cwd="/tmp", env={"MORE": "é ;$x", "GIVEN": "other"})
    assert ran.stdout.decode() == "tmp/other/é ;$x\n"
    assert sh(shared, 'basename "$PWD"').stdout == b"workspace\n"


@pytest.mark.core
def test_300_kb_of_input_arrive_and_end(shared: Sandbox) -> None:
    data = os.urandom(300_000)
    ran = shared.exec(["sha256sum"], timeout_s=30, stdin=data)
    assert ran.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


@pytest.mark.core
def test_without_input_there_is_an_empty_one(shared: Sandbox) -> None:
    assert shared.exec(["cat"], timeout_s=30).stdout == b""
    assert shared.exec(["cat"], timeout_s=30, stdin=b"").exit_code == 0


def test_input_that_nobody_reads_blocks_nothing(shared: Sandbox) -> None:
    assert shared.exec(["true"], timeout_s=30, stdin=b"x" * 2_000_000).exit_code == 0


def test_output_is_heard_as_it_is_said(shared: Sandbox) -> None:
    heard: list[tuple[str, bytes]] = []

    def hear(stream: str, data: bytes) -> None:
        heard.append((stream, data))
        if stream == "stdout" and b"first" in b"".join(d for s, d in heard if s == "stdout"):
            shared.write("/workspace/go-on", b"")

    ran = sh(shared, "echo first; echo err >&2; while [ ! -e go-on ]; do sleep 0.02; done; echo last", on_output=hear)
    assert (ran.stdout, ran.stderr) == (b"first\nlast\n", b"err\n")
    assert [b"".join(d for s, d in heard if s == name) for name in ("stdout", "stderr")] == [ran.stdout, ran.stderr]


@pytest.mark.core
def test_a_running_command_is_fed(place: Place, shared: Sandbox) -> None:
    if not place.provider.capabilities.live_stdin:
        return
    answered: list[bytes] = []
    news = threading.Event()

    def talk() -> Iterator[bytes]:
        for word in (b"one\n", b"two\n"):
            news.clear()
            yield word
            assert news.wait(20)

    def hear(stream: str, data: bytes) -> None:
        answered.append(data)
        news.set()

    ran = sh(shared, 'while read word; do echo "heard $word"; done; echo end', stdin=talk(), on_output=hear)
    assert ran.stdout == b"heard one\nheard two\nend\n"
    assert b"".join(answered) == ran.stdout


def test_both_streams_full_at_once_do_not_block(shared: Sandbox) -> None:
    ran = sh(shared, "head -c 1000000 /dev/zero & head -c 1000000 /dev/zero >&2; wait")
    assert (len(ran.stdout), len(ran.stderr), ran.truncated) == (1_000_000, 1_000_000, False)


@pytest.mark.core
def test_of_much_output_the_end_is_kept(shared: Sandbox) -> None:
    ran = sh(shared, "seq 1 300000; echo end >&2", keep_bytes=1_000)
    assert (len(ran.stdout), ran.stdout[-7:], ran.stderr, ran.truncated) == (1_000, b"300000\n", b"end\n", True)


@pytest.mark.core
def test_output_is_bytes(shared: Sandbox) -> None:
    ran = sh(shared, r"printf '\000\341\377\r\n'; printf '\377' >&2; printf '\303'")
    assert (ran.stdout, ran.stderr) == (b"\x00\xe1\xff\r\n\xc3", b"\xff")


@pytest.mark.core
def test_a_timeout_kills_the_tree_and_keeps_the_sandbox(place: Place) -> None:
    with place.sandbox() as sandbox:
        ran = sh(sandbox, ESCAPEES, timeout_s=2)
        assert (ran.exit_code, ran.timed_out, ran.stdout[:3]) == (124, True, b"up\n")
        assert ran.duration_s < 20
        assert not grows(sandbox)
        assert sh(sandbox, "echo alive").stdout == b"alive\n"


def test_a_cancelled_command_ends_with_its_tree(place: Place) -> None:
    with place.sandbox() as sandbox:
        cancelled = threading.Event()
        with pytest.raises(Cancelled):
            sh(sandbox, ESCAPEES, timeout_s=60, on_output=lambda *_: cancelled.set(), cancelled=cancelled.is_set)
        assert not grows(sandbox)


@pytest.mark.core
def test_a_command_that_kills_itself_has_not_timed_out(shared: Sandbox) -> None:
    ran = sh(shared, "echo said; kill -9 $$")
    assert (ran.exit_code, ran.timed_out, ran.stdout) == (137, False, b"said\n")
    assert sh(shared, "kill -TERM $$").exit_code == 143
    assert [sh(shared, f"exit {code}").exit_code for code in (124, 255)] == [124, 255]


def test_a_command_that_does_not_exist_is_an_exit_code(shared: Sandbox) -> None:
    ran = shared.exec(["no-such-command"], timeout_s=30)
    assert (ran.exit_code, ran.timed_out, ran.stdout) == (127, False, b"")


def test_commands_run_side_by_side(shared: Sandbox) -> None:
    found: list[bytes] = []
    script = "touch here-{0}; while [ $(ls here-* | wc -l) -lt 6 ]; do sleep 0.02; done; echo {0}"
    threads = [threading.Thread(target=lambda n=n: found.append(sh(shared, script.format(n)).stdout)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [b"%d\n" % n for n in range(6)]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_2_mb_go_in_and_out(shared: Sandbox) -> None:
    data = os.urandom(2 << 20)
    shared.write("/workspace/big", data)
    assert shared.read("/workspace/big") == data
    assert shared.read("/workspace/big", max_bytes=len(data)) == data
    assert sh(shared, "wc -c < big; cp big copy").stdout.split() == [b"2097152"]
    assert shared.read("/workspace/copy") == data


@pytest.mark.parametrize("name", ["a b/c d", "é ü", "quote'\"$x", "-n", "deep/er/than/this", "x\ny"])
def test_a_file_may_have_any_name_and_its_folders_are_made(shared: Sandbox, name: str) -> None:
    shared.write(f"/workspace/names/{name}", b"old and longer")
    shared.write(f"/workspace/names/{name}", b"new")
    assert shared.read(f"/workspace/names/{name}") == b"new"
    assert sh(shared, f"cat {shlex.quote(f'names/{name}')}").stdout == b"new"


def test_what_we_write_belongs_to_the_sandbox(shared: Sandbox) -> None:
    shared.write("/workspace/theirs/file", b"x")
    assert sh(shared, "echo y >> theirs/file && mv theirs/file theirs/other && rm -r theirs").exit_code == 0


@pytest.mark.wall
def test_a_path_is_the_same_to_commands_and_to_files(shared: Sandbox) -> None:
    shared.write("/workspace/both", b"1")
    assert sh(shared, "cat /workspace/both && echo 2 > /workspace/both").stdout == b"1"
    assert shared.read("/workspace/both") == b"2\n"


@pytest.mark.core
def test_what_is_no_file_is_missing_and_what_is_too_large_is_said(shared: Sandbox) -> None:
    sh(shared, "mkdir -p folder; mkfifo pipe; head -c 1001 /dev/zero > large; truncate -s 1G hole; : > empty")
    assert shared.read("/workspace/empty", max_bytes=0) == b""
    for path in ("nothing", "folder", "large/x", "no/folder", "pipe"):
        with pytest.raises(FileMissing):
            shared.read(f"/workspace/{path}")
    for path in ("large", "hole"):
        with pytest.raises(TooLarge):
            shared.read(f"/workspace/{path}", max_bytes=1000)
    for write in (lambda: shared.write("/workspace/folder", b""), lambda: shared.write("/workspace/large/x", b"")):
        with pytest.raises(SandboxError):
            write()
    assert sh(shared, "test -d folder && test -f large").exit_code == 0


def test_a_path_is_absolute_and_goes_nowhere_else(shared: Sandbox) -> None:
    for path in ("relative", "/workspace/../../x", "/", ""):
        with pytest.raises(SandboxError):
            shared.write(path, b"")
        with pytest.raises(SandboxError):
            shared.read(path)


def test_a_device_does_not_fill_the_reader(shared: Sandbox) -> None:
    began = time.monotonic()
    sh(shared, "ln -s /dev/zero endless")
    for path in ("/dev/zero", "/workspace/endless"):
        with pytest.raises((FileMissing, TooLarge)):
            shared.read(path, max_bytes=1000)
    assert time.monotonic() - began < 20


def test_a_link_does_not_lead_to_the_host(shared: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    sh(shared, f"ln -s {secret} to-file; ln -s {tmp_path} to-folder; ln -s ../../../../../..{tmp_path} up")
    for path in ("to-file", "to-folder/secret", "up/secret"):
        with pytest.raises(SandboxError):
            shared.read(f"/workspace/{path}")
    for path in ("to-folder/new", "up/new"):
        try:
            shared.write(f"/workspace/{path}", b"x")
        except SandboxError:
            continue
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]
    assert secret.read_text() == "the host's"


# --- walls ------------------------------------------------------------------------------------------------------------


@pytest.mark.wall
def test_two_sandboxes_share_no_file(place: Place, shared: Sandbox, once: Callable[[str], Path]) -> None:
    with place.sandbox() as other:
        for path in (once("/tmp"), Path("/workspace/mine")):
            assert sh(shared, f"echo mine > {path}").exit_code == 0, "it could not be tried"
            assert sh(other, f"cat {path}").exit_code != 0
            with pytest.raises(FileMissing):
                other.read(str(path))


@pytest.mark.wall
def test_nothing_of_the_hosts_environment_is_inside(
    place: Place, shared: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-of-the-host")
    with place.sandbox() as sandbox:
        assert b"sk-of-the-host" not in sh(sandbox, "env; cat /proc/self/environ /proc/1/environ").stdout


@pytest.mark.wall
def test_no_file_of_the_host_is_read(shared: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the host's")
    assert b"the host's" not in sh(shared, f"cat {tmp_path}/secret /proc/1/root{tmp_path}/secret").stdout


@pytest.mark.wall
def test_no_file_of_the_host_is_written(shared: Sandbox, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("old")
    sh(shared, f"echo new > {kept}; mkdir -p {tmp_path}; echo new > {tmp_path}/new")
    assert ([p.name for p in tmp_path.iterdir()], kept.read_text()) == (["kept"], "old")


@pytest.mark.wall
def test_no_process_of_the_host_is_seen(shared: Sandbox) -> None:
    mark = f"host-process-{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", "input()", mark], stdin=subprocess.PIPE) as process:
        seen = sh(shared, "cat /proc/[0-9]*/cmdline").stdout
        assert sh(shared, f"kill -0 {process.pid}").exit_code != 0
        process.communicate(b"\n")
    assert mark.encode() not in seen


@pytest.mark.wall
def test_no_process_of_another_sandbox_is_seen(place: Place, shared: Sandbox) -> None:
    with place.sandbox() as other:
        mark, seen = f"in-the-other-{os.getpid()}", []

        def look(*_: object) -> None:
            seen.append(sh(shared, "cat /proc/[0-9]*/cmdline").stdout)
            other.write("/workspace/go-on", b"")

        script = "cat /proc/$$/cmdline; while [ ! -e go-on ]; do sleep 0.02; done"
        ran = other.exec(["sh", "-c", script, mark], timeout_s=30, on_output=look)
    assert mark.encode() in ran.stdout
    assert mark.encode() not in b"".join(seen)


@pytest.mark.wall
def test_a_command_has_no_power_over_the_kernel(shared: Sandbox) -> None:
    seen = sh(shared, "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status").stdout.decode().split()
    facts = dict(zip(seen[::2], seen[1::2], strict=True))
    assert (facts["CapEff:"], facts["NoNewPrivs:"]) == ("0000000000000000", "1")
    assert sh(shared, "(: >> /proc/sys/vm/swappiness) || echo refused").stdout == b"refused\n"


@pytest.mark.core
@pytest.mark.wall
def test_without_network_nobody_is_reached(shared: Sandbox) -> None:
    with listener() as (port, reached):
        reach = attempts(port, direct=[*addresses()])
        assert python(shared, reach) == "tried"
        assert reached == []
    names = "import socket; print([n for _, n in socket.if_nameindex() if n != 'lo'])"
    assert python(shared, names) == "[]"


@pytest.mark.wall
def test_no_abstract_socket_of_the_host_is_reached(shared: Sandbox) -> None:
    name = f"longshot-contract-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        code = f"import socket; print(socket.socket(socket.AF_UNIX).connect_ex('\\0{name}') != 0)"
        assert python(shared, code) == "True"


@pytest.mark.wall
def test_beside_the_allowed_hosts_nobody_is_reached(place: Place) -> None:
    if "allowlist" not in place.provider.capabilities.network:
        with pytest.raises(SandboxRefused), place.sandbox(network="allowlist", hosts=("files.example.invalid",)):
            pytest.fail("it was not refused")
        return
    with place.sandbox(network="allowlist", hosts=("files.example.invalid",)) as sandbox, listener() as (port, reached):
        reach = attempts(port, direct=[*addresses()], proxied=["127.0.0.1", "localhost", "[::1]", *addresses()])
        assert python(sandbox, reach) == "tried"
        assert reached == []


def addresses() -> list[str]:
    """Of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return ["127.0.0.1"]
        return ["127.0.0.1", probe.getsockname()[0]]


class listener:  # noqa: N801 - reads as a function
    """A TCP server of the host; yields its port and who has connected."""

    def __enter__(self) -> tuple[int, list[object]]:
        self._server = socket.create_server(("", 0))
        self._reached: list[object] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self._server.getsockname()[1], self._reached

    def _accept(self) -> None:
        while True:
            connection, address = self._server.accept()
            with connection:
                if connection.recv(3, socket.MSG_DONTWAIT if self._over else 0) == b"end":
                    return
                self._reached.append(address)

    _over = False

    def __exit__(self, *_: object) -> None:
        with socket.create_connection(("127.0.0.1", self._server.getsockname()[1])) as last:
            last.sendall(b"end")
            self._thread.join()
        self._server.close()


def attempts(port: int, direct: list[str], proxied: list[str] | None = None) -> str:
    """Python that tries all of it and says `tried`."""
    return f"""
import os, socket, urllib.parse
for host in {direct!r}:
    try:
        with socket.create_connection((host, {port}), 2) as s:
            s.sendall(b"got")
    except OSError:
        pass
proxy = urllib.parse.urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or "http://127.0.0.1:9")
for host in {proxied or []!r}:
    for to in ({port}, 443):
        try:
            with socket.create_connection((proxy.hostname, proxy.port), 2) as s:
                s.sendall(f"CONNECT {{host}}:{{to}} HTTP/1.1\\r\\nHost: {{host}}\\r\\n\\r\\n".encode())
                if b" 200 " in s.recv(100):
                    s.sendall(b"got")
        except OSError:
            pass
print("tried")
"""


# --- specifications ---------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_what_cannot_be_kept_is_refused(place: Place, tmp_path: Path) -> None:
    able = place.provider.capabilities
    wishes: dict[str, dict[str, object]] = {
        "gpus": {} if able.gpus else {"gpu": "H100"},
        "cpu": {} if able.enforces_cpu else {"cpu": 1.0},
        "memory": {} if able.enforces_memory else {"memory_mb": 256},
        "idle": {} if able.enforces_idle else {"idle_s": 60},
        "sockets": {} if able.sockets else {"sockets": {"/longshot/gateway/model.sock": str(tmp_path / "model.sock")}},
        "layers": {} if able.layers else {"layers": {"/opt/layer": str(tmp_path)}},
        "readable": {} if able.layers else {"readable": (str(tmp_path),)},
        "lifetime": {"lifetime_s": able.max_lifetime_s + 1} if able.max_lifetime_s else {},
        "snapshots": {} if able.snapshots else {"image": f"{place.provider.name}:no-such-snapshot"},
        **{mode: {} if mode in able.network else {"network": mode} for mode in ("none", "allowlist", "open")},
    }
    before = place.living()
    for what, wish in wishes.items():
        if wish:
            with pytest.raises(SandboxRefused), place.sandbox(**wish):
                pytest.fail(f"{what} was not refused")
    assert place.living() == before


def test_a_snapshot_that_does_not_exist_is_refused(place: Place) -> None:
    with pytest.raises(SandboxRefused), place.sandbox(image=f"{place.provider.name}:no-such-snapshot"):
        pytest.fail("it was not refused")


def test_memory_has_its_limit(place: Place) -> None:
    if not place.provider.capabilities.enforces_memory:
        return
    with place.sandbox(memory_mb=128) as sandbox:
        code = "b = bytearray(400 << 20); b[::4096] = b'x' * len(b[::4096]); import time; time.sleep(5)"
        ran = sandbox.exec(["python3", "-I", "-c", code], timeout_s=30)
        assert ran.exit_code not in (0, 124), ran
        assert sh(sandbox, "echo alive").stdout == b"alive\n"


def test_a_limit_above_what_the_host_has_is_kept_all_the_same(place: Place) -> None:
    if not place.provider.capabilities.enforces_cpu:
        return
    with place.sandbox(cpu=64.0) as sandbox:
        assert sh(sandbox, "echo made").stdout == b"made\n"


# --- lives ------------------------------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_sandbox_is_found_by_its_tags(place: Place) -> None:
    began = time.time()
    with place.sandbox(tags={"task": "r001-01", "odd": "a/b:c é=,"}) as one, place.sandbox(tags={"task": "r001-02"}):
        (found,) = place.provider.list({**place.tags, "task": "r001-01"})
        assert found.id == one.id
        assert (found.tags["task"], found.tags["odd"]) == ("r001-01", "a/b:c é=,")
        assert began - 5 < found.created_at < time.time() + 5
        assert len(place.provider.list({**place.tags, "odd": "a/b:c é=,"})) == 1
        assert place.provider.list({**place.tags, "task": "r001-03"}) == []


def test_who_attaches_sees_the_same_sandbox(place: Place) -> None:
    with place.sandbox(env={"GIVEN": "once"}) as sandbox:
        sandbox.write("/workspace/x", b"1")
        again = place.provider.attach(sandbox.id)
        assert (again.id, again.read("/workspace/x")) == (sandbox.id, b"1")
        assert sh(again, 'echo "$GIVEN"; basename "$PWD"').stdout == b"once\nworkspace\n"


@pytest.mark.parametrize("name", ["sb-nothing", "no-such-sandbox", "../../etc", "", "a b", "x" * 300, "sb-" + "0" * 22])
def test_what_never_was_is_gone(place: Place, name: str) -> None:
    with pytest.raises(SandboxGone):
        place.provider.attach(name)


@pytest.mark.core
def test_ending_twice_is_ending_once_and_then_all_is_gone(place: Place) -> None:
    sandbox = place.provider.create(place.spec(tags={"case": "ended"}))
    again = place.provider.attach(sandbox.id)
    sandbox.terminate()
    sandbox.terminate()
    again.terminate()
    assert place.living(case="ended") == set()
    for call in (
        lambda: sh(sandbox, "true"),
        lambda: sandbox.read("/workspace/x"),
        lambda: sandbox.write("/workspace/x", b""),
        lambda: sh(again, "true"),
        lambda: place.provider.attach(sandbox.id),
    ):
        with pytest.raises(SandboxGone):
            call()


@pytest.mark.core
def test_ending_a_sandbox_frees_whoever_waits_for_a_command(place: Place) -> None:
    sandbox = place.provider.create(place.spec())
    up = threading.Event()
    ending = threading.Thread(target=lambda: (up.wait(30), place.provider.attach(sandbox.id).terminate()))
    ending.start()
    began = time.monotonic()
    with pytest.raises(SandboxGone):
        sh(sandbox, ESCAPEES, timeout_s=60, on_output=lambda *_: up.set())
    ending.join()
    assert time.monotonic() - began < 30


def test_ending_the_commands_keeps_the_files(place: Place) -> None:
    with place.sandbox() as sandbox:
        up, ran = threading.Event(), []
        running = threading.Thread(
            target=lambda: ran.append(sh(sandbox, ESCAPEES, timeout_s=60, on_output=lambda *_: up.set()))
        )
        running.start()
        assert up.wait(30)
        place.provider.attach(sandbox.id).end_commands()
        running.join(30)
        assert [(r.exit_code != 0, r.timed_out) for r in ran] == [(True, False)]
        assert not grows(sandbox)
        assert sh(sandbox, "echo alive").stdout == b"alive\n"


@pytest.mark.core
def test_a_name_has_one_living_sandbox(place: Place) -> None:
    name = f"{place.tags['contract']}-named"
    with place.sandbox(name=name) as one:
        with pytest.raises(SandboxRefused), place.sandbox(name=name):
            pytest.fail("it was not refused")
        assert sh(one, "echo alive").stdout == b"alive\n"
    with place.sandbox(name=name) as another:
        assert another.id != one.id


@pytest.mark.core
def test_a_snapshot_is_a_fork(place: Place) -> None:
    with place.sandbox(tags={"case": "seed"}, env={"OF": "the seed"}) as seed:
        if not place.provider.capabilities.snapshots:
            with pytest.raises(SandboxRefused):
                seed.snapshot()
            return
        sh(seed, "mkdir d; echo one > d/f; chmod 751 d/f; ln -s d/f link; echo gone > gone; chmod 700 d")
        image = seed.snapshot()
        sh(seed, "echo two > d/f; echo later > later")
        with place.sandbox(image=image, tags={"case": "fork"}) as fork, place.sandbox(image=image) as third:
            assert place.living(case="seed") == {seed.id}
            ran = sh(fork, 'cat link; readlink link; stat -c %a d/f d; echo "$OF"; rm gone; ls; echo three > d/f')
            assert ran.stdout.split() == b"one d/f 751 700 d link".split()
            assert fork.read("/workspace/d/f") == b"three\n"
            with pytest.raises(FileMissing):
                fork.read("/workspace/gone")
            assert sh(third, "cat d/f gone").stdout == b"one\ngone\n"
            assert third.read("/workspace/d/f") == b"one\n"
        assert seed.read("/workspace/d/f") == b"two\n"


@pytest.mark.core
def test_a_lifetime_ends(place: Place) -> None:
    sandbox = place.provider.create(place.spec(lifetime_s=2))
    began = time.monotonic()
    with contextlib.suppress(SandboxGone):
        assert sh(sandbox, "sleep 60", timeout_s=60).timed_out
    assert time.monotonic() - began < 30

    def gone() -> bool:
        try:
            sh(sandbox, "true")
        except SandboxGone:
            return True
        return False

    wait_until(gone)
    sandbox.terminate()


def test_an_idle_sandbox_ends_and_a_busy_one_does_not(place: Place) -> None:
    if not place.provider.capabilities.enforces_idle:
        return
    sandbox = place.provider.create(place.spec(idle_s=1, tags={"case": "idle"}))
    assert sh(sandbox, "sleep 2; echo busy").stdout == b"busy\n"
    assert place.living(case="idle") == {sandbox.id}
    wait_until(lambda: place.living(case="idle") == set())
    with pytest.raises(SandboxGone):
        sh(sandbox, "true")
    sandbox.terminate()


def test_what_it_has_cost_is_known_or_not(place: Place, shared: Sandbox) -> None:
    cost = shared.cost()
    assert cost is None or (isinstance(cost, Decimal) and cost >= 0)
    assert place.provider.capabilities.cost or cost is None


@pytest.mark.core
def test_50_sandboxes_at_once(place: Place) -> None:
    found: list[bytes] = []

    def use(number: int) -> None:
        with place.sandbox(tags={"case": "many"}) as sandbox:
            found.append(sh(sandbox, f"echo {number}", timeout_s=120).stdout)

    many = 8 if place.name in in_short() else 50
    threads = [threading.Thread(target=use, args=(n,)) for n in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, found)) == list(range(many))
    assert place.living(case="many") == set()


def test_what_a_killed_process_leaves_is_found_and_ended_by_another(place: Place) -> None:
    code = f"""
import places
from pathlib import Path
from longshot_dagster.core.sandbox import SandboxSpec
sandbox = places.provider({place.name!r}, Path({str(place.folder)!r})).create(
    SandboxSpec(name="{place.tags["contract"]}-orphan", tags={ {**place.tags, "case": "orphan"}!r}, lifetime_s=600))
sandbox.write("/workspace/x", b"left")
sandbox.exec(["sh", "-c", {ESCAPEES!r}], timeout_s=300, on_output=lambda *_: print("up", flush=True))
"""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command, environment = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE.parents[1], env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        (alive,) = place.living(case="orphan")
        assert place.provider.attach(alive).read("/workspace/x") == b"left"
        process.kill()
    (left,) = place.living(case="orphan")
    sandbox = place.provider.attach(left)
    assert sandbox.read("/workspace/x") == b"left"
    if place.provider.capabilities.survives_client:
        assert grows(sandbox)
    else:
        wait_until(lambda: not grows(sandbox))
    sandbox.terminate()
    assert place.living(case="orphan") == set()
    with pytest.raises(SandboxGone):
        place.provider.attach(left)


def test_a_git_bundle_goes_in_and_comes_out(shared: Sandbox, tmp_path: Path) -> None:
    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True).stdout

    git("init", "-q", "-b", "main")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "base")
    git("bundle", "create", "-q", "in.bundle", "main")
    shared.write("/workspace/in.bundle", (tmp_path / "in.bundle").read_bytes())
    ran = sh(
        shared,
        "git clone -q -b main in.bundle repo && cd repo && echo 2 > b && git add b && "
        "git -c user.name=x -c user.email=x@example.invalid commit -qm work && git bundle create -q ../out.bundle origin/main..main",
    )
    assert ran.exit_code == 0, ran.stderr
    (tmp_path / "out.bundle").write_bytes(shared.read("/workspace/out.bundle"))
    git("fetch", "-q", "out.bundle", "main:work")
    assert git("show", "work:b") == b"2\n"
