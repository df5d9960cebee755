"""The last word from a real ledger: as a page, as Markdown, as JSON and as lines, of builds that ended and that did not."""

import html
import json
import re
import subprocess
from pathlib import Path

import pytest
from browser import CHROMIUM, browser
from reported import HOSTILE, Reported, eventful, large, oid
from repositories import World, bare, commit_on

from longshot_dagster.adapters.builds.last_word import last_word, markdown, page, write_last_word
from longshot_dagster.core.landing_records import LandingState
from longshot_dagster.core.last_word import LastWord
from longshot_dagster.core.models import BuildPhase, CheckStatus, HandoffStatus
from longshot_dagster.core.report_json import report_document
from longshot_dagster.core.report_text import report_lines
from longshot_dagster.core.reviewing import review_steps


def told(build: Reported, later: float = 0) -> LastWord:
    return last_word(build.ledger, build.home, build.at + later)


def text_of(document: str) -> str:
    """What a reader sees of a page, white space squeezed."""
    body = re.sub(r"<style>.*?</style>|<title>.*?</title>", " ", document, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def row(document: str, task: str) -> str:
    found = re.search(rf'<tr id="{task}">(.*?)</tr>', document, re.DOTALL)
    assert found, task
    return text_of(found[1])


# --- what is said ----------------------------------------------------------------------------------------------------


def test_the_page_traces_every_task_from_its_request_to_its_commits(tmp_path: Path) -> None:
    build = eventful(tmp_path)
    shown = page(told(build))
    assert "Build a REST API according to SPEC.md" in text_of(shown)
    one = row(shown, "r001-01")
    for fact in ("Users", "4 min 00 s", "builtin in local: completed", "10,000 tokens", "compile green", "test green"):
        assert fact in one
    assert oid("landed r001-01")[:12] in one
    assert "superseded by f001-01" in row(shown, "r001-03")
    assert "src/users.py: belongs to task r001-01" in row(shown, "r001-02")
    assert "withheld the handoff is partial" in row(shown, "r002-01")
    assert text_of(shown).count("planned by root.001") == 1


def test_the_markdown_names_what_is_left_checks_tokens_places_and_what_to_do(tmp_path: Path) -> None:
    build = eventful(tmp_path)
    shown = markdown(told(build))
    for fact in (
        "4 of 7 tasks landed, 1 superseded, 1 left over, checks green",
        r"| r002\-01 | withheld | the handoff is partial |",
        "| test | green | make test | 2.3 s |",
        "| tokens | 106,000 |",
        "| cost | unknown |",
        "| time | 16 min 24 s |",
        "longshot undo todo-api-7f3k.r002-02",
        "longshot retry todo-api-7f3k.r002-01",
        "| landed | 4 | 15 min 10 s | 57% | 40,000 | 57% |",
    ):
        assert fact in shown, fact


def test_sums_over_rounds_are_on_the_page(tmp_path: Path) -> None:
    shown = text_of(page(told(eventful(tmp_path))))
    assert "root.001 2026-09-21 14:13:50 UTC" in shown
    assert "4 planned 2 3 min 40 s 5 min 00 s 12,000 + 40,000" in shown
    assert "workers at once 4 1.9 on average" in shown


def test_a_build_that_has_not_ended_is_not_finished_and_nothing_is_called_green(tmp_path: Path) -> None:
    build = eventful(tmp_path, finish=False)
    lines = report_lines(told(build, 100))
    assert lines[0] == ("todo-api-7f3k: not finished, 3 of 7 planned tasks landed so far; the build is running")
    assert "next   longshot watch todo-api-7f3k" in lines
    assert not any(line.startswith("report ") for line in lines), "no page has been written"
    assert "not finished (running)" in text_of(page(told(build)))
    document = report_document(told(build, 100))
    assert (document["finished"], document["verdict"], document["phase"]) == (False, None, "running")
    assert document["head"] == oid("head")
    build.ledger.update_state(lambda s: s.moved(BuildPhase.PAUSED, "no endpoint answers"))
    lines = report_lines(told(build, 10_000))
    assert lines[0].endswith("the build is paused: no endpoint answers")
    assert "next   longshot resume todo-api-7f3k" in lines
    assert any(line.endswith("16 min 24 s") for line in lines), "a paused build's clock stands still"


def test_what_was_undone_after_the_report_is_said(tmp_path: Path) -> None:
    build = eventful(tmp_path)
    landing = build.ledger.landing("r001-02")
    assert landing is not None
    build.ledger.save_landing(landing.moved(LandingState.UNDONE, build.at, reason="undone by hand"))
    word = told(build)
    assert "undone since: r001-02" in report_lines(word)
    assert "Undone since then: r001-02" in text_of(page(word))
    assert "**Undone since this was written**: r001\\-02." in markdown(word)
    assert report_document(word)["counts"]["undone"] == 1


def test_json_holds_every_task_and_unknown_money_is_null(tmp_path: Path) -> None:
    document = json.loads(json.dumps(report_document(told(eventful(tmp_path)))))
    assert (document["verdict"], document["cost_usd"], document["tokens"]) == ("leftovers", None, 106_000)
    tasks = {t["task"]: t for t in document["tasks"]}
    assert tasks["r001-01"]["commits"] == [oid("landed r001-01")]
    assert tasks["r002-01"]["why"] == "the handoff is partial"
    assert [s["green"] for s in document["sweeps"]] == [False, True]


def test_work_that_was_set_aside_is_on_the_timeline_too(tmp_path: Path) -> None:
    build = eventful(tmp_path)
    build.ledger.forget_work("r002-01")
    task = build.ledger.existing_task("r002-01")
    build.worked(task, 1_000, 60, HandoffStatus.COMPLETE)
    shown = page(told(build))
    assert "r002-01 set aside, and worked on again, 6 min 40 s" in shown
    assert "2 times worked on" in row(shown, "r002-01")


def test_pauses_are_on_the_timeline_and_a_night_of_one_takes_no_room(tmp_path: Path) -> None:
    build = eventful(tmp_path, finish=False)
    phases = [(build.at + 1, "paused", "no endpoint answers"), (build.at + 30_000, "running", "")]
    lines = [json.dumps({"at": at, "phase": p, "reason": r, "verdict": None}) for at, p, r in phases]
    (Path(str(build.ledger.directory)) / "phases.jsonl").write_text("\n".join(lines))
    build.at += 30_010
    build.swept(CheckStatus.GREEN)
    shown = page(told(build))
    assert "paused for 8 h 19 min: no endpoint answers" in shown
    assert "8 h 20 min of nothing" in shown


def test_a_plan_of_an_older_version_is_dated_by_its_file(tmp_path: Path) -> None:
    build = eventful(tmp_path)
    path = Path(str(build.ledger.directory)) / "iterations/root.001/plan.json"
    plan = json.loads(path.read_text())
    del plan["planned_at"], plan["sha256"]  # neither did they write
    path.write_text(json.dumps(plan))
    found = last_word(type(build.ledger)(build.ledger.directory, build.ledger.build), build.home, build.at)
    assert [r.ended_at for r in found.rounds if r.key.short == "root.001"] == [path.stat().st_mtime]


# --- the page itself -------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    shown = page(told(eventful(tmp_path)))
    assert HOSTILE.split("<")[0][:7] in shown
    assert set(re.findall(r"<([a-z]+)", shown)).isdisjoint(
        {"script", "img", "iframe", "object", "link", "form", "base"}
    )
    assert not re.search(r"(?:src|action|url|@import)\s*[=(]\s*[\"']?(?:https?:|//)", shown)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', shown))
    assert "\x1b" not in shown and "\u202e" not in shown
    assert "default-src 'none'; style-src 'sha256-" in shown


async def _looked_at(folder: Path, address: str) -> dict[int, object]:
    found = {}
    async with browser(folder) as tab:
        for width in (1280, 390):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            await tab.call("Emulation.setDeviceMetricsOverride", **size)
            await tab.open(address)
            await tab.until("document.readyState == 'complete' && !!document.querySelector('main')")
            found[width] = await tab.eval(
                """({
                  sideways: document.documentElement.scrollWidth > innerWidth,
                  styled: getComputedStyle(document.querySelector('.badge')).borderRadius,
                  asked: performance.getEntriesByType('resource').length,
                  bars: document.querySelectorAll('svg.timeline rect').length,
                  cells: getComputedStyle(document.querySelector('td')).display,
                })"""
            )
    return found


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
def test_a_browser_shows_it_at_a_desk_and_on_a_phone_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    import asyncio

    build = eventful(tmp_path / "home")
    write_last_word(build.ledger, build.home, build.at)
    address = f"file://{build.ledger.report_path()}"
    found = asyncio.run(_looked_at(tmp_path / "profile", address))
    same = {"sideways": False, "styled": "13px", "asked": 0, "bars": 12}
    assert found == {
        1280: {"cells": "table-cell", **same},
        390: {"cells": "grid", **same},
    }


def test_hundreds_of_tasks_are_a_page_that_opens_whose_tables_are_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)  # two thousand documents that need survive nothing
    word = told(large(tmp_path, 400, 50))
    shown = page(word)
    assert len(shown) < 700_000
    assert shown.count("<summary>planned by root.") == 8
    assert "planned by root.001: 4" in text_of(shown)
    assert shown.count('<tr id="r') == 400
    assert len(markdown(word, picture=True)) < 400_000


