"""What of a model is quantised, and to what: by config.json, or by the file of a quantiser beside
it. What cannot be described is refused by file and key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.module_names import Selector, as_globs
from nexusbench.models.quantised_types import HINT, Scales, TypeReader

# Keys of config.json; files beside it, with the method of those that do not say it.
_KEYS = ("quantization_config", "compression_config")
# Keys of other tools, whose weights are no less packed for being unknown here.
_FOREIGN = ("quantization", "quant_config", "quantize_config", "quantization_bit")
_BESIDE = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
_EXCLUDING = (
    "modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules",
    "llm_int8_skip_modules",
)  # fmt: skip
# Whatever says in other ways that layers differ.
_DIFFERING = ("extra_config", "layer_config", "modules_in_block_to_quantize")
# Methods whose head stays as it is without being listed.
_HEAD_APART = ("fp8", "fbgemm_fp8", "awq", "gptq", "bitsandbytes", "mxfp4")
_MOST_PATTERNS = 200  # globs that are held against the modules of every layer


class Quantisation(msgspec.Struct, frozen=True):
    """Data types (keys of DTYPE_BYTES) that differ from config.json's; None where they do not.

    ``weights`` is that of every matrix that is neither in ``excluded`` nor named by a selector of
    ``named``; with ``parts`` only of projections of those tensor classes. ``said_in`` and ``field``
    are where that stands. ``scales``: which values share a scale, and how zeros are stored.
    """

    weights: str | None
    kv: str | None
    said_in: ConfigDocument
    field: str
    excluded: Selector
    named: tuple[tuple[Selector, str | None], ...] = ()
    parts: tuple[str, ...] = ()
    head: str | None = None
    scales: Scales = {}

    def of(self, layer: int, part: str, module: tuple[str, ...]) -> str | None:
        """The data type of a matrix under any of the names ``module``, None for the activations'.

        Routers are quantised only where they are named.
        """
        if self.excluded and any(self.excluded.names(layer, name) for name in module):
            return None
        for selector, dtype in self.named:
            if any(selector.names(layer, name) for name in module):
                return dtype
        if part == "router" or (self.parts and part not in self.parts):
            return None
        return self.weights

    def error(self, problem: str) -> Exception:
        """The complaint about what it says."""
        return self.said_in.error(self.field, problem, "Only whole layers can be described")

    def beside(self, other: Quantisation) -> Quantisation:
        """Both together. One that names layers one by one says nothing of others, and one that is
        silent about the KV cache nothing of that. Raises InputError if they disagree.
        """
        named = [{dtype for _, dtype in one.named} for one in (self, other)]
        agree = named[0] == named[1] if all(named) else self.weights == other.weights
        if not agree or (self.kv and other.kv and self.kv != other.kv):
            raise other.said_in.error(
                other.field,
                f"says weights {other.weights or 'as computed'}, KV {other.kv or 'as computed'}, "
                f"but {self.field} of {self.said_in.file} says {self.weights or 'as computed'} and "
                f"{self.kv or 'as computed'}",
                "Take away the one that does not belong to these weights",
            )
        for name, (_, mine) in self.scales.items():
            key, theirs = other.scales.get(name, (name, mine))
            if not (mine <= theirs or theirs <= mine):  # one may say less, never another
                at = key if other.field == "quant_method" else f"{other.field}.{key}"
                raise other.said_in.error(
                    at,
                    f"is {_listed(theirs)}, but of {self.field} of {self.said_in.file} it is "
                    f"{_listed(mine)}",
                    "Take away the one that does not belong to these weights",
                )
        return msgspec.structs.replace(
            self, kv=self.kv or other.kv, scales={**other.scales, **self.scales}
        )

    def check_experts(self, layers: int, experts: int) -> None:
        """Raises InputError if only some experts of a layer are named."""
        for selector in (self.excluded, *(one for one, _ in self.named)):
            layer = selector.some_experts(layers, experts)
            if layer is not None:
                raise self.error(f"names only some of the {experts} experts of layer {layer}")


def quantisation_of(config: ConfigDocument) -> Quantisation | None:
    """What ``config`` or a file beside it says. Raises InputError for what cannot be described,
    and where two of them disagree.
    """
    found: Quantisation | None = None
    for document, field, data in settings_of(config):
        made = _QuantisationReader(document, field, data, config).read()
        found = made if found is None else found.beside(made)
    return found


def settings_of(
    config: ConfigDocument,
) -> Iterator[tuple[ConfigDocument, str, dict[str, object]]]:
    """(document, field, object) of each place that says what is quantised. Raises InputError."""
    for document, field, data in _said(config):
        if isinstance(data, dict):
            yield document, field, data
        elif data is not None:
            raise document.error(field, f"is {shown(data)}, not an object", HINT)


def method_of(config: ConfigDocument) -> str | None:
    """The quantiser's name in config.json or beside it; None where nothing is quantised."""
    for document, field, data in settings_of(config):
        return str(_QuantisationReader(document, field, data, config).method())
    return None


