"""A worker whose agent has taken over everything in its sandbox, from the real sandbox to the landing branch and the UI.

`HOSTILE` runs inside the sandbox after the honest worker, as an agent could that traced or replaced it: whatever it
hands out, main changes by legitimate content only, nothing crashes, and every text is harmless wherever it is shown.
"""

import json
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from worked import APP, BUILD, TEST, Build, git

from scripted_chat import calls, done  # isort: skip - found through `worked`

from longshot_dagster.adapters.builds.last_word import last_word, markdown, page
from longshot_dagster.adapters.landing.queue import LandingQueue
from longshot_dagster.adapters.sandboxes.sandbox_local import LocalProvider, LocalSandbox
from longshot_dagster.cli.terminal import say
from longshot_dagster.cli.watching import BuildWatch
from longshot_dagster.core.ids import IterationKey
from longshot_dagster.core.landing_records import LandingOutcome, LandingState
from longshot_dagster.core.models import Handoff, HandoffStatus, Plan
from longshot_dagster.core.report import make_report, summary_lines
from longshot_dagster.core.sandbox import SandboxSpec
from longshot_dagster.core.settings import Isolation

NASTY = (
    "[/bold]\x1b[31m\x1b]8;;http://evil.example\x07<img src=x onerror=alert(1)>![i](http://evil.example/i)\u202e\x00"
)
FILE = "src/[bold]<img src=x>![i](http:evil.example)`|.md"  # no control characters: those never are paths

HOSTILE = r"""
import hashlib, json, os, struct, subprocess, sys, zlib
NASTY = json.loads(sys.argv[1])
OUT, BASE = "/longshot/out/", json.load(open("/longshot/order.json"))["base"]
os.chdir("/workspace/repo")
def git(*args, stdin=b"", **env):
    ran = subprocess.run(["git", *args], input=stdin, stdout=subprocess.PIPE, check=True, env={**os.environ, **env})
    return ran.stdout.decode().strip()
def blob(data):
    return git("hash-object", "-w", "--stdin", stdin=data)
def tree(*entries):
    raw = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries)
    return git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw)
def entries(treeish):
    listed = git("ls-tree", "-z", treeish).split("\0")
    return [(r.split()[0], r.split("\t")[1].encode(), r.split()[2].split("\t")[0]) for r in listed if r]
def commit(made, message="work", **env):
    return git("commit-tree", made, "-p", BASE, stdin=message.encode(), **env)
def with_entries(*more):
    rows = [r for r in entries(BASE) if r[1] not in [m[1] for m in more]] + list(more)
    return tree(*sorted(rows, key=lambda r: r[1] + (b"/" if r[0] == "40000" else b"")))
def hand_over(head, pack=None, **told):
    if pack is None:
        git("update-ref", "refs/heads/work", head)
        git("bundle", "create", "-q", OUT + "work.bundle", "refs/heads/work", "^" + BASE)
    else:
        start = "# v2 git bundle\n-%s\n%s refs/heads/work\n\n" % (BASE, head)
        open(OUT + "work.bundle", "wb").write(start.encode() + pack + hashlib.sha1(pack).digest())
    told = {"taskId": "r001-01", "harnessStatus": "completed", "status": "complete", "head": head, "summary": "s", **told}
    json.dump(told, open(OUT + "result.json", "w"))
"""


class Hijacked(LocalProvider):
    """Sandboxes in which `script` has the last word."""

    def __init__(self, base: Path, script: str) -> None:
        super().__init__(base, Isolation.AUTO)
        self.script = script

    def create(self, spec: SandboxSpec) -> LocalSandbox:
        made = super().create(spec)
        honest = made.exec

        def exec_(*arguments: Any, **options: Any) -> Any:
            ran = honest(*arguments, **options)
            argv = ["python3", "-I", "-c", HOSTILE + self.script, json.dumps(NASTY)]
            evil = honest(argv, timeout_s=30)
            assert evil.exit_code == 0, evil.stderr.decode()
            return ran

        if self.script:
            made.exec = exec_  # type: ignore[method-assign]
        return made


