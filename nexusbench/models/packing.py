"""How the matrices of a quantised checkpoint are stored, as far as config.json says it: what it
takes to compute with them. What the decoder cannot unpack is refused by file and key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.quantisation import method_of, quantisation_of, settings_of
from nexusbench.models.quantised_types import TypeReader

# ModelOpt's algorithms whose tensors are read; the others scale inputs or pack in ways of their own
_MODELOPT = (
    None, "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "FP8_PB_REAL", "MXFP8", "NVFP4",
    "MIXED_PRECISION",
)  # fmt: skip
_FORMATS = (
    None, "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
)  # fmt: skip
# compressed-tensors' orders of activations; those that change which inputs share a scale.
_ORDERS = {"group": True, "dynamic": True, "weight": False, "static": False}
_UNPACKED = "With real tokens: fp8, fbgemm_fp8, gptq, awq, compressed-tensors, modelopt, mxfp4"
_BLOCK = (128, 128)  # of ModelOpt's FP8 with scales of blocks, which says no size


class Packing(msgspec.Struct, frozen=True, kw_only=True):
    """``method`` is the quantiser's. ``group_size`` counts values along the inputs that share a
    scale (-1: all; None: as the scales' shape says, one of ``group_sizes`` or a whole row),
    ``zero_offset`` is what GPTQ left out of the zeros that it stored, ``block`` (rows, columns)
    what shares a scale of 8-bit floats. ``reordered``: a group's inputs are not neighbours (GPTQ's
    desc_act, compressed-tensors' actorder).
    """

    method: str
    bits: int = 0
    group_size: int | None = None
    group_sizes: tuple[int, ...] = ()
    zero_offset: int = 0
    reordered: bool = False
    block: tuple[int, int] | None = None

    @property
    def said(self) -> str:
        """What is computed instead of what a server computes, as a sentence."""
        return (
            "quantised weights are dequantised when they are loaded, and their products computed "
            "in 16 or 32 bit; neither activations nor the KV cache are quantised"
        )


def packing_of(config: ConfigDocument) -> Packing | None:
    """How the checkpoint of ``config`` is packed; None if it is not quantised.

    Raises InputError for what cannot be described or not be unpacked.
    """
    if quantisation_of(config) is None:
        return None
    document, field, data = next(settings_of(config))
    return _PackingReader(document, field, data, config).packing()


class _PackingReader(TypeReader):
    """Reads one object that says how matrices are quantised."""

    def packing(self) -> Packing:
        method = method_of(self._config)
        if method == "gptq":
            return self._gptq()
        if method == "awq":
            return self._awq()
        if method == "compressed-tensors":
            return self._compressed()
        if method in ("modelopt", "modelopt_fp4"):
            return self._modelopt()
        if method in ("fp8", "fbgemm_fp8"):
            self._require("fmt", None, "e4m3", "float8_e4m3fn")
            return Packing(method=str(method), block=self._fp8_block())
        if method == "mxfp4":
            return Packing(method="mxfp4")
        raise self.error("quant_method", f"{shown(method)} cannot be computed", _UNPACKED)

    def _require(self, key: str, *known: object) -> None:
        """Refuse another value of ``key``."""
        value = self._data.get(key)
        if value not in known:
            named = ", ".join(shown(one) for one in known if one is not None)
            raise self.error(key, f"is {shown(value)}", f"With real tokens: {named}")

    def _fp8_block(self) -> tuple[int, int] | None:
        block = self._data.get("weight_block_size")
        if block is None:
            return None
        if isinstance(block, list) and len(block) == 2:
            rows, columns = block
            if isinstance(rows, int) and isinstance(columns, int) and min(rows, columns) > 0:
                return rows, columns
        raise self.error("weight_block_size", f"is {shown(block)}", "Give two whole numbers")

    def _grouped(self) -> tuple[int, int]:
        """(bits, size of a group) of GPTQ and AWQ; their types are known to be described."""
        bits = self._data.get("w_bit", self._data.get("bits"))
        group = self._data.get("group_size")
        group = self._data.get("q_group_size") if group is None else group
        assert isinstance(bits, int)
        assert isinstance(group, int | None)
        return bits, -1 if group is None else group

    def _gptq(self) -> Packing:
        bits, group = self._grouped()
        self._require("checkpoint_format", None, "gptq", "gptq_v2")
        self._require("is_marlin_format", None, False)
        offset = 0 if self._data.get("checkpoint_format") == "gptq_v2" else 1
        reordered = self.flag("desc_act")
        return Packing(
            method="gptq", bits=bits, group_size=group, zero_offset=offset, reordered=reordered
        )

    def _awq(self) -> Packing:
        bits, group = self._grouped()
        version = self._data.get("version")
        if version is not None and str(version).lower() != "gemm":
            raise self.error("version", f"is {shown(version)}", 'With real tokens: "gemm"')
        self._require("zero_point", None, True)
        return Packing(method="awq", bits=bits, group_size=group)

    def _compressed(self) -> Packing:
        self._require("format", *_FORMATS)
        if self._data.get("transform_config"):
            hint = "With real tokens: checkpoints whose inputs are not transformed"
            raise self.error("transform_config", "transforms what weights are multiplied by", hint)
        blocks = {tuple(block) for block in self._blocks()}
        if len(blocks) > 1:
            problem = f"has blocks of {' and of '.join(map(str, sorted(blocks)))}"
            raise self.error("config_groups", problem, "With real tokens: blocks of one size")
        rows, columns = blocks.pop() if blocks else (0, 0)
        held = self._weights_of_groups()
        sizes = {size for of in held if isinstance(size := of.get("group_size"), int) and size > 0}
        orders = [self._reordered(of.get("actorder")) for of in held]
        return Packing(
            method="compressed-tensors", block=(rows, columns) if rows else None,
            group_sizes=tuple(sorted(sizes)),
            reordered=all(orders),
        )  # fmt: skip

    def _reordered(self, order: object) -> bool:
        """Whether a group's inputs are not neighbours, by ``actorder``, in any case."""
        named = order.lower() if isinstance(order, str) else order
        if named is None or isinstance(named, bool):
            return bool(named)
        if isinstance(named, str) and named in _ORDERS:
            return _ORDERS[named]
        hint = f"With real tokens: {', '.join(_ORDERS)}, true, false"
        raise self.error("config_groups.weights.actorder", f"is {shown(order)}", hint)

    def _weights_of_groups(self) -> list[dict[str, Any]]:
        """``weights`` of every group; they are known to be described."""
        groups = self._data.get("config_groups")
        listed = groups.values() if isinstance(groups, dict) else ()
        found = [group.get("weights") for group in listed if isinstance(group, dict)]
        return [weights for weights in found if isinstance(weights, dict)]

    def _blocks(self) -> Iterator[list[int]]:
        """``block_structure`` of every group that has one."""
        for weights in self._weights_of_groups():
            block = weights.get("block_structure")
            if block is None:
                continue
            right = isinstance(block, list) and len(block) == 2
            if not right or not all(isinstance(side, int) and side > 0 for side in block):
                problem = f"is {shown(block)}"
                key = "config_groups.weights.block_structure"
                raise self.error(key, problem, "Give two whole numbers")
            yield block

    def _modelopt(self) -> Packing:
        self._require("quant_algo", *_MODELOPT)
        listed = self._data.get("quantized_layers")
        algorithms = [self._data.get("quant_algo")]
        for of in listed.values() if isinstance(listed, dict) else ():
            algorithm = of.get("quant_algo") if isinstance(of, dict) else None
            if algorithm not in _MODELOPT:
                hint = f"With real tokens: {', '.join(name for name in _MODELOPT if name)}"
                raise self.error("quantized_layers.quant_algo", f"is {shown(algorithm)}", hint)
            algorithms.append(algorithm)
        blocks = any(str(name).startswith("FP8_PB") for name in algorithms)
        # MXFP8's groups; NVFP4 has its own reader.
        return Packing(method="modelopt", group_sizes=(32,), block=_BLOCK if blocks else None)
