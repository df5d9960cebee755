"""How a document shows that it is whole: the last of its fields is the SHA-256 of everything before it.

    {
     "task": "r001-01",
     "state": "landed",
     "sha256": "9f86d081..."
    }

It stays JSON that people read. Documents of schema 2 and older have no such field and are read as they are.
"""

import hashlib
import re

_END = re.compile(rb'(,?)\n "sha256": "([0-9a-f]{64})"\n}\Z')
_SEAL_BYTES = len(b',\n "sha256": ""\n}') + 64


def sealed(text: bytes) -> bytes:
    """`text`, a JSON object, with its checksum as the last field; anything else stays as it is."""
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return text
    start = text[:-1].rstrip()
    comma = b"" if start == b"{" else b","
    return start + comma + b'\n "sha256": "' + hashlib.sha256(start).hexdigest().encode() + b'"\n}'


def opened(data: bytes) -> tuple[bytes, str]:
    """(the document without its checksum, what is wrong with it); nothing is wrong with one that never had a checksum."""
    if not data.strip():
        return data, "it is empty"
    seal = _END.search(data, max(0, len(data) - _SEAL_BYTES))
    if seal is not None:
        start = data[: seal.start()]
        whole = hashlib.sha256(start).hexdigest().encode() == seal[2]
        return start + b"}", "" if whole else "its checksum does not match"
    if b'"sha256"' in data[-_SEAL_BYTES:]:
        return data, "its checksum is damaged"
    return data, ""
