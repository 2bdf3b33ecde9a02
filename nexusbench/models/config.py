"""HF ``config.json`` -> :class:`ModelSpec`: shipped models or any file of a supported family."""

from __future__ import annotations

import json
import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from nexusbench.core.errors import InputError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.specs import DTYPE_BYTES, Dtypes, ModelSpec, MoeSpec

_SHIPPED = "nexusbench.data"
_DENSE = ("llama", "mistral", "qwen2", "qwen3")
# Family -> field that holds the intermediate size of one routed expert.
_MOE = {
    "mixtral": "intermediate_size",
    "qwen2_moe": "moe_intermediate_size",
    "qwen3_moe": "moe_intermediate_size",
}
# These families have no switch: a window in the config is in force.
_ALWAYS_WINDOWED = ("mistral", "mixtral")
_SILU = ("silu", "swish")
# Far above any model; catches a slipped digit before it becomes an endless loop or an absurd pool.
_LARGEST = 10**9


def model_names() -> list[str]:
    """The shipped models, sorted: what ``load_model`` accepts by name."""
    folder = files(_SHIPPED) / "models"
    return sorted(
        entry.name.removesuffix(".json")
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    )


def load_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """The model of a shipped name (any case), a ``config.json``, or a folder that holds one.

    A shipped name wins over a folder of the same name; write ``./NAME`` for the folder.
    ``max_model_len`` is ``max_position_embeddings`` as written; rope scaling does not stretch it.
    Raises InputError naming file, line and field for anything that cannot be described exactly.
    """
    text = os.fspath(name_or_path)
    names = model_names()
    if text.lower() in names:
        name = text.lower()
        folder = files(_SHIPPED) / "models"
        sources = tomllib.loads((folder / "sources.toml").read_text(encoding="utf-8"))
        document = (folder / f"{name}.json").read_text(encoding="utf-8")
        return _parse(document, f"{name}.json", name, str(sources.get(name, "")))
    path = Path(text)
    if path.is_dir():
        path = path / "config.json"
    if not text or not path.is_file():
        raise InputError(
            f"no shipped model, config.json or folder with one is called '{text}'",
            hint=did_you_mean(Path(text).name.lower(), names),
        )
    named = path.resolve()
    name = named.parent.name if named.name == "config.json" else named.stem
    return _parse(_read(path), str(path), name or named.stem, str(path))