class Situation:
    """One task of one build, worked on and landed; `before` is what must not change."""

    def __init__(self, tmp_path: Path, socket: Path, script: str = "", *replies: Any, scope: str = "app.py") -> None:
        self.build = Build(
            tmp_path,
            socket,
            [*replies, done()],
            files={"app.py": APP, "test_app.py": TEST},
            provider=Hijacked(tmp_path / "sb", script),
            **{f"check_{c}": "none" for c in ("install", "compile", "types", "lint", "test")},
        )
        self.task = self.build.task(scope=(scope,))
        key = IterationKey(BUILD, "root", 1)
        self.build.ledger.open_iteration(key)
        self.build.ledger.freeze_plan(key, Plan(iteration=key.short, tasks=(self.task,), base=self.build.base))
        self.origin = Path(self.build.request.target.url)
        with self.build.chat:
            self.handoff: Handoff = self.build.runner.run(self.task, lambda: False)
        queue = LandingQueue(self.build.ledger, self.build.request, self.build.mirror, self.build.clock)
        self.landing: LandingOutcome = queue.land(self.task)

    @property
    def main(self) -> dict[str, str]:
        """Path -> git mode of everything on main."""
        rows = git(self.origin, "ls-tree", "-r", "-z", "main").split("\0")
        return {r.partition("\t")[2]: r.split()[0] for r in rows if r}

    def must_have_changed_nothing(self, why: str) -> None:
        assert (self.handoff.status, self.handoff.diff) == (HandoffStatus.FAILED, "")
        assert why in self.handoff.concerns[0]
        assert len(self.handoff.model_dump_json()) < 10_000
        assert self.landing.state is LandingState.WITHHELD
        self.must_be_whole()
        assert git(self.origin, "rev-parse", "main") == self.build.base
        assert git(self.build.mirror.path, "for-each-ref", "refs/longshot/work") == ""

    def must_be_whole(self) -> None:
        """Of the target only main and our own refs; no hooks anywhere; the sandbox gone; the ledger readable."""
        refs = git(self.origin, "for-each-ref", "--format=%(refname)").splitlines()
        assert [r for r in refs if not r.startswith("refs/longshot/")] == ["refs/heads/main"]
        git(self.origin, "fsck", "--strict", "--no-dangling")
        for repository in (self.origin, self.build.mirror.path):
            assert all(hook.suffix == ".sample" for hook in (repository / "hooks").iterdir())
        assert list((self.build.home.root.parent / "sb").iterdir()) == []
        assert self.build.ledger.handoff(self.task.id) == self.handoff
        assert self.build.ledger.landing(self.task.id) == self.landing
        must_be_harmless(self)


@pytest.fixture
def socket() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder / "model.sock"
    shutil.rmtree(folder)


# --- where the texts are shown ---------------------------------------------------------------------------------------


def plain(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t\u200b" for c in text)


def must_be_harmless(situation: Situation) -> None:
    """Every line of the command line and every metadata entry of the UI, judged by somebody else's Markdown renderer."""
    from longshot_dagster.defs import metadata

    build, task = situation.build, situation.task
    request, run, plan = build.request, build.ledger.run(task.id), build.ledger.plan(IterationKey(BUILD, "root", 1))
    assert run and plan
    report = make_report(
        request,
        tasks=[task],
        handoffs={task.id: situation.handoff},
        landings={task.id: situation.landing},
        runs=[run],
        plans=[plan],
        sweep=None,
        head=build.base,
        finalization_attempts=0,
        now=2.0,
    )
    lines = [*summary_lines(report, request), *BuildWatch(build.ledger).look()]
    assert len(lines) >= 5
    assert all(plain(line) and "\n" not in line for line in lines), lines
    shown = metadata.task_metadata_from(build.ledger, task, situation.handoff, situation.landing)
    shown |= metadata.plan_metadata(plan, request)
    shown |= metadata.handoffs_metadata([situation.handoff]) | metadata.landings_metadata([situation.landing])
    for name, value in shown.items():
        rows = getattr(value, "records", None)
        texts = [value.value] if rows is None else [cell for row in rows for cell in row.data.values()]
        assert all(plain(str(text)) for text in texts), name
        if type(value).__name__ == "MarkdownMetadataValue":
            must_be_plain_markdown(str(value.value), name)
    word = last_word(build.ledger, build.home, 2.0)
    must_be_plain_markdown(markdown(word), "report")
    must_be_our_own_html(page(word))


def must_be_plain_markdown(text: str, name: str) -> None:
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    found = set(re.findall(r"<(\w+)", re.sub(r'<code class="[^"]*">', "<code>", rendered)))
    assert found <= {"p", "ul", "li", "pre", "code", "h1", "h2", "table", "thead", "tbody", "tr", "th", "td"}, name


def must_be_our_own_html(text: str) -> None:
    """No element that loads or runs anything, and no attribute that names a place elsewhere."""
    found = set(re.findall(r"<([a-zA-Z]+)", text))
    assert found.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "form", "base", "image", "use"})
    assert set(re.findall(r"(?:href|src)=\"([^\"]*)", text)) <= {f"#{t}" for t in ("r001-01",)}
    assert plain(text)


