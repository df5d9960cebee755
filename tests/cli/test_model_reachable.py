"""Model endpoints belong to a home: whoever brings others is told whom that concerns."""

from pathlib import Path

import pytest

from longshot_dagster.adapters.gateway.gateway_client import Gateway
from longshot_dagster.adapters.host.home import Home
from longshot_dagster.cli.serving import model_reachable
from longshot_dagster.core.endpoints import Endpoint, normalise_url
from longshot_dagster.core.errors import WrongUse


def endpoint(port: int) -> Endpoint:
    return Endpoint(name="primary", url=normalise_url(f"http://127.0.0.1:{port}/v1", "LLM_BASE_URL"))


def test_other_endpoints_than_those_in_use_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    try:
        model_reachable(home, (endpoint(1),))
        model_reachable(home, (endpoint(1),))
        model_reachable(home, ())
        assert capsys.readouterr().out == ""
        model_reachable(home, (endpoint(2),))
        assert capsys.readouterr().out == "from now on every build here asks 127.0.0.1:2, not 127.0.0.1:1\n"
    finally:
        Gateway(home).stop()
        home.leave_runtime()


def test_no_endpoint_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="no model endpoint is configured"):
        model_reachable(Home(tmp_path / "home"), ())
