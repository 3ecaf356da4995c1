"""The page in a real browser: what it shows of a run that goes on, what it asks of it, and what it shows afterwards."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from played_run import PLAN, jpeg, page_beside, page_process, step
from tiny_services import LineRobot, Walker, wait_until

from saycan_qt.journey.recording import Recorder
from saycan_qt.journey.report import write_report
from saycan_qt.page.runs import Runs
from saycan_qt.page.server import PageServer
from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.library import SkillLibrary
from skills.security.access import Access, Holder, Tokens, digest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[test]'")

EVIL = "<script>hacked=1</script><img src=x onerror=hacked=1> “'&quot;"
QUESTION = {
    **{"id": 7, "instruction": "bring me an apple", "reason": "it seems likeliest", "confidence": 0.41},
    **{"options": ["pick up the apple", "find the apple"], "skills": True},
}


@pytest.fixture(scope="module")
def chromium():
    """The one that $CHROMIUM names, the system's, or playwright's own."""
    with playwright.sync_playwright() as tool:
        own = tool.chromium.executable_path
        found = [
            path for path in (os.environ.get("CHROMIUM"), "/usr/bin/chromium", own) if path and Path(path).exists()
        ]
        if not found:
            pytest.skip("there is no Chromium: `apt install chromium`, or name one in $CHROMIUM")
        browser = tool.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens a page; none of them may have had anything to complain of."""
    complaints, contexts = [], []

    def opened(url, width=1280, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.complaints, page.requests = complaints, []
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def shows(page, words, where="main"):
    page.locator(where, has_text=words).first.wait_for()


def becomes(page, expression, argument=None):
    """Playwright's own waiting evaluates strings within the page, which its policy forbids."""
    wait_until(lambda: page.evaluate(expression, argument), 15)


@pytest.fixture
def run():
    with page_beside() as run:
        yield run


@pytest.fixture
def going(run):
    """A run at its first step."""
    run.begin()
    run.tell(now={"phase": "moving", "text": "pick up the apple", "step": 1, "control_step": 3, "of": 45}, step=step(1))
    wait_until(lambda: run.hub.state.whole()["now"]["phase"] == "moving")
    return run


# -- now and why -----------------------------------------------------------------------------------------------------


def bars(page):
    """Of the best candidates: their names and the widths of their three bars [%]."""
    rows = page.locator("#step .why").first.locator("tbody tr")
    read = "rows => rows.map(r => [r.querySelector('button').textContent, ...[...r.querySelectorAll('.bar i i')]"
    return rows.evaluate_all(read + ".map(i => Math.round(parseFloat(i.style.width)))])")


def test_bars_change_when_a_step_comes(going, open_page):
    page = open_page(going.server.url)
    shows(page, "control step 3 of at most 45")
    assert bars(page)[:2] == [["pick up the apple", 50, 80, 40], ["find the apple", 100, 10, 10]]
    shows(page, "affordance vetoed it", "tr:has-text('find the apple')")
    shows(page, "language vetoed it", "tr:has-text('go to the table')")
    going.tell(step=step(1, outcome="succeeded", control_steps=7), now={"phase": "thinking", "text": "what next?"})
    going.tell(step=step(2, "put it down", "weighed"))
    shows(page, "Step 2: put it down")
    assert bars(page)[0] == ["put it down", 50, 80, 40]
    shows(page, "✓", "li:has-text('pick up the apple')")
    page.locator("summary", has_text="All 7 skills").click()
    page.get_by_label("filter skills by words").fill("sponge")
    wait_until(lambda: page.locator("details:has-text('All 7 skills') tbody tr").count() == 1)


def test_what_it_sees_and_believes_is_shown_as_it_comes(going, open_page):
    page = open_page(going.server.url)
    for colour, seen in (("red", [254, 0, 0]), ("blue", [0, 0, 254])):
        going.show("head", jpeg(colour))
        becomes(
            page,
            """([r, g, b]) => { const image = document.querySelector('.seen img');
            if (!image?.naturalWidth) return false;
            const pen = document.createElement('canvas').getContext('2d'); pen.drawImage(image, 0, 0);
            const [x, y, z] = pen.getImageData(9, 9, 1, 1).data;
            return Math.abs(x-r) + Math.abs(y-g) + Math.abs(z-b) < 9 }""",
            seen,
        )
    shows(page, "robot, empty hand", ".place.here:has-text('table'):has-text('apple')")
    going.tell(step=step(2, "put it down", held="apple", place="far counter", objects={"sponge": "table"}))
    shows(page, "robot, holding apple", ".place.here:has-text('far counter')")
    shows(page, "sponge", ".place:has-text('table') .thing.moved")


class Mapping(Walker):
    def value_maps(self, history, instruction):
        return {"front": np.full((8, 12, 3), 200, np.uint8)}


def test_a_skill_that_is_clicked_shows_where_its_value_lies_and_its_history(going, open_page):
    library, critic = SkillLibrary.load(), Mapping()
    rows = [{**row, "skill": "pick apple"} for row in step(1)["candidates"][:1]] + step(1)["candidates"][1:]
    with contextlib.ExitStack() as stack:
        judge = stack.enter_context(skill_service.serve(library, critic, critic, model_id="walker"))
        moved = robot_service.serve(LineRobot(), library, stack.enter_context(SkillClient(judge.address)))
        going.tell(robot={"name": "line robot", "address": stack.enter_context(moved).address, "guard": ""})
        going.tell(step=step(1, candidates=rows, skill="pick apple"))
        page = open_page(going.server.url)
        page.get_by_role("button", name="pick up the apple", exact=True).click()
        becomes(page, "document.querySelector('.about img')?.naturalWidth > 0")
        shows(page, "where it sees value now: front", ".about")
        shows(page, "language 45%", ".about")


# -- hands on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_robot(tmp_path):
    """A robot's service in a process of its own that carries out a skill; (address, guard, what happened to it)."""
    log = tmp_path / "log"
    command = [sys.executable, Path(__file__).with_name("guarded_robot.py"), log]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address, guard = process.stdout.readline().split()
        with RobotClient(address) as client, contextlib.closing(client.execute("go to table")) as goal:
            goal.ahead()
            yield address, guard, log
        process.terminate()


def test_stop_reaches_the_robot_at_once_while_this_machine_is_busy(small_robot, open_page):
    """Measured 20 ms; 300 are allowed."""
    address, guard, log = small_robot
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with page_process() as run:
            run.begin()
            run.tell(robot={"name": "small robot", "address": address, "guard": guard})
            page = open_page(run.url)
            shows(page, "small robot", ".top")
            page.evaluate(
                """() => { addEventListener('keydown', () => { window.began = performance.now() }, true);
                const told = () => document.querySelector('main .alert')?.textContent.includes('ms');
                new MutationObserver(() => { if (told()) window.took ??= performance.now() - window.began })
                .observe(document.body, { subtree: true, childList: true, characterData: true }) }"""
            )
            page.keyboard.press("Escape")
            becomes(page, "window.took")
            assert page.evaluate("window.took") < 300
            shows(page, "Stopped.", ".alert")
            assert "stop" in log.read_text() and page.locator("#stop").is_hidden()
            assert run.heard() == {"do": "stopped"}
            page.get_by_role("button", name="Release it").click()
            assert run.heard() == {"do": "release"}
            run.tell(stopped=False)
            page.locator("#stop").wait_for()
            page.close()
    finally:
        busy.kill()
        busy.wait()


def test_veto_answer_choose_and_instruct_arrive(going, open_page):
    page = open_page(going.server.url)
    for question, act, said in (
        (7, lambda: page.get_by_role("button", name="find the apple").first.click(), "2"),
        (8, lambda: page.keyboard.press("v"), "veto"),
        (9, lambda: page.keyboard.press("1"), "1"),
        (10, lambda: page.get_by_role("button", name="End it here").click(), ""),
        (11, lambda: (page.get_by_label("other words").fill("the sponge"), page.keyboard.press("Enter")), "the sponge"),
        (12, lambda: choose(page), "go to the table"),
    ):
        going.tell(now={"phase": "asking", "text": "?"}, question={**QUESTION, "id": question})
        shows(page, "it seems likeliest", ".question")
        shows(page, "41%", ".question")
        act()
        assert going.heard() == {"do": "answer", "id": question, "text": said}
        going.tell(question=None)
        page.locator(".question").wait_for(state="hidden")
    going.tell(now={"phase": "over", "text": ""}, facts={"ended": "done", "success": None, "reason": "done: nothing"})
    shows(page, "Not known whether carried out: done: nothing", ".verdict")
    page.keyboard.press("/")
    page.keyboard.type("bring me s")  # s stops nothing here
    page.keyboard.press("Enter")
    assert going.heard() == {"do": "instruct", "text": "bring me s"} and going.commands.empty()


def test_the_slash_is_for_what_it_shall_do_where_that_can_be_said(going, open_page):
    page = open_page(going.server.url)
    page.evaluate("() => addEventListener('keydown', (event) => { window.taken = event.defaultPrevented })")
    for session in (False, True):
        going.tell(session=session)
        page.locator("#words").wait_for(state="visible" if session else "hidden")
        page.keyboard.press("/")
        assert page.evaluate("window.taken") is session


def choose(page):
    page.get_by_role("button", name="go to the table", exact=True).click()
    page.get_by_role("button", name="Do this one instead").click()


def test_when_to_ask_and_how_a_skill_really_ended_arrive(going, open_page):
    page = open_page(going.server.url)
    assert page.get_by_role("button", name="It failed").is_hidden()
    going.tell(step=step(1, outcome="succeeded", control_steps=7), asks="when-unsure")
    page.get_by_role("button", name="It failed").click()
    assert going.heard() == {"do": "judge", "step": 1, "outcome": "failed"}
    going.tell(step=step(1, outcome="succeeded", control_steps=7, corrected="failed"))
    shows(page, "really failed, you said")
    page.get_by_label("Ask before acting").select_option("always")
    assert going.heard() == {"do": "asks", "when": "always"}


# -- pages come and go -----------------------------------------------------------------------------------------------


def test_two_browsers_see_the_same_and_a_reload_in_the_middle_loses_nothing(going, open_page):
    pages = [open_page(going.server.url), open_page(going.server.url, width=390)]
    going.tell(step=step(1, outcome="failed", message="it slipped"), line="the skill server died; started again")
    going.tell(step=step(2, "find the apple"))
    pages[0].reload()
    for page in pages:
        shows(page, "it slipped", ".steps")
        shows(page, "Step 2: find the apple")
        shows(page, "the skill server died; started again")


def test_a_page_says_when_it_is_not_connected_and_goes_on_by_itself(going, open_page):
    page = open_page(going.server.url)
    port = int(going.server.address.rpartition(":")[2])
    shows(page, "connected", ".top")
    going.server.close()
    shows(page, "not connected", ".top")
    going.tell(step=step(2, "find the apple"))
    wait_until(lambda: len(going.hub.state.whole()["run"]["steps"]) == 2)
    with PageServer(going.hub, None, "127.0.0.1", port):
        shows(page, "Step 2: find the apple")
        assert page.locator(".dot.on").count() == 1
    refused = [words for words in page.complaints if "WebSocket" in words]
    page.complaints[:] = [words for words in page.complaints if words not in refused]


def test_a_page_that_lags_is_sent_the_newest_and_memory_is_flat(going, open_page):
    page = open_page(going.server.url)
    shows(page, "Step 1")
    picture = jpeg("red") + bytes(200_000)
    page.evaluate("setTimeout(() => { const end = performance.now() + 1500; while (performance.now() < end); }, 50)")
    time.sleep(0.1)
    most = 0
    for number in range(600):
        going.show("head", picture)
        going.tell(now={"phase": "moving", "text": "slowly", "step": 1, "control_step": number, "of": 600})
        going.tell(step=step(1, message=f"message {number}"), line=f"line {number}")
        [looker] = going.hub._pages
        most = max(most, len(looker.outbox._events) + len(looker.outbox._frames))
        time.sleep(0.002)
    assert most < 550
    shows(page, "control step 599 of at most 600")
    shows(page, "message 599", ".steps")
    shows(page, "line 599")


def test_ten_thousand_events_stay_smooth(run, open_page):
    run.begin()
    page = open_page(run.server.url)
    page.evaluate(
        """() => { window.slow = 0;
        new PerformanceObserver(l => { for (const e of l.getEntries()) slow = Math.max(slow, e.duration) })
        .observe({ type: 'longtask' }) }"""
    )
    for number in range(1, 51):
        run.tell(step=step(number, "find the apple", candidates=step(1)["candidates"]))
        for control in range(198):
            run.tell(now={"phase": "moving", "text": "on its way", "step": number, "control_step": control, "of": 198})
        run.tell(step=step(number, "find the apple", "succeeded"))
    run.tell(line="the last of 10,000")
    shows(page, "the last of 10,000")
    assert page.locator(".steps li").count() == 50
    assert page.evaluate("slow") < 500  # [ms] that nothing else could be done


# -- afterwards ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folders: one with all that a run leaves, one of an earlier version that was refused."""
    root = tmp_path_factory.mktemp("runs")
    folder, old = root / "20261127-bring", root / "20261101-pizza"
    (folder / "pictures").mkdir(parents=True)
    old.mkdir()
    steps, recorder = [], Recorder(folder / "run.mp4")
    recorder.begin(("head", "room"), 3)
    for number, text in enumerate(("find the apple", "pick up the apple", "done"), 1):
        views = {view: f"pictures/{number}-{view}.jpg" for view in ("head", "room")}
        for view, file in views.items():
            (folder / file).write_bytes(jpeg((40 * number, 0, 0) if view == "head" else (0, 0, 40 * number)))
        pictures = {view: (folder / file).read_bytes() for view, file in views.items()}
        recorder.add(pictures, f"{number}. {text}", seconds=2.0)
        filmed = [2.0 * number - 2, 2.0 * number]
        outcome = "failed" if number == 2 else "succeeded"
        steps.append(step(number, text, outcome, views=views, filmed=filmed, seconds=2.0, control_steps=7))
    recorder.close()
    spans = [("loading", "language model", None, 0, 9), ("loading", "skill server", None, 0, 4)]
    spans += [
        ("thinking", "", 1, 9, 10),
        ("asking", "", 1, 10, 12),
        ("moving", "", 1, 12, 14),
        ("moving", "", 2, 15, 17),
    ]
    timeline = [dict(zip(("what", "label", "step", "began", "ended"), span, strict=True)) for span in spans]
    plan = {**PLAN, "steps": steps, "success": True, "reason": "the goal is met", "judge": "goal", "ended": "done"}
    plan |= {"seconds": 21.5, "video": "run.mp4", "timeline": timeline, "affordances": "calibrated"}
    plan["steps"][0]["candidates"][0]["raw"] = 0.93
    (folder / "plan.json").write_text(json.dumps(plan))
    refusal = {
        "reason": "nothing serves this",
        "nearest": ["bring me a snack"],
        "similarity": 0.31,
        "likelihood": 3.18e-5,
    }
    settings = {"kind": "saycan", "unlike": 0.42, "alike": 0.65, "likely": 0.03}
    plan = {"instruction": "order a pizza", "success": False, "reason": "nothing serves this", "judge": "planner"}
    plan |= {"steps": [], "refusal": refusal, "planner": settings, "started": "2026-11-01T10:00:00", "seconds": 3}
    (old / "plan.json").write_text(json.dumps(plan))
    for one in (folder, old):
        write_report(one)
    return root


@pytest.fixture(scope="module")
def library(runs):
    with PageServer(None, Runs(runs), "127.0.0.1", 0) as server:
        yield server


def test_a_folder_of_runs_is_found_by_words_and_opened(library, open_page):
    page = open_page(library.url)
    assert page.locator(".index b").all_inner_texts() == ["“bring me an apple”", "“order a pizza”"]
    page.keyboard.press("/")
    page.keyboard.type("apple carried")
    assert page.locator(".index li").count() == 1
    page.get_by_text("bring me an apple").click()
    shows(page, "Carried out: the goal is met.", ".verdict")
    shows(page, "Judged by the kitchen's own check of the goal. 3 steps, 22 s.", ".verdict")


def test_a_step_that_is_clicked_seeks_the_video_and_a_deep_link_leads_there(library, open_page):
    page = open_page(f"{library.url}runs/20261127-bring/")
    becomes(page, "document.querySelector('video').readyState > 0")
    page.locator(".steps button", has_text="pick up the apple").click()
    becomes(page, "Math.abs(document.querySelector('video').currentTime - 2) < .1")
    assert page.url.endswith("#step=2")
    page.keyboard.press("ArrowRight")
    becomes(page, "Math.abs(document.querySelector('video').currentTime - 4) < .1")
    page.locator(".track button.moving").first.click()
    shows(page, "Step 1: find the apple")
    shows(page, "affordance raw 93%")
    shows(page, "loading 9.0 s", ".legend")
    shows(page, "asking you 2.0 s", ".legend")
    deep = open_page(f"{library.url}runs/20261127-bring/#step=3")
    shows(deep, "Step 3: done")
    becomes(deep, "Math.abs(document.querySelector('video').currentTime - 4) < .1")


def test_a_step_shows_what_was_seen_before_and_after_it(library, open_page):
    page = open_page(f"{library.url}runs/20261127-bring/#step=1")
    pictures = page.get_by_label("before and after the step")
    captions = pictures.locator("figcaption").all_inner_texts()
    assert captions == ["head view, before", "head view, after", "room view, before", "room view, after"]
    sources = pictures.locator("img").evaluate_all("images => images.map(i => i.src.split('/').at(-1))")
    assert sources == ["1-head.jpg", "2-head.jpg", "1-room.jpg", "2-room.jpg"]


def test_the_numbers_of_a_refusal_say_what_they_are(library, open_page):
    page = open_page(f"{library.url}runs/20261101-pizza/")
    rows = page.locator("section:has-text('Why it was refused') tr").all_inner_texts()
    assert [row.split("\t")[0].split(" ")[0].strip(":") for row in rows] == ["measured", "similarity", "likelihood"]
    assert "0.31" in rows[1] and "refused below 0.42, never from 0.65 on" in rows[1]
    assert "<0.1%" in rows[2] and "at least 3.0%" in rows[2]
    assert "e-0" not in page.locator("body").inner_text()


def test_a_report_opens_from_disk_and_asks_nobody_for_anything(runs, open_page):
    page = open_page(f"{(runs / '20261127-bring' / 'report.html').as_uri()}#step=2")
    shows(page, "Carried out: the goal is met.", ".verdict")
    shows(page, "Step 2: pick up the apple")
    becomes(page, "Math.abs(document.querySelector('video').currentTime - 2) < .1")
    becomes(page, "[...document.images].every(i => i.loading == 'lazy' || i.naturalWidth)")
    assert all(request.startswith(("file:", "data:", "blob:")) for request in page.requests)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#paper section").count() == 3 and page.locator("#paper section").last.is_visible()


# -- for everybody ---------------------------------------------------------------------------------------------------


def test_an_injected_script_is_text(run, open_page, tmp_path):
    evil = step(
        1, EVIL, message=EVIL, place=EVIL, held=EVIL, objects={EVIL: EVIL}, skill=EVIL, times=EVIL, seconds=EVIL
    )
    evil["candidates"][1]["text"] = evil["candidates"][1]["skill"] = EVIL + "2"
    plan = {"instruction": EVIL, "reason": EVIL, "world": EVIL, "models": {EVIL: EVIL}, "started": EVIL, "judge": EVIL}
    plan |= {
        "refusal": {"reason": EVIL, "missing": EVIL, "nearest": [EVIL]},
        "questions": [{"reason": EVIL}],
        "video": EVIL,
    }
    run.begin(**plan)
    run.tell(line=EVIL, robot={"name": EVIL}, step=evil, question={**QUESTION, "reason": EVIL, "options": [EVIL]})
    run.tell(
        now={"phase": EVIL, "text": EVIL, "step": EVIL}, facts={"timeline": [{"what": EVIL, "label": EVIL, "step": 1}]}
    )
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, **plan, "steps": [evil, {"step": None, "candidates": 7}]}))
    report = write_report(tmp_path)
    with PageServer(None, tmp_path, "127.0.0.1", 0) as server:
        page = open_page(run.server.url)
        for url in (run.server.url, server.url, report.as_uri()):
            page.goto(url)
            shows(page, EVIL.replace("“", "“"), "h1")
            page.locator(".why button").first.click()
            page.wait_for_timeout(100)
            assert page.evaluate("typeof hacked") == "undefined" and page.locator("main script").count() == 0


