"""Latencies of requests and tokens; all count from the scheduled arrival."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nexusbench.core.units import NS_PER_MS
from nexusbench.metrics.arrays import MANY, BoolArray, FloatArray, to_ms
from nexusbench.metrics.base import Distribution, TablePlace
from nexusbench.metrics.run_events import RunEvents

HELD_BACK = "every answer came in one delivery: the times between its tokens are unknown"
# Prompts longer than this share of the trace's are its long ones.
_LONG = 0.95


def came_at_once(run: RunEvents) -> BoolArray:
    """Which requests got several tokens in one delivery, so that no bound on gaps can be judged.

    Of an answer that the model did not end itself, one token may be all that was counted.
    """
    if run.facts.observed == "engine":
        return np.zeros(run.num_requests, dtype=np.bool_)
    more = run.requests["max_tokens"] > 1
    ended, strings = run.tables["ended"], run.facts.strings
    if "stop" in strings:
        more[ended["request"][ended["reason"] == strings.index("stop")]] = False
    several = (run.num_output_tokens > 1) | ((run.num_output_tokens == 1) & more)
    found: BoolArray = several & (run.first_token == run.last_token)
    return found


class TimeToFirstToken(Distribution):
    """From arrival to the first token, of every request that got one."""

    tag, unit, direction = "ttft", "ms", "lower"
    title = "time to first token"
    formula = "f_i - a_i, i in G"
    place = TablePlace("latency", 10, title="TTFT")

    def values(self, run: RunEvents) -> FloatArray:
        """One value per answered request."""
        return to_ms((run.first_token - run.arrival)[run.answered])


class LongPromptFirstToken(Distribution):
    """TTFT of the longest twentieth of the prompts; serving short prompts first raises it."""

    tag, unit, direction = "ttft_long_prompts", "ms", "lower"
    title = "time to first token of the longest prompts"
    formula = "f_i - a_i, i in G with p_i > 95 % of all p"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per answered request with such a prompt."""
        return to_ms((run.first_token - run.arrival)[run.answered & longest_prompts(run)])

    def reason(self, run: RunEvents) -> str:
        """All alike, or none answered."""
        if longest_prompts(run).any():
            return "none of the longest prompts was answered"
        return "no prompt is longer than 95 % of them"


def longest_prompts(run: RunEvents) -> npt.NDArray[np.bool_]:
    """Requests with a prompt longer than 95 % of the trace's: the same under every scheduler."""
    lengths = run.requests["prompt_tokens"]
    if not len(lengths):
        return np.zeros(0, dtype=np.bool_)
    found: npt.NDArray[np.bool_] = lengths > np.quantile(lengths, _LONG, method="lower")
    return found


class Queueing(Distribution):
    """The part of TTFT before the request first left the waiting queue."""

    needs_engine = True
    tag, unit, direction = "ttft_queueing", "ms", "lower"
    title = "queueing part of TTFT"
    formula = "s_i - a_i, i in G"
    place = TablePlace("latency", 11, title="queueing", part_of="ttft")

    def values(self, run: RunEvents) -> FloatArray:
        """One value per answered request, so that its mean and that of service add up to TTFT's."""
        return to_ms((run.first_admitted - run.arrival)[run.answered])


class Service(Distribution):
    """The part of TTFT after the request first left the waiting queue."""

    needs_engine = True
    tag, unit, direction = "ttft_service", "ms", "lower"
    title = "service part of TTFT"
    formula = "f_i - s_i, i in G"
    place = TablePlace("latency", 12, title="service", part_of="ttft")

    def values(self, run: RunEvents) -> FloatArray:
        """One value per answered request."""
        return to_ms((run.first_token - run.first_admitted)[run.answered])


class SendLag(Distribution):
    """How late a client sent its requests; the lag is part of every latency."""

    tag, unit, direction = "send_lag", "ms", "lower"
    title = "send lag"
    formula = "s_i - a_i, i in M sent; of a client's log, where s_i is when it was sent"
    place = TablePlace("host", 30, statistics=("p50", "p99", "max"))

    def values(self, run: RunEvents) -> FloatArray:
        """One value per request that was sent."""
        if run.facts.observed == "engine":
            return np.empty(0, dtype=np.float64)
        sent = run.measured & (run.first_admitted >= 0)
        return to_ms((run.first_admitted - run.arrival)[sent])

    def reason(self, run: RunEvents) -> str:
        """Inside the engine nothing is sent."""
        known = run.facts.observed == "client"
        return "no request was sent" if known else "requests reach the engine on its own clock"


class TimeBetweenTokens(Distribution):
    """Every gap between a request's consecutive tokens, pooled over requests; also called ITL."""

    tag, unit, direction = "tbt", "ms", "lower"
    title = "time between tokens (ITL)"
    formula = "t_i,k - t_i,k-1 for k = 2..n_i, i in M, pooled"
    place = TablePlace("latency", 20, title="TBT (ITL)")

    def values(self, run: RunEvents) -> FloatArray:
        """One value per gap; in 32 bits where there are very many."""
        gaps = run.gaps
        if not run.measured.all():
            gaps = gaps[run.measured[run.gap_request]]
        if len(gaps) <= MANY:
            return to_ms(gaps)
        # In place where the widths agree: these gaps are ours (RunEvents.gaps), and a copy of a
        # hundred million would be the largest thing in memory.
        if gaps.itemsize == 4:
            values: npt.NDArray[Any] = gaps.view(np.float32)
        else:
            values = np.empty(len(gaps), dtype=np.float32)
        for start in range(0, len(gaps), MANY >> 4):
            part = slice(start, start + (MANY >> 4))
            values[part] = gaps[part] / NS_PER_MS
        return values

    def reason(self, run: RunEvents) -> str:
        """A stream whose tokens all arrived in one delivery has no gaps."""
        return HELD_BACK if (run.measured & came_at_once(run)).any() else super().reason(run)


class TimePerOutputToken(Distribution):
    """A request's mean time per token after the first."""

    tag, unit, direction = "tpot", "ms", "lower"
    title = "time per output token"
    formula = "(t_i,n - f_i) / (n_i - 1), i in F with n_i > 1"
    place = TablePlace("latency", 30, title="TPOT")

    def values(self, run: RunEvents) -> FloatArray:
        """One value per finished request of two tokens or more, unless they came at once."""
        keep = run.finished & (run.num_output_tokens > 1) & ~came_at_once(run)
        time = (run.last_token - run.first_token)[keep]
        return to_ms(time / (run.num_output_tokens[keep] - 1))

    def reason(self, run: RunEvents) -> str:
        """Where all tokens of a stream arrived in one delivery, their times are unknown."""
        return HELD_BACK if (run.finished & came_at_once(run)).any() else super().reason(run)


class EndToEnd(Distribution):
    """From arrival to the end, of finished requests."""

    tag, unit, direction = "e2e", "ms", "lower"
    title = "end-to-end latency"
    formula = "e_i - a_i, i in F"
    place = TablePlace("latency", 40, title="end to end")

    def values(self, run: RunEvents) -> FloatArray:
        """One value per finished request."""
        return to_ms((run.ended - run.arrival)[run.finished])


class NormalisedLatency(Distribution):
    """End-to-end latency per output token."""

    tag, unit, direction = "normalised_latency", "ms/token", "lower"
    title = "normalised latency"
    formula = "e2e_i / n_i, i in F with n_i > 0"

    def values(self, run: RunEvents) -> FloatArray:
        """One value per finished request with output."""
        keep = run.finished & (run.num_output_tokens > 0)
        return to_ms((run.ended - run.arrival)[keep] / run.num_output_tokens[keep])
