"""A signal that asks for the end is heeded wherever it meets Python."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from nexusbench.cli._stopping import heeding_signals
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


def test_a_signal_that_meets_a_finaliser_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    before, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with pytest.raises(Terminated), heeding_signals() as heard:
        meet_one()
    assert heard.number == signal.SIGTERM
    assert capsys.readouterr().err == ""
    assert signal.getsignal(signal.SIGTERM) is before
    assert sys.unraisablehook is hook
