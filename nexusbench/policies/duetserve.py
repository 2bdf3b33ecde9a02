"""DuetServe's optimiser (arXiv 2511.04791): SMs of a decode and a prefill stream, and how many
decode steps go beside one prefill.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nexusbench.core.batch import BatchShape, Split
from nexusbench.costs.base import CostModel


class Duet(msgspec.Struct, frozen=True):
    """k decode steps beside one prefill: ``rate`` is tokens per ns from their common start until
    both have ended.
    """

    split: Split
    steps: int
    rate: float


def duets(
    belief: CostModel,
    decode: BatchShape,
    prefill: BatchShape,
    splits: Sequence[Split],
    bound: float,
    steps: range,
) -> list[Duet]:
    """For each split the best k of ``steps``; no Duet for a split on which a step takes longer than
    ``bound`` (ns), or on which decodes would wait longer than that for the prefill.

    ``decode.repeat`` is ignored. rate = (k T_dec + T_pre)/max(k t_d, t_p) grows with k up to t_p /
    t_d and falls beyond, so two values of k are tried.
    """
    one = msgspec.structs.replace(decode, repeat=1)
    own, other = [s.sms[1] for s in splits], [s.sms[0] for s in splits]
    step_times = belief.predict_splits(one, own, prefill, other)
    prefill_times = belief.predict_splits(prefill, other, one, own)
    made, least, most = 0, steps[0], steps[-1]
    for count, _ in prefill.chunks:
        made += count
    found = []
    for split, step, whole in zip(splits, step_times, prefill_times, strict=True):
        if step > bound:
            continue
        below = min(most, max(least, int(whole / step)))
        best = None
        for k in (below, min(most, below + 1)):
            rate = (k * decode.num_decodes + made) / max(k * step, whole)
            if whole - k * step <= bound and (best is None or rate > best.rate):
                best = Duet(split, k, rate)
        if best is not None:
            found.append(best)
    return found
