"""Parts of layers that many families share, read from the keys of their config.json."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.layers import ExpertsMlp
from nexusbench.core.mixers import FullAttention, LatentAttention, WindowAttention
from nexusbench.models.document import ConfigDocument, shown

FULL, SLIDING, CHUNKED, LINEAR = (
    "full_attention", "sliding_attention", "chunked_attention", "linear_attention",
)  # fmt: skip


def grouped_heads(config: ConfigDocument, multi_head: bool = False) -> tuple[int, int, int]:
    """(query heads, KV heads, size of a head). With ``multi_head`` each query head has a KV head of
    its own where their number is missing. Raises InputError if they do not fit one another.
    """
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    # What a family takes where the key is missing differs, and is a fixed number in most.
    kv_heads = config.count("num_key_value_heads", heads if multi_head else None)
    check_kv_heads(config, "num_key_value_heads", heads, kv_heads)
    if config.data.get("head_dim") is None and hidden % heads:
        raise config.error(
            "num_attention_heads",
            f"{heads} does not divide hidden_size {hidden} and head_dim is not given",
            "Add head_dim, or correct one of the two",
        )
    return heads, kv_heads, config.count("head_dim", hidden // heads or None)


def check_kv_heads(config: ConfigDocument, field: str, heads: int, kv_heads: int) -> None:
    """Raises InputError unless ``kv_heads`` divides the query heads."""
    if heads % kv_heads:
        raise config.error(
            field,
            f"{kv_heads} does not divide the {heads} attention heads",
            "Each KV head must serve the same number of query heads",
        )


def in_window(
    config: ConfigDocument, mixer: FullAttention, window: int, chunked: bool = False
) -> FullAttention:
    """``mixer`` over a window; over everything if that is no shorter than the context (0: none)."""
    if not window or window >= config.count("max_position_embeddings"):
        return mixer
    return WindowAttention(
        num_heads=mixer.num_heads, num_kv_heads=mixer.num_kv_heads, head_dim=mixer.head_dim,
        value_dim=mixer.value_dim, gate=mixer.gate, keys_are_values=mixer.keys_are_values,
        shares_kv=mixer.shares_kv, window=window, chunked=chunked,
    )  # fmt: skip


def attention_vectors(
    mixer: FullAttention,
    hidden: int,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: bool = False,
) -> int:
    """Parameters of one layer's attention that are in no matrix: biases, norms of each query and
    key head.
    """
    made = 0
    if qkv_bias:
        made += mixer.num_heads * mixer.head_dim + mixer.token_values
    if output_bias:
        made += hidden
    if qk_norm:
        made += 2 * mixer.head_dim
    return made


def latent(config: ConfigDocument, gate: int = 0) -> tuple[LatentAttention, int]:
    """Multi-head latent attention under the keys of DeepSeek-V2, and the parameters of its norms
    and biases.
    """
    heads, rank = config.count("num_attention_heads"), config.size("q_lora_rank")
    made = LatentAttention(
        num_heads=heads,
        q_rank=rank,
        kv_rank=config.count("kv_lora_rank"),
        nope_dim=config.count("qk_nope_head_dim"),
        rope_dim=config.count("qk_rope_head_dim"),
        value_dim=config.count("v_head_dim"),
        gate=gate,
    )
    vectors = rank + made.kv_rank
    if config.flag("attention_bias"):
        vectors += rank + made.kv_rank + made.rope_dim + config.count("hidden_size")
    return made, vectors


def expert_count(config: ConfigDocument, *fields: str) -> int:
    """The number of routed experts under any of ``fields``, which agree where several say it."""
    said = [field for field in fields if config.data.get(field) is not None] or [fields[0]]
    experts = config.count(said[0])
    for other in said[1:]:
        if config.count(other) != experts:
            problem = f"is {config.count(other)}, but the other count of experts {experts}"
            raise config.error(other, problem, "Remove the wrong one")
    return experts


def routed(
    config: ConfigDocument,
    *,
    count: Sequence[str],
    chosen: str = "num_experts_per_tok",
    size: str = "moe_intermediate_size",
    shared_size: int = 0,
) -> ExpertsMlp:
    """Routed experts whose number, size and number per token stand under those keys."""
    experts, per_token = expert_count(config, *count), config.count(chosen)
    if per_token > experts:
        problem = f"{per_token} exceeds the {experts} experts"
        raise config.error(chosen, problem, "Correct one of them")
    return ExpertsMlp(
        num_experts=experts, experts_per_token=per_token, intermediate_size=config.count(size),
        shared_size=shared_size,
    )  # fmt: skip


def dense_first(config: ConfigDocument, layers: int, field: str = "first_k_dense_replace") -> int:
    """How many layers before the first with experts; at most all."""
    return min(config.size(field), layers)


def layer_kinds(
    config: ConfigDocument, layers: int, usual: Sequence[str], known: Sequence[str] = ()
) -> list[str]:
    """``layer_types`` of ``known`` kinds (None: full and sliding), or ``usual`` where missing."""
    listed = config.listed("layer_types", layers, tuple(known or (FULL, SLIDING)))
    return [str(kind) for kind in (listed if listed is not None else usual)]


def refuse(config: ConfigDocument, field: str, allowed: Sequence[object], hint: str) -> None:
    """Raises InputError if ``field`` is there and not one of ``allowed``."""
    value = config.data.get(field)
    if value is not None and value not in allowed:
        raise config.error(field, f"is {shown(value)}", hint)
