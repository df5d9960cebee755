"""Who may open the UI: the token of this installation, and one-time login codes, as files only its owner can read."""

import hashlib
import os
import secrets
import time
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.core.web_guard import host_name

LOGIN_SECONDS = 3600  # a link left in a terminal's history is of no use tomorrow


class UiAccess:
    """Below `LONGSHOT_HOME/ui`: `token`, and one empty file per unused login code, named by the code's hash."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def token(self) -> str:
        """The installation's token, made when first asked for."""
        path = self._home.ui / "token"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self._read(path)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(made := secrets.token_urlsafe(32))
        return made

    def new_login(self) -> str:
        """A code that opens the UI once, within the hour."""
        code = secrets.token_urlsafe(24)
        self._login(code).touch(mode=0o600)
        return code

    def redeem(self, code: str) -> bool:
        """Use `code` up; False when it is unknown, used or old."""
        path = self._login(code)
        try:
            made = path.stat().st_mtime
            path.unlink()  # two browsers at once: only one removes the file
        except OSError:
            return False
        return abs(time.time() - made) <= LOGIN_SECONDS  # a clock that was set back makes no link last longer

    def link(self, port: int, *, plain: bool = False) -> str:
        """A link that logs in once, under this installation's own name; `plain`: under 127.0.0.1, for browsers that do
        not resolve names below `.localhost`. Other local servers that such a browser visits are sent its cookie."""
        host = "127.0.0.1" if plain else host_name(self.token())
        return f"http://{host}:{port}/?login={self.new_login()}"

    def _login(self, code: str) -> Path:
        return self._home.ui / f"login-{hashlib.sha256(code.encode()).hexdigest()}"

    def _read(self, path: Path) -> str:
        for _ in range(100):  # another process has created it and is about to write it
            if text := path.read_text(encoding="utf-8").strip():
                return text
            time.sleep(0.01)
        path.unlink(missing_ok=True)
        return self.token()
