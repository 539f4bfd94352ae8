"""Fixtures that most tests share: the two trained models, their bases and small texts."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main
from browser import Browser, Server, browsing, serving
from commands import Command, Outcome, Workbench, probe_words
from filelock import FileLock
from hub_server import HubServer, assert_no_token, running_hub
from hypothesis import HealthCheck, settings
from studied import prove, study

import fuzzing
from faults import Forked, forking
from quantailor import cli
from quantailor.models.convert.base import write_base
from quantailor.models.opening import open_model
from tiny_models import write_tiny

if TYPE_CHECKING:
    from visitor import Visitor

ROOT = Path(__file__).parent.parent
MEMORY_DISK = Path("/dev", "shm")
MEMORY_DISK_BYTES = 4 << 30
Share = Callable[[str, Callable[[Path], object]], Path]


def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders in memory where the system has room for them, one seed for all workers, and Ctrl-C that is heard.

    Every commit and every file is flushed to the disk, and a real one takes milliseconds each time.
    """
    fuzzing.choose_seed()
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        gc.disable()  # until all tests are collected: a quarter of that time went into looking for garbage
    # What a shell starts with `&` ignores SIGINT, and so would all that the tests start and stop.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.access(MEMORY_DISK, os.W_OK) and shutil.disk_usage(MEMORY_DISK).free >= MEMORY_DISK_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DISK))
    n_examples = fuzzing.n_cases(1000, 60)
    settings.register_profile("run", deadline=None, max_examples=n_examples, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("run")
    # Typer builds its tree of commands anew at each run, which takes longer than most commands.
    typer.main.get_command = cache(typer.main.get_command)
    # Each session of huggingface_hub reads all certificates of the system, and the hub of the tests is asked without TLS.
    pytest.MonkeyPatch().setattr(ssl, "create_default_context", cache(ssl.create_default_context))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What each worker begins with are the tests that take longest: at the end, none waits for the last of them.

    Every worker is given as many tests in a row as the others, and takes some of another's when it has run out of its own. Those that
    want ggml's tables all stand at the beginning of one worker's, which makes them once.
    """
    n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    tables, long, others = list[pytest.Item](), list[pytest.Item](), list[pytest.Item]()
    for item in items:
        (tables if item.get_closest_marker("tables") else long if item.get_closest_marker("long") else others).append(item)
    in_order: list[pytest.Item] = []
    for worker in range(n_workers):
        first = (tables if worker == 0 else []) + long[worker::n_workers]
        n_share = (len(items) - len(in_order)) // (n_workers - worker)
        n_others = max(0, n_share - len(first))
        in_order += first + others[:n_others]
        others = others[n_others:]
    items[:] = in_order + others


def pytest_collection_finish() -> None:
    """What collecting made stays until the end: the garbage collector need not look at it in every test, nor look so often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def pytest_unconfigure() -> None:
    """llama-cpp-python opens the null device twice when it is imported and never closes it, which Python would tell at its end."""
    if opened := sys.modules.get("llama_cpp._utils"):
        opened.outnull_file.close()
        opened.errnull_file.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Also where `-q` leaves the header out."""
    terminalreporter.write_line(fuzzing.how_to_repeat())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files change only when somebody asks for it."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew")


@pytest.fixture(scope="session")
def books_llama_dir() -> Path:
    """A trained dense model as a Hugging Face directory."""
    return ROOT / "demo" / "books-llama"


@pytest.fixture(scope="session")
def books_moe_dir() -> Path:
    """A trained mixture of experts as a Hugging Face directory."""
    return ROOT / "tests" / "data" / "books-moe"


@pytest.fixture(scope="session")
def calibration_text() -> Path:
    """120 kB of English prose."""
    return ROOT / "tests" / "data" / "calibration.txt"


@pytest.fixture(scope="session")
def heldout_text() -> Path:
    """Prose that no importance matrix has seen."""
    return ROOT / "src" / "quantailor" / "data" / "heldout.txt"


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Share:
    """`share(name, make)`: a folder that `make` fills once in a session, whichever of the workers needs it first."""
    folder = tmp_path_factory.getbasetemp()
    root = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        place, made = root / f"shared-{name}", root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                make(place)
                made.touch()
        return place

    return shared


def _base(directory: Path, share: Share) -> Path:
    if ready := os.environ.get("QUANTAILOR_TEST_BASES"):
        return Path(ready) / f"{directory.name}.gguf"

    def make(folder: Path) -> None:
        source = open_model(directory)
        write_base(source, folder / f"{directory.name}.gguf")
        source.close()

    return share(f"base-of-{directory.name}", make) / f"{directory.name}.gguf"


@pytest.fixture(scope="session")
def books_llama_base(books_llama_dir: Path, share: Share) -> Path:
    """The dense model's 16-bit base GGUF."""
    return _base(books_llama_dir, share)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of an untrained model with rows of 64 weights, for what any model would do."""
    source = open_model(write_tiny("mistral", tmp_path_factory.mktemp("small")))
    base = tmp_path_factory.mktemp("small") / "small.gguf"
    write_base(source, base)
    source.close()
    return base


@pytest.fixture(scope="session")
def books_moe_base(books_moe_dir: Path, share: Share) -> Path:
    """The mixture's 16-bit base GGUF."""
    return _base(books_moe_dir, share)


TYPES = "Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,Q8_0,IQ3_XXS,IQ4_XS"


@pytest.fixture
def quantailor(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command: `quantailor("inspect", path)`."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], said: list[str]) -> Iterator[HubServer]:
    """A hub whose user is logged in through HF_TOKEN; afterwards no token may be found anywhere."""
    with running_hub() as server:
        server.use(monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
        assert any(asked.authorization == f"Bearer {server.token}" for asked in server.asked) or not server.asked
        assert_no_token(server, tmp_path, *said, *capfd.readouterr())


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that stands in for llama.cpp's converter and needs no torch."""
    monkeypatch.setenv("LLAMA_CPP_DIR", str(Path(__file__).parent / "models" / "converter_script.py"))
    monkeypatch.setenv("QUANTAILOR_CONVERT_PYTHON", sys.executable)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where that script writes a line for each of its runs, with its options."""
    return tmp_path / "runs"


@pytest.fixture
def said() -> list[str]:
    """Everything that commands printed."""
    return []


@pytest.fixture
def run(said: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """A command in this test's home."""

    def run_command(*arguments: object) -> Outcome:
        capfd.readouterr()
        words = [str(argument) for argument in arguments]
        code = cli.run(words if words[0] == "inspect" else [*words, "--home", str(tmp_path / "home")])
        captured = capfd.readouterr()
        said.extend(captured)
        return Outcome(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def measured_home(books_llama_base: Path, calibration_text: Path, share: Share) -> Path:
    """A home in which the dense model has an importance matrix and measurements; only ever copied."""

    def make(home: Path) -> None:
        steps = (
            ("imatrix", books_llama_base, "-f", calibration_text, "--chunks", 8, "--n-ctx", 128, "--threads", 1),
            ("measure", books_llama_base, "--types", TYPES),
        )
        for step in steps:
            assert cli.run([str(word) for word in (*step, "--home", home, "--json")]) == 0

    return share("measured-home", make)


@pytest.fixture(scope="module")
def workbench(measured_home: Path, books_llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A copy of it for the tests of one module, which may leave in it what they like."""
    return Workbench(Path(shutil.copytree(measured_home, tmp_path_factory.mktemp("workbench") / "home")), books_llama_base)


@pytest.fixture(scope="module")
def probed(
    measured_home: Path, books_llama_base: Path, calibration_text: Path, share: Share, tmp_path_factory: pytest.TempPathFactory
) -> Workbench:
    """The same for tests that need probes: by role and depth, of the dense model."""

    def make(folder: Path) -> None:
        home = shutil.copytree(measured_home, folder / "home")
        words = ("probe", books_llama_base, *probe_words(calibration_text), "--home", home, "--json")
        assert cli.run([str(word) for word in words]) == 0

    home = shutil.copytree(share("probed", make) / "home", tmp_path_factory.mktemp("probed") / "home")
    return Workbench(home, books_llama_base)


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """Where commands run that a test kills."""
    with forking(tmp_path_factory.mktemp("forked")) as server:
        yield server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser; cookies are kept between tests, which use servers of their own."""
    with browsing(tmp_path_factory.mktemp("chromium")) as browser:
        browser.size(1280, 800)
        yield browser


@pytest.fixture
def quantizing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama.cpp quantizes in this process, where ggml's tables are made already: for what it can write."""

    def stream(function: Callable[..., Iterator[object]], *arguments: object, **options: object) -> Iterator[object]:
        return function(*arguments, **options)

    monkeypatch.setattr("quantailor.ggml.reference.apart.stream", stream)


@pytest.fixture
def empty_server(tmp_path: Path) -> Iterator[Server]:
    """A server on a home without anything."""
    with serving(tmp_path / "home") as server:
        yield server


@pytest.fixture
def visit() -> Iterator[Callable[..., Visitor]]:
    """A visitor of a home's pages without a browser: `visit(home, folder)`; see `visitor.visiting`."""
    from visitor import visiting

    with ExitStack() as visits:
        yield lambda home, *allowed: visits.enter_context(visiting(home, *allowed))


@pytest.fixture(scope="session")
def studied_server(studied_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the studied home, which may write into a worker's temporary folder."""
    with serving(studied_home, "--allow", str(tmp_path_factory.getbasetemp())) as server:
        yield server


@pytest.fixture(scope="session")
def studied_home(
    books_llama_base: Path, books_moe_base: Path, calibration_text: Path, share: Share, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A home whose two models are measured and probed; the dense one has a strategy, a built file and a verdict. Not to be changed."""

    def make(folder: Path) -> None:
        for base in (books_moe_base, books_llama_base):
            study(base, calibration_text, folder / "home")
        (folder / "built").mkdir()
        prove(books_llama_base, calibration_text, folder / "home", folder / "built")

    return Path(shutil.copytree(share("studied", make) / "home", tmp_path_factory.mktemp("studied") / "home"))
