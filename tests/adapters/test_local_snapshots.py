"""Snapshots of local sandboxes: many begin where one came to, none changes another, and nobody copies what is only read."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshot_dagster.adapters.sandboxes import confinement
from longshot_dagster.adapters.sandboxes.confinement import Bubblewrap, bubblewrap
from longshot_dagster.adapters.sandboxes.local_snapshots import LocalSnapshots
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.core.errors import FileMissing, SandboxError, SandboxRefused, TooLarge
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

NUMBERS = itertools.count()
FILL = """
mkdir -p repo/deep keep/also; echo one > repo/a; echo two > repo/deep/b; echo stays > keep/also/c
ln -s a repo/link; printf '#!/bin/sh\\necho ran\\n' > repo/run; chmod 755 repo/run; echo home > $HOME/note
"""


@pytest.fixture(params=["layers", "copies"])
def provider(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalProvider:
    """One that puts sandboxes on snapshots, and one whose bubblewrap cannot."""
    if request.param == "copies":
        old = Bubblewrap(bubblewrap().binary, bubblewrap().denies_namespaces, overlays=False)
        monkeypatch.setattr("longshot_dagster.adapters.sandboxes.sandbox_local.bubblewrap", lambda: old)
    return LocalProvider(tmp_path / "sandboxes", Isolation.AUTO)


@pytest.fixture
def made(provider: LocalProvider) -> Iterator[list[LocalSandbox]]:
    found: list[LocalSandbox] = []
    yield found
    for sandbox in found:
        sandbox.terminate()


def begun(provider: LocalProvider, made: list[LocalSandbox], image: str = "") -> LocalSandbox:
    made.append(provider.create(SandboxSpec(name=f"s{next(NUMBERS)}", image=image)))
    return made[-1]


def said(sandbox: LocalSandbox, script: str) -> str:
    ran = sandbox.exec(["sh", "-c", script], timeout_s=20)
    assert ran.exit_code == 0, ran.stderr
    return ran.stdout.decode()


def test_sandboxes_begin_where_another_came_to(provider: LocalProvider, made: list[LocalSandbox]) -> None:
    seed = begun(provider, made)
    said(seed, FILL)
    image = seed.snapshot()
    one, other = begun(provider, made, image), begun(provider, made, image)
    look = "cat repo/a repo/deep/b keep/also/c; readlink repo/link; repo/run; cat $HOME/note"
    assert said(one, look) == said(other, look) == said(seed, look) == "one\ntwo\nstays\na\nran\nhome\n"
    said(one, "echo mine > repo/a; rm -r keep; rm repo/run; mkdir keep; echo new > keep/d")
    said(seed, "echo seeds > repo/a")
    assert said(other, look) == "one\ntwo\nstays\na\nran\nhome\n"
    assert said(one, "cat repo/a; ls keep repo") == "mine\nkeep:\nd\n\nrepo:\na\ndeep\nlink\n"
    assert [info.image for info in provider.snapshots()] == [image]


def test_files_are_read_and_written_from_outside_as_they_are_inside(
    provider: LocalProvider, made: list[LocalSandbox]
) -> None:
    seed = begun(provider, made)
    said(seed, FILL + "ln -s /etc repo/etc; mkdir gone; echo x > gone/x; mkdir was; echo y > was/y; mkfifo pipe")
    sandbox = begun(provider, made, seed.snapshot())
    said(sandbox, "rm repo/deep/b; rm -r gone; rm -r was; mkdir was; echo upper > keep/u; rm -r keep/also")
    read = {"repo/a": b"one\n", "keep/u": b"upper\n"}
    assert {name: sandbox.read(f"/workspace/{name}", max_bytes=10) for name in read} == read
    for name in (
        "repo/deep/b",
        "gone/x",
        "was/y",
        "repo/etc/passwd",
        "repo/link",
        "pipe",
        "repo",
        "keep/also/c",
        "none",
    ):
        with pytest.raises(FileMissing):
            sandbox.read(f"/workspace/{name}", max_bytes=10)
    with pytest.raises(TooLarge):
        sandbox.read("/workspace/repo/a", max_bytes=3)
    for name in ("repo/a", "repo/run", "repo/deep/b", "gone/x", "keep/also/d", "was/z", "quite/new"):
        sandbox.write(f"/workspace/{name}", name.encode())
        assert sandbox.read(f"/workspace/{name}", max_bytes=100) == name.encode()
    for name in ("repo/link", "repo/etc/passwd", "pipe", "repo", "repo/a/below"):
        with pytest.raises(SandboxError):
            sandbox.write(f"/workspace/{name}", b"x")
    seen = said(
        sandbox,
        "cat repo/a repo/run repo/deep/b gone/x keep/also/d was/z quite/new; ls gone was keep/also; test -x repo/run",
    )
    names = "repo/arepo/runrepo/deep/bgone/xkeep/also/dwas/zquite/new"
    assert (
        seen == names + "gone:\nx\n\nkeep/also:\nd\n\nwas:\nz\n"
        or seen == names + "keep/also:\nd\n\ngone:\nx\n\nwas:\nz\n"
    )
    assert said(seed, "cat repo/a gone/x keep/also/c") == "one\nx\nstays\n"


def test_a_snapshot_lies_on_another(provider: LocalProvider, made: list[LocalSandbox]) -> None:
    first = begun(provider, made)
    said(first, "echo 1 > a; echo 1 > b; mkdir d; echo 1 > d/x")
    below = first.snapshot()
    second = begun(provider, made, below)
    said(second, "echo 2 > a; rm b; rm -r d; mkdir d; echo 2 > d/y")
    above = second.snapshot()
    third = begun(provider, made, above)
    assert said(third, "cat a; ls . d") == "2\n.:\na\nd\n\nd:\ny\n"
    with pytest.raises(FileMissing):
        third.read("/workspace/d/x")
    with pytest.raises(FileMissing):
        third.read("/workspace/b")
    assert third.read("/workspace/d/y") == b"2\n"
    assert said(second, "cat a; echo 3 > c; cat d/y") == "2\n2\n"


def test_a_snapshot_stays_for_as_long_as_something_is_put_on_it(
    provider: LocalProvider, made: list[LocalSandbox], tmp_path: Path
) -> None:
    seed = begun(provider, made)
    said(seed, "echo 1 > a")
    image = seed.snapshot()
    user = begun(provider, made, image)
    seed.terminate()
    assert not provider.remove_snapshot(image)
    assert said(user, "cat a") == "1\n"
    user.terminate()
    assert provider.remove_snapshot(image)
    assert provider.snapshots() == ()
    assert list((tmp_path / "sandboxes").iterdir()) == []
    with pytest.raises(SandboxRefused, match="no snapshot"):
        provider.create(SandboxSpec(name="late", image=image))


def test_what_nobody_uses_any_more_is_found_and_cleaned_away(
    provider: LocalProvider, made: list[LocalSandbox], tmp_path: Path
) -> None:
    seed = begun(provider, made)
    image = seed.snapshot()
    above = begun(provider, made, image).snapshot()
    base = tmp_path / "sandboxes"
    (base / ".gone-sn-1/root").mkdir(parents=True)
    (base / "sn-2/users").mkdir(parents=True)
    snapshots = LocalSnapshots(base)
    assert snapshots.unused(3600) == []
    for sandbox in made:
        sandbox.terminate()
    for folder in (*base.glob("sn-*/users"), *base.glob("sn-2"), *base.glob(".gone*")):
        os.utime(folder, (time.time() - 7200,) * 2)
    found = [folder.name for folder in snapshots.unused(3600)]
    assert found == [above.removeprefix("local:"), image.removeprefix("local:"), ".gone-sn-1", "sn-2"]
    assert all(snapshots.remove("local:" + name) for name in found)
    assert list(base.iterdir()) == []


def test_nothing_is_kept_of_a_sandbox_in_which_something_runs(
    provider: LocalProvider, made: list[LocalSandbox]
) -> None:
    sandbox, up = begun(provider, made), threading.Event()
    argv = ["sh", "-c", "echo up; exec sleep 61.21"]
    running = threading.Thread(target=lambda: sandbox.exec(argv, timeout_s=20, on_output=lambda *_: up.set()))
    running.start()
    assert up.wait(10)
    with pytest.raises(SandboxError, match="running"):
        sandbox.snapshot()
    sandbox.end_commands()
    running.join()
    assert sandbox.snapshot().startswith("local:sn-")


def test_two_commands_at_once_both_write(provider: LocalProvider, made: list[LocalSandbox]) -> None:
    seed = begun(provider, made)
    said(seed, "for i in 1 2 3 4 5 6; do echo $i > f$i; done")
    sandbox, up = begun(provider, made, seed.snapshot()), threading.Event()
    late = "echo up; while [ ! -e /longshot/go ]; do sleep 0.02; done; for i in 1 2 3; do echo late >> f$i; done"
    first = threading.Thread(
        target=lambda: sandbox.exec(["sh", "-c", late], timeout_s=20, on_output=lambda *_: up.set())
    )
    first.start()
    assert up.wait(10)
    said(sandbox, "for i in 4 5 6; do echo other >> f$i; done; touch /longshot/go")
    first.join()
    assert said(sandbox, "cat f*").split() == [
        "1",
        "late",
        "2",
        "late",
        "3",
        "late",
        "4",
        "other",
        "5",
        "other",
        "6",
        "other",
    ]


def test_a_hostile_tree_is_kept_as_it_is(provider: LocalProvider, made: list[LocalSandbox], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    seed = begun(provider, made)
    said(
        seed,
        f"ln -s {secret} file; ln -s {tmp_path} dir; rm -rf /opt; ln -s {tmp_path} /opt; ln -s {secret} /home/agent/s",
    )
    sandbox = begun(provider, made, seed.snapshot())
    for path in ("/workspace/file", "/workspace/dir/secret", "/opt/secret", "/home/agent/s"):
        with pytest.raises(FileMissing):
            sandbox.read(path)
        assert sandbox.exec(["cat", path], timeout_s=10).exit_code != 0
    said(sandbox, f"echo /workspace; mkdir /w; mv /home /w; ln -s {tmp_path} /home")
    plain = begun(provider, made)
    said(plain, f"cd /; mv /workspace /w; ln -s {tmp_path} /workspace")
    with pytest.raises(SandboxError, match="no folder any more"):
        plain.snapshot()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sandboxes", "secret"]


def test_unisolated_sandboxes_make_none(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path, Isolation.NONE)
    assert not provider.capabilities.snapshots
    sandbox = provider.create(SandboxSpec(name="s", network="open"))
    with pytest.raises(SandboxRefused, match="without isolation"):
        sandbox.snapshot()
    sandbox.terminate()


def test_a_file_system_that_takes_no_overlay_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: Can not make overlay mount' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert not Bubblewrap(str(broken), True, overlays=True).can_overlay(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["bwrap"]
    assert confinement.Unconfined().can_overlay(tmp_path) is False
