"""Measured points that their own table contradicts: no simulation can be near both.

Users of a closed loop share a server, so none of them gets tokens faster when there are more of
them. Where a line says so nevertheless, by more than lines of equal settings scatter, it or the
other is wrong, and nothing here tells which: neither is scored. Only the measurements decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from nexusbench.experiments.fidelity.serving_table import ServingPoint

# Of serving/measured-closed-loop.csv 196 of the 198 settings that were measured more than once have
# TPOTs within 1.2 of each other, and 315 of 318 series over users never fall by more; the others
# are apart by 1.5 to 5.2 (docs/fidelity.md).
MOST_APART = 1.3
_MEASURED = ("line", "ttft_ms", "tpot_ms")


def contradicted(points: Sequence[ServingPoint]) -> dict[int, str]:
    """By line, why a point is not scored: with its settings but for users another has a TPOT that
    is ``MOST_APART`` times lower under as many users or more, or higher under as many or fewer.
    """
    series: dict[ServingPoint, list[ServingPoint]] = defaultdict(list)
    for point in points:
        without = dict.fromkeys(_MEASURED, 0) | {"users": 0}
        series[msgspec.structs.replace(point, **without)].append(point)
    found: dict[int, str] = {}
    for alike in series.values():
        users = sorted({point.users for point in alike})
        slowest = _extremes(alike, users, slowest=True)
        fastest = _extremes(alike, users[::-1], slowest=False)
        for point in alike:
            if (
                slowest[point.users] > MOST_APART * point.tpot_ms
                or fastest[point.users] * MOST_APART < point.tpot_ms
            ):
                found[point.line] = (
                    f"{point.name}: its TPOT and that of another line of the same settings "
                    f"contradict each other, under as many or more users over {MOST_APART:g} times "
                    "apart"
                )
    return found


def _extremes(
    alike: Sequence[ServingPoint], order: Sequence[int], *, slowest: bool
) -> dict[int, float]:
    """For each number of users the largest (or least) TPOT of all up to it in ``order``."""
    pick = max if slowest else min
    of_each: dict[int, float] = {}
    for point in alike:
        of_each[point.users] = pick(of_each.get(point.users, point.tpot_ms), point.tpot_ms)
    made: dict[int, float] = {}
    so_far = of_each[order[0]]
    for users in order:
        so_far = pick(so_far, of_each[users])
        made[users] = so_far
    return made
