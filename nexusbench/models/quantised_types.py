"""Data types that a quantiser's settings stand for, each a key of DTYPE_BYTES."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nexusbench.models.document import ConfigDocument, shown

METHODS = (
    "fp8", "fbgemm_fp8", "awq", "gptq", "bitsandbytes", "compressed-tensors", "modelopt", "mxfp4",
)  # fmt: skip
HINT = f"Supported: {', '.join(METHODS)}"
# NVIDIA ModelOpt's algorithms; None leaves the weights as they are.
ALGORITHMS = {
    "FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "FP8_PB_WO": "fp8_block",
    "FP8_PB_REAL": "fp8_block",
    "NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4", "MXFP4": "mxfp4", "MXFP8": "mxfp8", "W8A16": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8_w8a8", "INT8_SQ": "int8_w8a8", "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4", "INT4_AWQ": "int4", "W4A16_NVFP4": "nvfp4_a16", "W4A8_NVFP4_FP8": "nvfp4",
    "W4A8_MXFP4_FP8": "mxfp4", "MIXED_PRECISION": None, None: None,
}  # fmt: skip
# Sizes of groups whose scales (and zeros) count; those of larger ones are at most 2 % and left out.
_INT4_GROUPS = {32: "int4_g32", 64: "int4_g64", 128: "int4_g128"}
_INT8_GROUPS = {32: "int8_g32", 64: "int8_g64", 128: "int8_g128"}
_FLOAT4_GROUPS = {16: "nvfp4", 32: "mxfp4"}

# group_size, weight_block_size, desc_act or checkpoint_format -> (the key that says it first, all
# values of it).
Scales = dict[str, tuple[str, frozenset[object]]]


class TypeReader:
    """Reads types of one object of one document; ``config`` is the model's."""

    def __init__(
        self, document: ConfigDocument, field: str, data: dict[str, object], config: ConfigDocument
    ) -> None:
        self._document, self._field, self._data, self._config = document, field, data, config

    def blocks(self) -> str:
        """FP8, whose scales are of tensors, rows or large blocks."""
        block = self._data.get("weight_block_size")
        if block is None:
            return "fp8"
        sides = block if isinstance(block, list) else [block]
        if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise self.error("weight_block_size", f"is {shown(block)}", "Give two whole numbers")
        if math.prod(sides) < 256:
            hint = "Only blocks of at least 256 values, whose scales are at most 2 %"
            raise self.error("weight_block_size", f"is {shown(block)}", hint)
        return "fp8_block"

    def integers(self, method: str) -> str:
        """AWQ and GPTQ: bits and the size of a group."""
        key = "w_bit" if "w_bit" in self._data else "bits"
        bits, group = self._data.get(key), self._data.get("group_size")
        group = self._data.get("q_group_size") if group is None else group
        known = (4,) if method == "awq" else (4, 8)
        if isinstance(bits, bool) or not isinstance(bits, int) or bits not in known:
            where = "quant_method" if key == "bits" else key
            raise self.error(
                where, f"{shown(method)} with {key} {shown(bits)} is not supported",
                "Supported: quant_method fp8, awq or gptq with bits 4, gptq with bits 8",
            )  # fmt: skip
        return self.grouped(8 if bits == 8 else 4, group, "group_size")

    def grouped(self, bits: int, group: object, key: str) -> str:
        """Integers with scales of ``group`` values."""
        kind, groups = ("int8", _INT8_GROUPS) if bits == 8 else ("int4", _INT4_GROUPS)
        if group is None or (group == -1 and not isinstance(group, bool)):
            return kind
        if isinstance(group, int) and not isinstance(group, bool):
            if group in groups:
                return groups[group]
            if group >= 256:
                return kind
        hint = "Supported: -1, 32, 64, 128, or groups of at least 256"
        raise self.error(key, f"is {shown(group)}", hint)

    def bitsandbytes(self) -> str:
        """NF4 or LLM.int8()."""
        four, eight = self._data.get("load_in_4bit"), self._data.get("load_in_8bit")
        if four is True and not eight:
            return "nf4_double" if self.flag("bnb_4bit_use_double_quant") else "nf4"
        if eight is True and not four:
            return "int8"
        raise self.error(
            "load_in_4bit", f"is {shown(four)} and load_in_8bit {shown(eight)}",
            "Exactly one of the two must be true",
        )  # fmt: skip

    def group_type(self, weights: dict[str, object], inputs: object = None) -> str:
        """A group of compressed-tensors: its weights, and how what they multiply is quantised."""
        bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
        if isinstance(bits, int) and not isinstance(bits, bool):
            if bits == 8 and kind == "float" and (size is None or size in (-1, 128)):
                return "fp8"
            byte_scale = weights.get("scale_dtype") == "torch.uint8"
            if bits == 8 and kind == "float" and size == 32 and byte_scale:
                return "mxfp8"
            if bits == 8 and kind == "int" and size in (None, -1) and _is_int8(inputs):
                return "int8_w8a8"
            if bits in (4, 8) and kind == "int":
                return self.grouped(bits, size, "config_groups.group_size")
            if bits == 4 and kind == "float" and isinstance(size, int) and size in _FLOAT4_GROUPS:
                alone = size == 16 and inputs is None
                return "nvfp4_a16" if alone else _FLOAT4_GROUPS[size]
        raise self.error(
            "config_groups.weights",
            f"is {shown(kind)} of {shown(bits)} bits in groups of {shown(size)}",
            "Supported: int of 4 or 8 bits, float of 8 (not in small groups) or of 4 in groups of "
            "16 or 32",
        )

    def algorithm_type(self, algorithm: object, key: str, data: dict[str, object]) -> str | None:
        """The data type of one of ModelOpt's algorithms."""
        if not isinstance(algorithm, str | None) or algorithm not in ALGORITHMS:
            known = ", ".join(name for name in ALGORITHMS if name)
            raise self.error(key, f"is {shown(algorithm)}", f"Supported: {known}")
        made = ALGORITHMS[algorithm]
        if made == "int4":
            return self.grouped(4, data.get("group_size"), "group_size")
        return made

    def scales(self) -> Scales:
        """Which values share a scale, as far as it says that, and how GPTQ stores zeros."""
        made: Scales = {}
        for key, size in self._group_sizes():
            if isinstance(size, int) and not isinstance(size, bool) and size:
                first, sizes = made.get("group_size", (key, frozenset()))
                made["group_size"] = (first, sizes | {size})
        block, order = self._data.get("weight_block_size"), self._data.get("desc_act")
        if isinstance(block, list):
            made["weight_block_size"] = ("weight_block_size", frozenset((shown(block),)))
        if isinstance(order, bool):
            made["desc_act"] = ("desc_act", frozenset((shown(order),)))
        if self._data.get("quant_method") == "gptq":  # silence is the first format
            form = self._data.get("checkpoint_format") or "gptq"
            made["checkpoint_format"] = ("checkpoint_format", frozenset((shown(form),)))
        return made

    def _group_sizes(self) -> Iterator[tuple[str, object]]:
        """(key, size of a group), of all and of what is named one by one."""
        for key in ("group_size", "q_group_size"):
            yield key, self._data.get(key)
        for key in ("config_groups", "quantized_layers"):
            listed = self._data.get(key)
            for one in listed.values() if isinstance(listed, dict) else ():
                of = one.get("weights", one) if isinstance(one, dict) else None
                if isinstance(of, dict):
                    yield f"{key}.group_size", of.get("group_size")

    def flag(self, key: str) -> bool:
        """A boolean of the object; False where missing or null."""
        value = self._data.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"is {shown(value)}", "Write true or false")
        return bool(value)

    def error(self, key: str, problem: str, hint: str) -> Exception:
        """The complaint about ``key`` of the object."""
        field = key if self._field == "quant_method" else f"{self._field}.{key}"
        return self._document.error(field, problem, hint)


def _is_int8(inputs: object) -> bool:
    """Whether activations are 8-bit integers, too."""
    return isinstance(inputs, dict) and inputs.get("num_bits") == 8 and inputs.get("type") == "int"
