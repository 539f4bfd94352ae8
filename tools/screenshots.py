"""`make screenshots`: every screen of the GUI, in both themes and two widths, as pictures in docs/images.

The first run prepares a home of its own in demo/out/screenshots (some minutes): both small models converted, measured with
compensated rounding and probed on few chunks; the dense one planned, built and verified. Later runs take what is there.
"""

from __future__ import annotations

import argparse
import itertools
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

PLACE = ROOT / "demo" / "out" / "screenshots"
HOME = PLACE / "home"
IMAGES = ROOT / "docs" / "images"
SIZES = ((1280, 800), (1600, 1000))
THEMES = ("dark", "light")
SCREENS = ("home", "model", "structure", "measure", "choose", "build", "verify", "compare", "experts")
DENSE, MIXTURE = PLACE / "books-llama.gguf", PLACE / "books-moe.gguf"
N_COLOURS = 128
SETTLED_SECONDS = 1.5
"""A page counts as finished when its text has not changed for so long."""
_SHORTEN = """
const [from, to] = arguments, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) walker.currentNode.data = walker.currentNode.data.replaceAll(from, to);
for (const field of document.querySelectorAll('input, textarea')) field.value = field.value.replaceAll(from, to);
"""
"""Where this checkout lies is nobody's business: paths are shown as if the models were in the user's own folder."""
_PROBES = ("--chunks", 3, "--n-ctx", 256, "--mixes", 16, "--mix-chunks", 6, "--anchors", 0)


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
    for source, base in ((ROOT / "tests" / "data" / "books-moe", MIXTURE), (ROOT / "demo" / "books-llama", DENSE)):
        if not base.exists():
            _quantailor("convert", source, "-o", base)
        known = _known(base)
        if not known.get("has_covariances"):
            _quantailor("calibrate", base, "--chunks", 40)
        if not known.get("n_cells"):
            _quantailor("measure", base, "--rounding", "compensated")
        if not known.get("is_probed"):
            _quantailor("probe", base, *_PROBES)
    _prove(DENSE)


def _prove(base: Path) -> None:
    for name, like in (("as-q4-k-m", "Q4_K_M"), ("as-q3-k-m", "Q3_K_M")):
        strategy, output = PLACE / f"{name}.yaml", PLACE / f"books-llama-{name}.gguf"
        if not strategy.exists():
            _quantailor("plan", base, "--like", like, "-o", strategy)
        if not output.exists():
            _quantailor("build", base, strategy, "-o", output)
        if not output.with_suffix(".json").exists():
            words = ("--against", "Q8_0,Q6_K,Q4_K_M,Q3_K_M", "--beside", "plain", "--chunks", 200, "-o", output.with_suffix(""))
            _quantailor("verify", output, "--base", base, *words)


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
            there = [screen for screen in screens if _is_there(browser, paths[screen])]
            for screen, (width, height) in itertools.product(there, SIZES):
                browser.size(width, height)
                picture = folder / f"{screen}-{theme}-{width}.png"
                try:
                    browser.go(server, paths[screen])
                    _take(browser, picture)
                except (AssertionError, WebDriverException) as error:
                    print(f"{picture.name}: {error}", file=sys.stderr, flush=True)
                    failed.append(picture.name)
    print(f"Failed: {', '.join(failed)}" if failed else f"All are in {folder}.")
    return int(bool(failed))


def _is_there(browser: Browser, path: str) -> bool:
    ask = "const done = arguments[1]; fetch(arguments[0]).then(answer => done(answer.status));"
    if browser.driver.execute_async_script(ask, path) != 404:
        return True
    print(f"{path}: there is no such screen", flush=True)
    return False


def _take(browser: Browser, picture: Path) -> None:
    browser.settle(seconds=SETTLED_SECONDS)
    for folder in (PLACE, ROOT / "demo", ROOT / "tests" / "data", ROOT):
        browser.js(_SHORTEN, str(folder), "~/models")
    browser.shot(picture)
    _reduce(picture)
    print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB", flush=True)


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
