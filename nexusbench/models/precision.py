"""Data types in which a model is served or computed: what config.json says, and what a user asks
for instead (``--dtype``, ``--quantization``, ``--kv-cache-dtype``; meanings are vLLM's).
"""

from __future__ import annotations

import os

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.specs import ModelSpec
from nexusbench.models.config import describe_model
from nexusbench.models.document import ConfigDocument, open_config
from nexusbench.models.families.base import family_of
from nexusbench.models.quantisation import method_of, unquantised

AUTO = "auto"
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = ("bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
ONLINE = "fp8"  # the one quantisation that is made of plain weights while they are loaded
# vLLM's name of a method -> that of config.json
METHODS = {
    "fp8": "fp8", "fbgemm_fp8": "fbgemm_fp8", "awq": "awq", "awq_marlin": "awq", "gptq": "gptq",
    "gptq_marlin": "gptq", "compressed-tensors": "compressed-tensors", "modelopt": "modelopt",
    "modelopt_fp4": "modelopt", "bitsandbytes": "bitsandbytes", "mxfp4": "mxfp4",
}  # fmt: skip


class Precision(msgspec.Struct, frozen=True):
    """What was asked for; None (or ``auto``) is what config.json says.

    ``dtype`` is that of activations, and of weights and the KV cache where nothing quantises them.
    ``quantization`` is a key of METHODS, ``kv_cache_dtype`` one of KV_DTYPES.
    """

    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None

    def __post_init__(self) -> None:
        _check("--dtype", self.dtype, (AUTO, *DTYPES))
        _check("--quantization", self.quantization, tuple(METHODS))
        _check("--kv-cache-dtype", self.kv_cache_dtype, (AUTO, *KV_DTYPES))


class ModelInPrecision(msgspec.Struct, frozen=True):
    """A model in the data types that it is run in; ``said`` is what they are instead of those of
    its config.json, a sentence each.
    """

    model: ModelSpec
    said: tuple[str, ...] = ()


def served_model_of(
    name_or_path: str | os.PathLike[str],
    asked: Precision,
    half_types: tuple[str, ...] = ("bfloat16", "float16"),
) -> ModelInPrecision:
    """The model as a server runs it on a GPU that computes in ``half_types``, the preferred first.

    A float32 model is served in the preferred one. Raises InputError for a description that cannot
    be read, UsageError for data types that do not fit it.
    """
    model = describe_model(name_or_path)
    dtype, said = _served_dtype(model, asked.dtype, half_types)
    if dtype != model.dtypes.activations or asked.quantization is not None:
        config = open_config(name_or_path)
        method = method_of(config)
        has = METHODS.get(method or "", method)
        if asked.quantization is not None and METHODS[asked.quantization] != has:
            config = _online(config, asked.quantization, method)
            said.append(
                f"--quantization {ONLINE}: the weights of linear layers are quantised while they "
                "are loaded, with one scale each, and activations in every step where the GPU "
                "multiplies fp8; embeddings, "
                f"output head and routers stay in {dtype}"
            )
        model = family_of(config).describe(_in_dtype(config, dtype))
    return ModelInPrecision(_with_kv(model, asked.kv_cache_dtype, said), tuple(said))


def computed_model_of(name_or_path: str | os.PathLike[str], asked: Precision) -> ModelInPrecision:
    """The model as the decoder computes it: quantised weights are dequantised when they are loaded.
    Raises as :func:`served_model_of`.
    """
    for flag, value in (
        ("--quantization", asked.quantization), ("--kv-cache-dtype", asked.kv_cache_dtype),
    ):  # fmt: skip
        if value not in (None, AUTO):
            raise UsageError(
                f"{flag} {value} is for simulated devices: real tokens are computed in one data "
                "type (--dtype), from weights that are dequantised when they are loaded. Leave it "
                "out"
            )
    described = describe_model(name_or_path)
    config = open_config(name_or_path)
    plain = unquantised(config)
    dtype = described.dtypes.activations if asked.dtype in (None, AUTO) else asked.dtype
    assert dtype is not None
    model = family_of(plain).describe(_in_dtype(plain, dtype))
    said = []
    if method_of(config) is not None:
        said.append(
            f"quantised weights ({described.dtypes.weights}) are dequantised to {dtype} when they "
            f"are loaded; activations and the KV cache are not quantised, and memory is that of "
            f"{dtype}"
        )
    return ModelInPrecision(model, tuple(said))


def _check(flag: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{flag} {value} is unknown. {did_you_mean(value, list(known))}")


def _served_dtype(
    model: ModelSpec, asked: str | None, half_types: tuple[str, ...]
) -> tuple[str, list[str]]:
    """The type of activations on a server, and what there is to say of it."""
    own, preferred = model.dtypes.activations, half_types[0]
    if asked not in (None, AUTO):
        if asked == "float32":
            raise UsageError(
                "--dtype float32: simulated devices have no kernels of 32-bit products and "
                "attention. Use bfloat16 or float16, or --device cpu"
            )
        if asked not in half_types:
            raise UsageError(f"--dtype {asked}: this GPU computes in {' and '.join(half_types)}")
        return str(asked), []
    if own == "float32":
        said = f"config.json says float32; served in {preferred}, as vLLM does"
        return preferred, [f"{said} (--dtype)"]
    if own not in half_types:
        said = f"config.json says {own}, which this GPU does not compute in; served in {preferred}"
        return preferred, [said]
    return own, []


def _online(config: ConfigDocument, asked: str, method: str | None) -> ConfigDocument:
    """``config`` with weights that are quantised while they are loaded. Raises UsageError for what
    is not made so.
    """
    if method is not None:
        raise UsageError(
            f"--quantization {asked}: the weights of {config.name} are quantised by {method} "
            "already. Leave it out"
        )
    if METHODS[asked] != ONLINE:
        raise UsageError(
            f"--quantization {asked}: {config.name} has plain weights, and only {ONLINE} is made "
            "of those while they are loaded. Give a checkpoint that was quantised so"
        )
    settings = {"quant_method": ONLINE, "activation_scheme": "dynamic"}
    return config.replaced({"quantization_config": settings})


def _in_dtype(config: ConfigDocument, dtype: str) -> ConfigDocument:
    """``config`` with activations of that type, its own and those of a decoder inside of it."""
    changed: dict[str, object] = {"dtype": dtype}
    inner = family_of(config).inner
    nested = config.data.get(inner) if inner else None
    if isinstance(nested, dict):
        changed[inner] = {**nested, "dtype": dtype}
    return config.replaced(changed)


def _with_kv(model: ModelSpec, asked: str | None, said: list[str]) -> ModelSpec:
    """``model`` with a KV cache of the type asked for."""
    own, activations = model.dtypes.kv, model.dtypes.activations
    if asked in (None, AUTO):
        return model
    kind = "fp8" if asked.startswith("fp8") else asked
    if kind in DTYPES and kind != activations:
        raise UsageError(
            f"--kv-cache-dtype {asked}: {model.name} computes in {activations}, and its attention "
            f"reads keys and values in that or in fp8. Use {activations}, fp8, or --dtype {asked}"
        )
    if kind != own:
        said.append(f"--kv-cache-dtype {asked}: keys and values are kept in {kind}")
    return msgspec.structs.replace(model, dtypes=msgspec.structs.replace(model.dtypes, kv=kind))
