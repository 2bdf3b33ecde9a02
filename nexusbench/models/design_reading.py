"""Designs that many families share, read from the keys of their config.json."""

from __future__ import annotations

from msgspec import structs

from nexusbench.core.layers import DenseMlp, ExpertsMlp
from nexusbench.core.mixers import FullAttention, LatentAttention, Mixer, WindowAttention
from nexusbench.kernels.gates import Gate, GateKind
from nexusbench.kernels.ropes import Rope
from nexusbench.kernels.routing import Routing
from nexusbench.models.designs import DenseDesign, ExpertsDesign, GroupedDesign, LatentDesign
from nexusbench.models.document import ConfigDocument
from nexusbench.models.reading import refuse
from nexusbench.models.ropes import rope_of, rotary_dim, score_factor

_GATES: dict[object, GateKind] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}  # fmt: skip


class NotComputed(Exception):
    """A part of a layer that only simulations can have, in a few words."""


def gate_of(config: ConfigDocument, field: str = "hidden_act", usual: str = "silu") -> Gate:
    """The gate that ``field`` names, which the family has accepted."""
    return Gate(_GATES[config.data.get(field) or usual])


def grouped_design(
    config: ConfigDocument,
    mixer: Mixer | None,
    rope: Rope | None = None,
    *,
    partial: bool = False,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: bool = False,
) -> GroupedDesign:
    """Grouped-query attention over the whole context or a window. With ``partial`` the config may
    say that a part of each head is rotated. Raises NotComputed for other kinds.
    """
    if not isinstance(mixer, FullAttention):
        raise NotComputed("layers without attention" if mixer is None else mixer.label)
    window = mixer.window if isinstance(mixer, WindowAttention) else 0
    if isinstance(mixer, WindowAttention) and mixer.chunked:
        raise NotComputed(mixer.label)
    if mixer.gate or mixer.keys_are_values or mixer.shares_kv or mixer.value_size != mixer.head_dim:
        raise NotComputed(mixer.label)
    if not partial:
        inner = [config.data.get(field) for field in ("rope_parameters", "rope_scaling")]
        ropes = [one for one in inner if isinstance(one, dict)]
        of_kinds = [one for rope in ropes for one in rope.values() if isinstance(one, dict)]
        for where in (config.data, *ropes, *of_kinds):
            if where.get("partial_rotary_factor") not in (None, 1):
                hint = "Only full rope is computed of this family"
                raise config.error("partial_rotary_factor", "is not 1", hint)
    dim = rotary_dim(config, mixer.head_dim)
    return GroupedDesign(
        num_heads=mixer.num_heads, num_kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim,
        scale=mixer.head_dim**-0.5, rope=rope or rope_of(config, dim), rotary_dim=dim,
        window=window, qkv_bias=qkv_bias, output_bias=output_bias, qk_norm=qk_norm,
    )  # fmt: skip


def latent_design(config: ConfigDocument, mixer: Mixer | None, *, neighbours: bool) -> LatentDesign:
    """Latent attention under the keys of DeepSeek. Raises NotComputed for other kinds."""
    if not isinstance(mixer, LatentAttention) or mixer.gate:
        raise NotComputed("layers without attention" if mixer is None else mixer.label)
    if mixer.rope_dim % 2:
        raise config.error("qk_rope_head_dim", f"{mixer.rope_dim} is odd", "RoPE rotates pairs")
    sizes = {
        name: getattr(mixer, name)
        for name in ("num_heads", "q_rank", "kv_rank", "nope_dim", "rope_dim", "value_dim")
    }
    return LatentDesign(
        **sizes,
        scale=(mixer.nope_dim + mixer.rope_dim) ** -0.5 * score_factor(config),
        rope=rope_of(config, mixer.rope_dim),
        neighbours=neighbours,
        norm_eps=1e-6,  # of these two norms whatever rms_norm_eps is (models/deepseek_v3)
        bias=config.flag("attention_bias"),
    )


def mlp_design(
    mlp: DenseMlp | ExpertsMlp | None, gate: Gate, routing: Routing | None, bias: bool = False
) -> DenseDesign | ExpertsDesign:
    """A dense part, or experts that ``routing`` picks. Raises NotComputed for other kinds."""
    if isinstance(mlp, DenseMlp) and mlp.gated:
        return DenseDesign(size=mlp.intermediate_size, gate=gate, bias=bias)
    unlike = not isinstance(mlp, ExpertsMlp) or mlp.latent or mlp.dense_size or not mlp.gated
    if unlike or routing is None:
        raise NotComputed("layers without a feed-forward part" if mlp is None else mlp.label)
    assert isinstance(mlp, ExpertsMlp)
    return ExpertsDesign(
        num_experts=mlp.num_experts, size=mlp.intermediate_size, gate=gate, bias=bias,
        routing=structs.replace(routing, chosen=mlp.experts_per_token),
        shared_size=mlp.shared_size,
    )  # fmt: skip


def refuse_other_routing(config: ConfigDocument, normalised: bool = False) -> None:
    """Refuse ways of picking experts that transformers does not heed where experts are picked by
    their softmax: other scores, the best groups, a factor. With ``normalised`` their weights always
    sum up to 1. Raises InputError.
    """
    hint = "Experts are picked by their softmax in this family"
    refuse(config, "scoring_func", ("softmax",), hint)
    refuse(config, "topk_method", ("greedy",), hint)
    refuse(config, "n_group", (0, 1), "Experts are picked among all in this family")
    refuse(config, "routed_scaling_factor", (1,), "Experts have no other factor in this family")
    if normalised:
        hint = "The weights of the chosen experts sum up to 1 in this family"
        refuse(config, "norm_topk_prob", (True,), hint)


def grouped_routing(config: ConfigDocument, routing: Routing, experts: int) -> Routing:
    """``routing`` within the best groups of experts, as ``n_group`` and ``topk_group`` say."""
    groups, best = config.size("n_group"), config.size("topk_group")
    if groups <= 1:
        return routing
    of = experts // groups
    if experts % groups or (routing.group_score == "two" and of < 2):
        hint = f"It must divide the {experts} experts into groups of two or more"
        raise config.error("n_group", f"is {groups}", hint)
    if not 0 < best <= groups or best * of < routing.chosen:
        hint = f"These groups must exist and have {routing.chosen} experts or more"
        raise config.error("topk_group", f"is {best} of {groups}", hint)
    return structs.replace(routing, groups=groups, best_groups=best)
