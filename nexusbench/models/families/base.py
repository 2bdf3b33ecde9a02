"""The family seam: from the keys of a config.json to the layers, heads and KV of a decoder."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from contextlib import suppress
from typing import ClassVar

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import Registry
from nexusbench.core.specs import DTYPE_BYTES, Dtypes, ModelSpec, MoeSpec
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.quantisation import quantisation_of

__all__ = [
    "LAYOUT",
    "Biases",
    "Layout",
    "ModelFamily",
    "check_declaration",
    "computed_families",
    "families",
    "family_of",
    "read_dtypes",
]

Layout = Mapping[str, object]
# A small config.json of the layout that Llama began; ``architectures`` and ``model_type`` are of
# the family.
LAYOUT: Layout = {
    "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8,
    "num_hidden_layers": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16", "vocab_size": 2048,
}  # fmt: skip
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


class Biases(msgspec.Struct, frozen=True):
    """Which projections of a layer have biases; None: the config says (``attention_bias`` of the
    first two, ``mlp_bias``).
    """

    qkv: bool | None = False
    output: bool | None = False
    mlp: bool | None = False


class ModelFamily(ABC):
    """What a ``model_type`` is as a decoder: subclass it in a file of its own, named after it.

    Most decoders have equal layers of grouped-query attention and SwiGLU under the keys of Llama's
    config.json. :meth:`describe` reads those; what differs a subclass declares:

    * ``architecture``: the class in ``architectures`` that this is; ``source`` where it is
      described; ``sample`` a small config.json of it, without those two keys of its name.
    * ``multi_head``: without ``num_key_value_heads``, each query head has a KV head of its own.
    * ``windowed``: a ``sliding_window`` in the config is in force; others have a switch for it.
    * ``expert_size``: the key with the intermediate size of one routed expert ('' for a dense
      model), ``num_experts`` that of their number; ``shared_expert``: the width of the one beside
      them that transformers takes where the config leaves it out (None: there is none).
    * ``biases``: the projections that have them, if ``models/decoder.py`` can compute the family
      from tensors named as Llama's (None: it can be simulated only); ``qk_norm``: it normalises
      each query and key head.

    A family of other keys or shapes overrides :meth:`describe`. Cost models, the simulated devices
    and the KV cache follow from the ModelSpec that it returns.
    """

    architecture: ClassVar[str]
    source: ClassVar[str] = ""
    sample: ClassVar[Layout] = LAYOUT
    multi_head: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    expert_size: ClassVar[str] = ""
    num_experts: ClassVar[str] = "num_experts"
    shared_expert: ClassVar[int | None] = None
    biases: ClassVar[Biases | None] = None
    qk_norm: ClassVar[bool] = False

    def describe(self, config: ConfigDocument) -> ModelSpec:
        """The model that ``config`` describes. Raises InputError naming file, line and field for
        anything that a ModelSpec cannot say exactly.
        """
        self.refuse_unlike(config)
        hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
        # What a family takes where the key is missing differs, and is a fixed number in most.
        kv_heads = config.count("num_key_value_heads", heads if self.multi_head else None)
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
            dtypes=read_dtypes(config),
            moe=self._experts(config) if self.expert_size else None,
            source=config.source,
        )

    def refuse_unlike(self, config: ConfigDocument) -> None:
        """Refuse what a ModelSpec cannot say: sliding windows, other activations than SwiGLU's.

        A window bounds the KV cache and the attention cost of a layer; described as full attention,
        both would be overstated without a word. Windows that are off (all Qwen2.5 files) are fine.
        """
        data, wanted = config.data, self.architecture
        named = data.get("architectures")
        if named and (not isinstance(named, list) or wanted not in named):
            raise config.error("architectures", f"is {shown(named)}", f"Supported here: {wanted}")
        for key in _UNLIKE if self.expert_size else (*_UNLIKE, *_EXPERT_KEYS):
            if data.get(key):
                problem = f"is {shown(data[key])}: not an ordinary {data['model_type']} decoder"
                raise config.error(key, problem, "Only decoders of equal layers are modelled")
        hint = "Only full attention is modelled; switch the window off to simulate that instead"
        if config.flag("use_sliding_window"):
            raise config.error("use_sliding_window", "is true", hint)
        if self.windowed and data.get("sliding_window") is not None:
            window = config.count("sliding_window")
            longest = config.count("max_position_embeddings")
            if window < longest:
                problem = f"{window} is below the context {longest}"
                raise config.error("sliding_window", problem, hint)
        kinds = data.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise config.error("layer_types", "has layers other than full_attention", hint)
        activation = data.get("hidden_act", "silu")
        if activation not in _SILU:
            raise config.error(
                "hidden_act", f"is {shown(activation)}", "Only SwiGLU (silu) is modelled"
            )

    def _experts(self, config: ConfigDocument) -> MoeSpec:
        """The experts. Every layer must have them: a ModelSpec describes one kind of layer."""
        some = bool(config.data.get("mlp_only_layers"))
        if config.count("decoder_sparse_step", 1) != 1 or some:
            raise config.error(
                "mlp_only_layers" if some else "decoder_sparse_step",
                "mixes dense and expert layers",
                "Only models with experts in every layer are supported",
            )
        local = config.data.get("num_local_experts") is not None
        experts = config.count("num_local_experts" if local else self.num_experts)
        for other in ("num_experts", "num_local_experts"):
            if config.data.get(other) is not None and config.count(other) != experts:
                problem = f"is {config.count(other)}, but the other count of experts {experts}"
                raise config.error(other, problem, "Remove the wrong one")
        chosen, size = config.count("num_experts_per_tok"), config.count(self.expert_size)
        if chosen > experts:
            problem = f"{chosen} exceeds the {experts} experts"
            raise config.error("num_experts_per_tok", problem, "Correct one of them")
        # One wide shared expert costs exactly what several of the routed size do.
        shared = config.data.get("shared_expert_intermediate_size")
        missing = "shared_expert_intermediate_size" not in config.data
        if self.shared_expert is not None and missing:
            hint = (
                f"Add it (null for none): what is left out is {self.shared_expert} in this family"
            )
            raise config.error("shared_expert_intermediate_size", "is missing", hint)
        if shared and self.shared_expert is None:
            hint = "Only qwen2_moe has a shared expert"
            raise config.error("shared_expert_intermediate_size", f"is {shown(shared)}", hint)
        width = 0 if shared in (None, 0) else config.count("shared_expert_intermediate_size")
        if width % size:
            raise config.error(
                "shared_expert_intermediate_size",
                f"{width} is not a multiple of {self.expert_size} {size}",
                "Only such shared experts can be described",
            )
        return MoeSpec(
            num_experts=experts,
            experts_per_token=chosen,
            intermediate_size=size,
            num_shared_experts=width // size,
        )


def read_dtypes(config: ConfigDocument) -> Dtypes:
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


families = Registry("nexusbench.models.families", "model family", "ModelFamily")


def family_of(config: ConfigDocument) -> ModelFamily:
    """The family that ``model_type`` names. Raises InputError that names the known ones."""
    asked = config.data.get("model_type")
    known = {name.replace("-", "_"): name for name in families.names()}
    if not isinstance(asked, str) or asked.replace("-", "_") not in known:
        computed = computed_families()
        names = [*computed, *[name for name in known if name not in computed]]
        problem = "is missing" if asked is None else f"{shown(asked)} is not supported"
        raise config.error("model_type", problem, f"Supported: {', '.join(names)}")
    cls: type[ModelFamily] = families.load(known[asked.replace("-", "_")])
    check_declaration(cls)
    return cls()


def check_declaration(cls: type[ModelFamily]) -> None:
    """Raises UsageError naming the first attribute of a family's class that is missing or wrong."""
    name = f"model family {cls.__module__}.{cls.__qualname__}"
    if not isinstance(getattr(cls, "architecture", None), str):
        raise UsageError(f"{name} must declare 'architecture', a class name in config.json")
    if not isinstance(cls.sample, Mapping):
        raise UsageError(f"{name} must declare 'sample', the keys of a small config.json")
    if not isinstance(cls.biases, Biases | None):
        raise UsageError(f"{name} must declare 'biases' as Biases, or None")


def computed_families() -> list[str]:
    """The families that the decoder computes; one that does not load is none of them."""
    found = []
    for name in families.names():
        with suppress(UsageError):
            cls = families.load(name)
            check_declaration(cls)
            if cls.biases is not None:
                found.append(name.replace("-", "_"))
    return found
