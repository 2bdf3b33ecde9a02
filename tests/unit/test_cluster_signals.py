"""A cluster's library leaves the signals of the command alone."""

from __future__ import annotations

import logging
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from nexusbench.experiments import cluster


def test_ray_does_not_take_sigterm_from_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ray.init`` sets a handler that ends the process on the spot."""
    asked: dict[str, Any] = {}

    def init(**arguments: Any) -> None:
        asked.update(arguments)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    before = signal.getsignal(signal.SIGTERM)
    cluster._connect("auto")
    assert signal.getsignal(signal.SIGTERM) is before
    assert asked == {"address": "auto", "log_to_driver": False, "logging_level": logging.ERROR}
