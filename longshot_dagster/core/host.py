"""What a host must allow before it can isolate agents, and what to do where it does not: from facts, without looking."""

from dataclasses import dataclass

AS_YOU = "agents then run as YOU, with your files and your network"
_OPT_IN = f"or set SANDBOX_ISOLATION=none: {AS_YOU}"


@dataclass(frozen=True)
class Host:
    """`platform` is `sys.platform`; the kernel's switches are None where the kernel has none of that name."""

    platform: str
    release: str = ""
    machine: str = ""
    in_container: bool = False
    max_user_namespaces: int | None = None
    unprivileged_userns_clone: int | None = None
    apparmor_restricts_userns: int | None = None

    @property
    def wsl(self) -> int:
        """1 or 2 inside Windows' Subsystem for Linux, else 0."""
        release = self.release.lower()
        if "microsoft" not in release:
            return 0
        return 2 if "wsl2" in release or "standard" in release else 1


def not_a_system_for_longshot(platform: str) -> str:
    """Why the command cannot run at all on `platform`, in one line; empty where it can."""
    if platform in ("win32", "cygwin", "msys"):
        return (
            "longshot does not run on Windows itself: run it inside WSL2 (`wsl --install`) or in Docker; "
            "SANDBOX_ISOLATION=none does not help here, for it needs a POSIX system as well"
        )
    return ""


def no_isolation(host: Host, why: str) -> str:
    """One line: why local sandboxes cannot be isolated on `host`, what to do about it, and the way to go without."""
    if host.platform != "linux":
        name = "macOS" if host.platform == "darwin" else "this system"
        return (
            f"local sandboxes need Linux with bubblewrap: on {name} run longshot in Docker (on Windows in WSL2 or Docker), "
            f"{_OPT_IN}"
        )
    return f"local sandboxes cannot be isolated here: {why}; {remedy(host)}, {_OPT_IN}"


def remedy(host: Host) -> str:
    """What to do on a Linux host whose bubblewrap does not work, the likeliest cause first."""
    if host.wsl == 1:
        return "WSL 1 has no namespaces: `wsl --set-version DISTRIBUTION 2` from Windows makes it WSL2"
    if host.max_user_namespaces == 0:
        return "the kernel allows no user namespace: `sudo sysctl -w user.max_user_namespaces=15000` allows them"
    if host.unprivileged_userns_clone == 0:
        return (
            "user namespaces are for root only: `sudo sysctl -w kernel.unprivileged_userns_clone=1` allows them for you"
        )
    if host.apparmor_restricts_userns:
        return (
            "AppArmor keeps user namespaces from programs without a profile (Ubuntu from 23.10 on): give the bwrap named "
            "here a profile that allows `userns`, or `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
        )
    if host.in_container:
        return (
            "a container keeps them from its processes unless it is started with "
            "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, and some need `--privileged`"
        )
    return "install bubblewrap and allow unprivileged user namespaces"
