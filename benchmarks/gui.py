"""How quick and how small the GUI is: `python -m benchmarks.gui`; needs chromium and chromedriver.

1. First useful paint of every screen, of a model with 5,000 tensors: from asking for the page until its own content stands.
2. The table of 5,000 tensors: rows in the page, seconds to sort and to filter.
3. The Choose screen's slider: seconds from a move to the new figures, over 50 moves.
4. The map: frames a second while it is panned, and the page's own work for a frame, which does not depend on who else uses the machine.
5. The server's memory with the project open in three tabs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "gui"))

from browser import Browser, Server, browsing, serving  # noqa: E402
from large_home import large_home  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402

GOAL_PAINT, GOAL_SORT, GOAL_SLIDER, GOAL_FRAMES, GOAL_MEMORY_MIB, GOAL_ROWS = 2.5, 0.2, 0.2, 30, 250, 60
N_FRAMES = 60
SCREENS = {
    "": ".qt-project, .qt-empty",
    "model": ".qt-card",
    "structure": ".ag-row",
    "measure": ".qt-card",
    "choose": ".qt-choose-grid .ag-row",
    "build": ".qt-card",
    "verify": ".qt-card",
}
"""Screen -> what is there once it is of use."""


def paint(browser: Browser, server: Server, path: str, css: str) -> float:
    """Seconds until a page shows its content."""
    started = time.perf_counter()
    browser.driver.get(server.url(path))
    browser.find(css)
    return time.perf_counter() - started


def sort_and_filter(browser: Browser) -> tuple[float, float]:
    """Milliseconds that the grid itself takes, as seconds."""
    script = """
        const grid = document.querySelector('.nicegui-aggrid'), api = getElement(parseInt(grid.id.slice(1))).api;
        const clock = (work) => { const start = performance.now(); work(); return (performance.now() - start) / 1000; };
        return [clock(() => api.applyColumnState({ state: [{ colId: 'name', sort: 'desc' }] })),
                clock(() => api.setGridOption('quickFilterText', 'attn_v'))];"""
    sorting, filtering = browser.js(script)
    return float(sorting), float(filtering)


WATCH = """
const top = document.querySelector('.qt-choose-top');
window.delays = [];
window.moved = null;
let before = top.innerText;
document.addEventListener('pointermove', () => { window.moved ??= performance.now(); }, true);
new MutationObserver(() => {
    if (window.moved === null || top.innerText === before) return;
    before = top.innerText;
    const since = window.moved;
    window.moved = null;
    requestAnimationFrame(() => window.delays.push((performance.now() - since) / 1000));
}).observe(top, { subtree: true, childList: true, characterData: true });
"""
"""Seconds from a move of the mouse to the frame with other figures, as the page sees them: a driver's own calls take longer."""


def slider(browser: Browser, moves: int = 50) -> list[float]:
    """Seconds from each move of the slider until the figures on top are others; moves that change no figure do not count."""
    browser.js(WATCH)
    element = browser.find(".qt-frontier-handle")
    ActionChains(browser.driver).move_to_element(element).click_and_hold().perform()
    time.sleep(2)
    browser.js("window.delays = []")
    for step in range(moves):
        n_before, end = browser.js("window.moved = null; return delays.length"), time.perf_counter() + 3
        ActionChains(browser.driver, duration=0).move_by_offset(2 if step < moves // 2 else -2, 0).perform()
        while browser.js("return delays.length") == n_before and time.perf_counter() < end:
            time.sleep(0.02)
    seconds = [float(delay) for delay in browser.js("return delays")]
    ActionChains(browser.driver).release().perform()
    return seconds


PAN = """
const done = arguments[1], map = getElement(document.querySelector('.qt-map').id.slice(1)), view = document.querySelector('.qt-map-view');
map.zoomBy(4);
const frame = () => new Promise(requestAnimationFrame);
(async () => {
    for (let at = 0; at < 10; at++) await frame();
    const start = performance.now();
    for (let at = 0; at < arguments[0]; at++) {
        view.scrollLeft += 7;
        await frame();
    }
    done(1000 * arguments[0] / (performance.now() - start));
})();
"""


def pan(browser: Browser) -> tuple[float, float]:
    """Frames a second while the map scrolls, and the seconds of work that the page has with each."""

    def worked() -> float:
        metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return float(next(item["value"] for item in metrics if item["name"] == "TaskDuration"))

    browser.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    before = worked()
    frames = float(browser.driver.execute_async_script(PAN, N_FRAMES))
    return frames, (worked() - before) / N_FRAMES


def memory_mib(server: Server, browser: Browser, path: str) -> float:
    """The server's resident memory with three tabs on a project."""
    for _ in range(2):
        browser.driver.switch_to.new_window("tab")
        browser.driver.get(server.url(path))
        browser.find(".ag-row")
    time.sleep(3)
    return float(psutil.Process(server.process.pid).memory_info().rss) / 2**20


def main() -> int:
    """Print the figures; 1 where a goal is missed."""
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home, project = large_home(folder)
        root = f"/p/{project.fingerprint[:16]}"
        with serving(home) as server, browsing(folder / "chromium") as browser:
            browser.size(1280, 800)
            browser.enter(server)
            for screen, css in SCREENS.items():
                first, again = (paint(browser, server, f"{root}/{screen}" if screen else "/", css) for _ in range(2))
                print(f"{screen or 'home'}: first useful paint {first:.2f} s, again {again:.2f} s (goal {GOAL_PAINT})", flush=True)
                missed += [screen] if again > GOAL_PAINT else []
            paint(browser, server, f"{root}/choose", SCREENS["choose"])
            n_rows = len(browser.all(".ag-center-cols-container .ag-row"))
            sorting, filtering = sort_and_filter(browser)
            print(f"table: {n_rows} rows in the page (goal {GOAL_ROWS}), sort {sorting:.3f} s, filter {filtering:.3f} s (goal {GOAL_SORT})")
            missed += ["table"] if n_rows > GOAL_ROWS or max(sorting, filtering) > GOAL_SORT else []
            paint(browser, server, f"{root}/choose", SCREENS["choose"])
            seconds = slider(browser)
            slow = statistics.quantiles(seconds, n=20)[-1]
            print(f"slider, {len(seconds)} moves: median {statistics.median(seconds):.3f} s, p95 {slow:.3f} s (goal {GOAL_SLIDER})")
            missed += ["slider"] if slow > GOAL_SLIDER else []
            frames, work = pan(browser)
            print(f"map, panned: {frames:.0f} frames/s (goal {GOAL_FRAMES}), {1000 * work:.1f} ms of work for a frame")
            missed += ["map"] if frames < GOAL_FRAMES else []
            resident = memory_mib(server, browser, f"{root}/choose")
            print(f"server memory with three tabs: {resident:.0f} MiB (goal {GOAL_MEMORY_MIB})")
            missed += ["memory"] if resident > GOAL_MEMORY_MIB else []
    print(f"missed: {', '.join(missed) or 'nothing'}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
