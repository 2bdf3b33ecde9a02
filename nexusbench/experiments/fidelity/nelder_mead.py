"""Nelder and Mead's simplex: a minimum without derivatives; deterministic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


def nelder_mead(
    loss: Callable[[Vector], float], start: Vector, evaluations: int
) -> tuple[Vector, float]:
    """The best point found and its loss: Nelder and Mead's simplex with the dimension-dependent
    steps of Gao and Han (2012).
    """
    n = len(start)
    expand, contract, shrink = 1 + 2 / n, 0.75 - 1 / (2 * n), 1 - 1 / n
    simplex = [start] + [start + 0.15 * row for row in np.eye(n)]
    losses = [loss(point) for point in simplex]
    used = n + 1
    while used < evaluations:
        order = np.argsort(losses, kind="stable")
        simplex, losses = [simplex[i] for i in order], [losses[i] for i in order]
        centre = np.mean(simplex[:-1], axis=0)
        step = centre - simplex[-1]
        point = centre + step
        value = loss(point)
        used += 1
        if value < losses[0]:
            further = centre + expand * step
            beyond = loss(further)
            used += 1
            if beyond < value:
                point, value = further, beyond
        elif value >= losses[-2]:
            nearer = centre + (contract if value < losses[-1] else -contract) * step
            inside = loss(nearer)
            used += 1
            if inside < min(value, losses[-1]):
                point, value = nearer, inside
            elif value >= losses[-1]:
                simplex = [simplex[0] + shrink * (p - simplex[0]) for p in simplex]
                losses = [losses[0]] + [loss(p) for p in simplex[1:]]
                used += n
                continue
        simplex[-1], losses[-1] = point, value
    best = int(np.argmin(losses))
    return simplex[best], losses[best]