# --- bundles ---------------------------------------------------------------------------------------------------------

TREES = {
    "hooks-in-the-tree": (
        'hook = blob(b"#!/bin/sh\\ntouch /tmp/owned\\n")\n'
        'inner = tree(("40000", b"hooks", tree(("100755", b"post-checkout", hook))))\n'
        'hand_over(commit(with_entries(("40000", b".git", inner))))'
    ),
    "linked-gitmodules": 'hand_over(commit(with_entries(("120000", b".gitmodules", blob(b"../../etc/passwd")))))',
    "climbing-path": 'hand_over(commit(with_entries(("100644", b"../x", blob(b"x")))))',
    "submodule-that-runs": (
        "text = b'[submodule \"x\"]\\n\\tpath = x\\n\\turl = -u./payload\\n'\n"
        'hand_over(commit(with_entries(("100644", b".gitmodules", blob(text)), ("160000", b"x", "1" * 40))))'
    ),
}


@pytest.mark.parametrize("script", TREES.values(), ids=TREES.keys())
def test_a_tree_that_git_would_trip_over_leaves_nothing(tmp_path: Path, socket: Path, script: str) -> None:
    Situation(tmp_path, socket, script).must_have_changed_nothing("the bundle was refused")


def test_a_file_that_declares_five_gigabytes_is_not_unpacked(tmp_path: Path, socket: Path) -> None:
    script = """
size, head = 5 << 30, bytearray([0xB0 | (5 << 30) & 15])
rest = size >> 4
while rest:
    head[-1] |= 0x80; head.append(rest & 0x7F); rest >>= 7
pack = b"PACK" + struct.pack(">II", 2, 1) + bytes(head) + zlib.compress(bytes(1 << 20))
hand_over("1" * 40, pack)
"""
    Situation(tmp_path, socket, script).must_have_changed_nothing("declares an object of 5368709120 bytes")


def test_a_large_file_in_the_work_tree_stays_behind(tmp_path: Path, socket: Path) -> None:
    # Larger than 2 GB is refused inside already; nothing but a declared size can be five.
    command = "truncate -s 1900M big.bin; truncate -s 5G bigger.bin || rm bigger.bin; echo 'B = 1' >> app.py"
    bash = ("bash", {"command": command})
    found = Situation(tmp_path, socket, "", calls(bash))
    assert (found.landing.state, found.landing.landed_paths) == (LandingState.LANDED, ("app.py",))
    assert any("big.bin" in c for c in found.handoff.concerns)
    assert set(found.main) == {"app.py", "test_app.py"}
    found.must_be_whole()


def test_a_result_of_two_hundred_megabytes_is_not_read(tmp_path: Path, socket: Path) -> None:
    script = 'hand_over(commit(with_entries()))\nopen(OUT + "result.json", "a").write(" " * (200 << 20))'
    Situation(tmp_path, socket, script).must_have_changed_nothing("larger than 4,194,304 bytes")


# --- texts -----------------------------------------------------------------------------------------------------------


def test_forged_trailers_and_a_hostile_author_reach_main_as_ours(tmp_path: Path, socket: Path) -> None:
    script = r"""
message = NASTY.replace("\0", "") + "\n\nbody " + NASTY.replace("\0", "")
message += "\n\nLongshot-Build: other\nLongshot-Task: r009-01\nlongshot\u200b-source: " + "1" * 40 + "\n"
who = {"GIT_AUTHOR_NAME": NASTY.replace("\0", ""), "GIT_AUTHOR_EMAIL": "a\x1b[31m@b"}
hand_over(commit(with_entries(("100644", b"app.py", blob(b"B = 1\n"))), message, **who))
"""
    found = Situation(tmp_path, socket, script)
    assert found.landing.state is LandingState.LANDED
    run = found.build.ledger.run("r001-01")
    assert run
    trailers = git(found.origin, "log", "-1", "--format=%(trailers:only,unfold)", "main").splitlines()
    assert trailers == [f"Longshot-Build: {BUILD}", "Longshot-Task: r001-01", f"Longshot-Source: {run.head}"]
    raw = git(found.origin, "cat-file", "commit", "main")
    assert plain(raw)
    assert "r009-01" not in raw
    assert "evil.example" not in git(found.origin, "log", "-1", "--format=%ae%ce", "main")
    found.must_be_whole()


