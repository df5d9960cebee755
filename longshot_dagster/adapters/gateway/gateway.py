"""The gateway process, one per host and home.

    python -m longshot_dagster.adapters.gateway.gateway --home PATH [--detach | --examine]

It reads `{"endpoints": [...], "tuning": {...}}` from standard input, never from arguments or the environment, and keeps
the keys in memory only. `gateway_client.py` starts it and talks to it.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from longshot_dagster.adapters.gateway.gateway_server import GatewayServer
from longshot_dagster.adapters.gateway.gateway_upstream import Tuning, Upstream
from longshot_dagster.adapters.host.exclusive import claim
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.endpoints import Endpoint, endpoints_from_wire
from longshot_dagster.core.errors import LongshotError
from longshot_dagster.core.model_apis import Api

_PREDECESSOR_S = 10.0  # one that was told to stop may still be writing its counts


def main(argv: list[str] | None = None) -> int:
    """Exit 0 after a stop (or, detached, once the gateway answers); 2 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m longshot_dagster.adapters.gateway.gateway")
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--detach", action="store_true", help="return as soon as the gateway answers")
    parser.add_argument("--examine", action="store_true", help="ask every endpoint once, print what it says, and end")
    asked = parser.parse_args(argv)
    home = Home(asked.home)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the keys
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    try:
        document = json.loads(text) if text.strip() else {}
        endpoints = endpoints_from_wire(document.get("endpoints"))
        tuning = Tuning.model_validate(document.get("tuning") or {})
    except (ValueError, AttributeError, LongshotError):
        # Never with the text: it holds keys.
        sys.stderr.write('the gateway needs {"endpoints": [...]} on its standard input\n')
        return 2
    if asked.examine:
        return _examine(endpoints, tuning, str(document.get("model")), Api(document.get("api") or Api.CHAT))
    if asked.detach:
        return _detached(home, endpoints, tuning)
    return _serve(home, endpoints, tuning, ready=lambda: None)


def _serve(home: Home, endpoints: tuple[Endpoint, ...], tuning: Tuning, ready: Callable[[], None]) -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s gateway %(levelname)s %(message)s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    async def serve() -> None:
        await GatewayServer(home, endpoints, tuning).run(ready)

    with claim(home.gateway / "gateway.lock", wait_s=_PREDECESSOR_S) as mine:
        if not mine:
            sys.stderr.write("a gateway is already running for this LONGSHOT_HOME\n")
            return 2
        try:
            asyncio.run(serve())
        except (OSError, LongshotError) as e:
            sys.stderr.write(f"the gateway cannot start: {e}\n")
            return 2
    return 0


def _examine(endpoints: tuple[Endpoint, ...], tuning: Tuning, model: str, api: Api) -> int:
    async def look() -> list[dict[str, object]]:
        async with Upstream(endpoints, tuning) as upstream:
            return await upstream.examine(model, api)

    json.dump({"endpoints": asyncio.run(look())}, sys.stdout)
    return 0


def _detached(home: Home, endpoints: tuple[Endpoint, ...], tuning: Tuning) -> int:
    """Serve in a child; the parent leaves once the child answers, or with the child's failure."""
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            return 0 if pipe.read(1) == b"1" else 2
    os.close(read_end)

    def ready() -> None:
        os.write(write_end, b"1")
        os.close(write_end)

    os._exit(_serve(home, endpoints, tuning, ready))


if __name__ == "__main__":
    sys.exit(main())
