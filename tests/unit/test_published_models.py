"""Published descriptions: all of them load, and say what transformers and their authors say."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.mixers import (
    FullAttention,
    LatentAttention,
    SparseAttention,
    StateMixer,
    WindowAttention,
)
from nexusbench.core.specs import ModelSpec
from nexusbench.models.config import load_model
from nexusbench.models.families.base import families
from tests.examples import sample

CONFIGS = Path(os.environ.get("NEXUSBENCH_DATA", "")) / "configs"
PUBLISHED = sorted(path.name for path in CONFIGS.iterdir()) if CONFIGS.is_dir() else []
needs_configs = pytest.mark.skipif(not PUBLISHED, reason="NEXUSBENCH_DATA has no configs")

# (parameters in billions, as their cards say them, main type of weights, GB of weights)
SAID: dict[str, tuple[float, str, float]] = {
    "Qwen--Qwen3-30B-A3B": (30.5, "bfloat16", 61.1),
    "Qwen--Qwen3-32B-FP8-Static-PerTensor": (32.8, "fp8", 34.3),
    "deepseek-ai--DeepSeek-V3": (671.0, "fp8_block", 673.0),
    "moonshotai--Kimi-K3": (2779.5, "mxfp4", 1553.0),
    "nvidia--DeepSeek-V4-Pro-NVFP4": (1573.0, "nvfp4", 898.1),
    "deepseek-ai--DeepSeek-V4-Flash": (284.3, "mxfp4", 155.6),
    "nvidia--Kimi-K2.5-NVFP4": (1026.4, "nvfp4", 589.8),
    "nvidia--GLM-5.1-NVFP4": (743.9, "nvfp4", 446.0),
    "nvidia--Llama-3_3-Nemotron-Super-49B-v1": (49.9, "bfloat16", 99.7),
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": (120.7, "bfloat16", 241.3),
    "nvidia--MiniMax-M3-NVFP4": (426.2, "nvfp4", 248.3),
    "nvidia--Qwen3.6-27B-NVFP4": (26.9, "nvfp4_a16", 20.15),
}


@needs_configs
@pytest.mark.parametrize("name", sample(PUBLISHED, 3))
def test_every_published_config_loads(name: str) -> None:
    model = load_model(CONFIGS / name)
    data = json.loads((CONFIGS / name / "config.json").read_text())
    inner = data.get("text_config", data)
    assert model.num_layers == inner["num_hidden_layers"]
    assert model.vocab_size == inner["vocab_size"]
    assert sum(group.count for group in model.groups) == model.num_layers


@needs_configs
@pytest.mark.parametrize("name", sample(sorted(SAID), 3))
def test_sizes_are_the_published_ones(name: str) -> None:
    model, (billions, dtype, size) = load_model(CONFIGS / name), SAID[name]
    assert model.num_parameters / 1e9 == pytest.approx(billions, abs=0.06)
    assert model.dtypes.weights == dtype
    assert model.weight_bytes / 1e9 == pytest.approx(size, rel=0.005)


@needs_configs
def test_what_published_modules_are_quantised_to() -> None:
    qwen = {
        type(g.mixer).__name__: g for g in load_model(CONFIGS / "nvidia--Qwen3.6-27B-NVFP4").groups
    }
    delta = qwen["StateMixer"].dtypes
    assert (delta.attention, delta.dense) == ("fp8", "nvfp4_a16")
    assert delta.apart == (("state_b", "bfloat16"), ("state_a", "bfloat16"))
    full = qwen["FullAttention"].dtypes
    assert (full.attention, full.dense, full.apart) == ("fp8", "nvfp4_a16", ())
    assert load_model(CONFIGS / "nvidia--Qwen3.6-27B-NVFP4").head_dtype == "nvfp4_a16"
    kimi = load_model(CONFIGS / "nvidia--Kimi-K2.7-Code-NVFP4").groups
    assert [(g.count, g.dtypes.attention) for g in kimi] == [(1, "bfloat16"), (60, "bfloat16")]
    assert (kimi[0].dtypes.dense, kimi[1].dtypes.experts) == ("bfloat16", "nvfp4")
    assert kimi[1].dtypes.shared == "bfloat16"
    flash = load_model(CONFIGS / "deepseek-ai--DeepSeek-V4-Flash").groups[0].dtypes
    assert (flash.attention, flash.experts, flash.shared) == ("fp8_block", "mxfp4", "fp8_block")


# -- against transformers --------------------------------------------------------------------------

# Of towers and projectors that a description leaves out.
TOWERS = (
    "visual", "vision", "multi_modal", "mm_projector", "audio", "embed_vision", "patch_merger",
)  # fmt: skip
# No code for them is in transformers, or only for another layout of keys.
UNKNOWN = {
    "MiniMaxAI--MiniMax-M3", "moonshotai--Kimi-K3", "nvidia--Llama-3_3-Nemotron-Super-49B-v1",
    "sgl-project--DeepSeek-V4-Pro-FP8", "stepfun-ai--Step-3.7-Flash",
}  # fmt: skip
# Whose default config has no possible heads, or too few keys.
NO_DEFAULT = {"deepseek_v2", "glm4_moe", "glm4v_moe", "step3p5"}


def on_meta(config: Any) -> Any:
    """transformers' model of a config, without memory for its weights."""
    import torch
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING as TEXT,
    )
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as IMAGES,
    )

    with contextlib.suppress(AttributeError):
        del config.quantization_config
    cls = IMAGES[type(config)] if type(config) in IMAGES else TEXT[type(config)]
    with torch.device("meta"):
        model = cls(config)
    model.tie_weights()
    return model


