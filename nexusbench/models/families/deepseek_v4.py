"""DeepSeek-V4."""

from __future__ import annotations

from typing import ClassVar

from nexusbench.core.mixers import CompressedAttention, Projection
from nexusbench.models.document import ConfigDocument, shown
from nexusbench.models.families.base import LAYOUT, Layout, ModelFamily
from nexusbench.models.module_names import ModuleNames, module_names
from nexusbench.models.reading import routed
from nexusbench.models.stacking import LayerPlan, Outside

_SPARSE, _HEAVY, _WINDOW = (
    "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention",
)  # fmt: skip


class DeepseekV4Family(ModelFamily):
    """DeepSeek-V4: one head of keys that are the values too, in a window and compressed beyond it;
    experts in every layer; hyper-connections instead of residuals.
    """

    architecture: ClassVar[str] = "DeepseekV4ForCausalLM"
    source: ClassVar[str] = "transformers, models/deepseek_v4"
    expert_size: ClassVar[str] = "moe_intermediate_size"
    names: ClassVar[ModuleNames] = module_names(
        ("attn", "self_attn"), ("ffn", "mlp"), ("ffn", "mlp")
    )
    reads: ClassVar[tuple[str, ...]] = (
        "q_lora_rank", "n_routed_experts", "n_shared_experts", "index_topk", "index_head_dim",
        "index_n_heads", "hc_mult", "compress_ratios",
    )  # fmt: skip
    defaults: ClassVar[Layout] = {
        "vocab_size": 129280, "hidden_size": 4096, "moe_intermediate_size": 2048,
        "num_hidden_layers": 43, "num_attention_heads": 64, "head_dim": 512, "q_lora_rank": 1024,
        "num_experts_per_tok": 6, "n_routed_experts": 256, "n_shared_experts": 1,
        "max_position_embeddings": 1048576, "hc_mult": 4, "sliding_window": 128, "o_groups": 8,
        "o_lora_rank": 1024, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512,
    }  # fmt: skip
    sample: ClassVar[Layout] = {
        **LAYOUT, "num_key_value_heads": 1, "head_dim": 64, "q_lora_rank": 96,
        "moe_intermediate_size": 192, "n_routed_experts": 8, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "hc_mult": 2, "sliding_window": 128, "o_groups": 2,
        "o_lora_rank": 64, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 64,
    }  # fmt: skip
    said: ClassVar[tuple[str, ...]] = (
        "Keys of the indexer are counted in fp8 with a scale, as servers keep them.",
        "What the compressors keep of unfinished entries is left out of a sequence's bytes.",
    )

    def layers(self, config: ConfigDocument, count: int) -> list[LayerPlan]:
        """Each layer: window, compression, indexer; experts in all of them."""
        shared = config.size("n_shared_experts") * config.count(self.expert_size)
        mlp = routed(config, count=("n_routed_experts",), size=self.expert_size, shared_size=shared)
        streams = config.count("hc_mult")
        hidden, mixed = config.count("hidden_size"), streams * (streams + 2)
        hyper = Projection("hyper_connection", streams * hidden, mixed, 2, "router")
        plans = []
        for ratio, picks in self.compression(config, count):
            mixer = self.mixer(config, ratio, picks)
            vectors = 2 * hidden + mixer.q_rank + mixer.head_dim + mixer.num_heads
            vectors += 2 * (mixed + 3)
            series = 2 if picks else 1
            if ratio:
                vectors += (series * ratio + 1) * mixer.head_dim
            if picks:
                vectors += (series * ratio + 1) * mixer.index_dim
            plans.append(LayerPlan(mixer=mixer, mlp=mlp, vectors=vectors, others=(hyper,)))
        return plans

    def mixer(self, config: ConfigDocument, ratio: int, picks: bool) -> CompressedAttention:
        """The attention of a layer of that compression."""
        heads, size, groups = (
            config.count("num_attention_heads"), config.count("head_dim"), config.count("o_groups"),
        )  # fmt: skip
        if (heads * size) % groups:
            problem = f"{groups} does not divide {heads} heads of {size}"
            raise config.error("o_groups", problem, "Correct one of them")
        return CompressedAttention(
            num_heads=heads, head_dim=size, q_rank=config.count("q_lora_rank"),
            groups=groups, out_rank=config.count("o_lora_rank"),
            window=config.count("sliding_window"), ratio=ratio,
            topk=config.count("index_topk") if picks else 0,
            index_heads=config.count("index_n_heads") if picks else 0,
            index_dim=config.count("index_head_dim") if picks else 0,
        )  # fmt: skip

    def compression(self, config: ConfigDocument, count: int) -> list[tuple[int, bool]]:
        """(tokens for one entry, whether an indexer picks entries) of each layer."""
        rates = {_SPARSE: 4, _HEAVY: 128, **self._rates(config)}
        kinds = config.listed("layer_types", count, (_SPARSE, _HEAVY, _WINDOW), longer=True)
        ratios = config.listed("compress_ratios", count, (0, 4, 128), longer=True)
        if kinds is None and ratios is not None:
            by_ratio = {0: _WINDOW, 4: _SPARSE, 128: _HEAVY}
            kinds = [by_ratio[ratio] for ratio in ratios if isinstance(ratio, int)]
        if kinds is None:
            kinds = [_SPARSE if index > 1 and index % 2 else _HEAVY for index in range(count)]
        return [(rates.get(str(kind), 0), kind == _SPARSE) for kind in kinds]

    def _rates(self, config: ConfigDocument) -> dict[str, int]:
        given = config.data.get("compress_rates") or {}
        if not isinstance(given, dict) or not all(
            isinstance(rate, int) and 0 < rate <= 65_536 for rate in given.values()
        ):
            hint = "Give an object of positive integers"
            raise config.error("compress_rates", f"is {shown(given)}", hint)
        return {str(key): int(rate) for key, rate in given.items()}

    def outside(self, config: ConfigDocument) -> Outside:
        """As usual, and the head of the hyper-connections."""
        streams, hidden = config.count("hc_mult"), config.count("hidden_size")
        usual = super().outside(config)
        extra = streams * streams * hidden + streams + 1
        return Outside(
            hidden_size=hidden, vocab_size=usual.vocab_size, max_model_len=usual.max_model_len,
            tie_word_embeddings=usual.tie_word_embeddings, vectors=usual.vectors + extra,
            said=usual.said,
        )  # fmt: skip
