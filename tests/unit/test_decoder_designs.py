"""How layers of families beyond dense decoders are computed, read from config.json; refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.layers import DenseMlp
from nexusbench.core.mixers import FullAttention
from nexusbench.kernels.gates import Gate
from nexusbench.kernels.ropes import Rope
from nexusbench.kernels.routing import Routing
from nexusbench.models.architecture import (
    DecoderConfig,
    load_decoder_config,
    require_ordinary,
)
from nexusbench.models.designs import Edges, ExpertsDesign, GroupedDesign, LatentDesign
from nexusbench.models.families.base import families
from nexusbench.models.stacking import LayerPlan

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def sample(tmp_path: Path, family: str, **changes: object) -> Path:
    """The family's own sample with some keys changed."""
    cls = families.load(family.replace("_", "-"))
    config = {"model_type": family, **cls.sample, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def decoder(tmp_path: Path, family: str, **changes: object) -> DecoderConfig:
    return load_decoder_config(sample(tmp_path, family, **changes))


def grouped(config: DecoderConfig, index: int = 0) -> GroupedDesign:
    found = config.layers[index].attention
    assert isinstance(found, GroupedDesign)
    return found


def latents(config: DecoderConfig) -> LatentDesign:
    found = config.layers[0].attention
    assert isinstance(found, LatentDesign)
    return found


def experts(config: DecoderConfig, index: int = -1) -> ExpertsDesign:
    found = config.layers[index].mlp
    assert isinstance(found, ExpertsDesign)
    return found


def test_mixtral(tmp_path: Path) -> None:
    config = decoder(tmp_path, "mixtral", sliding_window=100)
    assert not config.ordinary
    assert [grouped(config, i).window for i in range(4)] == [100] * 4
    assert grouped(config).rope == Rope(theta=1e6)
    found = experts(config)
    assert found.routing == Routing(2, normalised=True)
    assert (found.module, found.matrices) == ("block_sparse_moe", ("w1", "w3", "w2"))
    assert (found.num_experts, found.size, config.rms_norm_eps) == (8, 768, 1e-5)
    said = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    assert decoder(tmp_path, "mixtral", sliding_window=100, **said).layers == config.layers


def test_qwen2_moe(tmp_path: Path) -> None:
    config = decoder(tmp_path, "qwen2_moe", mlp_only_layers=[1], norm_topk_prob=True)
    assert [isinstance(layer.mlp, ExpertsDesign) for layer in config.layers] == [
        True, False, True, True,
    ]  # fmt: skip
    found = experts(config)
    assert (found.shared, found.shared_size, found.shared_gate) == ("shared_expert", 768, True)
    assert found.routing == Routing(2, normalised=True)
    assert grouped(config).qkv_bias
    assert not grouped(config).output_bias
    assert not grouped(decoder(tmp_path, "qwen2_moe", qkv_bias=False)).qkv_bias


def test_gpt_oss(tmp_path: Path) -> None:
    config = decoder(tmp_path, "gpt_oss", swiglu_limit=5.0)
    first, second = grouped(config), grouped(config, 1)
    assert (first.window, second.window) == (128, 0)
    assert first.sinks
    assert first.qkv_bias
    assert first.output_bias
    rope = first.rope  # none in the config: what transformers takes then
    assert (rope.kind, rope.theta, rope.factor, rope.truncate) == ("yarn", 150000.0, 32.0, False)
    assert rope.magnitude == pytest.approx(1.3465735902799727)
    found = experts(config)
    assert found.gate == Gate("clamped", alpha=1.702, limit=5.0)
    assert found.routing == Routing(2, scores="chosen")
    assert found.stacked
    assert found.bias
    assert found.router == "router"
    plain = decoder(tmp_path, "gpt_oss", rope_parameters={"rope_type": "default"})
    assert grouped(plain).rope == Rope(theta=150000.0)


def test_gemma2(tmp_path: Path) -> None:
    config = decoder(tmp_path, "gemma2", query_pre_attn_scalar=144, final_logit_softcapping=None)
    assert [grouped(config, i).window for i in range(4)] == [512, 0, 512, 0]
    assert grouped(config).scale == pytest.approx(1 / 12)
    assert grouped(config).soft_cap == 50
    assert config.edges == Edges(embedding_scale=16.0, logit_cap=0.0, unit_offset=True)
    assert all(layer.sandwiched for layer in config.layers)
    assert config.layers[0].mlp.gate == Gate("gelu_tanh")
    exact = decoder(tmp_path, "gemma2", hidden_activation="gelu")
    assert exact.layers[0].mlp.gate == Gate("gelu")


def test_gemma1_norms_once_and_takes_tanh(tmp_path: Path) -> None:
    config = decoder(tmp_path, "gemma", hidden_activation=None, hidden_act="gelu")
    assert not config.layers[0].sandwiched
    assert config.layers[0].mlp.gate == Gate("gelu_tanh")
    assert grouped(config).soft_cap == 0
    assert config.edges.unit_offset


@pytest.mark.parametrize(
    "spelling",
    [
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 5e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            }
        },
    ],
)
def test_gemma3_has_a_rope_for_each_kind(tmp_path: Path, spelling: dict[str, Any]) -> None:
    config = decoder(tmp_path, "gemma3_text", sliding_window=5000, **spelling)
    ropes = [grouped(config, i).rope for i in range(6)]
    assert ropes[:5] == [Rope(theta=5e3)] * 5  # also where the window holds the whole context
    assert ropes[5] == Rope(theta=2e6, kind="linear", factor=8.0)
    assert grouped(config).qk_norm
    assert grouped(config).window == 0