def test_nasty_text_in_every_field_is_shown_harmless(
    tmp_path: Path, socket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f"""
src = tree(("100644", {FILE.removeprefix("src/").encode()!r}, blob(NASTY.encode())))
many = [NASTY] * 200
check = {{"name": "test", "command": NASTY, "status": "green", "output": NASTY * 50, "exitCode": 0}}
told = {{"summary": NASTY * 20, "concerns": many, "suggestions": many, "checks": [check] * 20, "harnessStatus": "completed"}}
hand_over(commit(with_entries(("40000", b"src", src)), NASTY.replace("\\0", "")), **told)
"""
    found = Situation(tmp_path, socket, script, scope="src")
    assert (found.handoff.status, found.landing.state) == (HandoffStatus.COMPLETE, LandingState.LANDED)
    assert (found.handoff.summary, found.handoff.concerns) == (NASTY * 20, [NASTY] * 200)  # as data it is kept
    assert set(found.main) == {"app.py", "test_app.py", FILE}
    assert plain(git(found.origin, "cat-file", "commit", "main"))
    found.must_be_whole()
    say(found.handoff.summary + "\nDagster UI: http://evil.example")
    shown = capsys.readouterr().out
    assert plain(shown)
    assert shown.count("\n") == 1


def test_nasty_text_of_a_run_that_failed_is_shown_harmless(tmp_path: Path, socket: Path) -> None:
    script = "hand_over(BASE, pack=None) if 0 else json.dump({'taskId': 'r001-01', 'harnessStatus': NASTY[:40], "
    script += "'error': NASTY, 'status': 'failed', 'conflictMarkers': [NASTY] * 1000}, open(OUT + 'result.json', 'w'))"
    found = Situation(tmp_path, socket, script)
    assert (found.handoff.status, found.landing.state) == (HandoffStatus.FAILED, LandingState.WITHHELD)
    found.must_be_whole()


@pytest.mark.parametrize("fields", ['"concerns": [NASTY] * 201, "summary": NASTY * 9999', '"taskId": NASTY'])
def test_a_result_out_of_bounds_becomes_a_failed_handoff(tmp_path: Path, socket: Path, fields: str) -> None:
    script = f"hand_over(commit(with_entries()), **{{{fields}}})"
    Situation(tmp_path, socket, script).must_have_changed_nothing("the worker's result is")


def test_paths_that_no_file_system_would_take_are_withheld_by_name(tmp_path: Path, socket: Path) -> None:
    script = r"""
deep = tree(("100644", b"f", blob(b"x")))
for _ in range(30):
    deep = tree(("40000", b"d" * 200, deep))
rows = [("40000", b"d", deep), ("100644", b"esc\x1b[31m.py", blob(b"x")), ("100644", b"\xff\xfe.py", blob(b"x"))]
rows += [("120000", b"link", blob(b"/etc/passwd")), ("100644", b"app.py", blob(b"B = 1\n"))]
hand_over(commit(with_entries(*rows)))
"""
    found = Situation(tmp_path, socket, script)
    assert found.landing.state is LandingState.LANDED
    assert found.main == {"app.py": "100644", "test_app.py": "100644"}
    assert len(found.landing.withheld_paths) == 4
    found.must_be_whole()


# --- the worker itself -----------------------------------------------------------------------------------------------


def test_an_agent_that_becomes_the_salvaging_worker_lands_nothing(tmp_path: Path, socket: Path) -> None:
    evil = HOSTILE.replace("json.loads(sys.argv[1])", '"x"')
    evil += '\nhand_over(commit(with_entries(("100644", b"app.py", blob(b"owned = 1\\n")))), summary="all is well")\n'
    write = ("write", {"path": "evil.py", "content": evil})
    takeover = ("bash", {"command": "mkdir -p /longshot/out; cp evil.py /longshot/worker.pyz; kill -9 $PPID"})
    found = Situation(tmp_path, socket, "", calls(write), calls(takeover))
    assert (found.handoff.status, found.landing.state) == (HandoffStatus.PARTIAL, LandingState.WITHHELD)
    assert "owned = 1" in found.handoff.diff
    assert git(found.origin, "rev-parse", "main") == found.build.base
    found.must_be_whole()
