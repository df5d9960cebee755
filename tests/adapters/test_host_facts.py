"""The kernel's switches as they are read, and the system call filter of every machine that we know."""

import errno
import platform
import struct
from pathlib import Path

import pytest

from longshot_dagster.adapters.host.host_facts import host_facts
from longshot_dagster.adapters.sandboxes.syscall_filter import syscall_filter

ALLOWED = 0x7FFF0000
ENOSYS, EAFNOSUPPORT = 0x00050000 | errno.ENOSYS, 0x00050000 | errno.EAFNOSUPPORT
AF_UNIX, AF_VSOCK = 1, 40


def test_switches_are_read_and_what_the_kernel_lacks_is_unknown(tmp_path: Path) -> None:
    for name, value in (
        ("user/max_user_namespaces", "0\n"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n"),
        ("kernel/unprivileged_userns_clone", "nonsense"),
    ):
        path = tmp_path / "proc/sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    found = host_facts(tmp_path)
    assert (found.max_user_namespaces, found.apparmor_restricts_userns) == (0, 1)
    assert found.unprivileged_userns_clone is None
    assert not found.in_container
    (tmp_path / ".dockerenv").touch()
    assert host_facts(tmp_path).in_container


def verdict(program: bytes, architecture: int, number: int, first: int = 0) -> int:
    """What the kernel would answer: classic BPF on a struct seccomp_data, as far as our filters use it."""
    data = struct.pack("=IIQQ", number, architecture, 0, first)
    code = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
        elif operation == 0x15:
            at += yes if value == k else no
        elif operation == 0x35:
            at += yes if value >= k else no
        else:
            assert operation == 0x06
            return int(k)


@pytest.mark.parametrize(
    ("machine", "architecture", "sockets", "refused", "plain"),
    [
        ("x86_64", 0xC000003E, 41, {"add_key": 248, "request_key": 249, "keyctl": 250, "io_uring_setup": 425}, 0),
        ("aarch64", 0xC00000B7, 198, {"add_key": 217, "request_key": 218, "keyctl": 219, "io_uring_setup": 425}, 63),
    ],
)
def test_each_machine_has_a_filter_of_its_own_numbers(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    architecture: int,
    sockets: int,
    refused: dict[str, int],
    plain: int,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = syscall_filter.__wrapped__()  # of another machine: not for the cache
    assert program is not None
    assert {verdict(program, architecture, n) for n in refused.values()} == {ENOSYS}
    assert verdict(program, architecture, sockets, AF_VSOCK) == EAFNOSUPPORT
    assert verdict(program, architecture, sockets, AF_UNIX) == ALLOWED
    assert verdict(program, architecture, plain) == ALLOWED
    assert verdict(program, 0x40000003, plain) == ENOSYS  # a 32-bit program's calls are numbered otherwise
