"""The facts about this host that decide whether its kernel lets agents be isolated."""

import contextlib
import platform
import sys
from pathlib import Path

from longshot_dagster.core.host import Host


def host_facts(root: Path = Path("/")) -> Host:
    """Facts of this machine; `root` is where its /proc is read."""
    return Host(
        platform=sys.platform,
        release=platform.release(),
        machine=platform.machine(),
        in_container=any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv")),
        max_user_namespaces=_switch(root, "user/max_user_namespaces"),
        unprivileged_userns_clone=_switch(root, "kernel/unprivileged_userns_clone"),
        apparmor_restricts_userns=_switch(root, "kernel/apparmor_restrict_unprivileged_userns"),
    )


def _switch(root: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((root / "proc/sys" / name).read_text(encoding="ascii"))
    return None