def test_deepseek_v3(tmp_path: Path) -> None:
    scaling = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
    config = decoder(tmp_path, "deepseek_v3", rope_scaling=scaling, rope_interleave=False)
    found = latents(config)
    grown = 0.1 * 1.3862943611198906 + 1
    assert found.scale == pytest.approx(48**-0.5 * grown**2)
    assert found.rope.magnitude == pytest.approx(1.0)
    assert not found.neighbours
    assert (found.kv_rank, found.rope_dim, found.q_rank) == (64, 16, 96)
    assert config.kv_values == 4 * (64 + 16)
    assert experts(config).routing == Routing(
        2, scores="sigmoid", normalised=True, scale=2.5, groups=2, best_groups=1,
        group_score="two", corrected=True,
    )  # fmt: skip
    assert not isinstance(config.layers[0].mlp, ExpertsDesign)


def test_deepseek_v2(tmp_path: Path) -> None:
    changes = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
    config = decoder(tmp_path, "deepseek_v2", **changes, q_lora_rank=None)
    assert latents(config).q_rank == 0
    assert latents(config).neighbours
    assert experts(config).routing == Routing(2, scale=16.0)
    limited = decoder(tmp_path, "deepseek_v2", **changes, topk_method="group_limited_greedy")
    assert experts(limited).routing == Routing(2, scale=16.0, groups=4, best_groups=2)
    assert experts(limited).shared == "shared_experts"


