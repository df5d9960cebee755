"""Which ledgers this version can read: its own schema and those before it."""

import json

from longshot_dagster.core.display import one_line
from longshot_dagster.core.models import OLDEST_SCHEMA, SCHEMA


def unreadable(build: str, request: bytes, version: str) -> str:
    """Why longshot `version` cannot read the ledger whose `request.json` this is, in one line; empty when it can."""
    try:
        found = json.loads(request)
        schema, writer = int(found.get("schema_version", 1)), one_line(found.get("written_by") or "", 40)
    except (ValueError, TypeError, AttributeError):
        return ""  # broken, not of another version: whoever reads it says how
    known = f"longshot {version} reads {OLDEST_SCHEMA} to {SCHEMA}"
    if schema > SCHEMA:
        needed = f"longshot {writer} or newer" if writer else "a newer longshot"
        return f"build {build} needs {needed}: its ledger has schema {schema}, {known}"
    if schema < OLDEST_SCHEMA:
        return f"build {build} needs the longshot that began it: its ledger has schema {schema}, {known}"
    return ""
