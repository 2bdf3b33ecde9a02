"""Sessions of pytest in forked processes: one that records, one for each mutant.

The parent holds pytest and the large packages of others, and nothing of this one: a child pays for
reading this package only.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.mutation import probes

LARGE_PACKAGES = (
    "numpy", "scipy", "scipy.optimize", "msgspec", "pyarrow", "pyarrow.parquet", "pyarrow.csv",
    "rich", "rich.table", "rich.progress", "rich.console", "rich.markdown", "rich.traceback",
    "click", "click.testing", "typer", "typer.testing", "psutil", "jinja2", "httptools",
    "plotly.graph_objects", "plotly.io", "matplotlib.pyplot", "torch", "safetensors",
    "safetensors.torch", "transformers", "hypothesis.strategies", "hypothesis.stateful",
    "xml.etree.ElementTree", "concurrent.futures", "tomllib", "asyncio", "unittest.mock",
)  # fmt: skip
MEMORY = 6 << 30  # of data; a mutant that fills more has gone wrong
PATIENCE = 10.0  # times a test's own processor time before it counts as endless, and
LEAST_PATIENCE = 5.0  # seconds beyond


def preload() -> None:
    """Import what is large and not ours, as tests/conftest.py would let it be imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in LARGE_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    gc.collect()
    gc.freeze()


def arguments(files: Sequence[str], folder: str) -> list[str]:
    return [
        "-m", "not slow", "--tb=no", "-p", "no:cacheprovider", "--no-header", "-W", "ignore",
        "--continue-on-collection-errors", f"--basetemp={folder}", *files,
    ]  # fmt: skip


class Quiet:
    """What both sessions do: no examples are made smaller, nobody will read them."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        profile = settings(settings(), phases=(Phase.explicit, Phase.reuse, Phase.generate))
        settings.register_profile("mutation", profile)
        settings.load_profile("mutation")


class Recorder(Quiet):
    """Notes for each test its outcome, its processor time and the marks it set."""

    def __init__(self, marks: bytearray) -> None:
        self.marks = marks
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[int, tuple[bytes, float]] = {}  # shared: marks set, seconds to make
        self.outside = bytearray(len(marks))
        self.broken: list[str] = []
        self._failed = False

    def _drain(self) -> bytes:
        found = probes.bits(self.marks)
        probes.clear(self.marks)
        return found

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.outside[:] = bytes(self.marks)
        probes.clear(self.marks)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            yield
            return
        before = bytes(self.marks)
        probes.clear(self.marks)
        start = time.process_time()
        yield
        took = time.process_time() - start
        self.fixtures[id(fixturedef)] = (probes.bits(self.marks), took)
        for index, was in enumerate(before):
            if was:
                self.marks[index] = 1

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Iterator[None]:
        self._failed = False
        probes.clear(self.marks)
        start = time.process_time()
        yield
        took = time.process_time() - start
        found = int.from_bytes(self._drain(), "big")
        size = len(probes.bits(self.marks))
        infos = getattr(item, "_fixtureinfo", None)
        shared = 0.0
        for definitions in infos.name2fixturedefs.values() if infos else ():
            marks, seconds = self.fixtures.get(id(definitions[-1]), (b"", 0.0))
            found |= int.from_bytes(marks, "big")
            shared += seconds
        self.tests[item.nodeid] = {
            "seconds": max(took, shared), "failed": self._failed,
            "bits": found.to_bytes(size, "big"),
        }  # fmt: skip

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(report.nodeid)


class Ordered(Quiet):
    """Runs the chosen tests in the chosen order."""

    def __init__(self, order: Sequence[str]) -> None:
        self.ranks = {test: rank for rank, test in enumerate(order)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = [item for item in items if item.nodeid in self.ranks]
        items[:] = sorted(kept, key=lambda item: self.ranks[item.nodeid])


class Judge(Ordered):
    """Tells the first of the chosen tests that fails, and ends at once."""

    def __init__(
        self, order: Sequence[str], seconds: dict[str, float], tell: Callable[[str, str, str], None]
    ) -> None:
        super().__init__(order)
        self.seconds, self.tell = seconds, tell
        self.running = ""
        self.count = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("noticed", report.nodeid, "is not collected")

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: Any) -> Iterator[None]:
        self.running = item.nodeid
        self.count += 1
        own = self.seconds.get(item.nodeid, 1.0)
        signal.signal(signal.SIGPROF, self._endless)
        signal.setitimer(signal.ITIMER_PROF, LEAST_PATIENCE + PATIENCE * own)
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _endless(self, number: int, frame: object) -> None:
        self.tell("noticed", self.running, "does not end")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell("noticed", report.nodeid, "fails")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.tell("survived", "", f"{self.count} tests")


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """A child with a group of its own that works and ends; (its id, the end to read from)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.close(reading)
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        work(writing)
        status = 0
    finally:
        os._exit(status)


