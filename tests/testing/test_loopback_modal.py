"""The loopback Modal server, asked by the unmodified SDK."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpclib import Status

from longshot_dagster.core.errors import WrongUse
from longshot_dagster.testing.loopback_modal.calls import Fault, Record
from longshot_dagster.testing.loopback_modal.server import LoopbackModal, loopback_modal

PROMPT_S = 10  # what is not slow is done by then on a busy machine


@dataclass
class Account:
    """A server, the SDK's client to it, and an app."""

    server: LoopbackModal
    modal: Any
    client: Any
    app: Any

    @property
    def record(self) -> Record:
        return self.server.record

    def create(self, *argv: str, **asked: Any) -> Any:
        given = {"timeout": 120, "block_network": True, **asked}
        return self.modal.Sandbox.create(*argv, app=self.app, client=self.client, **given)

    def living(self, **tags: str) -> list[str]:
        listed = self.modal.Sandbox.list(app_id=self.app.app_id, tags=tags, client=self.client)
        return [sandbox.object_id for sandbox in listed]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with LoopbackModal(tmp_path_factory.mktemp("modal")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        import modal

        environment = server.environment()
        client = modal.Client.from_credentials(environment["MODAL_TOKEN_ID"], environment["MODAL_TOKEN_SECRET"])
        app = modal.App.lookup("longshot", create_if_missing=True, client=client)
        yield Account(server, modal, client, app)
        client.close()
    assert (server.record.missing, server.record.broken) == ([], [])


@pytest.fixture(scope="module")
def shared(account: Account) -> Iterator[Any]:
    """One sandbox for tests that change nothing in it but what is theirs."""
    sandbox = account.create(env={"COLOUR": "green"}, workdir="/workspace")
    yield sandbox
    sandbox.terminate()


def ran(sandbox: Any, *argv: str, **asked: Any) -> tuple[int, bytes, bytes]:
    process = sandbox.exec(*argv, text=False, **asked)
    process.stdin.write_eof()
    process.stdin.drain()
    return process.wait(), process.stdout.read(), process.stderr.read()


def test_a_command_has_two_streams_an_exit_code_a_place_and_an_environment(account: Account, shared: Any) -> None:
    secret = account.modal.Secret.from_dict({"TOKEN": "s3"})
    script = 'echo "$COLOUR $TOKEN $MORE $(pwd)"; echo aside >&2; exit 3'
    found = ran(shared, "sh", "-c", script, secrets=[secret], env={"MORE": "m"}, workdir="/tmp")
    assert found == (3, b"green s3 m /tmp\n", b"aside\n")
    assert ran(shared, "pwd") == (0, b"/workspace\n", b"")


def test_words_are_not_read_by_a_shell_and_bytes_arrive_as_they_are(shared: Any) -> None:
    assert ran(shared, "printf", "%s|", "a b", "$HOME", "") == (0, b"a b|$HOME||", b"")
    assert ran(shared, "printf", "\\341\\377\\000") == (0, b"\xe1\xff\x00", b"")


def test_a_command_that_is_not_there_ends_with_127_and_one_in_no_folder_with_126(shared: Any) -> None:
    code, _, said = ran(shared, "no-such-command")
    assert (code, b"No such file" in said) == (127, True)
    assert ran(shared, "true", workdir="/tmp/nowhere")[0] == 127


def test_output_comes_while_the_command_runs(shared: Any) -> None:
    process = shared.exec("sh", "-c", "echo first; read line; echo $line", text=False)
    lines = iter(process.stdout)
    assert next(lines) == b"first\n"
    process.stdin.write(b"second\n")
    process.stdin.drain()
    assert next(lines) == b"second\n"
    assert process.wait() == 0


def test_300_kilobytes_of_input_come_back_and_end(shared: Any) -> None:
    given = os.urandom(300_000)
    process = shared.exec("cat", text=False)
    process.stdin.write(given)
    process.stdin.write_eof()
    process.stdin.drain()
    assert (process.stdout.read(), process.wait()) == (given, 0)


def test_both_streams_may_be_full_at_once(shared: Any) -> None:
    script = "head -c 6000000 /dev/zero & head -c 6000000 /dev/zero >&2; wait"
    process = shared.exec("sh", "-c", script, text=False)
    assert (len(process.stderr.read()), len(process.stdout.read()), process.wait()) == (6_000_000, 6_000_000, 0)


def test_endless_output_takes_no_more_than_its_window(account: Account) -> None:
    sandbox = account.create()
    process = sandbox.exec("cat", "/dev/zero", text=False)
    chunks = iter(process.stdout)
    assert sum(len(next(chunks)) for _ in range(20)) > 0
    said = account.server.held_bytes()
    assert 0 < said < 128 << 20
    sandbox.terminate()
    assert process.wait() == 137


def test_a_command_that_runs_out_of_time_goes_with_its_tree_and_the_sandbox_stays(shared: Any) -> None:
    script = "sleep 61 & (setsid sleep 62 &) ; sh -c 'sleep 63 & wait' & wait"
    process = shared.exec("sh", "-c", script, text=False, timeout=1)
    assert process.wait() in (-1, 137)
    left = b"x"
    deadline = time.monotonic() + PROMPT_S
    while b"sleep 6" in left.replace(b"sleep 62", b"") and time.monotonic() < deadline:
        left = ran(shared, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")[1]
    assert b"sleep 61" not in left and b"sleep 63" not in left
    ran(shared, "pkill", "-f", "sleep 62")


def test_a_command_that_kills_itself_ends_with_its_signal(shared: Any) -> None:
    assert ran(shared, "sh", "-c", "kill -9 $$")[0] == 137
    assert ran(shared, "sh", "-c", "kill -15 $$")[0] == 143


def test_a_second_command_can_end_the_first_and_background_processes_live_on(shared: Any) -> None:
    long = shared.exec("sh", "-c", "echo $$ > /tmp/pid; exec sleep 60", text=False)
    assert ran(shared, "sh", "-c", "until [ -s /tmp/pid ]; do sleep 0.02; done; kill -9 $(cat /tmp/pid)")[0] == 0
    assert long.wait() == 137
    assert ran(shared, "sh", "-c", "sleep 64 > /dev/null 2>&1 & echo $! > /tmp/other")[0] == 0
    assert ran(shared, "sh", "-c", "kill -0 $(cat /tmp/other) && kill -9 $(cat /tmp/other)")[0] == 0


def test_files(account: Account, shared: Any) -> None:
    files, errors = shared.filesystem, account.modal.exception
    data = os.urandom(2_000_000)
    files.write_bytes(data, "/workspace/a folder/a file")
    assert files.read_bytes("/workspace/a folder/a file") == data
    files.write_bytes(b"", "/workspace/a folder/a file")
    assert files.read_bytes("/workspace/a folder/a file") == b""
    assert ran(shared, "stat", "-c", "%s", "/workspace/a folder/a file")[1] == b"0\n"
    with pytest.raises(errors.SandboxFilesystemNotFoundError):
        files.read_bytes("/workspace/none")
    with pytest.raises(errors.SandboxFilesystemIsADirectoryError):
        files.read_bytes("/workspace")
    with pytest.raises(errors.SandboxFilesystemNotADirectoryError):
        files.write_bytes(b"x", "/etc/passwd/below")


def test_folders(account: Account, shared: Any) -> None:
    files, errors = shared.filesystem, account.modal.exception
    files.make_directory("/workspace/deep/er", create_parents=True)
    files.write_bytes(b"12", "/workspace/deep/er/two")
    ran(shared, "ln", "-s", "two", "/workspace/deep/er/link")
    listed = {entry.name: (entry.type.value, entry.symlink_target) for entry in files.list_files("/workspace/deep/er")}
    assert listed == {"two": ("file", None), "link": ("symlink", "two")}
    assert files.stat("/workspace/deep/er/two").size == 2
    with pytest.raises(errors.SandboxFilesystemPathAlreadyExistsError):
        files.make_directory("/workspace/deep", create_parents=False)
    with pytest.raises(errors.SandboxFilesystemDirectoryNotEmptyError):
        files.remove("/workspace/deep")
    files.remove("/workspace/deep", recursive=True)
    assert ran(shared, "test", "-e", "/workspace/deep")[0] == 1


def test_a_sandbox_sees_neither_another_one_nor_the_host(account: Account, shared: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s", encoding="utf-8")
    shared.filesystem.write_bytes(b"x", "/tmp/mine")
    other = account.create()
    assert ran(other, "test", "-e", "/tmp/mine")[0] == 1
    assert ran(other, "test", "-e", str(tmp_path / "secret"))[0] == 1
    assert b"MODAL_TOKEN" not in ran(other, "env")[1]
    assert ran(other, "sh", "-c", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")[1] == b"lo\n"
    other.terminate()


def test_an_allowlist_opens_its_hosts_and_nothing_else(account: Account) -> None:
    sandbox = account.create(block_network=False, outbound_domain_allowlist=["files.example.org"])
    ask = "import urllib.request as u; u.urlopen('https://other.example.org/')"
    code, _, said = ran(sandbox, "python3", "-I", "-c", ask)
    assert (code, b"403" in said) == (1, True), said
    assert ran(sandbox, "sh", "-c", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")[1] == b"lo\n"
    sandbox.terminate()


def test_tags_are_searched_replaced_and_gone_with_the_sandbox(account: Account) -> None:
    made = [account.create(tags={"build": "b1", "task": str(n)}) for n in range(3)]
    ids = [sandbox.object_id for sandbox in made]
    assert sorted(account.living(build="b1")) == sorted(ids)
    assert account.living(build="b1", task="2") == [ids[2]]
    made[0].set_tags({"build": "b2"})
    assert account.modal.Sandbox.from_id(ids[0], client=account.client).get_tags() == {"build": "b2"}
    for sandbox in made:
        sandbox.terminate()
    assert account.living(build="b1") == []


def test_a_name_is_taken_until_its_sandbox_ends(account: Account) -> None:
    first = account.create(name="one")
    with pytest.raises(account.modal.exception.AlreadyExistsError):
        account.create(name="one")
    assert account.modal.Sandbox.from_name("longshot", "one", client=account.client).object_id == first.object_id
    first.terminate()
    second = account.create(name="one")
    second.terminate()
    with pytest.raises(account.modal.exception.NotFoundError):
        account.modal.Sandbox.from_name("longshot", "one", client=account.client)


def test_ending_is_idempotent_and_frees_whoever_waits(account: Account) -> None:
    sandbox = account.create()
    process = sandbox.exec("sleep", "60", text=False)
    ended = threading.Thread(target=sandbox.terminate)
    ended.start()
    assert process.wait() == 137
    ended.join()
    again = account.modal.Sandbox.from_id(sandbox.object_id, client=account.client)
    again.terminate()
    assert again.poll() == 137
    with pytest.raises(account.modal.exception.NotFoundError):
        again.exec("true")
    with pytest.raises(account.modal.exception.NotFoundError):
        again.filesystem.read_bytes("/etc/passwd")
    with pytest.raises(account.modal.exception.SandboxTerminatedError):
        again.wait()


def test_life_ends_when_it_is_over_and_idleness_does_too(account: Account) -> None:
    short, idle = account.create(timeout=1), account.create(idle_timeout=1)
    busy = account.create(idle_timeout=1)
    process = busy.exec("sleep", "60", text=False)
    with pytest.raises(account.modal.exception.SandboxTimeoutError):
        short.wait()
    idle.wait(raise_on_termination=False)
    assert (busy.poll(), process.poll()) == (None, None)
    busy.terminate()


def test_a_sandbox_with_a_command_of_its_own_ends_with_it(account: Account) -> None:
    sandbox = account.create("sh", "-c", "echo spoken; exit 7")
    assert sandbox.stdout.read() == "spoken\n"
    sandbox.wait()
    assert sandbox.returncode == 7


def test_a_snapshot_is_the_beginning_of_others_which_go_their_own_ways(account: Account) -> None:
    seed = account.create(workdir="/workspace")
    ran(seed, "sh", "-c", "echo a > file; chmod 751 file; ln -s file link; mkdir -p deep/er")
    image = account.modal.Image.from_id(seed.snapshot_filesystem().object_id, client=account.client)
    seed.filesystem.write_bytes(b"later", "/workspace/file")
    forks = [account.create(image=image, workdir="/workspace") for _ in range(2)]
    forks[0].filesystem.write_bytes(b"mine", "/workspace/new")
    seen = ran(forks[1], "sh", "-c", "cat link; stat -c %a file; readlink link; ls")
    assert seen == (0, b"a\n751\nfile\ndeep\nfile\nlink\n", b"")
    for sandbox in (seed, *forks):
        sandbox.terminate()


def test_a_snapshot_of_one_folder_can_be_shown_elsewhere(account: Account, shared: Any) -> None:
    shared.filesystem.write_bytes(b"x", "/workspace/kit/tool")
    image = shared.snapshot_directory("/workspace/kit")
    other = account.create()
    other.mount_image("/opt/kit", image)
    assert other.filesystem.read_bytes("/opt/kit/tool") == b"x"
    other.terminate()


def test_an_image_is_looked_up_by_the_name_it_was_published_with(account: Account) -> None:
    image = account.modal.Image.debian_slim("3.12").apt_install("git").run_commands("echo built")
    with pytest.raises(account.modal.exception.NotFoundError):
        account.create(image=account.modal.Image.from_name("longshot-worker"))
    first = account.create(image=image)
    image.publish("longshot-worker", client=account.client)
    second = account.create(image=account.modal.Image.from_name("longshot-worker"))
    for sandbox in (first, second):
        sandbox.terminate()


def test_what_it_cannot_give_is_refused_and_not_weakened(account: Account) -> None:
    invalid = account.modal.exception.InvalidError
    with pytest.raises(invalid, match="by name only"):
        account.create(block_network=False, outbound_cidr_allowlist=["10.0.0.0/8"])
    with pytest.raises(invalid, match="no tunnels"):
        account.create(block_network=False, encrypted_ports=[8080])


def test_a_throttled_create_waits_as_long_as_it_is_told(account: Account) -> None:
    before = account.record.called["SandboxCreateV2"]
    account.record.plan("SandboxCreateV2", Fault(Status.RESOURCE_EXHAUSTED, times=2, retry_after_s=0.2))
    began = time.monotonic()
    account.create().terminate()
    assert time.monotonic() - began > 0.4
    assert account.record.called["SandboxCreateV2"] - before == 3


def test_a_quota_without_a_time_to_come_back_is_final(account: Account) -> None:
    account.record.plan("SandboxCreateV2", Fault(Status.RESOURCE_EXHAUSTED))
    with pytest.raises(account.modal.exception.ResourceExhaustedError):
        account.create()


def test_a_create_whose_answer_was_lost_makes_one_sandbox(account: Account) -> None:
    account.record.plan("SandboxCreateV2", Fault(Status.UNAVAILABLE, after_work=True))
    sandbox = account.create(tags={"once": "1"})
    assert account.living(once="1") == [sandbox.object_id]
    sandbox.terminate()


def test_a_stream_that_breaks_on_the_way_loses_no_byte(account: Account, shared: Any) -> None:
    account.record.plan("TaskExecStdioRead", Fault(Status.UNAVAILABLE, times=3, after_bytes=100_000))
    process = shared.exec("sh", "-c", "seq 200000", text=False)
    assert process.stdout.read() == b"".join(b"%d\n" % n for n in range(1, 200_001))
    assert process.wait() == 0


def test_input_that_breaks_on_the_way_arrives_once(account: Account, shared: Any) -> None:
    data = os.urandom(3_000_000)
    account.record.plan("TaskExecStdinWriteStream", Fault(Status.UNAVAILABLE, after_work=True))
    shared.filesystem.write_bytes(data, "/tmp/streamed")
    assert shared.filesystem.read_bytes("/tmp/streamed") == data


def test_20_at_once_and_none_left_over(account: Account) -> None:
    def whole_life(number: int) -> bytes:
        sandbox = account.create(tags={"crowd": "1"})
        try:
            return ran(sandbox, "echo", str(number))[1]
        finally:
            sandbox.terminate()

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(whole_life, range(20))) == sorted(b"%d\n" % n for n in range(20))
    assert account.living(crowd="1") == []


def test_a_command_that_speaks_for_the_sandbox_ends_it_and_nothing_else(account: Account, shared: Any) -> None:
    """It can write where the sandbox's first process does: nonsense, or more than was allowed."""
    for script in ("yes nonsense | head -c 20000000", "head -c 60000000 /dev/zero | tr '\\0' 'O'"):
        sandbox = account.create()
        process = sandbox.exec("sh", "-c", f"{script} > /proc/$PPID/fd/1; sleep 60", text=False)
        assert process.wait() == 137
        sandbox.wait(raise_on_termination=False)
        assert sandbox.returncode == 137
    assert ran(shared, "true")[0] == 0


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with loopback_modal(tmp_path), pytest.raises(WrongUse, match="another loopback Modal server"):
        LoopbackModal(tmp_path).start()


def test_whoever_has_not_the_tokens_is_turned_away(account: Account) -> None:
    stranger = account.modal.Client.from_credentials("ak-another", "as-another")
    with contextlib.closing(stranger), pytest.raises(account.modal.exception.AuthError):
        account.modal.App.lookup("longshot", create_if_missing=True, client=stranger)


def test_a_call_that_it_does_not_know_is_refused_and_remembered(account: Account) -> None:
    with pytest.raises(Exception, match="does not know"):
        account.modal.Sandbox.list(app_id=account.app.app_id, client=account.client)  # known
        account.modal.Volume.from_name("v", create_if_missing=True, client=account.client).hydrate(account.client)
    assert account.record.missing == ["VolumeGetOrCreate"]
    account.record.missing.clear()


def test_a_rehearsal_that_lacked_something_says_so_at_its_end(tmp_path: Path) -> None:
    server = LoopbackModal(tmp_path)
    server.record.missing.append("SomethingNew")
    with pytest.raises(WrongUse, match="lacks SomethingNew"):
        server.record.check()


CLIENT = """
import modal
app = modal.App.lookup("longshot", create_if_missing=True)
sandbox = modal.Sandbox.create(app=app, timeout=60, block_network=True)
process = sandbox.exec("sh", "-c", "echo $$; sleep 60 & wait", text=False)
next(iter(process.stdout))
print(sandbox.object_id, flush=True)
process.wait()
"""


def test_sandboxes_outlive_their_client_and_end_with_the_server(tmp_path: Path) -> None:
    """SIGKILL first for the client, then for the server: a process of its own, as `longshot demo` starts it."""
    argv = [sys.executable, "-P", "-m", "longshot_dagster.testing.loopback_modal", "--home", str(tmp_path / "modal")]
    server = subprocess.Popen([*argv, "--attended"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin and server.stdout
    try:
        environment = {**os.environ, **json.loads(server.stdout.readline())}
        client = subprocess.Popen([sys.executable, "-P", "-c", CLIENT], env=environment, stdout=subprocess.PIPE)
        assert client.stdout and client.stdout.readline().startswith(b"sb-")
        client.kill()
        client.wait()
        client.stdout.close()
        assert len(sleeping(server.pid)) == 1
        sleepers = sleeping(server.pid)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdin.close()
        server.stdout.close()
    deadline = time.monotonic() + PROMPT_S
    while any(Path(f"/proc/{pid}").exists() for pid in sleepers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in sleepers)
    # A new one on the same folder begins with nothing.
    with loopback_modal(tmp_path / "modal"):
        assert list((tmp_path / "modal" / "sandboxes").glob("*")) == []


def sleeping(ancestor: int) -> list[int]:
    """Every `sleep` below a process of this host."""
    from longshot_dagster.adapters.host.processes import descendants

    found = []
    for pid in descendants(ancestor):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0"):
                found.append(pid)
    return found
