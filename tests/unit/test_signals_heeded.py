"""A signal that asks for the end is heeded wherever it meets Python."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from nexusbench.cli.outlet import heeding_signals
from nexusbench.core.errors import Terminated


class Going:
    """Meets a signal while it is let go of: Python drops what is raised there."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            time.sleep(0.001)


def meet_one() -> None:
    Going()
    time.sleep(20)
    raise AssertionError("lost")


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    """The handler that a command begins with, whatever libraries of earlier tests have set."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("default_sigterm")
def test_a_signal_that_meets_a_finaliser_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    hook = sys.unraisablehook
    with pytest.raises(Terminated), heeding_signals() as heard:
        meet_one()
    assert heard.number == signal.SIGTERM
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sys.unraisablehook is hook
