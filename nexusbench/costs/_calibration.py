"""What calibrates the analytic roofline: Bullet's alpha and bandwidths (arXiv 2504.19516, Eq. 1-2),
turned into ns per FLOP and per byte over SMs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nexusbench.core.specs import GpuSpec
from nexusbench.costs.base import FittedParameters
from nexusbench.profiles.surface import between, bracket

Operators = Sequence[tuple[float, float]]  # (FLOPs, bytes) of each
Alpha = tuple[tuple[float, ...], ...]


class RooflineParameters(FittedParameters, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fitted constants of the roofline.

    ``bandwidth``: attainable share of peak HBM bandwidth; ``bandwidth_sms``: share of the SMs that
    attains it (N_d/N). ``*_dense`` and ``*_attention`` [size][SMs]: alpha, measured over roofline
    time, at ``*_sizes`` (tokens, batch size) and ``sms``. ``mixed``: by how much longer a decode's
    attention takes beside chunks in one batch. ``decode_bandwidth`` [length][SMs]: what decode on
    ``decode_sms`` SMs still attains beside a prefill whose queries attend to ``lengths`` keys on
    average, as a share of what it attains alone (D_{p,sl}). ``prefill_slowdown`` over
    ``prefill_sms``: of prefill beside decode. ``overlapping``: slowdown of (prefill, decode) where
    both claim all SMs.
    """

    bandwidth: float
    bandwidth_sms: float
    sms: tuple[float, ...]
    prefill_sizes: tuple[float, ...]
    prefill_dense: Alpha
    prefill_attention: Alpha
    decode_sizes: tuple[float, ...]
    decode_dense: Alpha
    decode_attention: Alpha
    mixed: float
    lengths: tuple[float, ...] = ()
    decode_sms: tuple[float, ...] = ()
    decode_bandwidth: tuple[tuple[float, ...], ...] = ()
    prefill_sms: tuple[float, ...] = ()
    prefill_slowdown: tuple[float, ...] = ()
    overlapping: tuple[float, float] = (1.0, 1.0)


class Rates:
    """Four rates of one phase over batch sizes and SMs: ns per FLOP and per byte of the dense
    operators, then of attention.

    alpha divides what SMs compute and move. It is interpolated linearly over SMs at the measured
    counts, the rates linearly in 1/SMs between those, N_d, one SM and all; and no rate may fall
    where SMs are taken away, so that no step gets faster by that.
    """

    def __init__(
        self,
        sizes: tuple[float, ...],
        classes: Iterable[Iterable[Sequence[float]]],
        fitted: RooflineParameters,
        gpu: GpuSpec,
    ) -> None:
        whole = float(gpu.num_sms)
        saturated = fitted.bandwidth_sms * whole
        counts = sorted({1.0, whole, *fitted.sms, max(1.0, saturated)})
        counts.reverse()
        self.sizes = sizes
        self.axis = tuple([1.0 / count for count in counts])
        self.tables: list[list[list[float]]] = []  # [rate][size][1/SMs]
        for alpha in classes:
            per_flop, per_byte = [], []
            for line in alpha:
                flop = byte = 0.0
                flops, moved = [], []
                for count in counts:
                    factor = between(fitted.sms, line, count)
                    flop = max(flop, factor * whole / (count * gpu.peak_tflops * 1e3))
                    reach = min(1.0, count / saturated) * fitted.bandwidth
                    byte = max(byte, factor / (gpu.hbm_gbps * reach))
                    flops.append(flop)
                    moved.append(byte)
                per_flop.append(flops)
                per_byte.append(moved)
            self.tables += [per_flop, per_byte]

    def lines(self, size: float) -> list[list[float]]:
        """The four rates over ``axis`` for a batch of that size."""
        i, u = bracket(self.sizes, size)
        v = 1.0 - u
        return [
            [v * a + u * b for a, b in zip(table[i], table[i + 1], strict=True)]
            for table in self.tables
        ]

    def at(self, size: float, sms: int) -> list[float]:
        """The four rates on ``sms`` SMs; as :meth:`lines` and then interpolating, to the bit."""
        i, u = bracket(self.sizes, size)
        k, w = bracket(self.axis, 1.0 / sms)
        v, x, m = 1.0 - u, 1.0 - w, k + 1
        found = []
        for table in self.tables:
            a, b = table[i], table[i + 1]
            found.append((v * a[k] + u * b[k]) * x + (v * a[m] + u * b[m]) * w)
        return found


class Beside:
    """What a neighbour leaves: decode's bandwidth by the neighbour's mean keys per query, and
    prefill's speed.
    """

    def __init__(self, fitted: RooflineParameters) -> None:
        self._fitted = fitted
        self._shares = fitted.decode_bandwidth
        self.overlapping = fitted.overlapping

    def decode_share(self, length: float, sms: int) -> float:
        """Share of its own bandwidth that decode on ``sms`` SMs attains beside a prefill."""
        i, u = bracket(self._fitted.lengths, length)
        low = between(self._fitted.decode_sms, self._shares[i], sms)
        return low * (1.0 - u) + between(self._fitted.decode_sms, self._shares[i + 1], sms) * u

    def prefill_slowdown(self, sms: int) -> float:
        """Of prefill on ``sms`` SMs beside a decode."""
        return between(self._fitted.prefill_sms, self._fitted.prefill_slowdown, sms)


def rooflines(operators: Operators, per_flop: float, per_byte: float) -> float:
    """Sum over operators of the longer of computing and moving (Eq. 1), ns."""
    time = 0.0
    for flops, size in operators:
        compute, memory = flops * per_flop, size * per_byte
        time += compute if compute > memory else memory
    return time
