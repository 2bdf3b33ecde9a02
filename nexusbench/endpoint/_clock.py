"""The real clock of a replay: a sender that must be on time has to read it."""

from __future__ import annotations

import time

now_ns = time.perf_counter_ns
sleep = time.sleep
