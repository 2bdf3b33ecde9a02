"""``nexusbench model show``: what a model is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome

Call = Callable[..., Outcome]


def test_show_names_groups_sizes_and_what_is_left_out(call: Call) -> None:
    done = call("model", "show", "deepseek-v3")
    assert done.code == 0
    for words in (
        "deepseek-v3: 61 layers of 2 kinds", "671.03 billion", "MLA 128 heads, latent 512+64",
        "8 of 256 experts of 2,048, shared 2,048", "dense 18,432", "68.62 KiB per token",
        "163,840 tokens", "Simulated devices: NOT VALIDATED: a mixture of experts.",
        "num_nextn_predict_layers: 1", "https://huggingface.co/deepseek-ai/DeepSeek-V3",
    ):  # fmt: skip
        assert words in " ".join(done.out.split()), words


def test_show_as_json(call: Call) -> None:
    shown = json.loads(call("model", "show", "qwen3.6-27b-nvfp4", "--json").out)
    assert shown["command"] == "model show"
    assert shown["layers"] == 64
    assert shown["parameters"] == 26_895_998_464
    assert shown["kv_bytes_per_token"] == 16 * 2 * 4 * 256
    assert shown["state_bytes_per_sequence"] == 48 * (48 * 128 * 128 * 4 + 3 * 10240 * 2)
    assert shown["dtypes"]["head"] == "nvfp4_a16"  # W4A16_NVFP4 in the original
    assert [group["layers"] for group in shown["groups"]] == [48, 16]
    assert shown["groups"][0]["attention"]["type"] == "state"
    assert shown["groups"][1]["feed_forward"] == {
        "type": "dense", "intermediate_size": 17408, "gated": True
    }  # fmt: skip
    assert len(shown["order"]) == 64
    assert any("gated delta rule" in text for text in shown["approximated"])
    plain = json.loads(call("model", "show", "llama-3.1-8b", "--json").out)
    assert plain["approximated"] == []
    assert plain["active_parameters"] == plain["parameters"] == 8_029_995_008


@pytest.mark.parametrize("model", ["qwen3.6-27b-nvfp4", "nemotron-3-nano-30b-a3b", "glm-5.2-fp8"])
def test_models_with_states_and_indexers_are_served(call: Call, trace: Path, model: str) -> None:
    done = call("serve-trace", trace, "--device", "sim:b200", "--model", model, "-tp", "8")
    assert done.code == 0, done.err
    words = {"q": "recurrent states", "n": "Mamba2 takes", "g": "attention to chosen tokens"}
    assert words[model[0]] in done.err


def test_an_unknown_model(call: Call) -> None:
    done = call("model", "show", "lama-3.1-8b")
    assert done.code == 2
    assert "Did you mean 'llama-3.1-8b'?" in done.err