def test_phi3(tmp_path: Path) -> None:
    config = decoder(tmp_path, "phi3", sliding_window=None)
    assert config.ordinary
    assert grouped(config).fused
    assert config.layers[0].mlp.fused
    for scaling in (
        {"partial_rotary_factor": 0.5},
        {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ):
        assert grouped(decoder(tmp_path, "phi3", **scaling)).rotary_dim == 16


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_longrope_ends_where_it_has_other_frequencies(tmp_path: Path, kind: str) -> None:
    short = [1.0 + i / 8 for i in range(16)]
    scaling = {"type": kind, "short_factor": short, "long_factor": [8.0] * 16}
    config = decoder(tmp_path, "phi3", rope_scaling=scaling, original_max_position_embeddings=1024)
    rope = grouped(config).rope
    assert (rope.kind, rope.divisors, rope.longest) == ("longrope", tuple(short), 1024)
    assert rope.magnitude == pytest.approx((1 + 1.3862943611198906 / 6.931471805599453) ** 0.5)
    assert config.longest == 1024


def test_longrope_is_refused_where_its_end_is_not_heeded(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "short_factor": [1.5] * 16, "long_factor": [8.0] * 16}
    changes = {"sliding_window": None, "original_max_position_embeddings": 1024}
    config = decoder(tmp_path, "phi3", rope_scaling=scaling, **changes)
    assert config.ordinary
    with pytest.raises(UsageError, match=r"LongRoPE has other frequencies beyond 1,024 tokens"):
        require_ordinary(config, "--device cuda")


def test_windows_of_dense_families_are_computed(tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}
    config = decoder(tmp_path, "qwen2", **changes)
    assert [grouped(config, i).window for i in range(4)] == [0, 0, 64, 64]
    assert not config.ordinary
    with pytest.raises(UsageError, match="--device cuda computes dense models of full attention"):
        require_ordinary(config, "--device cuda")
    require_ordinary(decoder(tmp_path, "qwen2"), "--device cuda")


@pytest.mark.parametrize(
    ("mixer", "mlp", "problem"),
    [
        ({"gate": 256}, {}, "full GQA 8/2 x 32"),
        ({"value_dim": 16}, {}, "full GQA 8/2 x 32/16"),
        ({}, {"gated": False}, "dense 768, not gated"),
    ],
)
def test_parts_that_are_described_only(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixer: dict[str, Any],
    mlp: dict[str, Any],
    problem: str,
) -> None:
    """As a family of another package may have them."""

    def layers(self: object, config: object, count: int) -> list[LayerPlan]:
        attention = FullAttention(num_heads=8, num_kv_heads=2, head_dim=32, **mixer)
        return [LayerPlan(mixer=attention, mlp=DenseMlp(intermediate_size=768, **mlp))] * count

    monkeypatch.setattr(families.load("llama"), "layers", layers)
    wanted = f"'llama' has {problem}, which is described but not computed. With real tokens: deep"
    with pytest.raises(InputError, match=re.escape(wanted)):
        decoder(tmp_path, "llama")


REFUSED: list[tuple[str, dict[str, object], str, str]] = [
    (
        "deepseek_v32", {}, "model_type",
        "'deepseek_v32' is described but not computed: top 64 of MLA 8 heads, latent 64+16",
    ),
    (
        "qwen3_next", {}, "model_type",
        "'qwen3_next' is described but not computed: gated delta net, state 8 x 32 x 32. With real",
    ),
    ("kimi_k2", {}, "model_type", "'kimi_k2' is described but not computed. With real tokens:"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention", "is true"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping", "holds no scores"),
    ("gemma", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping", "holds no scores"),
    ("gemma", {"final_logit_softcapping": 30.0}, "final_logit_softcapping", "holds no logits"),
    ("gemma", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar", "by the size of a head"),
    (
        "gemma", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types",
        'has "sliding_attention". Supported: full_attention',
    ),
    ("mixtral", {"norm_topk_prob": False}, "norm_topk_prob", "is false. The weights of the chosen"),
    ("mixtral", {"decoder_sparse_step": 2}, "decoder_sparse_step", 'not an ordinary "mixtral"'),
    ("mixtral", {"mlp_only_layers": [1]}, "mlp_only_layers", 'not an ordinary "mixtral"'),
    ("mixtral", {"scoring_func": "sigmoid"}, "scoring_func", "picked by their softmax"),
    ("gpt_oss", {"norm_topk_prob": False}, "norm_topk_prob", "is false. The weights of the chosen"),
    ("gpt_oss", {"decoder_sparse_step": 2}, "decoder_sparse_step", 'not an ordinary "gpt_oss"'),
    ("llama", {"mlp_only_layers": [1]}, "mlp_only_layers", 'not an ordinary "llama" decoder'),
    ("qwen3_moe", {"scoring_func": "sigmoid"}, "scoring_func", "picked by their softmax"),
    ("qwen3_moe", {"n_group": 4}, "n_group", "is 4. Experts are picked among all"),
    ("qwen3_moe", {"topk_method": "noaux_tc"}, "topk_method", "picked by their softmax"),
    ("qwen2_moe", {"routed_scaling_factor": 2.5}, "routed_scaling_factor", "no other factor"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func", "Only sigmoid scores"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method", "Only noaux_tc"),
    ("deepseek_v3", {"n_group": 3}, "n_group", "is 3. It must divide the 8 experts"),
    ("deepseek_v3", {"n_group": 8}, "n_group", "into groups of two or more"),
    ("deepseek_v3", {"topk_group": 3}, "topk_group", "is 3 of 2. These groups must exist"),
    (
        "deepseek_v3", {"n_group": 4, "num_experts_per_tok": 3}, "topk_group",
        "is 1 of 4. These groups must exist and have 3 experts or more",
    ),
    ("deepseek_v3", {"qk_rope_head_dim": 15}, "qk_rope_head_dim", "15 is odd"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method", "greedy and group_limited_greedy"),
    ("phi3", {"partial_rotary_factor": 0.3}, "partial_rotary_factor", "9 of 32 values rotate"),
    ("qwen3_moe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor", "is not 1"),
    (
        "phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 3}},
        "rope_scaling.short_factor", "is [1.0, 1.0, 1.0]. Give a list of 16 positive numbers",
    ),
    ("phi3", {"rope_scaling": {"type": "su"}}, "rope_scaling.short_factor", "is missing"),
    ("gpt_oss", {"rope_scaling": {**YARN, "truncate": 1}}, "rope_scaling.truncate", "is 1. Write"),
    ("gpt_oss", {"rope_scaling": {**YARN, "beta_fast": -1}}, "rope_scaling.beta_fast", "is -1"),
    ("llama", {"rope_scaling": {"rope_type": [1]}}, "rope_scaling.rope_type", "[1] is not"),
    (
        "llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "rope_parameters.full_attention", "is an object: all layers have one rope here",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}},
        "partial_rotary_factor", "is not 1",
    ),
    ("gpt_oss", {"experts_per_token": 3}, "experts_per_token", "is 3, but num_experts_per_tok 2"),
    (
        "llama", {"quantization_config": {"quant_method": "gptq", "bits": 4.0, "group_size": 32}},
        "quantization_config.quant_method", "with bits 4.0 is not supported",
    ),
    (
        "gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
        "rope_parameters.full_attention.rope_type", '"dynamic" is not supported',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "field", "problem"), REFUSED)
def test_refusals_name_the_field(
    tmp_path: Path, family: str, changes: dict[str, object], field: str, problem: str
) -> None:
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        decoder(tmp_path, family, **changes)
    assert caught.value.field == field
    assert str(caught.value).startswith(str(tmp_path / "config.json"))
    assert caught.value.exit_code == 2
