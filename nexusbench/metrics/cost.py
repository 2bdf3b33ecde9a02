"""What a token costs, for a price and a power that the user gives."""

from __future__ import annotations

from abc import abstractmethod

from nexusbench.core.units import NS_PER_S
from nexusbench.metrics.base import Place, Scalar
from nexusbench.metrics.run_events import RunEvents

_TOKENS = 1e6
_SECONDS_PER_HOUR = 3600.0


class _PerToken(Scalar):
    """Something that all GPUs use up over the window, idle or not, per output token."""

    direction = "lower"

    @abstractmethod
    def rate(self, run: RunEvents) -> float | None:
        """What one GPU uses per second; None where nobody said."""

    def value(self, run: RunEvents) -> float | None:
        """Use over the window per token generated for measured requests."""
        rate, tokens = self.rate(run), int(run.num_output_tokens[run.measured].sum())
        if rate is None or not tokens:
            return None
        return rate * run.facts.gpus * run.makespan / NS_PER_S / tokens

    def reason(self, run: RunEvents) -> str:
        """Not asked for, or nothing generated."""
        return "no token was generated" if self.rate(run) is not None else self.missing

    missing = ""


class CostPerMillionTokens(_PerToken):
    """Dollars of GPU time for a million output tokens."""

    tag, unit = "cost_per_mtok", "$/M output tokens"
    title = "cost per million output tokens"
    formula = "1e6 g price T / (3600 sum(n_i, i in M)), g GPUs at price $/h each"
    place = Place("throughput", 100, title="cost", unit="$/M output tok")
    missing = "no price was given (--price-per-hour)"

    def rate(self, run: RunEvents) -> float | None:
        """Dollars per second and GPU, for a million tokens."""
        price = run.facts.price_per_hour
        return None if price is None else price * _TOKENS / _SECONDS_PER_HOUR


class JoulesPerToken(_PerToken):
    """Energy for an output token."""

    tag, unit = "joules_per_token", "J/token"
    title = "energy per output token"
    formula = "g watts T / sum(n_i, i in M), g GPUs of watts each"
    place = Place("throughput", 110, title="energy", unit="J/output token")
    missing = "no power was given (--watts)"

    def rate(self, run: RunEvents) -> float | None:
        """Watts."""
        return run.facts.watts
