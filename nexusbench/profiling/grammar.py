"""vLLM's batch grammar: ``1q1k_32q1s1k`` is a prompt of 1,024 tokens and 32 decodes at 1,024.

After ``benchmarks/attention_benchmarks/batch_spec.py`` of vLLM: segments
``<count>q<new tokens>(k)(s<length>(k))`` joined by ``_``; the length includes the new tokens and is
theirs alone if it is left out, ``k`` is 1,024.
"""

from __future__ import annotations

import re

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError

_SEGMENT = re.compile(r"(\d*)q(\d+)(k?)(?:s(\d+)(k?))?")
_EXAMPLE = "Write segments as COUNTqNEWsLENGTH joined by _, as in 1q1k_32q1s1k"
_MOST = 10_000_000  # of any number: more is a slip of the finger


def parse_batch(text: str) -> tuple[BatchShape, tuple[int, ...]]:
    """The shape that ``text`` describes, and the decodes' contexts if they differ (else ()).

    One new token after others is a decode. Raises UsageError naming the segment.
    """
    chunks: list[tuple[int, int]] = []
    contexts: list[int] = []
    for segment in text.strip().lower().split("_"):
        count, new, context = _segment(segment, text)
        if new == 1 and context:
            contexts += [context] * count
        else:
            chunks += [(new, context)] * count
    shape = BatchShape(len(contexts), sum(contexts), tuple(chunks))
    return shape, tuple(contexts) if len(set(contexts)) > 1 else ()


def _segment(segment: str, text: str) -> tuple[int, int, int]:
    """(requests, new tokens, tokens before them) of one segment."""
    found = _SEGMENT.fullmatch(segment)
    if found is None:
        what = f"segment '{segment}'" if segment else "an empty segment"
        raise UsageError(f"--batch '{text}': {what} is not in the grammar. {_EXAMPLE}")
    count = int(found[1] or 1)
    new = _size(found[2], found[3])
    length = _size(found[4], found[5]) if found[4] else new
    if count < 1 or new < 1:
        raise UsageError(f"--batch '{text}': segment '{segment}' computes nothing. {_EXAMPLE}")
    if max(count, new, length) > _MOST:
        raise UsageError(f"--batch '{text}': segment '{segment}' has a number above {_MOST:,}")
    if length < new:
        raise UsageError(
            f"--batch '{text}': segment '{segment}': the length {length:,} after s includes the "
            f"{new:,} new tokens and cannot be less"
        )
    return count, new, length - new


def _size(digits: str, suffix: str) -> int:
    return int(digits) * (1024 if suffix else 1)


def format_batch(shape: BatchShape, contexts: tuple[int, ...] = ()) -> str:
    """``shape`` in the grammar; equal neighbours are counted, means stand for unknown contexts."""
    wanted = [(new, new + before) for new, before in shape.chunks]
    if contexts:
        wanted += [(1, context + 1) for context in contexts]
    elif shape.num_decodes:
        mean = round(shape.decode_context / shape.num_decodes)
        wanted += [(1, mean + 1)] * shape.num_decodes
    segments: list[tuple[int, tuple[int, int]]] = []
    for item in wanted:
        if segments and segments[-1][1] == item:
            segments[-1] = (segments[-1][0] + 1, item)
        else:
            segments.append((1, item))
    return "_".join(
        f"{count if count > 1 else ''}q{_short(new)}"
        + (f"s{_short(length)}" if length > new else "")
        for count, (new, length) in segments
    )


def _short(size: int) -> str:
    return f"{size // 1024}k" if size >= 1024 and size % 1024 == 0 else str(size)
