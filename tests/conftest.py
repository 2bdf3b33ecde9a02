"""Settings that all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# Read when Triton's decorators run. Where there is a GPU its kernels are compiled instead.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # so that tests can import from tests.sim
    sys.path.insert(0, str(ROOT))

# The suite is the same every time; HYPOTHESIS_PROFILE=explore looks further, for much longer.
settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", deadline=None, max_examples=5000, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
