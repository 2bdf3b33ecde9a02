"""HF ``config.json`` -> :class:`ModelSpec`: shipped models or any file of a supported family."""

from __future__ import annotations

import os

from nexusbench.core.specs import DTYPE_BYTES, Dtypes, ModelSpec, MoeSpec
from nexusbench.models.caveats import warn
from nexusbench.models.document import ConfigDocument, open_config, shown
from nexusbench.models.document import model_names as model_names
from nexusbench.models.quantisation import quantisation_of

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
# Keys that make a decoder another one, whatever it calls itself; null, false, 0 and empty are off.
_UNLIKE = (
    "text_config", "vision_config", "audio_config", "block_configs", "hybrid_override_pattern",
    "layers_block_type", "attn_type_list", "kv_lora_rank", "q_lora_rank", "index_topk",
    "dual_chunk_attention_config", "sparse_attention_config", "linear_attn_config",
    "full_attention_interval", "attention_chunk_size", "cross_attention_layers",
    "num_kv_shared_layers", "no_rope_layer_interval", "first_k_dense_replace", "moe_layer_freq",
    "n_routed_experts", "n_shared_experts", "use_parallel_residual", "is_encoder_decoder",
    "num_shared_experts", "interleave_moe_layer_step", "moe_layers", "moe_layer_frequency",
    "moe_layer_interval", "num_dense_layers", "first_num_dense_layers", "expert_layer_period",
    "attn_layer_period", "zero_expert_num",
)  # fmt: skip
_EXPERT_KEYS = (
    "num_experts", "num_local_experts", "moe_intermediate_size", "num_experts_per_tok",
    "shared_expert_intermediate_size",
)  # fmt: skip
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def load_model(name_or_path: str | os.PathLike[str]) -> ModelSpec:
    """The model of a shipped name (any case), a ``config.json``, or a folder that holds one.

    A shipped name wins over a folder of the same name; write ``./NAME`` for the folder.
    ``max_model_len`` is ``max_position_embeddings`` as written; rope scaling does not stretch it.
    Logs a warning about what its times are not. Raises InputError naming file, line and field for
    anything that cannot be described exactly.
    """
    model = describe(open_config(name_or_path))
    warn(model)
    return model


def describe(config: ConfigDocument) -> ModelSpec:
    """The spec of one document. Raises InputError as :func:`load_model` does."""
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
        name=config.name,
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
        source=config.source,
    )


def _family(config: ConfigDocument) -> str:
    """The checked ``model_type``."""
    family = config.data.get("model_type")
    supported = f"Supported: {', '.join((*_DENSE, *_MOE))}"
    if family is None:
        raise config.error("model_type", "is missing", supported)
    if not isinstance(family, str) or family not in (*_DENSE, *_MOE):
        raise config.error("model_type", f"{shown(family)} is not supported", supported)
    return family


def _refuse_unlike(config: ConfigDocument, family: str) -> None:
    """Refuse what a ModelSpec cannot say: sliding windows, other activations than SwiGLU's.

    A window bounds the KV cache and the attention cost of a layer; described as full attention,
    both would be overstated without a word. Windows that are off (all Qwen2.5 files) are fine.
    """
    wanted, named = _ARCHITECTURES[family], config.data.get("architectures")
    if named and (not isinstance(named, list) or wanted not in named):
        raise config.error("architectures", f"is {shown(named)}", f"Supported here: {wanted}")
    for key in _UNLIKE if family in _MOE else (*_UNLIKE, *_EXPERT_KEYS):
        if config.data.get(key):
            problem = f"is {shown(config.data[key])}: not an ordinary {family} decoder"
            raise config.error(key, problem, "Only decoders of equal layers are modelled")
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
            "hidden_act", f"is {shown(activation)}", "Only SwiGLU (silu) is modelled"
        )


def _moe(config: ConfigDocument, family: str) -> MoeSpec:
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
    for other in ("num_experts", "num_local_experts"):
        if config.data.get(other) is not None and config.count(other) != experts:
            problem = f"is {config.count(other)}, but the other count of experts {experts}"
            raise config.error(other, problem, "Remove the wrong one")
    chosen, size = config.count("num_experts_per_tok"), config.count(_MOE[family])
    if chosen > experts:
        raise config.error(
            "num_experts_per_tok", f"{chosen} exceeds the {experts} experts", "Correct one of them"
        )
    # One wide shared expert costs exactly what several of the routed size do.
    shared = config.data.get("shared_expert_intermediate_size")
    if family == "qwen2_moe" and "shared_expert_intermediate_size" not in config.data:
        hint = "Add it (null for none): what is left out is 5632 in this family"
        raise config.error("shared_expert_intermediate_size", "is missing", hint)
    if shared and family != "qwen2_moe":
        hint = "Only qwen2_moe has a shared expert"
        raise config.error("shared_expert_intermediate_size", f"is {shown(shared)}", hint)
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


def _dtypes(config: ConfigDocument) -> Dtypes:
    """Data types: ``dtype`` or its older name ``torch_dtype``, bfloat16 where neither is given.

    Quantisation changes the weights and the KV cache; embeddings, head and activations keep the
    data type. Scales of large groups (a few %) are left out.
    """
    field = "dtype" if config.data.get("dtype") is not None else "torch_dtype"
    value = config.data.get(field)
    dtype = "bfloat16" if value is None else str(value).removeprefix("torch.")
    if dtype not in ("bfloat16", "float16", "float32"):
        raise config.error(field, f"is {shown(value)}", "Supported: bfloat16, float16, float32")
    quantised = quantisation_of(config)
    weights = (quantised and quantised.weights) or dtype
    kv = (quantised and quantised.kv) or dtype
    assert weights in DTYPE_BYTES
    assert kv in DTYPE_BYTES
    return Dtypes(weights=weights, embeddings=dtype, kv=kv, activations=dtype)
