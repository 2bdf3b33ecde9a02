"""A small trace, and the command line called in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome, write_trace

from nexusbench.cli.main import main
from nexusbench.results.reader import list_runs


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_trace(tmp_path / "small.jsonl", 40)


@pytest.fixture
def call(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEXUSBENCH_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def served() -> dict[tuple[object, ...], Path]:
    """Folders of the tests that served the small trace first, by the flags of the command."""
    return {}


@pytest.fixture
def runs_of(
    call: Callable[..., Outcome],
    trace: Path,
    tmp_path: Path,
    served: dict[tuple[object, ...], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., list[str]]:
    """Runs of the small trace with these flags, in ``results``: served once, copied for others.

    Of a copy the manifests name the test's own trace.
    """

    def runs(*flags: object) -> list[str]:
        if flags not in served:
            done = call("serve-trace", trace, *flags, "--no-progress")
            assert done.code == 0, done.err
            kept = tmp_path_factory.mktemp("served")
            shutil.copytree("results", kept / "results")
            (kept / "from").write_text(str(tmp_path))
            served[flags] = kept
        else:
            kept = served[flags]
            shutil.copytree(kept / "results", "results")
            for manifest in Path("results").glob("*/manifest.json"):
                text = manifest.read_text()
                manifest.write_text(text.replace((kept / "from").read_text(), str(tmp_path)))
        return list_runs(Path("results"))

    return runs
