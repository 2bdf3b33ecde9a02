"""A source of tensors that dequantises the matrices of a quantised checkpoint as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from nexusbench.core.errors import InputError
from nexusbench.models.packing import Packing
from nexusbench.models.shards import AGAIN
from nexusbench.models.unpacking import powers_of_two, unpacked, unpacked_awq, unpacked_e2m1

if TYPE_CHECKING:
    from nexusbench.models.checkpoint import SafetensorFiles

FLOATS = ("F32", "F16", "BF16")
_E4M3, _E8M0 = "F8_E4M3", "F8_E8M0"
_BYTE_SCALES = ("U8", _E8M0)  # powers of two
_SCALES = ("weight_scale_inv", "weight_scale")  # DeepSeek's multiplies, too, whatever its name
# What only quantised activations and KV caches need.
_OF_ACTIVATIONS = (
    ".input_scale", ".input_global_scale", ".input_zero_point", ".output_scale", ".q_scale",
    ".k_scale", ".v_scale",
)  # fmt: skip
_SLAB = 1 << 22  # values that are dequantised at a time
_BYTES_A_VALUE = 16  # of a slab: integers, their zeros and scales, the product


class DequantisedTensors:
    """``files`` as float tensors: an integer less its zero, or a small float, times its scale, in
    float32.

    A matrix is dequantised in slabs of rows, so that beside the matrix itself only a slab of
    intermediate values is held.
    """

    def __init__(self, files: SafetensorFiles, packing: Packing) -> None:
        self._files, self._packing = files, packing

    def working_bytes(self, largest: int) -> float:
        """Bytes that reading a tensor of ``largest`` values takes beside its place."""
        return 4.0 * largest + _SLAB * _BYTES_A_VALUE

    def read(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor, dequantised where it is packed. Raises InputError naming file and tensor if
        it or its scales are missing, damaged or of another shape or type.
        """
        files, method = self._files, self._packing.method
        if files.has(f"{name}_blocks"):
            return self._checked(f"{name}_blocks", self._experts(name, shape))
        base = name.removesuffix(".weight")
        if base == name or len(shape) != 2:
            return files.read(name, shape)
        if method in ("gptq", "awq") and files.has(f"{base}.qweight"):
            read = self._gptq if method == "gptq" else self._awq
            return self._checked(f"{base}.qweight", read(base, *shape))
        packed = f"{base}.weight_packed"
        if files.has(packed):
            nibbles = files.dtype(packed) == "U8"
            read = self._small_floats if nibbles else self._packed_integers
            return self._checked(packed, read(base, *shape))
        if files.has(name) and files.dtype(name) == "U8":
            return self._checked(name, self._small_floats(base, *shape))
        if files.has(name) and files.dtype(name) not in FLOATS:
            return self._checked(name, self._scaled(base, *shape))
        return files.read(name, shape)

    def require_all_read(self, num_layers: int) -> None:
        """As of the files, but for scales of what is not quantised here, and for biases of zeros,
        which GPTQ's tools add to matrices that have none.
        """
        self._files.require_all_read(num_layers, self._is_spare)

    def _is_spare(self, name: str) -> bool:
        if name.endswith(_OF_ACTIVATIONS):
            return True
        added = self._packing.method == "gptq" and name.endswith(".bias")
        return added and not bool(self._files.take(name, FLOATS).any())

    def _checked(self, name: str, made: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(made).all()):
            raise self._files.error(name, "holds NaN or infinite values, or its scales do", AGAIN)
        return made

    # -- integers ----------------------------------------------------------------------------------

    def _gptq(self, base: str, outputs: int, inputs: int) -> torch.Tensor:
        """GPTQ (AutoGPTQ's v1 and v2 format): words run along the inputs, [inputs, outputs]."""
        packing, take = self._packing, self._files.take
        bits, mask = packing.bits, (1 << packing.bits) - 1
        words = take(f"{base}.qweight", ("I32",), (_words(inputs, bits), outputs))
        size, groups = self._groups(inputs)
        scales = take(f"{base}.scales", FLOATS, (groups, outputs)).float()
        zeros = take(f"{base}.qzeros", ("I32",), (groups, _words(outputs, bits)))
        # v1 stores zeros less one, modulo what the bits hold.
        zeros = (unpacked(zeros, bits, 1)[:, :outputs] + packing.zero_offset) & mask
        group_of = self._group_of(f"{base}.g_idx", inputs, size, groups, packing.reordered)
        made = torch.empty(outputs, inputs)
        for a, b in _slabs(outputs, inputs):
            values = unpacked(words[:, a:b], bits, 0)[:inputs] - zeros[group_of, a:b]
            made[a:b] = (values * scales[group_of, a:b]).T
        return made

    def _awq(self, base: str, outputs: int, inputs: int) -> torch.Tensor:
        """AWQ's GEMM layout: words of eight interleaved outputs, [inputs, outputs]."""
        take, words = self._files.take, -(-outputs // 8)
        packed = take(f"{base}.qweight", ("I32",), (inputs, words))
        size, groups = self._groups(inputs)
        scales = take(f"{base}.scales", FLOATS, (groups, outputs)).float()
        zeros = unpacked_awq(take(f"{base}.qzeros", ("I32",), (groups, words)))
        group_of = torch.arange(inputs) // size
        made = torch.empty(outputs, inputs)
        for a, b in _slabs(outputs, inputs, 8):
            values = unpacked_awq(packed[:, a // 8 : -(-b // 8)])[:, : b - a]
            made[a:b] = ((values - zeros[group_of, a:b]) * scales[group_of, a:b]).T
        return made

    def _packed_integers(self, base: str, outputs: int, inputs: int) -> torch.Tensor:
        """compressed-tensors' pack-quantized: words run along the inputs, [outputs, inputs]; a
        signed value is stored with half of its range added.
        """
        files, name = self._files, f"{base}.weight_packed"
        self._check_stored_shape(base, outputs, inputs)
        found = files.shape(name)[-1:]
        bits = next((bits for bits in (4, 8) if found == (_words(inputs, bits),)), 4)
        words = files.take(name, ("I32",), (outputs, _words(inputs, bits)))
        scales, size = self._row_scales(f"{base}.weight_scale", outputs, inputs)
        groups = scales.shape[1]
        named = f"{base}.weight_g_idx"
        group_of = self._group_of(named, inputs, size, groups, self._packing.reordered)
        zeros = self._zeros(base, bits, outputs, groups)
        made = torch.empty(outputs, inputs)
        for a, b in _slabs(outputs, inputs):
            values = unpacked(words[a:b], bits, 1)[:, :inputs]
            made[a:b] = (values - zeros[a:b, group_of]) * scales[a:b, group_of]
        return made

    def _check_stored_shape(self, base: str, outputs: int, inputs: int) -> None:
        name = f"{base}.weight_shape"
        if not self._files.has(name):
            return
        stored = self._files.take(name, ("I64", "I32"), (2,)).tolist()
        if stored != [outputs, inputs]:
            problem = f"says {stored}, config.json asks for {[outputs, inputs]}"
            raise self._files.error(name, problem, "Give the config.json of these weights")

    def _zeros(self, base: str, bits: int, outputs: int, groups: int) -> torch.Tensor:
        """What is subtracted from stored values [outputs, groups]: half of the range, and the zero
        point where there is one (packed along the outputs, or a signed byte each).
        """
        name, half = f"{base}.weight_zero_point", 1 << (bits - 1)
        if not self._files.has(name):
            return torch.full((outputs, groups), half, dtype=torch.int32)
        if self._files.dtype(name) == "I8":
            return self._files.take(name, ("I8",), (outputs, groups)).int() + half
        packed = self._files.take(name, ("I32",), (_words(outputs, bits), groups))
        return unpacked(packed, bits, 0)[:outputs]

    def _groups(self, inputs: int) -> tuple[int, int]:
        """(inputs that share a scale, number of such groups)."""
        size = self._packing.group_size
        if size is None or size == -1:
            return inputs, 1
        return size, -(-inputs // size)

    def _group_of(
        self, name: str, inputs: int, size: int, groups: int, required: bool = False
    ) -> torch.Tensor:
        """The group of each input: as the tensor ``name`` says, or neighbours together."""
        if not required and not self._files.has(name):
            return torch.arange(inputs) // size
        found = self._files.take(name, ("I32", "I64"), (inputs,)).long()
        if bool((found == -1).all()):  # compressed-tensors' for an order that was not changed
            return torch.arange(inputs) // size
        if int(found.min()) < 0 or int(found.max()) >= groups:
            problem = f"names groups {int(found.min())} to {int(found.max())}, of {groups}"
            raise self._files.error(name, problem, AGAIN)
        return found

    def _row_scales(self, name: str, outputs: int, inputs: int) -> tuple[torch.Tensor, int]:
        """Scales [outputs, groups] (float32), and the number of inputs of a group."""
        shape = self._files.shape(name)
        if shape in ((outputs,), (1,), ()):
            found = self._files.take(name, FLOATS).float().view(-1, 1)
            return found.expand(outputs, 1), inputs
        size = self._size_of_groups(name, shape, outputs, inputs)
        return self._files.take(name, FLOATS).float(), size

    def _size_of_groups(self, name: str, stored: Sequence[int], outputs: int, inputs: int) -> int:
        """How many inputs share a scale, of scales [outputs, groups]."""
        groups = stored[1] if len(stored) == 2 and stored[0] == outputs else 0
        if not groups or inputs % groups:
            raise self._unfit(name, stored, outputs, inputs)
        size, known = inputs // groups, self._packing.group_sizes
        if groups > 1 and known and size not in known:
            raise self._unfit(name, stored, outputs, inputs)
        return size

    # -- floats, and integers of a byte ------------------------------------------------------------

    def _scaled(self, base: str, outputs: int, inputs: int) -> torch.Tensor:
        """8-bit floats (E4M3) or signed integers [outputs, inputs] with a scale for all, for each
        row, for blocks, or for groups of a row.
        """
        name = f"{base}.weight"
        values = self._files.take(name, (_E4M3, "I8"), (outputs, inputs))
        scale = next((at for kind in _SCALES if self._files.has(at := f"{base}.{kind}")), None)
        if scale is None:
            problem = f"has data type {self._files.dtype(name)}, and no scale: neither "
            problem += f"{base}.{_SCALES[1]} nor {base}.{_SCALES[0]} is there"
            raise self._files.error(name, problem, AGAIN)
        scales, rows, columns = self._grid(scale, outputs, inputs)
        zero_name = f"{base}.weight_zero_point"
        zeros = torch.zeros(scales.shape)
        if self._files.has(zero_name):
            zeros = self._files.take(zero_name, ("I8",)).float()
            if zeros.numel() != scales.numel():
                raise self._unfit(zero_name, zeros.shape, outputs, inputs)
            zeros = zeros.view(scales.shape)
        across = torch.arange(inputs) // columns
        made = torch.empty(outputs, inputs)
        for a, b in _slabs(outputs, inputs):
            down = torch.arange(a, b) // rows
            part = values[a:b].float() - zeros[down][:, across]
            made[a:b] = part * scales[down][:, across]
        return made

    def _grid(self, name: str, outputs: int, inputs: int) -> tuple[torch.Tensor, int, int]:
        """Scales [R, C] in float32, and the (rows, columns) of the matrix that share one."""
        raw = self._files.take(name, (*FLOATS, *_BYTE_SCALES))
        scales = powers_of_two(raw.view(torch.uint8)) if raw.itemsize == 1 else raw.float()
        stored, block = tuple(scales.shape), self._packing.block
        if len(stored) == 4:  # ModelOpt's blocks: [R, 1, C, 1]
            stored = stored[0::2] if stored[1::2] == (1, 1) else stored
        if scales.numel() == 1:
            return scales.view(1, 1), outputs, inputs
        if stored in ((outputs,), (outputs, 1)):
            return scales.view(-1, 1), 1, inputs
        if block is not None and stored == (-(-outputs // block[0]), -(-inputs // block[1])):
            return scales.reshape(stored), *block
        return scales, 1, self._size_of_groups(name, stored, outputs, inputs)

    def _small_floats(self, base: str, outputs: int, inputs: int) -> torch.Tensor:
        """4-bit floats, two a byte: NVFP4 (scales of 16 values in E4M3, and one of all, which
        ModelOpt multiplies by and compressed-tensors divides by), MXFP4 (powers of two of 32).
        """
        files = self._files
        packed = f"{base}.weight_packed"
        name = packed if files.has(packed) else f"{base}.weight"
        codes = files.take(name, ("U8",), (outputs, inputs // 2))
        scale = f"{base}.weight_scale"
        if files.dtype(scale) in _BYTE_SCALES:
            raw = files.take(scale, _BYTE_SCALES, (outputs, -(-inputs // 32)))
            scales, size = powers_of_two(raw.view(torch.uint8)), 32
        else:
            raw = files.take(scale, (_E4M3,), (outputs, -(-inputs // 16)))
            scales, size = raw.float() * self._whole_scale(base, outputs, inputs), 16
        group_of = torch.arange(inputs) // size
        made = torch.empty(outputs, inputs)
        for a, b in _slabs(outputs, inputs):
            made[a:b] = unpacked_e2m1(codes[a:b]) * scales[a:b, group_of]
        return made

    def _whole_scale(self, base: str, outputs: int, inputs: int) -> torch.Tensor:
        divides = self._files.has(f"{base}.weight_global_scale")
        name = f"{base}.{'weight_global_scale' if divides else 'weight_scale_2'}"
        found = self._files.take(name, ("F32",))
        if found.numel() != 1:
            raise self._unfit(name, found.shape, outputs, inputs)
        return 1.0 / found.view(()) if divides else found.view(())

    def _experts(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """gpt-oss' experts in MXFP4 [experts, inputs, outputs], stored by rows of outputs in blocks
        of 32 inputs.
        """
        experts, inputs, outputs = shape
        blocks = -(-inputs // 32)
        codes = self._files.take(f"{name}_blocks", ("U8",), (experts, outputs, blocks, 16))
        raw = self._files.take(f"{name}_scales", ("U8",), (experts, outputs, blocks))
        made = torch.empty(experts, inputs, outputs)
        for expert in range(experts):
            scales = powers_of_two(raw[expert]).unsqueeze(-1)
            for a, b in _slabs(outputs, inputs):
                values = unpacked_e2m1(codes[expert, a:b]) * scales[a:b]
                made[expert, :, a:b] = values.flatten(1)[:, :inputs].T
        return made

    def _unfit(self, name: str, stored: Sequence[int], outputs: int, inputs: int) -> InputError:
        problem = f"has shape {list(stored)}, which fits no matrix of {outputs} x {inputs}"
        if self._packing.block is not None:
            problem += f" in blocks of {' x '.join(map(str, self._packing.block))}"
        elif self._packing.group_sizes:
            problem += f" in groups of {' or '.join(map(str, self._packing.group_sizes))}"
        return self._files.error(name, problem, "Give the config.json of these weights")


def _words(values: int, bits: int) -> int:
    """int32 words that hold so many values."""
    return -(-values // (32 // bits))


def _slabs(outputs: int, inputs: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of outputs of at most about _SLAB values each."""
    step = max(1, _SLAB // max(1, inputs) // multiple) * multiple
    for first in range(0, outputs, step):
        yield first, min(outputs, first + step)
