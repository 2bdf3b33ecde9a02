"""Attention to chosen keys: scores of an indexer, the choice of the best, and attention to those.

Each is a list of tiles, as in ``attention.py``:

* *Scores*: one tile takes the index queries of a few tokens through all keys, in 8 bit (DeepGEMM's
  fp8_mqa_logits); in a decode keys are split over all SMs. Scores go to memory in float32.
* *Choice*: one thread block a token goes through its scores, a few passes by radix. A token that
  has no more keys than are chosen takes none.
* *Attention*: one tile takes some heads of one token through its keys, which are gathered. Kernels
  of latent attention are padded to the number that is chosen, whatever a token has.

A *stretch* of rows is ``(count, least, most, times)``: ``count`` tokens whose number of keys grows
evenly from ``least`` to ``most``, ``times`` such. How far all this is from measurements:
docs/fidelity.md.
"""

from __future__ import annotations

from nexusbench.core.kernel_constants import SparseConstants
from nexusbench.core.specs import GpuSpec
from nexusbench.physics.architectures import ARCHITECTURES
from nexusbench.physics.attention import spread
from nexusbench.physics.operators import (
    L2,
    NOTHING,
    OperatorClass,
    filled,
    overlapped,
    scaled_sum,
)
from nexusbench.physics.precisions import architecture

SCORE_ROWS = 128  # index queries of a tile: 4 tokens of 32 heads
DECODE_ROWS = 64  # at least, of one token in a decode
SCORE_BYTES = 4.0
SPLIT_KEYS = 64  # at least in a part of split keys

Stretch = tuple[int, float, float, int]


def causal(chunks: tuple[tuple[int, int], ...], ratio: int = 1) -> list[Stretch]:
    """The stretches of chunks (tokens, tokens before), where ``ratio`` tokens make one key."""
    if ratio == 1:
        return [(count, before + 1.0, float(before + count), 1) for count, before in chunks]
    return [(count, (before + 1) / ratio, (before + count) / ratio, 1) for count, before in chunks]


