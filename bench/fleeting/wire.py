"""How sandboxes of the fleet are spoken to: one JSON line with the size of what follows, then that many bytes."""

import json
from typing import Any, BinaryIO

MAX_HEADER = 1 << 20
VARIABLE = "FLEET_HOST_SOCKET"  # tells the run processes where the host of all sandboxes listens


def message(header: dict[str, Any], data: bytes = b"") -> bytes:
    return json.dumps({**header, "size": len(data)}).encode() + b"\n" + data


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """Raises EOFError when the other end has gone."""
    line = stream.readline(MAX_HEADER)
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    data = stream.read(header["size"]) if header["size"] else b""
    if len(data) != header["size"]:
        raise EOFError
    return header, data
