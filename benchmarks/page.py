"""How fast is the live page? From the robot to a browser's screen; from a key to a stopped robot; 10,000 events.

    python benchmarks/page.py               # real headless Chromium ($CHROMIUM, else /usr/bin/chromium), two minutes
    python benchmarks/page.py --pictures runs/20261121-101500-bring-me-a-snack     # a run's own, not plain ones

The page is a process of its own, as `run --live` starts it; what happens is told over its socket. "Busy" is as many
processes that compute as there are cores. Times of pictures are from when they are taken until the browser has loaded
them; of Stop, from the key until the page shows that the robot is stopped, which a robot's service in a third process
has confirmed.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from playwright.sync_api import Page, sync_playwright

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
from played_run import PlayedRun, jpeg, page_process, step  # noqa: E402

from skills.client import RobotClient  # noqa: E402
from skills.errors import ServerFault, Stopped  # noqa: E402

WATCH_PICTURES = """() => { window.taken = []; document.addEventListener('load', event => {
  if (event.target.dataset?.at) taken.push(performance.timeOrigin + performance.now() - 1000 * event.target.dataset.at)
}, true) }"""
WATCH_STOP = """() => { window.took = []; let began = null;
  addEventListener('keydown', () => { began = performance.now() }, true);
  new MutationObserver(() => { if (began && document.querySelector('main .alert')?.textContent.includes(' ms;')) {
    took.push(performance.now() - began); began = null } })
  .observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true }) }"""
WATCH_TASKS = """() => { window.longest = 0; new PerformanceObserver(list => {
  for (const entry of list.getEntries()) longest = Math.max(longest, entry.duration)
}).observe({ type: 'longtask' }) }"""


@dataclass(frozen=True)
class PageConfig:
    """How fast is the live page?"""

    pictures: Path | None = None  # a run's folder, whose pictures are shown; default: plain ones of the same size
    seconds: float = 10.0  # that pictures are shown, for each row
    stops: int = 50  # for each row


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    all_of_them = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in all_of_them:
            process.kill()
            process.wait()


def row(what: str, times: list[float], allowed: str = "") -> None:
    middle, worst = np.percentile(times, [50, 99])
    print(f"| {what} | {len(times)} | {middle:.0f} | {worst:.0f} | {max(times):.0f} | {allowed} |", flush=True)


def frames(run: PlayedRun, page: Page, rate: float, seconds: float, views: dict[str, list[bytes]]) -> list[float]:
    """Milliseconds from when each picture was taken until it was loaded."""
    page.evaluate("taken.length = 0")
    for number in range(round(rate * seconds)):
        began = time.monotonic()
        for view, pictures in views.items():
            run.show(view, pictures[number % len(pictures)])
        page.wait_for_timeout(max(0.0, 1000 / rate - 1000 * (time.monotonic() - began)))
    page.wait_for_timeout(500)
    return page.evaluate("taken")


def stops(run: PlayedRun, page: Page, robot: RobotClient, count: int) -> list[float]:
    """Milliseconds from the key until the page shows that the robot is stopped."""
    page.evaluate("took.length = 0")
    for number in range(count):
        page.keyboard.press("Escape")
        while page.evaluate("took.length") <= number:
            page.wait_for_timeout(5)
        while not released(robot):
            time.sleep(0.05)
        run.tell(stopped=False)
        page.locator("#stop").wait_for()
        page.wait_for_timeout(30)
    return page.evaluate("took")


def released(robot: RobotClient) -> bool:
    """False while the robot is still being stopped by another road."""
    try:
        robot.reset()
    except (ServerFault, Stopped):
        return False
    return True


def memory(pid: int) -> float:
    """[MB] that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def views_of(folder: Path | None) -> dict[str, list[bytes]]:
    if folder is None:
        return {view: [jpeg(colour) for colour in ("red", "blue")] for view in ("head", "room")}
    found = {view: sorted((folder / "pictures").glob(f"*-{view}.jpg")) for view in ("head", "room")}
    return {view: [path.read_bytes() for path in paths] for view, paths in found.items()}


def main(config: PageConfig) -> None:
    cores = os.cpu_count() or 1
    views = views_of(config.pictures)
    size = np.mean([len(picture) for pictures in views.values() for picture in pictures]) / 1024
    with contextlib.ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        command = [sys.executable, str(TESTS / "guarded_robot.py"), str(log)]
        service = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
        stack.callback(service.terminate)
        assert service.stdout is not None
        address, guard = service.stdout.readline().split()
        robot = stack.enter_context(RobotClient(address))
        run = stack.enter_context(page_process())
        tool = stack.enter_context(sync_playwright())
        own = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = stack.enter_context(tool.chromium.launch(executable_path=own, args=["--no-sandbox"]))
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        run.begin()
        run.tell(robot={"name": "small robot", "address": address, "guard": guard}, step=step(1))
        page.goto(run.url)
        page.locator(".top", has_text="small robot").wait_for()
        for watch in (WATCH_PICTURES, WATCH_STOP, WATCH_TASKS):
            page.evaluate(watch)
        frames(run, page, 3, 1, views)
        machine = f"{cores} cores, load {os.getloadavg()[0]:.1f}, Chromium {browser.version}"
        print(f"Two views, {size:.0f} KiB a picture; {machine}.\n")
        print("| | n | median, ms | 99 %, ms | longest, ms | asked for |\n|---|---|---|---|---|---|")
        for rate in (3, 20):
            row(f"a picture, {rate} a second", frames(run, page, rate, config.seconds, views), "< 100")
        with busy(cores):
            row("... while the machine is busy", frames(run, page, 20, config.seconds, views))
        row("Stop, from the key to the answer", stops(run, page, robot, config.stops), "< 100")
        with busy(cores):
            row("... while the machine is busy", stops(run, page, robot, config.stops), "< 100")
        before, began = memory(run.pid), time.monotonic()
        page.evaluate("longest = 0")
        for number in range(1, 51):
            run.tell(step=step(number, "find the apple"))
            for control in range(198):
                run.tell(
                    now={"phase": "moving", "text": "on its way", "step": number, "control_step": control, "of": 198}
                )
                if control % 10 == 0:
                    time.sleep(0.005)  # 2,000 a second
            run.tell(step=step(number, "find the apple", "succeeded"))
        run.tell(line="the last of 10,000")
        told = time.monotonic() - began
        page.locator("main", has_text="the last of 10,000").wait_for()
        took, longest, grown = time.monotonic() - began, page.evaluate("longest"), memory(run.pid) - before
        print(
            f"\n10,000 events told within {told:.1f} s were shown after {took:.1f} s; the browser's longest task took ",
            end="",
        )
        print(f"{longest:.0f} ms (0: none over 50); the page's process grew by {grown:.1f} MB.")


if __name__ == "__main__":
    main(tyro.cli(PageConfig, description=__doc__))
