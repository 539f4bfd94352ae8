"""`make screenshots`: every screen of the GUI, in both themes and two widths, as pictures in docs/images.

They show the demonstration as a user meets it, gone through to a verdict, and the small mixture beside it. The first run prepares that
in a home of its own, demo/out/screenshots; later runs take what is there. Each page is opened once a theme and then resized.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium.common.exceptions import WebDriverException

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "gui"))

from browser import Browser, browsing, serving  # noqa: E402

from quantailor.app.library.demo import open_demo  # noqa: E402
from quantailor.session import Workspace  # noqa: E402

PLACE = ROOT / "demo" / "out" / "screenshots"
HOME = PLACE / "home"
IMAGES = ROOT / "docs" / "images"
SIZES = ((1280, 800), (1600, 1000))
THEMES = ("dark", "light")
SCREENS = {
    "home": ".qt-project",
    "model": ".qt-m-facts",
    "structure": ".qt-map canvas",
    "measure": ".qt-measure-live .qt-map canvas",
    "choose": ".qt-frontier-preset",
    "build": ".qt-built",
    "verify": ".qt-verdict-grid",
    "compare": ".qt-card .nicegui-echart",
    "experts": ".qt-heat",
}
"""Screen -> what comes last on it."""
DENSE, MIXTURE = PLACE / "books-llama.gguf", PLACE / "books-moe.gguf"
N_COLOURS = 128
FINISHED = """
const all = (css, holds) => [...document.querySelectorAll(css)].every(holds);
const done = (document.querySelector(arguments[0]) && document.fonts.status === 'loaded'
    && !/being planned|Planning …/.test(document.body.innerText) && all('.nicegui-aggrid', (grid) => grid.querySelector('.ag-row'))
    && all('.nicegui-echart', (chart) => chart.querySelector('canvas, svg')));
const news = [...document.querySelectorAll('.qt-dock [aria-label=Hide]')].filter((button) => button.offsetParent);
news.forEach((button) => button.click());
if (!done || news.length) return arguments[1](false);
requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => arguments[1](true))));
"""
"""Whether a screen stands: what comes last is there, tables have rows, charts are drawn, the dock is quiet, and all has been painted."""
_SHORTEN = """
const [folders, to] = arguments, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const shorter = (text) => folders.reduce((found, folder) => found.replaceAll(folder, to), text);
let changed = 0;
const put = (holder, key) => shorter(holder[key]) !== holder[key] && ((holder[key] = shorter(holder[key])), changed++);
while (walker.nextNode()) put(walker.currentNode, 'data');
for (const field of document.querySelectorAll('input, textarea')) put(field, 'value');
return changed;
"""
"""Where this checkout lies is nobody's business: paths are shown as if the models were in the user's own folder."""
_OURS = [str(folder) for folder in (PLACE, ROOT / "demo", ROOT / "tests" / "data", ROOT)]
FEW_CHUNKS = 4
"""Of the demonstration's covariances: an importance matrix of no more text than its own would take that one's place."""
_TYPES = "Q8_0,Q6_K,Q5_K,Q4_K,IQ4_XS,Q3_K,IQ3_XXS,Q2_K"
_PROBES = ("--chunks", 2, "--n-ctx", 256, "--group", "role-depth", "--type", "Q3_K", "--mixes", 0, "--anchors", 0)


def main() -> int:
    """Take the pictures; the exit code is 1 where a screen failed, 2 where the browser is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("screens", nargs="*", help=f"only these, of {', '.join(SCREENS)}")
    parser.add_argument("-o", "--output", type=Path, default=IMAGES, help="where the pictures go")
    arguments = parser.parse_args()
    wanted = arguments.screens or list(SCREENS)
    if unknown := sorted(set(wanted) - set(SCREENS)):
        parser.error(f"no such screen: {', '.join(unknown)}")
    if missing := [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]:
        print(f"Needs {' and '.join(missing)}.", file=sys.stderr)
        return 2
    prepare()
    return _shoot(wanted, arguments.output)


# The demonstration's home


