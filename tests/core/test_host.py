"""What a person is told on a host that cannot isolate agents: the likeliest cause, what to do, and the opt-in."""

import subprocess
import sys

import pytest

from longshot_dagster.core.host import Host, no_isolation, not_a_system_for_longshot, remedy

OPT_IN = "or set SANDBOX_ISOLATION=none: agents then run as YOU, with your files and your network"
LINUX = Host("linux", "6.8.0-generic", "x86_64")


@pytest.mark.parametrize(
    ("host", "says"),
    [
        (Host("linux", "4.4.0-19041-Microsoft"), "wsl --set-version"),
        (Host("linux", "6.8", max_user_namespaces=0), "sysctl -w user.max_user_namespaces"),
        (Host("linux", "6.8", unprivileged_userns_clone=0), "kernel.unprivileged_userns_clone=1"),
        (Host("linux", "6.8", apparmor_restricts_userns=1), "kernel.apparmor_restrict_unprivileged_userns=0"),
        (Host("linux", "6.8", in_container=True), "--security-opt seccomp=unconfined"),
        (LINUX, "install bubblewrap"),
        # Not to blame: WSL2 has namespaces, and these switches are open.
        (Host("linux", "5.15.167.4-microsoft-standard-WSL2", max_user_namespaces=9), "install bubblewrap"),
        (Host("linux", "6.8", unprivileged_userns_clone=1, apparmor_restricts_userns=0), "install bubblewrap"),
    ],
)
def test_the_likeliest_cause_comes_first(host: Host, says: str) -> None:
    assert says in remedy(host)


@pytest.mark.parametrize(
    ("host", "names"),
    [(LINUX, "no luck"), (Host("darwin"), "on macOS run longshot in Docker"), (Host("freebsd14"), "WSL2 or Docker")],
)
def test_it_is_one_line_with_the_reason_and_the_opt_in(host: Host, names: str) -> None:
    line = no_isolation(host, "no luck")
    assert names in line
    assert line.endswith(OPT_IN)
    assert "\n" not in line


@pytest.mark.parametrize(("platform", "runs"), [("linux", True), ("darwin", True), ("win32", False), ("cygwin", False)])
def test_windows_itself_is_refused_by_name(platform: str, runs: bool) -> None:
    line = not_a_system_for_longshot(platform)
    assert (line == "") is runs
    if not runs:
        assert all(word in line for word in ("WSL2", "Docker", "SANDBOX_ISOLATION=none"))


@pytest.mark.parametrize(
    ("release", "wsl"),
    [("4.4.0-19041-Microsoft", 1), ("5.10.16.3-microsoft-standard-WSL2", 2), ("6.8.0-45-generic", 0)],
)
def test_windows_subsystems_are_told_apart_by_their_kernel(release: str, wsl: int) -> None:
    assert Host("linux", release).wsl == wsl


def test_the_way_to_that_line_needs_nothing_that_windows_lacks() -> None:
    code = (
        "import sys\nfor name in ('fcntl', 'pwd', 'grp', 'resource'): sys.modules[name] = None\n"
        "from longshot_dagster.cli import main, terminal\n"
        "from longshot_dagster.core.host import not_a_system_for_longshot\n"
        "from longshot_dagster.core.errors import WrongUse"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
