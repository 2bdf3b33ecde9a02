"""The batches of ``--batch``: which ones a folder has, and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nexusbench.core.errors import InputError
from nexusbench.costs.base import CostModel
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import OwnBatch, load_profile
from nexusbench.profiling.desk import ShapedBatch
from nexusbench.profiling.fitting import predicted
from nexusbench.profiling.grammar import format_batch, parse_batch


def own_batches(asked: Iterable[str], folder: Path | None) -> list[tuple[str, ShapedBatch]]:
    """(batch in the grammar's shortest form, work) of what ``folder``'s profile has from before,
    and of what is ``asked`` for now; each once.

    Raises UsageError for what is not in the grammar.
    """
    found: dict[str, ShapedBatch] = {}
    for text in [*_before(folder), *asked]:
        work = ShapedBatch(*parse_batch(text))
        found.setdefault(format_batch(work.shape, work.contexts), work)
    return list(found.items())


def _before(folder: Path | None) -> list[str]:
    """What the profile in ``folder`` has; nothing where there is none that can be read, which is
    no obstacle to making one.
    """
    if folder is None:
        return []
    try:
        return [own.batch for own in load_profile(folder).batches]
    except InputError:
        return []


def measured_batches(
    batches: Sequence[tuple[str, ShapedBatch]],
    points: Iterable[Point],
    models: Mapping[str, CostModel],
    num_sms: int,
) -> tuple[OwnBatch, ...]:
    """What ``points`` have of the batches on all SMs, and what each model says."""
    whole = {
        (point.setting.shape, point.setting.contexts): point
        for point in points
        if point.setting.sms == num_sms and point.setting.neighbour is None
    }
    rows = []
    for text, work in batches:
        point = whole.get((work.shape, work.contexts))
        if point is not None:
            guesses = {name: float(predicted(m, [point])[0]) for name, m in models.items()}
            rows.append(OwnBatch(text, point.ns, point.interval, point.setting.held_out, guesses))
    return tuple(rows)