# --- commands that work as they stand --------------------------------------------------------------------------------


def run(command: str, cwd: Path) -> str:
    done = subprocess.run(["bash", "-c", command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def landed_world(root: Path, repository: Path, given: str = "") -> World:
    world = World(root, repository, repository=given)
    task = world.task("r001-01", ("src/",))
    world.plan(task)
    world.worked(task, {"src/a b.py": "a = 1\nb = 2\n"})
    assert world.queue().land(task).state is LandingState.LANDED
    return world


def test_the_review_commands_of_a_remote_work_and_lead_from_a_line_to_its_task(tmp_path: Path) -> None:
    origin = bare(tmp_path / "some where.git", {"README.md": "hello\n"})
    world = landed_world(tmp_path, origin)
    commit_on(origin, "main", {"by-hand.txt": "x\n"})
    word = last_word(world.ledger, world.home, 5.0)
    desk = tmp_path / "desk"
    desk.mkdir()
    printed = [run(s.command, desk) for s in review_steps(word.request, word.report.head, word.landed_files)]
    assert "src/a b.py" in printed[1]
    assert "+b = 2" in printed[2]
    commit = printed[3].split()[0].lstrip("^")
    assert word.tasks[0].landing is not None and word.tasks[0].landing.commits[0].startswith(commit)
    assert "Longshot-Task: r001-01" in printed[4]


def test_the_review_commands_of_a_checkout_work_and_merge_what_landed(tmp_path: Path) -> None:
    checkout = tmp_path / "my app"
    run(f"git init -q -b main '{checkout}'", tmp_path)
    run("echo hello > README.md && git add -A && git commit -q -m first", checkout)
    world = landed_world(tmp_path, checkout, str(checkout))
    word = last_word(world.ledger, world.home, 5.0)
    for step in review_steps(word.request, word.report.head, word.landed_files):
        run(step.command, tmp_path)
    assert (checkout / "src/a b.py").read_text() == "a = 1\nb = 2\n"
