"""Attention by our Triton kernels: no gather, no padding; for CUDA, and interpreted for tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from nexusbench.core.errors import UsageError
from nexusbench.kernels.attention.base import AttentionBackend, PreparedAttention
from nexusbench.kernels.paged import HeadShape, LayerKV, PagedKV
from nexusbench.kernels.planner import AttentionPlan, Ints, query_tiles, split_decodes

try:
    from triton.runtime import JITFunction

    from nexusbench.kernels.attention.triton_decode import decode_part, merge_parts
    from nexusbench.kernels.attention.triton_prefill import prefill_tiles
except ImportError as error:
    raise UsageError(
        "the Triton kernels need the package triton. Install it with pip install "
        '"nexusbench[triton]"'
    ) from error

_INTERPRETED = not isinstance(decode_part, JITFunction)


class TritonAttention(AttentionBackend):
    """Split-KV decode and tiled prefill on the paged cache itself.

    ``num_sms`` are the SMs of the partition this backend serves (a green context still reports all
    of the device's): parts and grids are sized for them. ``precision`` is tl.dot's for fp32 inputs.
    Raises UsageError for tensors on a CPU unless the kernels are interpreted.
    """

    def __init__(
        self,
        kv: PagedKV,
        num_sms: int,
        *,
        precision: str = "tf32",
        rows: int = 64,
        keys: int = 64,
    ) -> None:
        super().__init__(kv)
        if self.device.type == "cpu" and not _INTERPRETED:
            raise UsageError(
                "Triton kernels need a CUDA device. On a CPU use SDPA, or set TRITON_INTERPRET=1 "
                "before the start to test them"
            )
        self._num_sms = num_sms
        self._constants = _Constants(precision, rows, keys)

    def prepare(self, plan: AttentionPlan) -> PreparedAttention:
        """Index tensors of the step."""
        count, heads = plan.num_decodes, self.heads
        lengths, blocks = self._tensor(plan.lengths), self._tensor(plan.blocks)
        decodes = chunks = None
        if count:
            parts = split_decodes(
                plan.lengths[:count], self.block_size, heads.num_kv_heads, self._num_sms
            )
            decodes = _Decodes(
                count,
                self._tensor(parts.sequence),
                self._tensor(parts.first),
                self._tensor(parts.last),
                self._tensor(parts.starts),
                lengths,
                blocks,
            )
        if count < len(plan.lengths):
            starts = plan.query_starts[count:]
            sequence, row = query_tiles(starts, self._constants.rows)
            programs = min(len(sequence), -(-4 * self._num_sms // heads.num_heads))
            chunks = _Chunks(
                programs,
                self._tensor(sequence),
                self._tensor(row),
                self._tensor(starts),
                lengths[count:],
                blocks[count:],
            )
        return _Prepared(heads, self.block_size, self._constants, decodes, chunks)

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(values).to(device=self.device, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class _Constants:
    precision: str
    rows: int
    keys: int


@dataclass(frozen=True, slots=True)
class _Decodes:
    count: int
    sequence: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Chunks:
    programs: int
    tile_sequence: torch.Tensor
    tile_row: torch.Tensor
    query_starts: torch.Tensor
    lengths: torch.Tensor
    blocks: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Prepared(PreparedAttention):
    heads: HeadShape
    block_size: int
    constants: _Constants
    decodes: _Decodes | None
    chunks: _Chunks | None

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        out = torch.empty(len(qkv), self.heads.query_size, dtype=qkv.dtype, device=qkv.device)
        if self.decodes is not None:
            self._decode(self.decodes, qkv, layer.tensor, out)
        if self.chunks is not None:
            self._prefill(self.chunks, qkv, layer.tensor, out)
        return out

    def _decode(
        self, decodes: _Decodes, qkv: torch.Tensor, cache: torch.Tensor, out: torch.Tensor
    ) -> None:
        heads, size = self.heads, self.heads.head_dim
        parts = len(decodes.sequence)
        partial = torch.empty(parts, heads.num_heads, size, dtype=torch.float32, device=qkv.device)
        logsums = torch.empty(parts, heads.num_heads, dtype=torch.float32, device=qkv.device)
        decode_part[(parts, heads.num_kv_heads)](
            qkv,
            cache,
            partial,
            logsums,
            decodes.sequence,
            decodes.first,
            decodes.last,
            decodes.lengths,
            decodes.blocks,
            1 / math.sqrt(size),
            qkv.stride(0),
            cache.stride(0),
            cache.stride(1),
            cache.stride(2),
            decodes.blocks.stride(0),
            HEADS=heads.num_heads,
            GROUP=heads.group,
            GROUP_PAD=max(16, _power_of_two(heads.group)),
            SIZE=size,
            SIZE_PAD=_power_of_two(size),
            PAGE=self.block_size,
            KEYS=self.constants.keys,
            UPCAST=_INTERPRETED,
            PRECISION=self.constants.precision,
        )
        merge_parts[(decodes.count, heads.num_heads)](
            partial,
            logsums,
            decodes.starts,
            out,
            out.stride(0),
            HEADS=heads.num_heads,
            SIZE=size,
            SIZE_PAD=_power_of_two(size),
        )

    def _prefill(
        self, chunks: _Chunks, qkv: torch.Tensor, cache: torch.Tensor, out: torch.Tensor
    ) -> None:
        heads, size = self.heads, self.heads.head_dim
        prefill_tiles[(chunks.programs, heads.num_heads)](
            qkv,
            cache,
            out,
            chunks.tile_sequence,
            chunks.tile_row,
            len(chunks.tile_row),
            chunks.query_starts,
            chunks.lengths,
            chunks.blocks,
            1 / math.sqrt(size),
            qkv.stride(0),
            out.stride(0),
            cache.stride(0),
            cache.stride(1),
            cache.stride(2),
            chunks.blocks.stride(0),
            GROUP=heads.group,
            SIZE=size,
            SIZE_PAD=_power_of_two(size),
            PAGE=self.block_size,
            ROWS=self.constants.rows,
            KEYS=self.constants.keys,
            UPCAST=_INTERPRETED,
            PRECISION=self.constants.precision,
        )


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
