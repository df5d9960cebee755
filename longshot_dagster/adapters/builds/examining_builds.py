"""What `longshot doctor` says of the builds that are here: were documents of theirs damaged, and is any beyond repair?"""

import contextlib
import json
from typing import TYPE_CHECKING

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.ledger.ledger import Ledger
from longshot_dagster.adapters.ledger.quarantine import BEYOND, Mended, read_notes
from longshot_dagster.core.findings import Finding, fine, to_do
from longshot_dagster.core.sealing import opened

if TYPE_CHECKING:
    from upath import UPath

_SUBJECT = "ledger"


def examine_builds(home: Home) -> list[Finding]:
    """Nothing for a home in which no document was ever damaged."""
    found, mended, last = list[Finding](), 0, ""
    for folder in sorted((home.root / "builds").glob("*/quarantine")):
        ledger = Ledger(home.builds).build(folder.parent.name)
        newest = {note.document: note for note in read_notes(ledger.directory)}
        for note in newest.values():
            if note.became == BEYOND and _is_broken(ledger.directory / note.document):
                found.append(_beyond(ledger.build, note))
            else:
                mended, last = mended + 1, ledger.build
    if mended:
        what = (
            f"{mended} damaged document{'s were' * (mended > 1) or ' was'} mended; the damaged bytes are in quarantine"
        )
        found.insert(0, fine(_SUBJECT, f"{what} (longshot logs {last}); if it happens again, have the disk looked at"))
    return found


def _beyond(build: str, note: Mended) -> Finding:
    remedy = f"restore the file from a copy, then longshot resume {build}"
    return to_do(_SUBJECT, f"{build}: {note.document} is damaged ({note.wrong}), and nothing holds it any more", remedy)


def _is_broken(path: "UPath") -> bool:
    with contextlib.suppress(OSError, ValueError):
        text, wrong = opened(path.read_bytes())
        json.loads(text)  # one of an older version has no checksum
        return bool(wrong)
    return True
