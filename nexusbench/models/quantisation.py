"""What of a model is quantised, and to what: by config.json, or by the file of a quantiser beside
it. What one data type for all decoder layers cannot say is refused by file and key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec

from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.module_names import (
    ATTENTION,
    EXPERTS,
    MLP,
    as_glob,
    is_wild,
    matches,
    modules,
)

# Keys of config.json; files beside it, with the method of those that do not say it.
_KEYS = ("quantization_config", "compression_config")
# Keys of other tools, whose weights are no less packed for being unknown here.
_FOREIGN = ("quantization", "quant_config", "quantize_config", "quantization_bit")
_BESIDE = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
_METHODS = ("fp8", "fbgemm_fp8", "awq", "gptq", "bitsandbytes", "compressed-tensors", "modelopt")
_HINT = f"Supported: {', '.join(_METHODS)}, one data type for all decoder layers"
# NVIDIA ModelOpt's algorithms; None leaves the weights as they are.
_ALGORITHMS = {
    "FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8", "FP8_PB_WO": "fp8", "FP8_PB_REAL": "fp8",
    "NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4", "MXFP4": "mxfp4", "W8A16": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8", "INT8_SQ": "int8", "W4A16_AWQ": "int4", "W4A8_AWQ": "int4",
    "INT4_AWQ": "int4", None: None,
}  # fmt: skip
# Sizes of groups whose scales (and zeros) count; those of larger ones are at most 2 % and left out.
_INT4_GROUPS = {32: "int4_g32", 64: "int4_g64", 128: "int4_g128"}
_INT8_GROUPS = {32: "int8_g32", 64: "int8_g64", 128: "int8_g128"}
_FLOAT4_GROUPS = {16: "nvfp4", 32: "mxfp4"}
_EXCLUDING = (
    "modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules",
    "llm_int8_skip_modules",
)  # fmt: skip
# Whatever says that layers differ.
_DIFFERING = (
    "quantized_layers", "moe_quant_algo", "dynamic", "extra_config", "layer_config",
    "modules_in_block_to_quantize",
)  # fmt: skip
# Lists whose readers take a name for the beginning, the end or any part of a module's.
_BY_PART = ("modules_to_not_convert", "llm_int8_skip_modules")
_MOST_NAMES = 5_000  # of layers that globs with numbers are held against


class Quantisation(msgspec.Struct, frozen=True):
    """Data types (keys of DTYPE_BYTES) that differ from config.json's; None where they do not.

    ``said_in`` and ``field`` are where that stands.
    """

    weights: str | None
    kv: str | None
    said_in: ConfigDocument
    field: str


def quantisation_of(config: ConfigDocument) -> Quantisation | None:
    """What ``config`` or a file beside it says. Raises InputError for what cannot be described,
    and where two of them disagree.
    """
    found: Quantisation | None = None
    for document, field, data in _said(config):
        if data is None:
            continue
        if not isinstance(data, dict):
            raise document.error(field, f"is {shown(data)}, not an object", _HINT)
        made = _QuantisationReader(document, field, data, config).read()
        if found is None:
            found = made
        elif (made.weights, made.kv) != (found.weights, found.kv):
            raise document.error(
                field,
                f"says weights {made.weights or 'as computed'}, KV {made.kv or 'as computed'}, but "
                f"{found.field} of {found.said_in.file} says {found.weights or 'as computed'} and "
                f"{found.kv or 'as computed'}",
                "Take away the one that does not belong to these weights",
            )
    return found


def _said(config: ConfigDocument) -> Iterator[tuple[ConfigDocument, str, object]]:
    """(document, field, value) of everything that may speak of quantisation."""
    for key in _KEYS:
        yield config, key, config.data.get(key)
    for key in _FOREIGN:
        if config.data.get(key) is not None:
            raise config.error(key, f"is {shown(config.data[key])}, of another tool", _HINT)
    for name, method in _BESIDE.items():
        beside = config.beside(name)
        if beside is None:
            continue
        if name == "hf_quant_config.json":
            data = beside.data.get("quantization")
            if data is None:
                raise beside.error("quantization", "is missing", "Export the checkpoint again")
            yield beside, "quantization", _with_method(data, method)
        else:
            yield beside, "quant_method", _with_method(beside.data, method)


def _with_method(data: object, method: str) -> object:
    if isinstance(data, dict) and data.get("quant_method") is None:
        return {**data, "quant_method": method}
    return data


class _QuantisationReader:
    """Reads one object of one document; ``config`` is the model's, for its layers and head."""

    def __init__(
        self, document: ConfigDocument, field: str, data: dict[str, object], config: ConfigDocument
    ) -> None:
        self._document, self._field, self._data, self._config = document, field, data, config

    def read(self) -> Quantisation:
        """The data types. Raises InputError for what cannot be described."""
        for key in _DIFFERING:
            if self._data.get(key):
                raise self._error(key, "gives layers different types", _HINT)
        sparsity = self._data.get("sparsity_config")
        if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
            raise self._error("sparsity_config", "makes weights sparse", _HINT)
        if self._data.get("format") == "dense":
            raise self._error("format", "is dense: the weights are not packed", _HINT)
        weights, excluded = self._weights(), self._excluded()
        if weights is not None:
            self._check_head(excluded)
        return Quantisation(weights, self._kv(), self._document, self._field)

    def _weights(self) -> str | None:
        method = self._data.get("quant_method")
        if method is None and "quant_algo" in self._data:
            method = "modelopt"
        elif method is None and "config_groups" in self._data:
            method = "compressed-tensors"
        if method in ("fp8", "fbgemm_fp8"):
            return self._blocks()
        if method in ("awq", "gptq"):
            return self._integers(method)
        if method == "bitsandbytes":
            return self._bitsandbytes()
        if method == "compressed-tensors":
            return self._groups()
        if method in ("modelopt", "modelopt_fp4"):
            return self._modelopt()
        bits = self._data.get("bits")
        raise self._error(
            "quant_method", f"{shown(method)} with bits {shown(bits)} is not supported", _HINT
        )

    def _blocks(self) -> str:
        """FP8, whose scales are of tensors, rows or large blocks."""
        block = self._data.get("weight_block_size")
        if block is None:
            return "fp8"
        sides = block if isinstance(block, list) else [block]
        if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise self._error("weight_block_size", f"is {shown(block)}", "Give two whole numbers")
        if math.prod(sides) < 256:
            hint = "Only blocks of at least 256 values, whose scales are at most 2 %"
            raise self._error("weight_block_size", f"is {shown(block)}", hint)
        return "fp8"

    def _integers(self, method: str) -> str:
        """AWQ and GPTQ: bits and the size of a group."""
        key = "w_bit" if "w_bit" in self._data else "bits"
        bits, group = self._data.get(key), self._data.get("group_size")
        group = self._data.get("q_group_size") if group is None else group
        if isinstance(bits, bool) or bits not in ((4,) if method == "awq" else (4, 8)):
            where = "quant_method" if key == "bits" else key
            raise self._error(
                where, f"{shown(method)} with {key} {shown(bits)} is not supported",
                "Supported: quant_method fp8, awq or gptq with bits 4, gptq with bits 8",
            )  # fmt: skip
        return self._grouped(8 if bits == 8 else 4, group, "group_size")

    def _grouped(self, bits: int, group: object, key: str) -> str:
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
        raise self._error(key, f"is {shown(group)}", hint)

    def _bitsandbytes(self) -> str:
        four, eight = self._data.get("load_in_4bit"), self._data.get("load_in_8bit")
        if four is True and not eight:
            twice = self._data.get("bnb_4bit_use_double_quant") is True
            return "nf4_double" if twice else "nf4"
        if eight is True and not four:
            return "int8"
        raise self._error(
            "load_in_4bit", f"is {shown(four)} and load_in_8bit {shown(eight)}",
            "Exactly one of the two must be true",
        )  # fmt: skip

    def _groups(self) -> str:
        """The one type of ``config_groups``."""
        groups = self._data.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise self._error("config_groups", f"is {shown(groups)}", "Give an object of groups")
        found = {self._group(group) for group in groups.values()}
        if len(found) > 1:
            raise self._error("config_groups", f"has {' and '.join(sorted(found))}", _HINT)
        return found.pop()

    def _group(self, group: object) -> str:
        held = group if isinstance(group, dict) else {}
        weights, targets = held.get("weights"), held.get("targets")
        if not isinstance(weights, dict):
            problem = f"has a group whose weights are {shown(weights)}"
            raise self._error("config_groups", problem, _HINT)
        if targets not in (None, ["Linear"]):
            raise self._error("config_groups.targets", f"is {shown(targets)}", 'Only ["Linear"]')
        bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
        if isinstance(bits, int) and not isinstance(bits, bool):
            if bits == 8 and kind == "float" and (size is None or size in (-1, 128)):
                return "fp8"
            if bits in (4, 8) and kind == "int":
                return self._grouped(bits, size, "config_groups.group_size")
            if bits == 4 and kind == "float" and isinstance(size, int) and size in _FLOAT4_GROUPS:
                return _FLOAT4_GROUPS[size]
        raise self._error(
            "config_groups.weights",
            f"is {shown(kind)} of {shown(bits)} bits in groups of {shown(size)}",
            "Supported: int of 4 or 8 bits, float of 8 (not in small groups) or of 4 in groups of "
            "16 or 32",
        )

    def _modelopt(self) -> str | None:
        if "quant_algo" not in self._data and not self._data.get("config_groups"):
            raise self._error("quant_algo", "is missing", "Give it, null for no quantisation")
        algorithm = self._data.get("quant_algo")
        if not isinstance(algorithm, str | None) or algorithm not in _ALGORITHMS:
            known = ", ".join(name for name in _ALGORITHMS if name)
            raise self._error("quant_algo", f"is {shown(algorithm)}", f"Supported: {known}")
        made = _ALGORITHMS[algorithm]
        if made == "int4":
            made = self._grouped(4, self._data.get("group_size"), "group_size")
        if not self._data.get("config_groups"):
            return made
        grouped = self._groups()
        if algorithm is not None and grouped != made:
            raise self._error("config_groups", f"is {grouped}, but quant_algo {made}", _HINT)
        return grouped

    def _kv(self) -> str | None:
        """The KV cache's type, said by either of two keys."""
        said = [
            self._kv_of(key, self._data[key])
            for key in ("kv_cache_quant_algo", "kv_cache_scheme")
            if self._data.get(key) is not None
        ]
        if len(set(said)) > 1:
            problem = f"says {said[1]}, but kv_cache_quant_algo {said[0]}"
            raise self._error("kv_cache_scheme", problem, "Take away the wrong one")
        return said[0] if said else None

    def _kv_of(self, scheme: str, algorithm: object) -> str:
        if isinstance(algorithm, dict):
            bits, kind = algorithm.get("num_bits"), algorithm.get("type")
            eight = bits == 8 and kind in ("float", "int")
            algorithm = f"{shown(kind)} of {shown(bits)} bits"
            if eight:
                algorithm = "FP8" if kind == "float" else "INT8"
        known = {"FP8": "fp8", "INT8": "int8"}
        if not isinstance(algorithm, str) or algorithm not in known:
            raise self._error(scheme, f"is {shown(algorithm)}", "Supported: FP8, INT8, null")
        return known[algorithm]

    def _excluded(self) -> list[str]:
        """Modules that stay as they are, as globs with layer numbers as N. Raises InputError if one
        is a matrix of the decoder: then its layers are not alike.
        """
        globs: list[str] = []
        layers = self._config.count("num_hidden_layers")
        room = _MOST_NAMES
        for key in _EXCLUDING:
            listed = self._data.get(key)
            if listed is None:
                continue
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise self._error(key, f"is {shown(listed)}, not a list of names", _HINT)
            for name in dict.fromkeys(listed):
                glob = as_glob(name, layers)
                numbered = glob is not None and is_wild(glob) and bool(re.search(r"\d", glob))
                room -= layers * numbered
                if glob is None or room < 0:
                    problem = f"holds {shown(name)}, of which it is not known what it matches"
                    raise self._error(key, problem, "Name the modules, with * for any text")
                by_part = self._by_part(key, glob)
                if by_part or any(matches(glob, module) for module in modules(layers, numbered)):
                    problem = f"leaves {shown(name)} as computed, and quantises other layers"
                    raise self._error(key, problem, _HINT)
                globs.append(glob)
        return globs

    def _by_part(self, key: str, name: str) -> bool:
        """Whether a name that is no pattern leaves out matrices of which it is only a part."""
        if is_wild(name):
            return False
        if name == "Linear":  # the class of all of them
            return True
        matrices = (*ATTENTION, *(MLP if self._is_dense() else EXPERTS))
        if key in _BY_PART and self._data.get("quant_method") in ("awq", None):
            return any(name in matrix for matrix in matrices)
        return any(matrix.startswith(name) or matrix.endswith(name) for matrix in matrices)

    def _is_dense(self) -> bool:
        return self._config.data.get("num_experts_per_tok") is None

    def _check_head(self, excluded: list[str]) -> None:
        """Refuse a quantised head: it has the embedding's type here."""
        if self._data.get("lm_head") is True:
            raise self._error("lm_head", "is true", "Only heads that are not quantised")
        by_list = self._data.get("quant_method") not in ("fp8", "fbgemm_fp8", "awq", "gptq",
                                                         "bitsandbytes")  # fmt: skip
        if not by_list or self._config.flag("tie_word_embeddings"):
            return
        if not any(matches(glob, "lm_head") for glob in excluded):
            given = [key for key in _EXCLUDING if key in self._data]
            raise self._error(
                given[0] if given else "exclude_modules",
                "does not name lm_head: the output head would be quantised, and the embedding not",
                "Only heads that are not quantised can be described",
            )

    def _error(self, key: str, problem: str, hint: str) -> Exception:
        field = key if self._field == "quant_method" else f"{self._field}.{key}"
        return self._document.error(field, problem, hint)
