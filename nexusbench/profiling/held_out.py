"""Whole batches that no fit sees: off every grid, several prompts in one, unequal sizes."""

from __future__ import annotations

from nexusbench.core.batch import BatchShape
from nexusbench.profiling.desk import MOST_REPEATS


def held_out_prefills(chunk: int, context: int) -> list[BatchShape]:
    """Chunk batches: several prompts in one, one prompt's middle, a short one far in."""

    def part(share: float) -> int:
        return max(2, round(share * chunk))

    def far(share: float) -> int:
        return round(share * context)

    return [
        BatchShape(0, 0, ((part(0.21), 0), (part(0.33), far(0.07)), (part(0.27), far(0.19)))),
        BatchShape(0, 0, ((part(0.73), far(0.11)),)),
        BatchShape(0, 0, ((part(0.55), far(0.31)),)),
        BatchShape(0, 0, ((part(0.11), 0),) * 7),
        BatchShape(0, 0, ((part(0.17), far(0.63)), (part(0.71), 0))),
        BatchShape(0, 0, ((part(0.41), far(0.87)),)),
        BatchShape(0, 0, ((part(0.07), far(0.23)),)),
        BatchShape(0, 0, ((part(0.93), 0),)),
    ]


def held_out_decodes(batch: int, length: int, pool: int) -> list[BatchShape]:
    """Decode batches between the sizes of the grid, at mean contexts between its lengths; at most
    half of the pool's tokens, so that they fit beside a prompt.
    """
    shares = ((0.3, 0.021), (0.09, 0.19), (0.55, 0.083), (0.04, 0.37), (0.83, 0.013),
              (0.21, 0.11), (0.012, 0.57), (0.43, 0.035))  # fmt: skip
    made = []
    for size, mean in shares:
        count = max(3, round(size * batch))
        context = min(max(40, round(mean * length)), pool // (2 * count) - MOST_REPEATS)
        if context > 1:
            made.append(BatchShape(count, count * context + count // 3))
    return made


def held_out_mixed(chunk: int, batch: int) -> list[BatchShape]:
    """Decodes and one or two chunks together."""
    few, many = max(2, batch // 11), max(2, batch // 3)
    return [
        BatchShape(few, few * 777, ((round(0.47 * chunk), 1300),)),
        BatchShape(many, many * 1511, ((round(0.29 * chunk), 0),)),
        BatchShape(many, many * 350, ((round(0.13 * chunk), 5200), (round(0.37 * chunk), 0))),
        BatchShape(few, few * 3100, ((round(0.81 * chunk), 2600),)),
        BatchShape(few, few * 190, ((round(0.06 * chunk), 700),)),
        BatchShape(many, many * 620, ((round(0.61 * chunk), 9100),)),
        BatchShape(few, few * 5300, ((round(0.19 * chunk), 0), (round(0.23 * chunk), 3300))),
        BatchShape(many, many * 1150, ((round(0.08 * chunk), 14_300),)),
    ]
