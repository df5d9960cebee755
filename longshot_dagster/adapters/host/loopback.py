"""Ports of this machine's own addresses: 127.0.0.1 and, where there is one, ::1.

Always both: a browser asks ::1 first for a name below `.localhost`, and whoever listens there would get the session.
"""

import errno
import socket

from longshot_dagster.core.errors import LongshotError

_PORTS_TRIED = 50


def loopback(port: int) -> list[socket.socket]:
    """Sockets bound to `port`, 0 for any; the caller closes them. Raises OSError when another program has it."""
    bound = [_bound(socket.AF_INET, "127.0.0.1", port)]
    try:
        bound.append(_bound(socket.AF_INET6, "::1", bound[0].getsockname()[1]))
    except OSError as e:
        if e.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            bound[0].close()
            raise
    return bound


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


def free_port(wanted: int) -> int:
    """`wanted` if it is free on this machine, else the next free one; 0 takes any."""
    for port in [*range(wanted, min(wanted + _PORTS_TRIED, 65_536)), 0] if wanted else [0] * _PORTS_TRIED:
        try:
            bound = loopback(port)
        except OSError:
            continue
        found = int(bound[0].getsockname()[1])
        for one in bound:
            one.close()
        return found
    raise LongshotError("no port of 127.0.0.1 is free")