def parameters(theirs: Any) -> int:
    """Of the decoder, each matrix once."""
    kept = {
        id(value): value.numel()
        for name, value in theirs.named_parameters()
        if not any(tower in name for tower in TOWERS)
    }
    return sum(kept.values())


def kept_values(theirs: Any, model: ModelSpec) -> int:
    """Values of a token in the KV cache, by the widths of the modules that make them, of layers
    without a window.
    """
    made = 0
    full = [
        index for index, kind in enumerate(order(model)) if not isinstance(kind, WindowAttention)
    ]
    for name, module in theirs.named_modules():
        parts = name.split(".")
        if "layers" not in parts or any(tower in name for tower in TOWERS):
            continue
        layer = int(parts[parts.index("layers") + 1]) if parts[-1] != "layers" else -1
        if layer not in full or "indexer" in name or isinstance(order(model)[layer], StateMixer):
            continue
        if parts[-1] in ("k_proj", "v_proj", "kv_a_proj_with_mqa"):
            once = parts[-1] == "k_proj" and getattr(module_of(theirs, name), "v_proj", 1) is None
            made += module.out_features * (2 if once else 1)
        elif parts[-1] == "qkv_proj":
            attention = module_of(theirs, name)
            queries = attention.config.num_attention_heads * attention.head_dim
            made += module.out_features - queries
    return made


def module_of(theirs: Any, name: str) -> Any:
    return theirs.get_submodule(name.rpartition(".")[0])


def order(model: ModelSpec) -> list[Any]:
    """The attention of each layer."""
    if not model.stack:
        return [model.groups[0].mixer] * model.num_layers
    return [model.groups[index].mixer for index in model.stack.order]


def compare(folder: Path, config: Any) -> None:
    model, theirs = load_model(folder), on_meta(config)
    assert model.num_parameters == pytest.approx(parameters(theirs), rel=1e-3)
    mixers = [group.mixer for group in model.groups]
    known = (FullAttention, LatentAttention, SparseAttention, StateMixer, type(None))
    if all(isinstance(mixer, known) for mixer in mixers):
        values = sum(g.count * g.mixer.kv_values for g in model.groups if g.mixer is not None)
        assert values == pytest.approx(kept_values(theirs, model), rel=1e-3)


@pytest.mark.slow
@needs_configs
@pytest.mark.skipif(not find_spec("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_kv_are_those_of_transformers(name: str) -> None:
    if name in UNKNOWN:
        pytest.skip("not a model of transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    data = json.loads((CONFIGS / name / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(CONFIGS / name, CONFIG_MAPPING[data["model_type"]].from_dict(data))


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("family", [name.replace("-", "_") for name in families.names()])
def test_defaults_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING or family in NO_DEFAULT:
        pytest.skip("not a model of transformers, or one without a whole default config")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIG_MAPPING[family]()
        config.save_pretrained(tmp_path)
        compare(tmp_path, config)