def prepare() -> None:
    """Run what has not been run yet; every step knows by itself what is there."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with Workspace.open(HOME) as workspace:
        (HOME / "gui").mkdir(exist_ok=True)
        (HOME / "gui" / "toured").touch()
        if not _known(DENSE):
            open_demo(workspace)
    for source, base, n_chunks in (
        (ROOT / "tests" / "data" / "books-moe", MIXTURE, 20),
        (ROOT / "demo" / "books-llama", DENSE, FEW_CHUNKS),
    ):
        if not base.exists():
            _quantailor("convert", source, "-o", base)
        if not _known(base).get("has_covariances"):
            _quantailor("calibrate", base, "--chunks", n_chunks)
    if not _known(MIXTURE).get("n_cells"):
        _quantailor("measure", MIXTURE, "--rounding", "plain", "--types", _TYPES)
    if not _known(MIXTURE).get("is_probed"):
        _quantailor("probe", MIXTURE, "--rounding", "plain", *_PROBES)
    strategy, output = PLACE / "as-q3-k-m.yaml", PLACE / "books-llama-as-q3-k-m.gguf"
    if not strategy.exists():
        _quantailor("plan", DENSE, "--rounding", "plain", "--like", "Q3_K_M", "-o", strategy)
    if not output.exists():
        _quantailor("build", DENSE, strategy, "--rounding", "compensated", "-o", output)
    if not output.with_suffix(".json").exists():
        words = ("--against", "Q6_K,Q4_K_M,Q3_K_M", "--beside", "plain", "--chunks", 200, "--n-ctx", 128, "-o", output.with_suffix(""))
        _quantailor("verify", output, "--base", DENSE, *words)


def _known(base: Path) -> Mapping[str, object]:
    """What `quantailor models` says of a base; nothing where it is new."""
    for project in _projects():
        if project["base"] == str(base):
            return project
    return {}


def _projects() -> Sequence[Mapping[str, object]]:
    done = subprocess.run(_command("models"), capture_output=True, text=True, check=True)
    found: Sequence[Mapping[str, object]] = json.loads(done.stdout)["result"]
    return found


def _quantailor(*words: object) -> None:
    print("==", *(word.name if isinstance(word, Path) else word for word in words), flush=True)
    subprocess.run(_command(*words), check=True, stdout=subprocess.DEVNULL)


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "quantailor", *map(str, words), "--home", str(HOME), "--json"]


# Pictures


def _shoot(screens: Sequence[str], folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    paths, failed = _paths(), list[str]()
    with serving(HOME) as server, _chromium() as browser:
        for theme in THEMES:
            browser.enter(server, theme=theme)
            for screen in screens:
                try:
                    browser.size(*SIZES[0])
                    browser.go(server, paths[screen])
                    for width, height in SIZES:
                        browser.size(width, height)
                        _take(browser, screen, folder / f"{screen}-{theme}-{width}.png")
                except (AssertionError, WebDriverException) as error:
                    print(f"{screen}, {theme}: {error}", file=sys.stderr, flush=True)
                    failed.append(f"{screen}, {theme}")
    print(f"Failed: {'; '.join(failed)}" if failed else f"All are in {folder}.")
    return int(bool(failed))


def _take(browser: Browser, screen: str, picture: Path) -> None:
    browser.waits_no_more()
    browser.until(lambda: browser.driver.execute_async_script(FINISHED, SCREENS[screen]), f"{screen} stands")
    while browser.js(_SHORTEN, _OURS, "~/models") or _shot(browser, picture):
        pass
    _reduce(picture)
    print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB", flush=True)


def _shot(browser: Browser, picture: Path) -> bool:
    """Take it; whether the page has meanwhile drawn a path anew, so that it does not count."""
    browser.shot(picture)
    return bool(browser.js(_SHORTEN, _OURS, "~/models"))


def _paths() -> dict[str, str]:
    names = {str(project["base"]): str(project["fingerprint"])[:16] for project in _projects()}
    dense, mixture = names[str(DENSE)], names[str(MIXTURE)]
    own = {screen: f"/p/{dense}/{screen}" for screen in SCREENS}
    return {**own, "home": "/", "compare": f"/compare?a={dense}&b={mixture}", "experts": f"/p/{mixture}/experts"}


@contextmanager
def _chromium() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory() as profile, browsing(Path(profile)) as browser:
        yield browser


def _reduce(picture: Path) -> None:
    """Few colours: a screen of flat surfaces loses nothing that an eye sees, and most of its bytes."""
    with Image.open(picture) as image:
        reduced = image.convert("RGB").quantize(N_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(picture, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
