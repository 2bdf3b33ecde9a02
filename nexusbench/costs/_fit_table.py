"""Fits of the cost model ``table``: grids from points, holes filled, noise made monotone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from nexusbench.core.errors import UsageError
from nexusbench.costs._fit_grids import (
    alone,
    as_surface,
    factor,
    isotonic,
    lines_of,
    nodes,
    spread_over,
    surface,
)
from nexusbench.costs._fit_least_squares import FloatArray
from nexusbench.costs.base import Target
from nexusbench.costs.table import TableParameters, mixed_parts
from nexusbench.profiles.points import Point
from nexusbench.profiles.surface import Place, Slowdowns, Surface, place_of

MOST_PLACES = 5  # values per axis of the slowdowns, and
MOST_SPLITS = 9  # SM counts
TURNS = 2.0  # slowdown where both claim all SMs and nothing was measured: they take turns


def fit_table(points: Sequence[Point], target: Target, *, contention: bool) -> TableParameters:
    """The parameters; see ``TableCost.fit``."""
    num_sms = target.gpu.num_sms
    chunks = lines_of(alone(points, "prefill"))
    largest = max([size for size, _ in chunks], default=0.0)
    prefill = surface(
        chunks, num_sms, phase="prefill", what="chunk sizes", lowest_context=-largest / 2
    )
    decode = surface(
        lines_of(alone(points, "decode")), num_sms, phase="decode", what="batch sizes",
        lowest_context=0.0,
    )  # fmt: skip
    attention = above_no_context(decode)
    slowdowns = {}
    for phase in ("prefill", "decode") if contention else ():
        slowdowns[phase] = fit_slowdowns(points, phase, num_sms)
    return TableParameters(
        prefill=prefill,
        decode=decode,
        attention=attention,
        mixed=fit_mixed(alone(points, "mixed"), prefill, attention),
        prefill_slowdowns=slowdowns.get("prefill"),
        decode_slowdowns=slowdowns.get("decode"),
    )


def above_no_context(decode: Surface) -> Surface:
    """What of a decode step is due to its contexts; as monotone as the whole."""
    values = np.array(decode.values)
    return as_surface(
        np.array(decode.sizes),
        np.array(decode.contexts),
        np.array(decode.inverse_sms),
        isotonic(values - values[:, :1]),
    )


def fit_mixed(points: Iterable[Point], prefill: Surface, attention: Surface) -> float:
    """By how much longer decodes' contexts take in a batch with chunks than alone."""
    known, part, measured = [], [], []
    for point in points:
        if not point.setting.shape.num_decodes or not point.setting.shape.chunks:
            continue
        first, second = [
            surface.value(size, context, point.setting.sms)
            for surface, size, context, _ in mixed_parts(
                prefill, attention, point.setting.shape, 1.0
            )
        ]
        known.append(first)
        part.append(second)
        measured.append(point.ns)
    return factor(np.array(known), np.array(part), np.array(measured))


def fit_slowdowns(points: Iterable[Point], phase: str, num_sms: int) -> Slowdowns:
    """The slowdowns of ``phase`` beside the other phase, on a full grid.

    What was not measured is filled from what was, weighted by inverse distance in steps of the
    grid. Raises UsageError if there are no pairs.
    """
    apart: dict[Place, dict[int, float]] = {}
    together: dict[Place, float] = {}
    for point in points:
        setting, slowdown = point.setting, point.slowdown
        if slowdown is None or setting.neighbour is None or setting.phase != phase:
            continue
        place = place_of(setting.shape, setting.neighbour)
        if setting.sms + setting.neighbour_sms > num_sms:
            together[place] = max(1.0, slowdown)
        else:
            apart.setdefault(place, {})[setting.sms] = max(1.0, slowdown)
    counts = {sms for line in apart.values() for sms in line}
    if not counts:
        raise UsageError(
            f"the slowdowns of {phase} beside the other phase need pairs on one or more splits; "
            "measured were none. Profile pairs too, or fit table:contention=false"
        )
    own = np.array(nodes([float(sms) for sms in counts], MOST_SPLITS))
    places, values = _lines_of_pairs(apart, together, own)
    axes = [nodes(places[:, k].tolist(), MOST_PLACES) for k in range(4)]

    def steps(at: FloatArray) -> FloatArray:
        columns = [np.interp(at[:, k], axis, np.arange(len(axis))) for k, axis in enumerate(axes)]
        return np.stack(columns, axis=1)

    made = spread_over(places, values, np.array(list(product(*axes))), steps)
    tokens, contexts, batches, keys = [tuple(axis) for axis in axes]
    lines = made.reshape(len(tokens) * len(contexts), -1, len(own) + 1).tolist()
    return Slowdowns(
        (tokens, contexts),
        (batches, keys),
        tuple(own.tolist()),
        tuple([tuple([tuple(line) for line in row]) for row in lines]),
    )


def _lines_of_pairs(
    apart: dict[Place, dict[int, float]], together: dict[Place, float], own: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(places [n, 4], slowdowns [n, own SMs + 1]); the last column is where all SMs are shared."""
    places, values = [], []
    usual = float(np.mean(list(together.values()))) if together else None
    for place, line in sorted(apart.items()):
        sms = sorted(line)
        known = np.interp(own, sms, [line[count] for count in sms])
        shared = together.get(place, usual)
        if shared is None:
            shared = TURNS * float(known[-1])
        places.append(place)
        values.append([*known.tolist(), shared])
    return np.array(places, dtype=np.float64), np.array(values, dtype=np.float64)
