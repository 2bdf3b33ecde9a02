"""What the decoder reads from config.json, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError
from nexusbench.kernels.ropes import Rope
from nexusbench.models.architecture import load_decoder_config

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "float32",
    "vocab_size": 1000,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def folder(tmp_path: Path, **changes: object) -> Path:
    text = json.dumps({**BASE, **changes}, indent=2)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("family", "changes", "biases", "qk_norm"),
    [
        ("llama", {}, (False, False, False), False),
        ("llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True), False),
        ("mistral", {}, (False, False, False), False),
        ("qwen2", {}, (True, False, False), False),
        ("qwen3", {"head_dim": 16}, (False, False, False), True),
    ],
)
def test_families(
    tmp_path: Path, family: str, changes: dict[str, Any], biases: tuple[bool, ...], qk_norm: bool
) -> None:
    config = load_decoder_config(folder(tmp_path, model_type=family, **changes))
    assert config.ordinary
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    assert (attention.qkv_bias, attention.output_bias, mlp.bias) == biases
    assert attention.qk_norm == qk_norm
    assert config.rms_norm_eps == 1e-5
    assert config.folder == tmp_path
    assert config.spec.head_dim == changes.get("head_dim", 8)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope(theta=500000.0)),
        ({"rope_scaling": None}, Rope(theta=500000.0)),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            Rope(theta=500000.0, kind="linear", factor=2.0),
        ),
        ({"rope_scaling": LLAMA3}, Rope(theta=500000.0, kind="llama3", factor=8.0)),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 1e6}},
            Rope(theta=1e6, kind="llama3", factor=8.0),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, Rope(theta=1e4)),
    ],
)
def test_rope_in_both_spellings(tmp_path: Path, changes: dict[str, Any], rope: Rope) -> None:
    layers = load_decoder_config(folder(tmp_path, **changes)).layers
    assert [layer.attention.rope for layer in layers] == [rope, rope]


@pytest.mark.parametrize(
    ("value", "ids"), [(None, ()), (2, (2,)), ([128001, 128008], (128001, 128008))]
)
def test_end_tokens(tmp_path: Path, value: object, ids: tuple[int, ...]) -> None:
    assert load_decoder_config(folder(tmp_path, eos_token_id=value)).eos_token_ids == ids


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type", '"gpt2" is not supported'),
        (
            {"model_type": "mimo", "num_nextn_predict_layers": 1},
            "model_type",
            "'mimo' is described but not computed. With real tokens: deepseek_v2, deepseek_v3,",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.rope_type",
            '"dynamic" is not supported. Supported rope types: default, linear, llama3, yarn',
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor", "is missing"),
        ({"rope_scaling": 3}, "rope_scaling", "is 3, not an object"),
        ({"rope_theta": "big"}, "rope_theta", 'is "big", not a number'),
        ({"rope_theta": -1.0}, "rope_theta", "is -1.0. It must be positive"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "is not 1"),
        ({"rms_norm_eps": 0}, "rms_norm_eps", "is 0. It must be positive"),
        ({"eos_token_id": "</s>"}, "eos_token_id", '"</s>" is not a token id'),
        ({"head_dim": 7}, "head_dim", "7 is odd"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            "quantization_config.quant_method",
            '"bitsandbytes" cannot be computed',
        ),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, changes: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        load_decoder_config(folder(tmp_path, **changes))
    assert caught.value.field == field
    assert str(caught.value).startswith(str(tmp_path / "config.json"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("name", "millions"), [("tiny", 5.24), ("small", 56.89)])
def test_built_in_configurations(name: str, millions: float) -> None:
    config = load_decoder_config(name)
    assert config.built_in
    assert config.folder is None
    assert config.eos_token_ids == ()
    assert config.spec.num_parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert not load_decoder_config("llama-3.1-8b").built_in
