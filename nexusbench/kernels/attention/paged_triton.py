"""Attention by our Triton kernels: no gather, no padding; for CUDA, and interpreted for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.kernels.attention import tuning
from nexusbench.kernels.attention.base import AttentionBackend, PreparedAttention
from nexusbench.kernels.attention.tuning import DecodeTile, PrefillTile
from nexusbench.kernels.paged import LayerKV, PagedKV
from nexusbench.kernels.planner import AttentionPlan, Ints, plan_attention, query_tiles
from nexusbench.kernels.split_kv import (
    MERGE_FIELDS,
    SEGMENT_FIELDS,
    Ints32,
    most_merges,
    most_slots,
    split_kv,
)

try:
    from triton.runtime import JITFunction

    from nexusbench.kernels.attention.triton_decode import decode_segments, merge_segments
    from nexusbench.kernels.attention.triton_prefill import prefill_rows
except ImportError as error:
    raise UsageError(
        "the Triton kernels need the package triton. Install it with pip install "
        '"nexusbench[triton]"'
    ) from error

_INTERPRETED = not isinstance(decode_segments, JITFunction)


class TritonAttention(AttentionBackend):
    """Split-KV decode and tiled prefill on the paged cache itself.

    ``num_sms`` are the SMs of the partition this backend serves (a green context still reports all
    of the device's): shares and tiles are sized for them. ``precision`` is tl.dot's for fp32
    inputs. ``decode`` and ``prefill`` (large, small) replace the tables of ``tuning``. Raises
    UsageError for heads or data types without kernels, and for tensors on a CPU unless the kernels
    are interpreted.
    """

    def __init__(
        self,
        kv: PagedKV,
        num_sms: int,
        *,
        precision: str = "ieee",
        decode: DecodeTile | None = None,
        prefill: tuple[PrefillTile, PrefillTile] | None = None,
    ) -> None:
        super().__init__(kv)
        if self.device.type == "cpu" and not _INTERPRETED:
            raise UsageError(
                "Triton kernels need a CUDA device. On a CPU use SDPA, or set TRITON_INTERPRET=1 "
                "before the start to test them"
            )
        size, width = self.heads.head_dim, self.dtype.itemsize
        if size > tuning.LARGEST_HEAD or width not in (2, 4):
            raise UsageError(
                f"no Triton kernels for heads of {size} values in {self.dtype}: they go up to "
                f"{tuning.LARGEST_HEAD} values, in float32, bfloat16 and float16"
            )
        self.num_sms, self.precision = num_sms, precision
        self._layer = kv.layers[0]
        self.padded_head = max(16, _power_of_two(size))
        self.decode_tile = decode or tuning.decode_tile(self.padded_head, width)
        self.prefill_tiles = prefill or tuning.prefill_tiles(self.padded_head, width)
        self.programs = num_sms * self.decode_tile.programs_per_sm
        slots, group = most_slots(self.programs), self.heads.group
        self.partial = torch.empty(slots, group, size, dtype=torch.float32, device=self.device)
        self.logsums = torch.empty(slots, group, dtype=torch.float32, device=self.device)

    def prepare(self, plan: AttentionPlan) -> PreparedAttention:
        """Index tensors of the step, in one copy for decodes and one for chunks."""
        count = plan.num_decodes
        decodes = chunks = None
        if count:
            shares = self._shares(plan)
            tables = plan.blocks[:count]
            decodes = _TritonDecodes(*self._upload((*shares, tables)))
        if count < len(plan.lengths):
            tile = tuning.choose_prefill(
                self.prefill_tiles,
                int(plan.query_starts[-1] - plan.query_starts[count]),
                self.heads.num_heads,
                self.num_sms,
            )
            chunks = self._chunks(plan, tile)
        return _Prepared(self, decodes, chunks)

    def fixed(self, batch: int, max_blocks: int) -> FixedDecodes:
        """Decodes of up to ``batch`` sequences whose launches can be captured in a CUDA graph."""
        return FixedDecodes(self, batch, max_blocks)

    def warm_up(self) -> None:
        """Compile all kernels, which takes seconds, by small launches on the current stream."""
        keys = 2 * self.decode_tile.keys
        one = [[0] * (-(-(keys + 1) // self.block_size))]
        with torch.inference_mode():
            self._launch(self.prepare(plan_attention([1], [keys], one, self.block_size)), 1)
            plan = plan_attention([2], [0], one, self.block_size)
            for tile in dict.fromkeys(self.prefill_tiles):
                self._launch(_Prepared(self, None, self._chunks(plan, tile)), 2)

    def _launch(self, prepared: PreparedAttention, tokens: int) -> None:
        shape = (tokens, self.heads.qkv_size)
        prepared.run(torch.zeros(shape, dtype=self.dtype, device=self.device), self._layer)

    def _shares(self, plan: AttentionPlan) -> tuple[Ints32, Ints32, Ints32]:
        lengths = plan.lengths[: plan.num_decodes]
        shares = split_kv(lengths, self.heads.num_kv_heads, self.decode_tile.keys, self.programs)
        return shares.starts, shares.segments, shares.merges

    def _chunks(self, plan: AttentionPlan, tile: PrefillTile) -> _Chunks:
        count = plan.num_decodes
        starts, lengths = plan.query_starts[count:], plan.lengths[count:]
        sequence, row = query_tiles(starts, tile.rows, lengths - np.diff(starts))
        lists = (sequence, row, starts, lengths, plan.blocks[count:])
        return _Chunks(tile, *self._upload(lists))

    def _upload(self, arrays: Sequence[Ints | Ints32]) -> list[torch.Tensor]:
        """The arrays as int32 tensors, views of one that is copied without waiting for it."""
        packed = np.concatenate([array.reshape(-1).astype(np.int32) for array in arrays])
        whole = self.staged(packed).to(self.device, non_blocking=True)
        views, start = [], 0
        for array in arrays:
            views.append(whole[start : start + array.size].view(array.shape))
            start += array.size
        return views

    def staged(self, values: Ints32) -> torch.Tensor:
        """In page-locked memory, which torch keeps until a copy from it has been made."""
        host = torch.from_numpy(values)
        return host.pin_memory() if self.device.type == "cuda" else host


@dataclass(frozen=True, slots=True)
class _TritonDecodes:
    starts: torch.Tensor  # [programs + 1]
    segments: torch.Tensor
    merges: torch.Tensor
    tables: torch.Tensor

    def run(
        self, backend: TritonAttention, qkv: torch.Tensor, cache: torch.Tensor, out: torch.Tensor
    ) -> None:
        heads, tile = backend.heads, backend.decode_tile
        decode_segments[(len(self.starts) - 1,)](
            qkv,
            cache,
            out,
            backend.partial,
            backend.logsums,
            self.starts,
            self.segments,
            self.tables,
            math.log2(math.e) / math.sqrt(heads.head_dim),
            qkv.stride(0),
            out.stride(0),
            cache.stride(0),
            cache.stride(1),
            cache.stride(2),
            self.tables.stride(0),
            GROUP=heads.group,
            GROUP_PAD=max(16, _power_of_two(heads.group)),
            SIZE=heads.head_dim,
            SIZE_PAD=backend.padded_head,
            PAGE=backend.block_size,
            KEYS=tile.keys,
            UPCAST=_INTERPRETED,
            PRECISION=backend.precision,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        if len(self.merges):
            merge_segments[(len(self.merges), heads.group)](
                backend.partial,
                backend.logsums,
                self.merges,
                out,
                out.stride(0),
                GROUP=heads.group,
                SIZE=heads.head_dim,
                SIZE_PAD=backend.padded_head,
                num_warps=1,
            )


@dataclass(frozen=True, slots=True)
class _Chunks:
    tile: PrefillTile
    tile_sequence: torch.Tensor
    tile_row: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor

    def run(
        self, backend: TritonAttention, qkv: torch.Tensor, cache: torch.Tensor, out: torch.Tensor
    ) -> None:
        heads, tile = backend.heads, self.tile
        prefill_rows[(heads.num_heads, len(self.tile_row))](
            qkv,
            cache,
            out,
            self.tile_sequence,
            self.tile_row,
            self.query_starts,
            self.lengths,
            self.tables,
            math.log2(math.e) / math.sqrt(heads.head_dim),
            qkv.stride(0),
            out.stride(0),
            cache.stride(0),
            cache.stride(1),
            cache.stride(2),
            self.tables.stride(0),
            GROUP=heads.group,
            SIZE=heads.head_dim,
            SIZE_PAD=backend.padded_head,
            PAGE=backend.block_size,
            ROWS=tile.rows,
            KEYS=tile.keys,
            UPCAST=_INTERPRETED,
            PRECISION=backend.precision,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


@dataclass(frozen=True, slots=True)
class _Prepared(PreparedAttention):
    backend: TritonAttention
    decodes: _TritonDecodes | None
    chunks: _Chunks | None

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        heads = self.backend.heads
        out = torch.empty(len(qkv), heads.query_size, dtype=qkv.dtype, device=qkv.device)
        if self.decodes is not None:
            self.decodes.run(self.backend, qkv, layer.tensor, out)
        if self.chunks is not None:
            self.chunks.run(self.backend, qkv, layer.tensor, out)
        return out


class FixedDecodes(PreparedAttention):
    """Decodes whose grids and addresses never change, so that a CUDA graph may hold their launches.

    ``update`` puts a step's plan where the launches look for it, in the order of the current
    stream. Rows of ``run``'s result beyond the plan's sequences are undefined. Not bound to the
    backend's last ``prepare``, but it shares the scratch memory: one stream for both.
    """

    def __init__(self, backend: TritonAttention, batch: int, max_blocks: int) -> None:
        self._backend, self._batch = backend, batch
        # A segment ends where a program's share does, or where an output does.
        rows = backend.programs + batch * backend.heads.num_kv_heads
        starts, merges = backend.programs + 1, most_merges(backend.programs)
        counts = (starts, rows * SEGMENT_FIELDS, merges * MERGE_FIELDS)
        self._lists = torch.zeros(sum(counts), dtype=torch.int32, device=backend.device)
        rest = self._lists[starts:]
        self._decodes = _TritonDecodes(
            self._lists[:starts],
            rest[: counts[1]].view(rows, SEGMENT_FIELDS),
            rest[counts[1] :].view(merges, MERGE_FIELDS),
            torch.zeros(batch, max_blocks, dtype=torch.int32, device=backend.device),
        )

    def update(self, plan: AttentionPlan) -> None:
        """Attend as ``plan``, decodes alone, says. Raises NexusbenchError if it does not fit."""
        count, width = plan.blocks.shape
        tables = self._decodes.tables
        if plan.num_decodes != count or count > len(tables) or width > tables.shape[1]:
            raise NexusbenchError(
                f"{count} sequences of up to {width} KV blocks, {plan.num_decodes} of them "
                f"decodes, do not fit a captured step of {len(tables)} of {tables.shape[1]}"
            )
        backend, lists = self._backend, np.zeros(len(self._lists), dtype=np.int32)
        start = 0
        views = (self._decodes.starts, self._decodes.segments, self._decodes.merges)
        for array, view in zip(backend._shares(plan), views, strict=True):
            lists[start : start + array.size] = array.reshape(-1)
            start += view.numel()
        self._lists.copy_(backend.staged(lists), non_blocking=True)
        blocks = backend.staged(plan.blocks.astype(np.int32))
        tables[:count, :width].copy_(blocks, non_blocking=True)

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        """As :meth:`PreparedAttention.run`, for ``batch`` rows."""
        out = torch.empty(
            self._batch, self._backend.heads.query_size, dtype=qkv.dtype, device=qkv.device
        )
        self._decodes.run(self._backend, qkv, layer.tensor, out)
        return out


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
