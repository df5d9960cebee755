# ruff: noqa: PTH100, PTH104, PTH123, PTH208, UP031
# Runs inside the sandbox, on whatever Python 3 is there.
"""Runs inside a sandbox, as whoever has taken it over: tries what it is told to and prints what worked, as JSON.

`python3 -I -c SOURCE '{"try": [names], "bait": {…}}'` -> {name: true, false, or an exception that is no refusal}.
"""

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)


def holds_token(path, bait):
    with open(path, "rb") as file:
        return bait["token"].encode() in file.read(1 << 20)


def answers_token(family, address, bait, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as s:
        s.settimeout(5)
        s.connect(address)
        if kind == socket.SOCK_DGRAM:
            s.send(b"what I have found here")
        return s.recv(100) == bait["token"].encode()


def reads_a_file_of_the_host(bait):
    return holds_token(bait["secret"], bait)


def writes_a_file_of_the_host(bait):
    with open(bait["victim"], "r+") as file:
        file.write("owned")
    return True


def reads_another_sandbox(bait):
    return holds_token(bait["neighbour"], bait)


def asks_on_another_tasks_socket(bait):
    return answers_token(socket.AF_UNIX, bait["other_socket"], bait)


def learns_which_host_this_is(bait):
    with open("/etc/hosts") as file:
        return file.read() == bait["hosts"]


def reads_the_kernels_sysfs(bait):
    return bool(os.listdir("/sys/kernel"))


def changes_a_folder_it_may_read(bait):
    with open(bait["readable"], "a") as file:
        file.write("owned")
    return True


def takes_the_gateways_socket_away(bait):
    os.rename("/longshot/gateway/model.sock", "/longshot/gateway/mine")
    os.rename("/longshot/gateway/mine", "/longshot/gateway/model.sock")
    return True


def reads_the_orchestrators_environment(bait):
    return os.environ.get("LLM_API_KEY") == bait["token"]


def sees_processes_of_the_host(bait):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if "-".join(bait["marker"]).encode() in file.read():
                    return True
        except OSError:
            pass
    return False


def signals_a_process_of_the_host(bait):
    os.kill(bait["victim_pid"], signal.SIGUSR1)
    return True


def reads_the_memory_of_a_process_of_the_host(bait):
    return holds_token("/proc/%d/environ" % bait["keeper"], bait)


def reaches_a_service_on_loopback(bait):
    return answers_token(socket.AF_INET, ("127.0.0.1", bait["tcp"]), bait)


def reaches_an_abstract_socket(bait):
    return answers_token(socket.AF_UNIX, "\0" + bait["abstract"], bait)


def tells_a_name_server(bait):
    return answers_token(socket.AF_INET, ("127.0.0.1", bait["udp"]), bait, socket.SOCK_DGRAM)


def sends_raw_packets(bait):
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return True


def listens_to_the_wire(bait):
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300).close()
    return True


def makes_namespaces_of_its_own(bait):
    return libc.unshare(0x10000000) == 0  # CLONE_NEWUSER


def reads_shared_memory(bait):
    found = libc.shmget(bait["shm"], 0, 0)
    if found < 0:
        return False
    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(found, None, 0o10000)  # SHM_RDONLY
    return at not in (None, ctypes.c_void_p(-1).value) and ctypes.string_at(at, 40).startswith(bait["token"].encode())


def _calls():
    """Numbers of keyctl and io_uring_setup."""
    return (250, 425) if os.uname().machine == "x86_64" else (219, 425)


def takes_a_key_from_a_keyring(bait):
    held = ctypes.create_string_buffer(100)
    found = libc.syscall(_calls()[0], 10, -3, b"user", bait["key"].encode(), 0)  # KEYCTL_SEARCH the session's
    size = libc.syscall(_calls()[0], 11, found, held, 100) if found > 0 else 0  # KEYCTL_READ
    return size > 0 and held.raw[:size] == bait["token"].encode()


def sets_up_io_uring(bait):
    found = libc.syscall(_calls()[1], 1, ctypes.create_string_buffer(200))
    if found >= 0:
        os.close(found)
    return found >= 0


def talks_to_the_hypervisor(bait):
    socket.socket(40, socket.SOCK_STREAM).close()  # AF_VSOCK
    return True


def writes_to_proc(bait):
    os.close(os.open("/proc/self/comm", os.O_WRONLY))
    return True


def reads_the_names_of_keys(bait):
    with open("/proc/keys"):
        return True


def reads_the_hosts_shared_memory_files(bait):
    return holds_token(bait["dev_shm"], bait)


def writes_one_endless_file(bait):
    with open("endless", "wb") as file:
        try:
            file.truncate(3 << 30)
            return True
        finally:
            os.unlink("endless")


def leaves_a_daemon_behind(bait):
    place = os.path.abspath("daemon")
    ready, told = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            file = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(file, b"%d" % os.getpid())
            os.dup2(os.open("/dev/null", os.O_RDWR), 1)
            os.dup2(1, 2)
            signal.alarm(60)
            os.write(told, b"x")
            os.close(told)
            signal.pause()
        os._exit(0)
    os.close(told)
    return os.read(ready, 1) == b"x"


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = {}
    for name in given["try"]:
        try:
            found[name] = globals()[name](given["bait"])
        except OSError as e:
            found[name] = False
            found[name + ": why"] = errno.errorcode.get(e.errno, str(e))
        except Exception as e:
            found[name] = f"{type(e).__name__}: {e}"
    print(json.dumps(found))
