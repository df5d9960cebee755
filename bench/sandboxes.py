"""Local sandboxes: how soon one begins that has the repository in it already, and how many are alive at once.

    .venv/bin/python bench/sandboxes.py --files 1500 --rounds 20 --alive 200

The last line is one JSON object; see bench/README.md.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longshot_dagster.adapters.host.home import Home
from longshot_dagster.adapters.repository.mirror import Mirror
from longshot_dagster.adapters.sandboxes.confinement import bubblewrap
from longshot_dagster.adapters.sandboxes.local_snapshots import remove_tree
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.adapters.workers.order_run import carry_out
from longshot_dagster.adapters.workers.warm import WarmStart, WarmStarts
from longshot_dagster.core.clock import SystemClock
from longshot_dagster.core.contract import Mode, WorkOrder
from longshot_dagster.core.errors import SandboxRefused
from longshot_dagster.core.models import BuildRequest, Target, TargetKind
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation, Settings

_AT_ONCE = 16  # that are being made or ended; they are alive together
_REPO = "/workspace/repo"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=1_500, help="in the repository")
    parser.add_argument("--rounds", type=int, default=20, help="of one start of each kind")
    parser.add_argument("--alive", type=int, default=200, help="sandboxes with a command running, at once; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        overlays = bubblewrap().can_overlay(Path(tempfile.gettempdir()))
    except SandboxRefused as e:
        print(f"sandboxes: {e}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="longshot-sandboxes-"))
    try:
        bench = Bench(folder, options.files, options.seed)
        found: dict[str, object] = {"files": options.files, "bytes": bench.bytes, "overlay": overlays}
        found |= bench.starts(options.rounds)
        found |= bench.together(options.alive) if options.alive else {}
    finally:
        remove_tree(folder)
    print(json.dumps(found))
    return 0 if found["whole"] else 1


class Bench:
    """One repository, and sandboxes for it below `folder`."""

    def __init__(self, folder: Path, files: int, seed: int) -> None:
        self._folder = folder
        self._bare = _repository(folder, files, random.Random(seed))
        home = Home(folder / "home")
        url = str(self._bare)
        target = Target(repository=url, url=url, kind=TargetKind.REMOTE, base_branch="main", branch="main")
        self._mirror = Mirror(home, target)
        self._head = self._mirror.fetch()
        self.bytes = self._mirror.bundle(self._head).stat().st_size
        request = BuildRequest(
            build="bench", request="-", target=target, base=self._head, settings=Settings(), created_at=time.time()
        )
        self._provider = LocalProvider(home.sandboxes, Isolation.AUTO)
        self._warm = WarmStarts(request, self._mirror, SystemClock(), pays_from_bytes=0)
        self._made = 0

    def starts(self, rounds: int) -> dict[str, object]:
        """Starts of each kind, one after the other in turn, so that whatever else this machine does meets all of them."""
        began = time.perf_counter()
        start = self._warm.find(self._provider, self._head, lambda: False)
        if start is None:
            raise SystemExit("sandboxes: no snapshot could be made here")
        print(f"one seed, checked out and kept: {time.perf_counter() - began:.2f} s")
        kinds: dict[str, Callable[[], bool]] = {
            "clone": self._clone,
            "warm": lambda: self._begin(start),
            "warm_worker": lambda: self._work(start),
            "worker": lambda: self._work(None),
        }
        took: dict[str, list[float]] = {name: [] for name in kinds}
        whole = True
        for number in range(rounds):
            for name, once in kinds.items():
                before = time.perf_counter()
                fine = once()
                took[name].append(time.perf_counter() - before)
                whole &= fine
                self._clear()
            print(f"{number + 1}/{rounds}: " + ", ".join(f"{n} {v[-1] * 1000:.0f} ms" for n, v in took.items()))
        middle = {name: statistics.median(values) * 1000 for name, values in took.items()}
        least = {name: min(values) * 1000 for name, values in took.items()}
        return {
            **{f"{name}_ms_p50": round(value, 1) for name, value in middle.items()},
            **{f"{name}_ms_min": round(value, 1) for name, value in least.items()},
            "warm_share_of_clone": round(middle["warm"] / middle["clone"], 4),
            "rounds": rounds,
            "whole": whole,
        }

    def _clone(self) -> bool:
        into = self._folder / "clone"
        command = ["git", "clone", "-q", "--no-local", f"file://{self._bare}", str(into)]
        return subprocess.run(command, check=False).returncode == 0

    def _begin(self, start: WarmStart) -> bool:
        """A sandbox with the repository in it, in which a command has run."""
        sandbox = self._sandbox(start)
        return sandbox.exec(["test", "-d", f"{_REPO}/.git"], timeout_s=60).exit_code == 0

    def _work(self, start: WarmStart | None) -> bool:
        """A sandbox in which a worker has everything before it, as the product makes it: with a snapshot and without."""
        sandbox = self._sandbox(start)
        holds, bundle = (start.holds, start.bundle) if start else (None, self._mirror.bundle(self._head))
        order = WorkOrder(task_id="bench", mode=Mode.WARM, base=self._head, holds=holds, deadline_s=300)
        delivery = carry_out(sandbox, order, bundle, 300, lambda: False)
        return delivery.result is not None and delivery.result.harness_status == "completed"

    def _sandbox(self, start: WarmStart | None) -> LocalSandbox:
        self._made += 1
        return self._provider.create(SandboxSpec(name=f"s{self._made}", image=start.image if start else ""))

    def _clear(self) -> None:
        for info in self._provider.list({}):
            self._provider.attach(info.id).terminate()
        remove_tree(self._folder / "clone")

    def together(self, number: int) -> dict[str, object]:
        """So many sandboxes with a command running in each, all at once."""
        start = self._warm.find(self._provider, self._head, lambda: False)
        up, go, fine = threading.Semaphore(0), threading.Event(), list[bool]()
        before, free = _resident(), _free_memory()

        def use(sandbox: LocalSandbox) -> None:
            argv = ["sh", "-c", f"git -C {_REPO} rev-parse HEAD && read line"]

            def feed() -> Iterator[bytes]:
                go.wait(600)
                yield b"go\n"

            said = sandbox.exec(argv, timeout_s=600, stdin=feed(), on_output=lambda *_: up.release())
            fine.append(said.stdout.decode().strip() == self._head)

        began = time.perf_counter()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sandboxes = list(pool.map(lambda _: self._sandbox(start), range(number)))
        made_s = time.perf_counter() - began
        threads = [threading.Thread(target=use, args=(sandbox,)) for sandbox in sandboxes]
        for thread in threads:
            thread.start()
        alive = sum(up.acquire(timeout=300) for _ in sandboxes)
        up_s, used, host = time.perf_counter() - began, _resident() - before, free - _free_memory()
        go.set()
        for thread in threads:
            thread.join()
        began = time.perf_counter()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda sandbox: sandbox.terminate(), sandboxes))
        print(f"{alive} alive after {up_s:.1f} s, ended in {time.perf_counter() - began:.1f} s")
        return {
            "alive": alive,
            "alive_right": sum(fine),
            "made_s": round(made_s, 2),
            "all_up_s": round(up_s, 2),
            "ended_s": round(time.perf_counter() - began, 2),
            "pss_mb_each": round(used / number / (1 << 20), 2),
            "host_mb_each": round(host / number / (1 << 20), 2),
            "left": len(self._provider.list({})),
        }


def _repository(folder: Path, files: int, drawn: random.Random) -> Path:
    work, bare = folder / "work", folder / "target.git"
    for number in range(files):
        path = work / f"package{number % 40:02}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"def f{n}(x):\n    return x + {drawn.random()}\n" for n in range(60))
        path.write_text("\n".join(lines), encoding="utf-8")
    who = ("-c", "user.name=bench", "-c", "user.email=bench@longshot.invalid")
    for command in (("init", "-q", "-b", "main"), ("add", "-A"), (*who, "commit", "-q", "-m", "all of it")):
        subprocess.run(["git", *command], cwd=work, check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    return bare


def _resident() -> int:
    """Bytes of all that descends from this process, shared pages counted once."""
    found, waiting, below = 0, [os.getpid()], _children()
    while waiting:
        pid = waiting.pop()
        waiting += below.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return found


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
        found.setdefault(parent, []).append(int(folder.name))
    return found


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    sys.exit(main())