def unquantised(config: ConfigDocument) -> ConfigDocument:
    """``config`` without a word of quantisation, in itself or beside it: what is computed from
    weights that were dequantised.
    """
    kept = {key: value for key, value in config.data.items() if key not in _KEYS}
    for key, value in kept.items():
        if isinstance(value, dict):
            kept[key] = {name: each for name, each in value.items() if name not in _KEYS}
    return config.alone(kept)


def _said(config: ConfigDocument) -> Iterator[tuple[ConfigDocument, str, object]]:
    """(document, field, value) of everything that may speak of quantisation."""
    for key in _KEYS:
        yield config, key, config.data.get(key)
    for key in _FOREIGN:
        if config.data.get(key) is not None:
            raise config.error(key, f"is {shown(config.data[key])}, of another tool", HINT)
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


def _listed(values: Iterable[object]) -> str:
    return " and ".join(sorted(map(str, values)))


def _with_method(data: object, method: str) -> object:
    if isinstance(data, dict) and data.get("quant_method") is None:
        return {**data, "quant_method": method}
    return data


class _QuantisationReader(TypeReader):
    """Reads one object of one document; ``config`` is the model's, for its layers and head."""

    def read(self) -> Quantisation:
        """The data types. Raises InputError for what cannot be described."""
        for key in _DIFFERING:
            if self._data.get(key):
                raise self.error(key, "gives layers different types in a way of its own", HINT)
        sparsity = self._data.get("sparsity_config")
        if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
            raise self.error("sparsity_config", "makes weights sparse", HINT)
        if self._data.get("format") == "dense":
            raise self.error("format", "is dense: the weights are not packed", HINT)
        method = self.method()
        weights, excluded, named = self._weights(method), self._excluded(), self._named()
        if named and method in ("fp8", "fbgemm_fp8"):  # the list is of what was quantised later
            excluded = self._selector(())
        made = Quantisation(
            weights, self._kv(), self._document, self._field, excluded, tuple(named),
            ("experts",) if method == "mxfp4" else (), self._head(method, weights, excluded, named),
            self.scales(),
        )  # fmt: skip
        self._check_patterns([excluded, *(one for one, _ in named)])
        return made

    def method(self) -> object:
        """``quant_method``, or what other keys stand for where that is missing."""
        method = self._data.get("quant_method")
        if method is None and "quant_algo" in self._data:
            return "modelopt"
        if method is None and "config_groups" in self._data:
            return "compressed-tensors"
        return method

    def _weights(self, method: object) -> str | None:
        """The data type of what no other rule names."""
        if method in ("fp8", "fbgemm_fp8"):
            return self.blocks()
        if method in ("awq", "gptq"):
            return self.integers(str(method))
        if method == "bitsandbytes":
            return self.bitsandbytes()
        if method == "compressed-tensors":
            return self._groups()
        if method in ("modelopt", "modelopt_fp4"):
            return self._modelopt()
        if method == "mxfp4":
            return "mxfp4"
        bits = self._data.get("bits")
        raise self.error(
            "quant_method", f"{shown(method)} with bits {shown(bits)} is not supported", HINT
        )

    def _groups(self) -> str | None:
        """The type of the one of ``config_groups`` that is of all matrices, if there is one."""
        found = {dtype for targets, dtype in self._all_groups() if targets is None}
        if len(found) > 1:
            raise self.error("config_groups", f"has {' and '.join(sorted(found))}", HINT)
        return found.pop() if found else None

    def _all_groups(self) -> list[tuple[list[str] | None, str]]:
        """(targets, data type) of each group; None for the class of all matrices."""
        groups = self._data.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise self.error("config_groups", f"is {shown(groups)}", "Give an object of groups")
        return [self._group(group) for group in groups.values()]

    def _group(self, group: object) -> tuple[list[str] | None, str]:
        held = group if isinstance(group, dict) else {}
        weights, targets = held.get("weights"), held.get("targets")
        if not isinstance(weights, dict):
            problem = f"has a group whose weights are {shown(weights)}"
            raise self.error("config_groups", problem, HINT)
        if targets is not None and not (
            isinstance(targets, list) and all(isinstance(name, str) for name in targets)
        ):
            problem = f"is {shown(targets)}, not a list of names"
            raise self.error("config_groups.targets", problem, 'Give names, or ["Linear"]')
        if targets is not None and "Linear" in targets:
            targets = None
        return targets, self.group_type(weights, held.get("input_activations"))

    def _modelopt(self) -> str | None:
        if "quant_algo" not in self._data and not self._data.get("config_groups"):
            raise self.error("quant_algo", "is missing", "Give it, null for no quantisation")
        algorithm = self._data.get("quant_algo")
        made = self.algorithm_type(algorithm, "quant_algo", self._data)
        if algorithm == "MIXED_PRECISION":
            if not (self._data.get("quantized_layers") or self._data.get("config_groups")):
                raise self.error("quantized_layers", "is missing", "Give what is quantised")
            return None
        if not self._data.get("config_groups"):
            return made
        grouped = self._groups()
        if {made, grouped} == {"nvfp4", "nvfp4_a16"}:
            return made  # exporters differ on whether groups repeat what activations are
        if algorithm is not None and grouped != made:
            raise self.error("config_groups", f"is {grouped}, but quant_algo {made}", HINT)
        return grouped

    def _named(self) -> list[tuple[Selector, str | None]]:
        """(modules, data type) of what is named one by one: in a list of layers, by the targets of
        groups, by GPTQ's patterns.
        """
        listed = self._data.get("quantized_layers")
        if listed is not None and not isinstance(listed, dict):
            raise self.error("quantized_layers", f"is {shown(listed)}, not an object", HINT)
        by_type: dict[str, list[str]] = {}
        for name, of in (listed or {}).items():
            if not isinstance(of, dict):
                problem = f"says {shown(of)} of {shown(name)}, not an object"
                raise self.error("quantized_layers", problem, HINT)
            made = self.algorithm_type(of.get("quant_algo"), "quantized_layers.quant_algo", of)
            if made is not None:
                by_type.setdefault(made, []).append(name)
        if not by_type and isinstance(self._data.get("config_groups"), dict):
            for targets, dtype in self._all_groups():
                if targets is not None:
                    by_type.setdefault(dtype, []).extend(targets)
        named: list[tuple[Selector, str | None]] = [
            (self._selector(names, "quantized_layers"), dtype) for dtype, names in by_type.items()
        ]
        experts = self._data.get("expert_dtype", self._config.data.get("expert_dtype"))
        if experts not in (None, "fp8") and self.method() == "fp8" and not named:
            if experts != "fp4":
                raise self.error("expert_dtype", f"is {shown(experts)}", "Supported: fp4, fp8")
            named.append((self._selector(["*experts.0*"]), "mxfp4"))
        dynamic = self._data.get("dynamic")
        if dynamic:
            named.insert(0, (self._left_by(dynamic), None))
        return named

    def _left_by(self, dynamic: object) -> Selector:
        """What GPTQModel's ``dynamic`` leaves as computed: its keys that begin with a minus."""
        if not isinstance(dynamic, dict) or not all(key.startswith("-:") for key in dynamic):
            hint = "Only patterns of what is not quantised, which begin with '-:'"
            raise self.error("dynamic", "gives layers different types", hint)
        return self._selector([f"re:{key[2:]}" for key in dynamic], "dynamic")

    def _kv(self) -> str | None:
        """The KV cache's type, said by either of two keys."""
        said = [
            self._kv_of(key, self._data[key])
            for key in ("kv_cache_quant_algo", "kv_cache_scheme")
            if self._data.get(key) is not None
        ]
        if len(set(said)) > 1:
            problem = f"says {said[1]}, but kv_cache_quant_algo {said[0]}"
            raise self.error("kv_cache_scheme", problem, "Take away the wrong one")
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
            raise self.error(scheme, f"is {shown(algorithm)}", "Supported: FP8, INT8, null")
        return known[algorithm]

    def _excluded(self) -> Selector:
        """Modules that stay as they are."""
        found: list[str] = []
        field = _EXCLUDING[0]
        for key in _EXCLUDING:
            listed = self._data.get(key)
            if listed is None:
                continue
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise self.error(key, f"is {shown(listed)}, not a list of names", HINT)
            field = key
            found += listed
        return self._selector(found, field)

    def _selector(self, names: Iterable[str], key: str = "") -> Selector:
        """The modules that ``names`` of the list ``key`` stand for."""
        anywhere = self._data.get("quant_method") in ("awq", None)
        selector = Selector(loose=True, anywhere=anywhere and key == "modules_to_not_convert")
        for name in dict.fromkeys(names):
            globs = as_globs(name)
            if globs is None or name in ("", "Linear"):
                problem = f"holds {shown(name)}, of which it is not known what it matches"
                raise self.error(key, problem, "Name the modules, with * for any text")
            for glob in globs:
                selector.add(glob)
        return selector

    def _check_patterns(self, selectors: list[Selector]) -> None:
        if sum(selector.patterns for selector in selectors) > _MOST_PATTERNS:
            given = [key for key in (*_EXCLUDING, "quantized_layers") if self._data.get(key)]
            problem = f"holds more than {_MOST_PATTERNS} names that are of no one layer"
            raise self.error(given[0] if given else "config_groups", problem, "Name modules")

    def _head(
        self,
        method: object,
        weights: str | None,
        excluded: Selector,
        named: list[tuple[Selector, str | None]],
    ) -> str | None:
        """The output head's data type; None if it stays as it is."""
        if self.flag("lm_head"):
            return weights
        if excluded.names_head():
            return None
        for selector, dtype in named:
            if selector.names_head():
                return dtype
        return None if method in _HEAD_APART else weights
