"""What one task may hold of the gateway at once: more than any agent needs, and too little to starve the others.

All tasks share one process. Whoever has taken over a sandbox may open connections without end, or send the largest
bodies on all of them; beyond the first bound it is hung up on, beyond the second its requests wait for one another.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

MAX_CONNECTIONS = 64
MAX_AT_ONCE = 8  # requests whose bodies are held, until each is answered


class Ends(Protocol):
    """Makes one end for each connection, and knows those that are open: aiohttp's `web.Server`."""

    @property
    def connections(self) -> Sequence[object]: ...
    def __call__(self) -> asyncio.BaseProtocol: ...


def few_connections(server: Ends, path: Path) -> Callable[[], asyncio.BaseProtocol]:
    """Makes the ends of connections to the socket at `path`; those beyond the bound hang up."""

    def end() -> asyncio.BaseProtocol:
        transports = (getattr(handler, "transport", None) for handler in server.connections)
        held = sum(t is not None and t.get_extra_info("sockname") == str(path) for t in transports)
        return server() if held < MAX_CONNECTIONS else _HangsUp()

    return end


class _HangsUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
