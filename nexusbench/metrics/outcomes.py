"""How many measured requests were offered, and what became of them."""

from __future__ import annotations

from nexusbench.core.events import OUTCOMES
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.run_events import RunEvents


class Offered(Scalar):
    """Requests that arrived after the warm-up."""

    counts_refused = True
    tag, unit, direction = "offered", "requests", "none"
    title = "offered"
    formula = "|M|"

    def value(self, run: RunEvents) -> float:
        """A count."""
        return int(run.measured.sum())


class _Ended(Scalar):
    """Requests with one outcome; the tag is the outcome."""

    counts_refused = True
    unit = "requests"

    def value(self, run: RunEvents) -> float:
        """A count."""
        return int((run.measured & (run.outcome == OUTCOMES.index(self.tag))).sum())


class Finished(_Ended):
    """Requests that got all their tokens."""

    tag, direction, title = "finished", "higher", "finished"
    formula = "|F|"
    place = Place("throughput", 10, title="requests finished", unit="")


class FinishedWork(Scalar):
    """Share of the offered tokens whose requests finished: long ones turned away show in it."""

    counts_refused = True
    tag, unit, direction = "finished_work", "%", "higher"
    title = "finished, of the tokens offered"
    formula = "100 sum(p_i + o_i, i in F) / sum(p_i + o_i, i in M), o_i output tokens of the trace"

    def value(self, run: RunEvents) -> float | None:
        """Percent; None where nothing was offered."""
        tokens = run.requests["prompt_tokens"] + run.requests["output_tokens"]
        offered = int(tokens[run.measured].sum())
        return 100 * int(tokens[run.finished].sum()) / offered if offered else None

    def reason(self, run: RunEvents) -> str:
        """Nothing was offered."""
        return "no request was offered"


class FinishedByToken(Scalar):
    """Finished requests that a token of the model ended before the trace's length."""

    counts_refused = True
    tag, unit, direction = "finished_stop", "requests", "none"
    title = "finished by an end token"
    formula = "|{i in F : reason stop}|"
    place = Place(
        "throughput", 11, title="by an end token", unit="", part_of="finished", only_if_any=True
    )

    def value(self, run: RunEvents) -> float:
        """A count."""
        if "stop" not in run.facts.strings:
            return 0
        ended = run.tables["ended"]
        stopped = ended["request"][ended["reason"] == run.facts.strings.index("stop")]
        return int(run.finished[stopped].sum())


class Rejected(_Ended):
    """Requests that could never be served, such as one longer than the context."""

    tag, direction, title = "rejected", "lower", "rejected"
    formula = "|{i in M : outcome rejected}|"
    place = Place("throughput", 20, unit="", only_if_any=True)


class Failed(_Ended):
    """Requests that the engine gave up."""

    tag, direction, title = "failed", "lower", "failed"
    formula = "|{i in M : outcome failed}|"
    place = Place("throughput", 30, unit="", only_if_any=True)


class Cancelled(_Ended):
    """Requests that were called off."""

    tag, direction, title = "cancelled", "lower", "cancelled"
    formula = "|{i in M : outcome cancelled}|"
    place = Place("throughput", 40, unit="", only_if_any=True)


class Unfinished(Scalar):
    """Requests without an end: the run was killed or interrupted."""

    counts_refused = True
    tag, unit, direction = "unfinished", "requests", "lower"
    title = "unfinished"
    formula = "|{i in M : no outcome}|"
    place = Place("throughput", 50, unit="", only_if_any=True)

    def value(self, run: RunEvents) -> float:
        """A count."""
        return int((run.measured & (run.outcome < 0)).sum())