def _read(path: Path) -> str:
    """The file's text. Raises InputError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    except UnicodeDecodeError:
        raise InputError(
            "is not text in UTF-8", file=path, hint="Give the model's config.json"
        ) from None


class _Config:
    """A parsed config.json whose every complaint names file, line and field."""

    def __init__(self, text: str, file: str) -> None:
        self._text, self.file = text, file
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            empty = "is empty" if not text.strip() else f"is not valid JSON: {error.msg}"
            raise InputError(
                empty, file=file, line=error.lineno, hint="Download the config.json again"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"is not a usable JSON document: {error}", file=file, hint="Give an HF config.json"
            ) from None
        if not isinstance(data, dict):
            raise InputError(
                f"holds a JSON {type(data).__name__}, not an object",
                file=file,
                hint="Give the model's HF config.json",
            )
        self.data: dict[str, Any] = data

    def error(self, field: str, problem: str, hint: str) -> InputError:
        """The complaint about ``field``, with the line it stands in if there is one."""
        key, line = f'"{field.split(".")[-1]}"', None
        for number, content in enumerate(self._text.splitlines(), start=1):
            if key in content and content.split(key, 1)[1].lstrip().startswith(":"):
                line = number
                break
        return InputError(problem, file=self.file, line=line, field=field, hint=hint)

    def count(self, field: str, default: int | None = None) -> int:
        """A positive integer; ``default`` where the field is missing or null."""
        value = self.data.get(field)
        if value is None:
            if default is not None:
                return default
            raise self.error(field, "is missing", "Give the model's complete HF config.json")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(
                field, f"is {json.dumps(value)[:60]}, not an integer", "Write a positive integer"
            )
        if not 0 < value <= _LARGEST:
            raise self.error(field, f"is {value}", f"It must be between 1 and {_LARGEST}")
        return value

    def flag(self, field: str) -> bool:
        """A boolean; missing or null is False, the default of every supported family."""
        value = self.data.get(field)
        if value is not None and not isinstance(value, bool):
            raise self.error(field, f"is {json.dumps(value)[:60]}", "Write true or false")
        return bool(value)


def _parse(text: str, file: str, name: str, source: str) -> ModelSpec:
    """The spec of one document; ``file`` is what errors name."""
    config = _Config(text, file)
    family = _family(config)
    _refuse_unlike(config, family)
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    # Only the first Llama configs leave the KV heads out; other families default to fixed numbers.
    kv_heads = config.count("num_key_value_heads", heads if family == "llama" else None)
    if heads % kv_heads:
        raise config.error(
            "num_key_value_heads",
            f"{kv_heads} does not divide the {heads} attention heads",
            "Each KV head must serve the same number of query heads",
        )
    if config.data.get("head_dim") is None and hidden % heads:
        raise config.error(
            "num_attention_heads",
            f"{heads} does not divide hidden_size {hidden} and head_dim is not given",
            "Add head_dim, or correct one of the two",
        )
    return ModelSpec(
        name=name,
        num_layers=config.count("num_hidden_layers"),
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=config.count("head_dim", hidden // heads or None),
        intermediate_size=config.count("intermediate_size"),
        vocab_size=config.count("vocab_size"),
        max_model_len=config.count("max_position_embeddings"),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        dtypes=_dtypes(config),
        moe=_moe(config, family) if family in _MOE else None,
        source=source,
    )


def _family(config: _Config) -> str:
    """The checked ``model_type``."""
    family = config.data.get("model_type")
    supported = f"Supported: {', '.join((*_DENSE, *_MOE))}"
    if family is None:
        raise config.error("model_type", "is missing", supported)
    if not isinstance(family, str) or family not in (*_DENSE, *_MOE):
        raise config.error("model_type", f"{json.dumps(family)[:60]} is not supported", supported)
    return family


def _refuse_unlike(config: _Config, family: str) -> None:
    """Refuse what a ModelSpec cannot say: sliding windows, other activations than SwiGLU's.

    A window bounds the KV cache and the attention cost of a layer; described as full attention,
    both would be overstated without a word. Windows that are off (all Qwen2.5 files) are fine.
    """
    hint = "Only full attention is modelled; switch the window off to simulate that instead"
    if config.flag("use_sliding_window"):
        raise config.error("use_sliding_window", "is true", hint)
    if family in _ALWAYS_WINDOWED and config.data.get("sliding_window") is not None:
        window, longest = config.count("sliding_window"), config.count("max_position_embeddings")
        if window < longest:
            raise config.error("sliding_window", f"{window} is below the context {longest}", hint)
    layer_types = config.data.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise config.error("layer_types", "has layers other than full_attention", hint)
    activation = config.data.get("hidden_act", "silu")
    if activation not in _SILU:
        raise config.error(
            "hidden_act", f"is {json.dumps(activation)[:60]}", "Only SwiGLU (silu) is modelled"
        )


def _moe(config: _Config, family: str) -> MoeSpec:
    """The experts. Every layer must have them: a ModelSpec describes one kind of layer."""
    if config.count("decoder_sparse_step", 1) != 1 or config.data.get("mlp_only_layers"):
        field = "mlp_only_layers" if config.data.get("mlp_only_layers") else "decoder_sparse_step"
        raise config.error(
            field,
            "mixes dense and expert layers",
            "Only models with experts in every layer are supported",
        )
    local = config.data.get("num_local_experts") is not None
    experts = config.count("num_local_experts" if local or family == "mixtral" else "num_experts")
    chosen, size = config.count("num_experts_per_tok"), config.count(_MOE[family])
    if chosen > experts:
        raise config.error(
            "num_experts_per_tok", f"{chosen} exceeds the {experts} experts", "Correct one of them"
        )
    # One wide shared expert costs exactly what several of the routed size do.
    shared = config.data.get("shared_expert_intermediate_size")
    width = 0 if shared in (None, 0) else config.count("shared_expert_intermediate_size")
    if width % size:
        raise config.error(
            "shared_expert_intermediate_size",
            f"{width} is not a multiple of {_MOE[family]} {size}",
            "Only such shared experts can be described",
        )
    return MoeSpec(
        num_experts=experts,
        experts_per_token=chosen,
        intermediate_size=size,
        num_shared_experts=width // size,
    )


def _dtypes(config: _Config) -> Dtypes:
    """Data types: ``dtype`` or its older name ``torch_dtype``, bfloat16 where neither is given.

    Quantisation changes the weights only; embeddings, KV cache and activations keep the data type.
    """
    field = "dtype" if config.data.get("dtype") is not None else "torch_dtype"
    value = config.data.get(field)
    dtype = "bfloat16" if value is None else str(value).removeprefix("torch.")
    if dtype not in ("bfloat16", "float16", "float32"):
        raise config.error(
            field, f"is {json.dumps(value)[:60]}", "Supported: bfloat16, float16, float32"
        )
    weights = _quantised(config) or dtype
    assert weights in DTYPE_BYTES
    return Dtypes(weights=weights, embeddings=dtype, kv=dtype, activations=dtype)


def _quantised(config: _Config) -> str | None:
    """The weights' type by ``quantization_config``, or None; scales (a few %) are left out."""
    quantisation = config.data.get("quantization_config")
    if quantisation is None:
        return None
    hint = "Supported: quant_method fp8, awq or gptq with bits 4, gptq with bits 8"
    if not isinstance(quantisation, dict):
        raise config.error("quantization_config", "is not an object", hint)
    method, bits = quantisation.get("quant_method"), quantisation.get("bits")
    if method == "fp8":
        return "fp8"
    known = {("awq", 4): "int4", ("gptq", 4): "int4", ("gptq", 8): "int8"}
    for (name, width), dtype in known.items():
        if method == name and bits == width and not isinstance(bits, bool):
            return dtype
    raise config.error(
        "quantization_config.quant_method",
        f"{json.dumps(method)[:60]} with bits {json.dumps(bits)[:60]} is not supported",
        hint,
    )