class IndexScores:
    """Scores of ``heads`` index queries of ``size`` values a token against all keys, each of
    ``key_bytes`` bytes, in 8 bit where ``narrow`` and the GPU has tensor cores for it.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        own: SparseConstants,
        heads: int,
        size: int,
        key_bytes: float,
        *,
        narrow: bool,
    ) -> None:
        fast = 2.0 if narrow and "fp8" in ARCHITECTURES[architecture(gpu)].native else 1.0
        rate = gpu.peak_tflops * fast * 1e3 / gpu.num_sms * own.index_efficiency
        self._row_ns = 2.0 * size / rate  # of one index query and one key
        self._heads, self._key_bytes = heads, key_bytes
        self._exposed, self._tail = own.overlap, gpu.sim.attention_tail

    def time(
        self, chunks: list[Stretch], decodes: int, keys: float, sms: int, per_byte: float
    ) -> OperatorClass:
        """Of one layer; ``decodes`` tokens see ``keys`` keys together. ``per_byte``: ns of a byte
        from HBM.
        """
        work = longest = read = written = 0.0
        tiles = 0
        for count, least, most, times in chunks:
            each = -(-count * self._heads // SCORE_ROWS)
            mean = (least + most) / 2
            work += each * times * min(most, mean + (most - least) / (2 * each))
            longest = max(longest, most)
            tiles += each * times
            read += most * times
            written += count * times * mean
        key_ns = SCORE_ROWS * self._row_ns
        busy = spread(tiles, work * key_ns, longest * key_ns, sms, self._tail) if tiles else 0.0
        busy += keys * max(DECODE_ROWS, self._heads) * self._row_ns / sms
        traffic = (read + keys) * self._key_bytes + (written + keys) * SCORE_BYTES
        return overlapped(
            0.0, busy, traffic * per_byte, self._exposed, traffic, (tiles or sms) / sms
        )


class Choice:
    """The ``most`` keys of the highest scores for each token."""

    def __init__(self, gpu: GpuSpec, own: SparseConstants, most: float) -> None:
        self._most, self._tail = most, gpu.sim.attention_tail
        self._row, self._prompt_row = own.topk_us * 1e3, own.prompt_topk_us * 1e3
        self._key = own.topk_key_ns

    def time(
        self, chunks: list[Stretch], decodes: int, keys: float, sms: int, per_byte: float
    ) -> OperatorClass:
        """Of one layer; ``decodes`` tokens choose from ``keys`` keys each."""
        rows, work, longest, scores = 0.0, 0.0, 0.0, 0.0
        if keys > self._most:
            longest, rows = self._row + keys * self._key, float(decodes)
            work, scores = rows * longest, rows * keys
        for count, least, most, times in chunks:
            if most <= self._most:
                continue
            some, first = count * times * 1.0, least
            if least < self._most:
                some, first = some * (most - self._most) / (most - least), self._most
            mean = (first + most) / 2
            rows += some
            scores += some * mean
            work += some * (self._prompt_row + mean * self._key)
            longest = max(longest, self._prompt_row + most * self._key)
        if not rows:
            return NOTHING
        whole = -(-rows // 1)
        busy = spread(int(whole), work, longest, sms, self._tail)
        traffic = scores * SCORE_BYTES
        return overlapped(0.0, 0.0, max(busy, traffic * per_byte), 0.0, traffic, whole / sms)


class Gathered:
    """Attention of ``heads`` query heads to gathered keys, ``rows`` heads a tile on ``span`` SMs.

    ``row_flops`` are of one head and one key, ``key_bytes`` of one key with its value; ``groups``
    of heads have keys of their own. ``narrow``: the cache is of 8 bit, which decodes read, and
    chunks too with ``narrow_chunks``; else theirs are converted before. ``splits``: decodes split
    the keys of a token over idle SMs.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        own: SparseConstants,
        *,
        heads: int,
        rows: int,
        span: int = 1,
        groups: int = 1,
        row_flops: float,
        key_bytes: float,
        narrow: bool = False,
        narrow_chunks: bool = False,
        splits: bool = True,
    ) -> None:
        rate = gpu.peak_tflops * 1e3 / gpu.num_sms * own.efficiency
        self._tiles = groups * -(-heads // (groups * rows))  # of one token
        self._span, self._splits = span, splits
        wide = rows * row_flops / (rate * span)
        # 8-bit keys are converted by warps of their own, beside which the loads are hidden.
        gathered = wide + key_bytes / (own.gather_gbps * span)
        self._decode = max(gathered, wide * own.narrow) if narrow else gathered
        self._padding = wide * (own.narrow if narrow else own.padding)
        self._chunk = wide * (own.narrow if narrow_chunks else 1.0)
        self._chunk_padding = wide * (own.narrow if narrow_chunks else own.padding)
        self._key_bytes, self._row_ns = key_bytes * groups, heads * row_flops / rate
        self._tile, self._exposed = own.tile_us * 1e3, own.overlap
        self._tail = gpu.sim.attention_tail

    def time(
        self,
        chunks: list[tuple[int, float, float, float]],
        decodes: int,
        keys: float,
        width: float,
        sms: int,
        per_byte: float,
    ) -> OperatorClass:
        """Of one layer. ``chunks`` are (tokens, keys that a tile goes through, keys of a token,
        different keys of all tokens); ``decodes`` tokens have ``keys`` keys each, and their tiles
        go through ``width``.
        """
        slots, tiles = max(1, sms // self._span), 0
        work = longest = read = pairs = streamed = 0.0
        for count, through, mean, different in chunks:
            single = self._tile + mean * self._chunk + (through - mean) * self._chunk_padding
            tiles += count * self._tiles
            work += count * self._tiles * single
            longest = max(longest, single)
            read += different
            pairs += count * mean
        if decodes:
            each, parts = keys * self._decode + (width - keys) * self._padding, 1.0
            many = decodes * self._tiles
            if self._splits and not chunks and many < slots:
                parts = max(1.0, min(slots // many, width / SPLIT_KEYS))
            single = self._tile + each / parts
            tiles += many * int(-(-parts // 1))
            streamed = many * parts * single
            longest = max(longest, single)
            read += decodes * keys
            pairs += decodes * keys
        work += streamed
        busy, traffic = spread(tiles, work, longest, slots, self._tail), read * self._key_bytes
        moving = traffic * per_byte
        longer, memory = busy + self._exposed * moving, 0.0
        if busy < moving:
            longer = memory = moving + self._exposed * busy
        memory += (longer - memory) * streamed / work  # decodes wait for keys, not tensor cores
        return OperatorClass(
            longer,
            longer - memory,
            memory,
            min(busy, pairs * self._row_ns / sms),
            traffic,
            1.0,
            max(1.0, tiles / slots),
            longer * filled(tiles / slots),
        )


class SmallKernels:
    """The rest of a layer of gathered keys: norms, rotations, writes to the cache. They move
    ``new_bytes`` a token, and ``share`` of the fixed times that ``own`` holds is theirs, of which
    ``launch_us`` is that of a step.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        own: SparseConstants,
        new_bytes: float,
        layers: int,
        launch_us: float,
        share: float = 1.0,
    ) -> None:
        self._launch, self._token = launch_us * 1e3 * share, own.token_us * 1e3 * share
        self._prompt, self._new_bytes = own.prompt_us * 1e3, new_bytes
        self._layers, self._l2 = layers, L2(gpu)

    def after(
        self, made: OperatorClass, tokens: int, prompts: bool, sms: int, per_byte: float
    ) -> OperatorClass:
        """All layers of ``made``, which is of one, and of these kernels, in ns. ``prompts``: there
        are some among the ``tokens``.
        """
        new = tokens * self._new_bytes
        warm = min(per_byte, self._l2.per_byte(new, sms, per_byte))
        time = self._launch + tokens * self._token / sms + new * warm
        if prompts:
            time += self._prompt
        own = OperatorClass(time, 0.0, 0.0, 0.0, new, 1.0, 1.0, 0.0)
        return scaled_sum(scaled_sum(own, 1.0, made), self._layers, NOTHING)
