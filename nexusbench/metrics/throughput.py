"""How much per second, over the window from the first measured arrival to the last end."""

from __future__ import annotations

from abc import abstractmethod

from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.run_events import RunEvents


class _Rate(Scalar):
    """Something counted, per second of the window."""

    @abstractmethod
    def count(self, run: RunEvents) -> int:
        """What is counted."""

    def value(self, run: RunEvents) -> float | None:
        """The rate; None where the window is empty."""
        return self.count(run) * NS_PER_S / run.makespan if run.makespan else None

    def reason(self, run: RunEvents) -> str:
        """Names the empty window."""
        return "the measured part of the run has no length"


class Makespan(Scalar):
    """Length of the measured window."""

    tag, unit, direction = "makespan", "s", "lower"
    title = "makespan"
    formula = "T = max(e_i, t_i,k) - min(a_i), i in M"

    def value(self, run: RunEvents) -> float | None:
        """Seconds; None where nothing was measured."""
        return run.makespan / NS_PER_S if run.measured.any() else None


class RequestThroughput(_Rate):
    """Finished requests per second."""

    tag, unit, direction = "request_throughput", "req/s", "higher"
    title = "request throughput"
    formula = "|F| / T"
    place = Place("throughput", 60, per_gpu=True)

    def count(self, run: RunEvents) -> int:
        """Finished requests."""
        return int(run.finished.sum())


class OutputThroughput(_Rate):
    """Generated tokens per second."""

    tag, unit, direction = "output_throughput", "tok/s", "higher"
    title = "output token throughput"
    formula = "sum(n_i, i in M) / T"
    place = Place("throughput", 70, title="output throughput", per_gpu=True)

    def count(self, run: RunEvents) -> int:
        """Tokens generated for measured requests."""
        return int(run.num_output_tokens[run.measured].sum())


class TotalThroughput(_Rate):
    """Prompt and generated tokens per second."""

    tag, unit, direction = "total_throughput", "tok/s", "higher"
    title = "total token throughput"
    formula = "sum(p_i + n_i, i in G) / T"

    def count(self, run: RunEvents) -> int:
        """Prompt tokens (once, cached ones too) and output tokens of answered requests."""
        tokens = run.requests["prompt_tokens"] + run.num_output_tokens
        return int(tokens[run.answered].sum())
