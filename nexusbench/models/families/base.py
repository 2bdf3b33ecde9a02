"""The family seam: from the keys of a config.json to the layers, heads and KV of a decoder."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from contextlib import suppress
from typing import ClassVar

import msgspec

from nexusbench.core.errors import UsageError
from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import FullAttention, Mixer
from nexusbench.core.registry import Registry
from nexusbench.core.specs import ModelSpec
from nexusbench.kernels.gates import Gate
from nexusbench.kernels.routing import Routing
from nexusbench.models.context import context_of
from nexusbench.models.design_reading import (
    gate_of,
    grouped_design,
    mlp_design,
    refuse_other_routing,
)
from nexusbench.models.designs import (
    DenseDesign,
    Edges,
    ExpertsDesign,
    GroupedDesign,
    LatentDesign,
    LayerDesign,
)
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.module_names import USUAL, ModuleNames
from nexusbench.models.reading import (
    FULL,
    SLIDING,
    attention_vectors,
    grouped_heads,
    in_window,
    layer_kinds,
    routed,
)
from nexusbench.models.stacking import LayerPlan, Outside, stack_up

__all__ = [
    "LAYOUT",
    "Biases",
    "Layout",
    "ModelFamily",
    "check_declaration",
    "computed_families",
    "families",
    "family_of",
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
# Of a multi-modal config what counts for its decoder where it stands beside it.
_OUTER = ("quantization_config", "compression_config", "tie_word_embeddings")
_DTYPES = ("dtype", "torch_dtype")  # that of the whole, where the decoder says none
_TOWERS = ("vision_config", "audio_config")
_DRAFTS = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers")
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
    "attn_layer_period", "zero_expert_num", "moe_latent_size", "routed_expert_hidden_size",
    "attn_output_gate", "attention_output_gate", "hidden_size_per_layer_input", "hc_mult",
    "compress_ratios", "attn_res_block_size", "hybrid_layer_pattern", "mamba_num_heads",
    "mamba_d_state", "ssm_state_size", "index_head_dim", "attention_k_eq_v", "enable_moe_block",
    "linear_num_value_heads", "moe_layers_enum", "attention_other_setting", "mlp_only_layers",
    "decoder_sparse_step",
)  # fmt: skip
_USUAL = {"decoder_sparse_step": 1}  # values of such keys that are off, too
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

    Most decoders have layers of grouped-query attention and SwiGLU or experts under the keys of
    Llama's config.json, some of them with a window. :meth:`describe` reads those; what differs a
    subclass declares, or says of each layer in :meth:`layers`:

    * ``architecture``: the class in ``architectures`` that this is (``also``: others); ``source``
      where it is described; ``sample`` a small config.json of it, without those two keys of its
      name; ``defaults`` what transformers takes for keys that are missing.
    * ``inner``: the key of the object that describes the decoder of a multi-modal model
      (``flat``: older configs have its keys beside those of the towers); ``said`` what else a
      description leaves out, one sentence each.
    * ``reads``: keys of other decoders (``_UNLIKE``) that this family understands.
    * ``multi_head``: without ``num_key_value_heads``, each query head has a KV head of its own.
    * ``windowed``: a ``sliding_window`` in the config is in force; others have a switch for it.
    * ``expert_size``: the key with the intermediate size of one routed expert ('' for a dense
      model), ``num_experts`` that of their number; ``shared_expert``: the width of the one beside
      them that transformers takes where the config leaves it out (None: there is none).
    * ``activations``: names of the activation function that its feed-forward part may have.
    * ``biases``: the projections that have them, if ``models/decoder.py`` can compute the family
      (None: it can be simulated only); ``biased_qkv`` says of such a one that queries, keys and
      values have them; ``qk_norm``: it normalises each query and key head. How a computed layer
      differs from Llama's, in what it does and what its tensors are called, :meth:`design` and
      the methods below it say.
    * ``prefix``: what stands before the names of a computed decoder's tensors.
    * ``names``: how checkpoints call its matrices, for what a quantiser excludes.

    Cost models, the simulated devices and the KV cache follow from the ModelSpec that it returns.
    """

    architecture: ClassVar[str]
    also: ClassVar[tuple[str, ...]] = ()
    source: ClassVar[str] = ""
    sample: ClassVar[Layout] = LAYOUT
    defaults: ClassVar[Layout] = {}
    inner: ClassVar[str] = ""
    flat: ClassVar[bool] = False
    said: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    multi_head: ClassVar[bool] = False
    windowed: ClassVar[bool] = False
    expert_size: ClassVar[str] = ""
    num_experts: ClassVar[str] = "num_experts"
    shared_expert: ClassVar[int | None] = None
    activations: ClassVar[tuple[str, ...]] = _SILU
    biases: ClassVar[Biases | None] = None
    biased_qkv: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = False
    prefix: ClassVar[str] = ""
    names: ClassVar[ModuleNames] = USUAL

    def describe(self, config: ConfigDocument) -> ModelSpec:
        """The model that ``config`` describes. Raises InputError naming file, line and field for
        anything that a ModelSpec cannot say exactly.
        """
        self.check_architecture(config)
        inner = self.decoder_of(config)
        self.refuse_unlike(inner)
        plans = self.layers(inner, inner.count("num_hidden_layers"))
        return stack_up(inner, plans, self.outside(inner), self.names)

    def decoder_of(self, config: ConfigDocument) -> ConfigDocument:
        """The part of ``config`` that describes the decoder, with defaults."""
        if self.flat and config.data.get(self.inner) is None:
            config = config.replaced(dict.fromkeys(_TOWERS))
        elif self.inner:
            said = {key: config.data[key] for key in _DTYPES if config.data.get(key) is not None}
            config = config.part(self.inner, _OUTER)
            if all(config.data.get(key) is None for key in _DTYPES):
                config = config.replaced(said)
        return config.with_defaults(self.defaults)

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each of ``count`` layers, first one first."""
        windows, sparse = self.windows(config, count), self.sparse(config, count)
        mixer = self.attention(config)
        mlps: dict[bool, DenseMlp | ExpertsMlp] = {}
        if any(sparse):
            mlps[True] = self.experts(config)
        if not all(sparse):
            mlps[False] = DenseMlp(intermediate_size=config.count("intermediate_size"))
        elif self.expert_size != "intermediate_size":
            config.count("intermediate_size", 1)  # of no layer
        vectors = self.vectors(config, mixer)
        return [
            LayerPlan(mixer=in_window(config, mixer, window), mlp=mlps[of_experts], vectors=vectors)
            for window, of_experts in zip(windows, sparse, strict=True)
        ]

    def attention(self, config: ConfigDocument) -> FullAttention:
        """Grouped-query attention of a layer, without its window."""
        heads, kv_heads, head_dim = grouped_heads(config, self.multi_head)
        return FullAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)

    def vectors(self, config: ConfigDocument, mixer: FullAttention) -> int:
        """Parameters of a layer that are in no matrix: two norms, biases."""
        hidden, (qkv, output, mlp) = config.count("hidden_size"), self.biased(config)
        made = 2 * hidden + attention_vectors(
            mixer, hidden, qkv_bias=qkv, output_bias=output, qk_norm=self.qk_norm
        )
        if mlp:
            made += 2 * config.size("intermediate_size") + hidden
        return made

    def biased(self, config: ConfigDocument) -> tuple[bool, bool, bool]:
        """Whether queries, keys and values, the output, and the dense part have biases."""
        biases = self.biases or Biases(qkv=self.biased_qkv or None, output=None, mlp=None)
        attention, mlp = config.flag("attention_bias"), config.flag("mlp_bias")
        return (
            attention if biases.qkv is None else biases.qkv,
            attention if biases.output is None else biases.output,
            mlp if biases.mlp is None else biases.mlp,
        )

    def design(self, config: ConfigDocument, index: int, plan: LayerPlan) -> LayerDesign:
        """How layer ``index`` of a computed family is computed. Raises NotComputed for what is
        described only, InputError for keys that have no meaning.
        """
        return LayerDesign(
            attention=self.attention_design(config, index, plan.mixer),
            mlp=self.mlp_design(config, plan.mlp),
        )

    def attention_design(
        self, config: ConfigDocument, index: int, mixer: Mixer | None
    ) -> GroupedDesign | LatentDesign:
        """The attention of layer ``index``."""
        qkv, output, _ = self.biased(config)
        return grouped_design(config, mixer, qkv_bias=qkv, output_bias=output, qk_norm=self.qk_norm)

    def mlp_design(
        self, config: ConfigDocument, mlp: DenseMlp | ExpertsMlp | None
    ) -> DenseDesign | ExpertsDesign:
        """The feed-forward part."""
        dense = isinstance(mlp, DenseMlp) and self.biased(config)[2]
        made = mlp_design(mlp, self.gate(config), self.routing(config), bias=dense)
        return self.experts_design(config, made) if isinstance(made, ExpertsDesign) else made

    def experts_design(self, config: ConfigDocument, made: ExpertsDesign) -> ExpertsDesign:
        """Its experts, from ``made`` as Qwen3 has them."""
        return made

    def gate(self, config: ConfigDocument) -> Gate:
        """The gate of its feed-forward parts."""
        return gate_of(config)

    def routing(self, config: ConfigDocument) -> Routing:
        """How experts are picked; how many is in their description."""
        if self.expert_size:
            refuse_other_routing(config)
        return Routing(0, normalised=config.flag("norm_topk_prob"))

    def edges(self, config: ConfigDocument) -> Edges:
        """What is done before and after its layers, and in its norms."""
        return Edges()

    def windows(self, config: ConfigDocument, count: int) -> list[int]:
        """The window of each layer in tokens, 0 where it sees everything."""
        usual, window = [FULL] * count, 0
        if self.windowed:
            window = config.size("sliding_window")
            usual = [SLIDING if window else FULL] * count
        elif config.flag("use_sliding_window"):
            window = config.count("sliding_window", 4096)
            below = min(config.size("max_window_layers", 28), count)
            usual = [FULL] * below + [SLIDING] * (count - below)
        kinds = layer_kinds(config, count, usual)
        if SLIDING in kinds and not window:
            window = config.count("sliding_window")
        return [window if kind == SLIDING else 0 for kind in kinds]

    def sparse(self, config: ConfigDocument, count: int) -> list[bool]:
        """Whether each layer has experts."""
        if not self.expert_size:
            return [False] * count
        step, listed = config.count("decoder_sparse_step", 1), config.data.get("mlp_only_layers")
        if listed is not None and not (
            isinstance(listed, list) and all(isinstance(one, int) for one in listed)
        ):
            problem = f"is {shown(listed)}, not a list of layers"
            raise config.error("mlp_only_layers", problem, "Give numbers of layers, from 0")
        dense = set(listed or ())
        return [(index + 1) % step == 0 and index not in dense for index in range(count)]

    def experts(self, config: ConfigDocument) -> ExpertsMlp:
        """The experts of a layer that has them."""
        fields = (self.num_experts, "num_experts", "num_local_experts")
        made = routed(config, count=tuple(dict.fromkeys(fields)), size=self.expert_size)
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
        width = config.size("shared_expert_intermediate_size")
        return msgspec.structs.replace(made, shared_size=width)

    def outside(self, config: ConfigDocument) -> Outside:
        """Embeddings, context, and what is left out."""
        return Outside(
            hidden_size=config.count("hidden_size"),
            vocab_size=config.count("vocab_size"),
            max_model_len=context_of(config),
            tie_word_embeddings=config.flag("tie_word_embeddings"),
            vectors=config.count("hidden_size"),
            said=(*self.said, *left_out(config, bool(self.inner))),
        )

    def check_architecture(self, config: ConfigDocument) -> None:
        """Refuse a config of another class."""
        named, wanted = config.data.get("architectures"), (self.architecture, *self.also)
        if named and (not isinstance(named, list) or not any(one in wanted for one in named)):
            hint = f"Supported here: {', '.join(wanted)}"
            raise config.error("architectures", f"is {shown(named)}", hint)

    def refuse_unlike(self, config: ConfigDocument) -> None:
        """Refuse keys that make a decoder another one than this family reads, and other activation
        functions. Described as what they are not, cost and memory would be wrong without a word.
        """
        keys = _UNLIKE if self.expert_size else (*_UNLIKE, *_EXPERT_KEYS)
        for key in keys:
            value = config.data.get(key)
            if value and value != _USUAL.get(key) and key not in self.reads:
                kind = config.data.get("model_type")
                problem = f"is {shown(value)}: not an ordinary {shown(kind)} decoder"
                raise config.error(key, problem, "This family has no such layers")
        for key in ("hidden_act", "hidden_activation"):
            activation = config.data.get(key)
            if activation is not None and activation not in self.activations:
                what = "SwiGLU (silu)" if "silu" in self.activations else self.activations[0]
                raise config.error(key, f"is {shown(activation)}", f"Only {what} is modelled")


def left_out(config: ConfigDocument, multi_modal: bool) -> tuple[str, ...]:
    """What is not described of a model, in sentences."""
    found = []
    if multi_modal:
        found.append("Only the text decoder is described: towers for other inputs are left out.")
    for key in _DRAFTS:
        value = config.data.get(key)
        if isinstance(value, int) and value > 0:
            found.append(f"Layers for multi-token prediction ({key}: {value}) are left out.")
            break
    return tuple(found)


families = Registry("nexusbench.models.families", "model family", "ModelFamily")


def family_of(config: ConfigDocument) -> ModelFamily:
    """The family that ``model_type`` names. Raises InputError that names the known ones."""
    asked = config.data.get("model_type")
    known = {name.replace("-", "_"): name for name in families.names()}
    if not isinstance(asked, str) or asked.replace("-", "_") not in known:
        computed = computed_families()
        problem = "is missing" if asked is None else f"{shown(asked)} is not supported"
        hint = f"Supported: {', '.join(computed)} and {len(known) - len(computed)} others that "
        hint += "'nexusbench list model-families' names"
        raise config.error("model_type", problem, hint)
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
