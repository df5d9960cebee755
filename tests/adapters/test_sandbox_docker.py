"""Containers as sandboxes, as far as no engine is needed: the rest is tests/contract, where an engine answers."""

import socket
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes.docker_engine import Talk
from longshot_dagster.adapters.sandboxes.sandbox_docker import DockerProvider, _container_name, engine_trouble
from longshot_dagster.core.errors import SandboxError, SandboxRefused
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Settings


def test_without_an_engine_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    provider = DockerProvider(Settings(), tmp_path)
    for ask in (
        lambda: provider.capabilities,
        lambda: provider.list({"build": "b"}),
        lambda: provider.create(SandboxSpec(name="t")),
        lambda: provider.attach("0" * 64),
    ):
        with pytest.raises(
            SandboxRefused, match=r"no container engine answers at unix://.*/no.sock .*set DOCKER_HOST$"
        ):
            ask()
    assert "\n" not in engine_trouble()


@pytest.mark.parametrize("host", ["ssh://somewhere", "npipe:////./pipe/docker_engine", "nonsense"])
def test_an_engine_that_cannot_be_spoken_to_live_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(SandboxRefused, match=r"unix:// or tcp:// without TLS; .* a tunnel"):
        _ = DockerProvider(Settings(), tmp_path).capabilities


def test_names_of_containers_stay_apart() -> None:
    names = ["b1-r001-01-1", "b1/r001", "b1 r001", "b1-r001", "é", "ü", "x" * 300, "x" * 301, "", "-"]
    made = [_container_name("0123456789abcdef", name) for name in names]
    assert len(set(made)) == len(names)
    assert made[0] == "longshot-01234567-b1-r001-01-1"
    assert all(len(name) < 150 and name.isascii() for name in made)


def test_what_a_command_says_is_taken_apart_wherever_it_is_cut() -> None:
    wire = b"".join(
        bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data
        for stream, data in ((1, b"one"), (2, b"\0err"), (1, b""), (1, b"two" * 100))
    )
    for size in (1, 3, 7, len(wire)):
        ours, theirs = socket.socketpair()
        with theirs:
            talk = Talk(ours)
            said = [piece for at in range(0, len(wire), size) for piece in talk.parsed(wire[at : at + size])]
            talk.close()
        assert b"".join(d for s, d in said if s == 1) == b"one" + b"two" * 100
        assert b"".join(d for s, d in said if s == 2) == b"\0err"


def test_what_is_no_frame_is_the_engines_own_word() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        talk = Talk(ours)
        with pytest.raises(SandboxError, match="OCI runtime exec failed"):
            list(talk.parsed(b"OCI runtime exec failed: exec failed: python3 not found\r\n"))
        talk.close()
