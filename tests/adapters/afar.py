"""Sandboxes that behave like a remote service's: what runs in them goes on when whoever started it has died."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.errors import Cancelled
from longshot_dagster.core.sandbox import Capabilities, SandboxInfo, SandboxSpec
from longshot_dagster.core.settings import Isolation


class Died(BaseException):
    """The client was killed: nothing it does from here on happens."""


class Afar(LocalProvider):
    """One client of the service below `base`; it dies once `dies()`. Clients that share `base` see the same sandboxes."""

    def __init__(self, base: Path, dies: Callable[[], bool] = lambda: False, survives: bool = True) -> None:
        super().__init__(base, Isolation.NONE)
        self._dies = dies
        self._survives = survives
        self.dead = False
        self.ended: list[str] = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, survives_client=self._survives)

    def live(self) -> None:
        """Raises Died."""
        self.dead = self.dead or self._dies()
        if self.dead:
            raise Died

    def create(self, spec: SandboxSpec) -> "Remote":  # type: ignore[override]
        self.live()
        return Remote(self, super().create(spec))

    def attach(self, sandbox_id: str) -> "Remote":  # type: ignore[override]
        self.live()
        return Remote(self, super().attach(sandbox_id))

    def list(self, tags: Mapping[str, str]) -> list[SandboxInfo]:
        self.live()
        return super().list(tags)


class Remote:
    """A sandbox as its client sees it."""

    def __init__(self, client: Afar, there: LocalSandbox) -> None:
        self._client = client
        self.there = there
        self.id = there.id

    def exec(self, argv: Any, *, cancelled: Any = None, on_output: Any = None, **options: Any) -> Any:
        """The command belongs to a thread that outlives the client's call."""
        stop, found = threading.Event(), []

        def hear(stream: Any, data: bytes) -> None:
            if on_output is not None and not self._client.dead:
                on_output(stream, data)

        def run() -> None:
            try:
                found.append(self.there.exec(argv, cancelled=stop.is_set, on_output=hear, **options))
            except Exception as e:
                found.append(e)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            self._client.live()
            if cancelled is not None and cancelled():
                stop.set()
                thread.join()
                raise Cancelled("cancelled by its client")
            time.sleep(0.02)
        self._client.live()
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def write(self, path: str, data: bytes) -> None:
        self._client.live()
        self.there.write(path, data)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        self._client.live()
        return self.there.read(path, max_bytes=max_bytes)

    def end_commands(self) -> None:
        self._client.live()
        self.there.end_commands()

    def terminate(self) -> None:
        self._client.live()
        self._client.ended.append(self.id)
        self.there.terminate()
