"""Settings that all tests share."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Read when Triton's decorators run. Where there is a GPU its kernels are compiled instead.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Read when torch is imported: matrices here are tiny, and threads that wait for each other by
# spinning cost more than what they compute. Tests of threads ask for them by number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Where no byte code is kept, the processes that tests start would all compile the same files.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    _CODE = tempfile.TemporaryDirectory()
    os.environ["PYTHONPYCACHEPREFIX"] = _CODE.name

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # so that tests can import from tests.sim
    sys.path.insert(0, str(ROOT))

# The suite is the same every time; HYPOTHESIS_PROFILE=explore looks further, for much longer.
# The fast set (-m "not slow") looks at the first tenth of what the suite looks at.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("suite"), max_examples=10)
settings.register_profile(
    "explore", deadline=None, max_examples=5000, suppress_health_check=list(HealthCheck)
)


gc.disable()  # until all tests are there: what collecting them makes is there to stay


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    if "torch" in sys.modules:  # how fast this machine is is no test's matter, and slow to measure
        from nexusbench.kernels import limits

        limits.GEMM_SIZE, limits.STREAM_BYTES = 128, 1 << 24


_SEEN: set[Path] = set()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the first test of a folder, let the collector of garbage forget what is there to stay:
    tests share the modules of several large packages, and would walk through them again and again.
    """
    if item.path.parent not in _SEEN:
        _SEEN.add(item.path.parent)
        gc.collect()
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile before tests are imported, which fixes how many examples each gets."""
    fast = "not slow" in config.getoption("markexpr")
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast" if fast else "suite"))