def record(files: Sequence[str], paths: dict[str, Path], firsts: dict[str, int], total: int,
           folder: str, out: Path) -> None:  # fmt: skip
    """Run the fast tests of ``files`` with marks and leave what was found in ``out``."""

    def work(writing: int) -> None:
        marks = bytearray(total)
        setattr(__import__("builtins"), probes.MARKS, marks)
        probes.Finder(paths, lambda name, text: probes.Marker(firsts[name]).tree(text)).install()
        recorder = Recorder(marks)
        sys.dont_write_bytecode = True
        pytest.main(arguments(files, folder), plugins=[recorder])
        found = {
            "tests": recorder.tests, "outside": probes.bits(recorder.outside),
            "broken": recorder.broken,
        }  # fmt: skip
        part = out.with_suffix(".part")
        part.write_bytes(pickle.dumps(found))
        part.replace(out)

    pid, reading = forked(work)
    while os.read(reading, 65536):
        pass
    os.close(reading)
    os.waitpid(pid, 0)
    _end_group(pid)


def attempt(
    module: str, path: Path, change: probes.Change | None, order: Sequence[str],
    seconds: dict[str, float], folder: str,
) -> tuple[int, int]:  # fmt: skip
    """Start the chosen tests on a changed module (or an unchanged one, as a control)."""

    def work(writing: int) -> None:
        limit = (MEMORY, MEMORY)
        resource.setrlimit(resource.RLIMIT_DATA, limit)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if change is not None:
            probes.Finder({module: path}, change).install()
        child = os.getpid()

        def tell(verdict: str, test: str, how: str) -> None:
            if os.getpid() == child:  # not in a process that a test forked
                os.write(writing, json.dumps([verdict, test, how]).encode())
            os._exit(0)

        files = list(dict.fromkeys(test.split("::")[0] for test in order))
        pytest.main(arguments(files, folder), plugins=[Judge(order, seconds, tell)])

    return forked(work)


def control(order: Sequence[str], folder: str, out: Path) -> set[str]:
    """Those of the tests, and of whole files of them, that fail although nothing is changed."""

    def work(writing: int) -> None:
        recorder = Recorder(bytearray(8))
        files = list(dict.fromkeys(test.split("::")[0] for test in order))
        pytest.main(arguments(files, folder), plugins=[recorder, Ordered(order)])
        failed = [name for name, test in recorder.tests.items() if test["failed"]]
        missing = [name for name in order if "::" in name and name not in recorder.tests]
        out.write_text(json.dumps([*failed, *missing, *recorder.broken]))

    pid, reading = forked(work)
    while os.read(reading, 65536):
        pass
    os.close(reading)
    os.waitpid(pid, 0)
    _end_group(pid)
    return set(json.loads(out.read_text()))


def _end_group(pid: int) -> None:
    """End what a child of ours has left running: its group bears its id."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def collect(
    running: dict[int, tuple[int, float, Any]], wall: float
) -> list[tuple[Any, tuple[str, str, str], float]]:
    """Tasks of the children in ``running`` (pipe -> id, start, task) that have ended, what they
    tell, and seconds they took.
    """
    ready, _, _ = select.select(list(running), [], [], 1.0)
    ended = []
    for reading in list(running):
        pid, start, task = running[reading]
        late = time.monotonic() - start > wall
        if reading not in ready and not late:
            continue
        if reading in ready:
            text = b""
            while part := os.read(reading, 65536):
                text += part
                if text.endswith(b"]"):
                    break
            told = json.loads(text) if text else ["noticed", "", "the session dies"]
        else:
            told = ["noticed", "", "the session does not end"]
        del running[reading]
        os.close(reading)
        _end_group(pid)
        os.waitpid(pid, 0)
        ended.append((task, (told[0], told[1], told[2]), time.monotonic() - start))
    return ended
