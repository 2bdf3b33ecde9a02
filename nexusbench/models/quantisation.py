"""What of a model is quantised, and to what: by config.json, or by the file of a quantiser beside
it. What one data type for all decoder layers cannot say is refused by file and key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from nexusbench.models.document import ConfigDocument, shown

# Keys of config.json; files beside it, with the method of those that do not say it.
_KEYS = ("quantization_config", "compression_config")
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
# Scales of larger groups are at most 3 % and left out.
_INT4_GROUPS = {32: "int4_g32", 64: "int4_g64"}
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
# One layer's matrices, by the names of checkpoints and those that servers fuse them to.
_ATTENTION = tuple(f"model.layers.N.self_attn.{name}_proj" for name in ("q", "k", "v", "o", "qkv"))
_MLP = tuple(f"model.layers.N.mlp.{name}_proj" for name in ("gate", "up", "down", "gate_up"))
_EXPERTS = (
    *(f"model.layers.N.mlp.experts.0.{name}_proj" for name in ("gate", "up", "down")),
    *(f"model.layers.N.mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")),
    *(f"model.layers.N.block_sparse_moe.experts.0.w{number}" for number in (1, 2, 3)),
)
_MATRICES = (*_ATTENTION, *_MLP, *_EXPERTS)


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
        made = _Reader(document, field, data, config).read()
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


def _said(config: ConfigDocument) -> Iterator[tuple[ConfigDocument, str, Any]]:
    """(document, field, value) of everything that may speak of quantisation."""
    for key in _KEYS:
        yield config, key, config.data.get(key)
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


def _with_method(data: Any, method: str) -> Any:
    if isinstance(data, dict) and data.get("quant_method") is None:
        return {**data, "quant_method": method}
    return data


class _Reader:
    """Reads one object of one document; ``config`` is the model's, for its layers and head."""

    def __init__(
        self, document: ConfigDocument, field: str, data: dict[str, Any], config: ConfigDocument
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
            return "fp8"
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
        return "int8" if bits == 8 else self._int4(group, "group_size")

    def _int4(self, group: Any, key: str) -> str:
        if group is None or (group == -1 and not isinstance(group, bool)):
            return "int4"
        if isinstance(group, bool) or not isinstance(group, int) or group < min(_INT4_GROUPS):
            raise self._error(key, f"is {shown(group)}", "Supported: -1, or groups of at least 32")
        return _INT4_GROUPS.get(group, "int4")

    def _bitsandbytes(self) -> str:
        four, eight = self._data.get("load_in_4bit"), self._data.get("load_in_8bit")
        if four is True and not eight:
            # A float32 for each 64 values, or with double quantisation half a byte.
            return "int4" if self._data.get("bnb_4bit_use_double_quant") is True else "int4_g64"
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

    def _group(self, group: Any) -> str:
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            problem = f"has a group whose weights are {shown(weights)}"
            raise self._error("config_groups", problem, _HINT)
        targets = group.get("targets")
        if targets not in (None, ["Linear"]):
            raise self._error("config_groups.targets", f"is {shown(targets)}", 'Only ["Linear"]')
        bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
        if isinstance(bits, int) and not isinstance(bits, bool):
            if bits == 8 and kind in ("float", "int"):
                return "fp8" if kind == "float" else "int8"
            if bits == 4 and kind == "int":
                return self._int4(size, "config_groups.group_size")
            if bits == 4 and kind == "float" and isinstance(size, int) and size in _FLOAT4_GROUPS:
                return _FLOAT4_GROUPS[size]
        raise self._error(
            "config_groups.weights",
            f"is {shown(kind)} of {shown(bits)} bits in groups of {shown(size)}",
            "Supported: float or int of 8 bits, int of 4, float of 4 in groups of 16 or 32",
        )

    def _modelopt(self) -> str | None:
        algorithm = self._data.get("quant_algo")
        if not isinstance(algorithm, str | None) or algorithm not in _ALGORITHMS:
            known = ", ".join(name for name in _ALGORITHMS if name)
            raise self._error("quant_algo", f"is {shown(algorithm)}", f"Supported: {known}")
        made = _ALGORITHMS[algorithm]
        if made == "int4":
            made = self._int4(self._data.get("group_size"), "group_size")
        if not self._data.get("config_groups"):
            return made
        grouped = self._groups()
        if algorithm is not None and grouped != made:
            raise self._error("config_groups", f"is {grouped}, but quant_algo {made}", _HINT)
        return grouped

    def _kv(self) -> str | None:
        algorithm, scheme = self._data.get("kv_cache_quant_algo"), "kv_cache_quant_algo"
        if algorithm is None:
            scheme = "kv_cache_scheme"
            algorithm = self._data.get(scheme)
        if isinstance(algorithm, dict):
            bits, kind = algorithm.get("num_bits"), algorithm.get("type")
            eight = bits == 8 and kind in ("float", "int")
            algorithm = f"{shown(kind)} of {shown(bits)} bits"
            if eight:
                algorithm = "FP8" if kind == "float" else "INT8"
        known = {None: None, "FP8": "fp8", "INT8": "int8"}
        if not isinstance(algorithm, str | None) or algorithm not in known:
            raise self._error(scheme, f"is {shown(algorithm)}", "Supported: FP8, INT8, null")
        return known[algorithm]

    def _excluded(self) -> list[str]:
        """Modules that stay as they are, as globs with layer numbers as N. Raises InputError if one
        is a matrix of the decoder: then its layers are not alike.
        """
        globs = []
        layers = self._config.count("num_hidden_layers")
        for key in _EXCLUDING:
            listed = self._data.get(key)
            if listed is None:
                continue
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise self._error(key, f"is {shown(listed)}, not a list of names", _HINT)
            for name in dict.fromkeys(listed):
                glob = _glob(name, layers)
                if glob is None:
                    problem = f"holds {shown(name)}, of which it is not known what it matches"
                    raise self._error(key, problem, "Name the modules, with * for any text")
                if any(_matches(glob, matrix) for matrix in _MATRICES):
                    problem = f"leaves {shown(name)} as computed, and quantises other layers"
                    raise self._error(key, problem, _HINT)
                globs.append(glob)
        return globs

    def _check_head(self, excluded: list[str]) -> None:
        """Refuse a quantised head: it has the embedding's type here."""
        if self._data.get("lm_head") is True:
            raise self._error("lm_head", "is true", "Only heads that are not quantised")
        by_list = self._data.get("quant_method") not in ("fp8", "fbgemm_fp8", "awq", "gptq",
                                                         "bitsandbytes")  # fmt: skip
        if not by_list or self._config.flag("tie_word_embeddings"):
            return
        if not any(_matches(glob, "lm_head") for glob in excluded):
            given = [key for key in _EXCLUDING if key in self._data]
            raise self._error(
                given[0] if given else "exclude_modules",
                "does not name lm_head: the output head would be quantised, and the embedding not",
                "Only heads that are not quantised can be described",
            )

    def _error(self, key: str, problem: str, hint: str) -> Exception:
        field = key if self._field == "quant_method" else f"{self._field}.{key}"
        return self._document.error(field, problem, hint)


def _glob(name: str, layers: int) -> str | None:
    """A module's name, glob or simple regular expression as a glob; None if it is neither.

    Numbers of layers become N (a module of no layer here matches nothing), of experts 0.
    """
    glob = name
    if name.startswith("re:"):
        # Not run as an expression: one that a folder brings along may take for ever.
        glob = name[3:].removeprefix("^").replace("\\.", ".").replace(".*", "*")
        glob = glob[:-1] if glob.endswith("$") else f"{glob}*"
    if len(glob) > 200 or re.search(r"[\[\](){}|+?\\^$]", glob):
        return None
    if any(int(number) >= layers for number in re.findall(r"layers\.(\d{1,9})(?!\d)", glob)):
        return "no layer of this model"
    glob = re.sub(r"layers\.\d+", "layers.N", glob)
    return re.sub(r"\*{2,}", "*", re.sub(r"experts\.\d+", "experts.0", glob))


def _matches(glob: str, module: str) -> bool:
    """Whether ``glob`` names ``module``, a part of its path, or what it is part of."""
    if "*" not in glob:
        return f".{glob}." in f".{module}."
    parts = module.split(".")
    return any(
        fnmatchcase(".".join(parts[first:last]), glob)
        for first in range(len(parts))
        for last in range(first + 1, len(parts) + 1)
    )