def test_a_phone_scrolls_one_way_only(going, library, open_page):
    going.tell(question=QUESTION, line="x" * 500, facts={"reason": "y" * 300})
    going.tell(step=step(2, "an-unbroken-name-" * 12, objects={"z" * 90: "w" * 90}))
    going.show("head", jpeg("red"))
    page = open_page(going.server.url, width=360)
    for path in ("", "runs/20261127-bring/", "runs/20261101-pizza/"):
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, page.url
        page.goto(f"{library.url}{path}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(library, open_page, scheme):
    """At least 4.5 : 1 [WCAG 2.2, 1.4.3]."""
    page = open_page(library.url, color_scheme=scheme)
    read = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"

    def light(name):
        colour = page.evaluate(read, name).lstrip("#")
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for ink in ("ink", "faint", "good", "bad", "warn", "accent"):
        for behind in ("page", "card", "sunk"):
            dark, bright = sorted((light(ink), light(behind)))
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {behind}"


def test_all_of_it_has_a_name_and_changes_are_spoken(going, open_page):
    going.tell(question=QUESTION)
    page = open_page(going.server.url)
    shows(page, "it seems likeliest", ".question")
    nameless = (
        "nodes => nodes.filter(n => !(n.ariaLabel || n.textContent.trim() || n.labels?.length)).map(n => n.outerHTML)"
    )
    assert page.locator("button, input, select, a, video, [role=img]").evaluate_all(nameless) == []
    shows(page, "It asks: it seems likeliest", "#urgent")
    going.tell(step=step(1, outcome="failed"))
    shows(page, "Step 1, pick up the apple: ✗ failed", "#polite")


def test_a_browser_shows_its_token_once(open_page):
    access = Access(tokens=Tokens([Holder("me", digest("my-token"), frozenset({"read"}))]))
    with page_beside(access=access) as run:
        run.begin()
        page = open_page(run.server.url)
        page.complaints.clear()  # it tells of the 401 that it was answered with
        page.get_by_label("token").fill("my-token")
        page.keyboard.press("Enter")
        shows(page, "bring me an apple", "h1")
        page.keyboard.press("Escape")
        shows(page, "needs the role 'stop'", ".alert")
