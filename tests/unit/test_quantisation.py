"""What is quantised, by config.json and by files beside it; what cannot be described is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.specs import DTYPE_BYTES, Dtypes
from nexusbench.models.architecture import load_decoder_config
from nexusbench.models.config import caveats, load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.precisions import product_kernel
from tests.examples import sample

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MODELOPT = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}


def folder(tmp_path: Path, quantisation: object = None, **beside: object) -> Path:
    """A model's folder; ``beside`` are files, by their names without .json."""
    config = BASE if quantisation is None else {**BASE, "quantization_config": quantisation}
    (tmp_path / "config.json").write_text(json.dumps(config, indent=1))
    for name, data in beside.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data, indent=1))
    return tmp_path


def beside_config(quantisation: object) -> dict[str, object]:
    return {"producer": {"name": "modelopt"}, "quantization": quantisation}


def group(bits: object, kind: object, size: object = None, **more: object) -> dict[str, object]:
    return {"g": {"weights": {"num_bits": bits, "type": kind, "group_size": size}, **more}}


def test_modelopt_fp8_beside_the_config(tmp_path: Path) -> None:
    model = load_model(folder(tmp_path, hf_quant_config=beside_config(MODELOPT)))
    assert model.dtypes == Dtypes("fp8", "bfloat16", "fp8", "bfloat16")
    assert model.num_parameters == 8_029_995_008
    assert model.weight_bytes / 1e9 == pytest.approx(9.08, abs=0.005)
    assert model.kv_bytes_per_token == 65_536
    # The very file counts too, not only its folder.
    assert load_model(tmp_path / "config.json") == model
    assert "fp8 weights: products as kernels" in caveats(model)[0]


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


@pytest.mark.parametrize(
    ("quantisation", "said"), [({"quant_method": "fp8"}, "in closed loops"), (AWQ, "no run")]
)
def test_what_was_compared_is_told_by_type(
    tmp_path: Path, quantisation: dict[str, object], said: str
) -> None:
    (told,) = caveats(load_model(folder(tmp_path, quantisation)))
    assert said in told


CT, BNB = "compressed-tensors", "bitsandbytes"


@pytest.mark.parametrize(
    ("quantisation", "weights", "kv"),
    [
        ({"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.norm"]}, "fp8", 0),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.99"]}, "fp8", 0),
        ({"quant_method": "fp8", "modules_to_not_convert": None}, "fp8", 0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4_g128", 0),
        ({"quant_method": "awq", "bits": 4, "group_size": 256}, "int4", 0),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, "int8_g32", 0),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 0),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "int4_g32", 0),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "lm_head": False}, "int8", 0),
        ({"quant_method": BNB, "load_in_8bit": True, "load_in_4bit": False}, "int8", 0),
        ({"quant_method": BNB, "load_in_4bit": True}, "nf4", 0),
        ({"quant_method": BNB, "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
         "nf4_double", 0),
        ({"quant_method": CT, "config_groups": group(8, "float"), "ignore": ["lm_head"]}, "fp8", 0),
        ({"quant_method": CT, "config_groups": group(4, "int", 128, targets=["Linear"]),
          "ignore": ["re:.*lm_head.*", "re:visual.*", r"re:.*layers\.99\..*"]}, "int4_g128", 0),
        ({"quant_method": CT, "config_groups": group(8, "int", 64), "ignore": ["lm_head"]},
         "int8_g64", 0),
        ({"config_groups": group(8, "float"), "ignore": ["lm_head"], "quant_algo": "FP8",
          "kv_cache_scheme": "FP8"}, "fp8", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*lm_head*"],
          "config_groups": group(4, "float", 16),
          "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "nvfp4", "fp8"),
        ({"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"}, 0, "fp8"),
        ({**MODELOPT, "exclude_modules": ["lm_head", "model.layers.3.input_layernorm",
          "model.layers.61*", "model.embed_tokens", "vision_tower*"]}, "fp8", "fp8"),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path: Path, quantisation: object, weights: str, kv: str) -> None:
    dtypes = load_model(folder(tmp_path, quantisation)).dtypes
    expected = Dtypes(weights or "bfloat16", "bfloat16", kv or "bfloat16", "bfloat16")
    assert dtypes == expected


@pytest.mark.parametrize(
    ("name", "data", "weights"),
    [
        ("quantize_config", {"bits": 4, "group_size": 128, "desc_act": False}, "int4_g128"),
        ("quant_config", {"zero_point": True, "q_group_size": 64, "w_bit": 4}, "int4_g64"),
    ],
)
def test_files_of_older_quantisers(tmp_path: Path, name: str, data: object, weights: str) -> None:
    assert load_model(folder(tmp_path, **{name: data})).dtypes.weights == weights


FP8 = {"quant_method": "fp8"}
NOT_CONVERTED = "modules_to_not_convert"
# What stays as computed: (settings, types of attention and of the dense part, in how many layers).
LEFT: list[tuple[dict[str, object], dict[tuple[str, str], int]]] = [
    ({**FP8, NOT_CONVERTED: ["model.layers.0.mlp"]},
     {("fp8", "bfloat16"): 1, ("fp8", "fp8"): 31}),
    ({**FP8, "ignored_layers": ["self_attn"]}, {("bfloat16", "fp8"): 32}),
    ({**FP8, "ignored_layers": ["re:.*mlp.*"]}, {("fp8", "bfloat16"): 32}),
    ({**FP8, "ignored_layers": [r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]},
     {("fp8", "bfloat16"): 32}),
    ({**FP8, "ignored_layers": [f"model.visual.blocks.{n}.mlp.up" for n in range(300)]},
     {("fp8", "fp8"): 32}),
    ({**FP8, "ignored_layers": ["*.layers.31.*", "vision_tower.layers.3.mlp", "mtp.layers.2*"]},
     {("bfloat16", "bfloat16"): 1, ("fp8", "fp8"): 31}),
    # A pattern among the digits: 6, 16 and 26.
    ({**FP8, "ignored_layers": ["model.layers.*6.*"]},
     {("bfloat16", "bfloat16"): 3, ("fp8", "fp8"): 29}),
    ({**FP8, "ignored_layers": ["re:model.layers.1..mlp$"]},
     {("fp8", "bfloat16"): 10, ("fp8", "fp8"): 22}),
    ({**FP8, NOT_CONVERTED: ["model.layers.5."]},
     {("bfloat16", "bfloat16"): 1, ("fp8", "fp8"): 31}),
    ({**FP8, NOT_CONVERTED: ["model.layers.5.self"]},
     {("bfloat16", "fp8"): 1, ("fp8", "fp8"): 31}),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:.*attn.*": {}}},
     {("bfloat16", "int4"): 32}),
    ({"quant_method": CT, "ignore": ["lm_head"],
      "config_groups": group(8, "float", targets=["re:.*mlp.*"])}, {("bfloat16", "fp8"): 32}),
    ({"quant_method": CT, "ignore": ["lm_head"],
      "config_groups": {**group(8, "float", targets=["re:.*self_attn.*"]),
                        "h": group(4, "int", 128, targets=["Linear"])["g"]}},
     {("fp8", "int4_g128"): 32}),
    ({**MODELOPT, "quant_algo": "MIXED_PRECISION", "quantized_layers": {
        f"model.layers.{n}.mlp.{p}_proj": {"quant_algo": "NVFP4"}
        for n in range(30) for p in ("gate", "up", "down")}},
     {("bfloat16", "nvfp4"): 30, ("bfloat16", "bfloat16"): 2}),
]  # fmt: skip


@pytest.mark.parametrize(("quantisation", "expected"), LEFT)
def test_what_is_left_as_computed(
    tmp_path: Path, quantisation: dict[str, object], expected: dict[tuple[str, str], int]
) -> None:
    model = load_model(folder(tmp_path, quantisation))
    found = {(g.dtypes.attention, g.dtypes.dense): g.count for g in model.groups}
    assert found == expected
    assert model.head_dtype == "bfloat16"
    # What is computed is dequantised, and alike in all layers.
    assert load_decoder_config(tmp_path).spec.dtypes == Dtypes()


@pytest.mark.parametrize(
    ("quantisation", "dtype"),
    [
        ({"quant_method": CT, "config_groups": group(8, "float"), "ignore": []}, "fp8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}, "int4_g128"),
        ({**MODELOPT, "exclude_modules": ["language_model.lm_head"]}, "bfloat16"),
        (FP8, "bfloat16"),
    ],
)
def test_the_output_head(tmp_path: Path, quantisation: dict[str, object], dtype: str) -> None:
    model = load_model(folder(tmp_path, quantisation))
    assert model.head_dtype == dtype
    head = model.vocab_size * model.hidden_size
    layers = model.num_parameters - 2 * head
    quantised = DTYPE_BYTES[model.dtypes.weights]
    expected = layers * quantised + head * (2 + DTYPE_BYTES[dtype])
    assert model.weight_bytes == pytest.approx(expected, rel=1e-4)


REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({**FP8, "ignored_layers": ["model.layers.31.self_attn.q_proj"]}, "quant", "parts of 'qkv'"),
    ({**FP8, NOT_CONVERTED: ["up_proj"]}, "quant", "parts of 'gate_up' of layer 0"),
    ({**FP8, "ignored_layers": ["re:.*q.proj"]}, "quant", "parts of 'qkv'"),
    ({**FP8, "ignored_layers": ["re:(a+)+$"]}, "ignored_layers", "not known what it matches"),
    ({**FP8, "ignored_layers": ["re:.*q_projs*"]}, "ignored_layers", "not known what it matches"),
    ({**FP8, "ignored_layers": [f"re:{'(a|b)' * 9}"]}, "ignored_layers", "not known what"),
    ({**FP8, "ignored_layers": [f"*.{n}.mlp*a" for n in range(201)]}, "ignored", "than 200"),
    ({**FP8, NOT_CONVERTED: [""]}, NOT_CONVERTED, "not known what it matches"),
    ({"quant_method": CT, "config_groups": group(8, "float"), "ignore": ["lm_head", "Linear"]},
     "ignore", "Linear"),
    ({"quant_method": CT, "config_groups": group(8, "float"), "format": "dense"}, "format", ""),
    ({"quant_method": CT, "config_groups": group(8, "float", 32), "ignore": ["lm_head"]},
     "config_groups.weights", "groups of 32"),
    ({**FP8, "weight_block_size": [1, 32]}, "weight_block_size", "[1, 32]"),
    ({**FP8, "weight_block_size": "big"}, "weight_block_size", "big"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 48}, "group_size", "is 48"),
    ({"quant_method": "modelopt"}, "quant_algo", "is missing"),
    ({"quant_method": "modelopt", "quant_algos": "FP8"}, "quant_algo", "is missing"),
    ({**MODELOPT, "kv_cache_scheme": "INT8"}, "kv_cache_scheme", "int8, but"),
    ({**FP8, "ignored_layers": "lm_head"}, "ignored_layers", "not a list"),
    ({**FP8, "ignored_layers": [7]}, "ignored_layers", "not a list"),
    ({**FP8, "kv_cache_scheme": {"num_bits": 4, "type": "float"}}, "kv_cache_scheme", "4 bits"),
    ({**FP8, "kv_cache_quant_algo": "NVFP4"}, "kv_cache_quant_algo", "NVFP4"),
    ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:x": {"bits": 8}}}, "dynamic", "different"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 8}, "group_size", "is 8"),
    ({"quant_method": "gptq", "bits": 4, "group_size": "big"}, "group_size", "big"),
    ({"quant_method": "awq", "bits": True}, "quant_method", "bits true"),
    ({"quant_method": BNB}, "load_in_4bit", "Exactly one"),
    ({"quant_method": BNB, "load_in_4bit": True, "bnb_4bit_use_double_quant": 1},
     "bnb_4bit_use_double_quant", "is 1. Write true or false"),
    ({"quant_method": "gptq", "bits": 4, "lm_head": "yes"}, "lm_head", "Write true or false"),
    ({"quant_method": CT}, "config_groups", "null"),
    ({"quant_method": CT, "config_groups": group(3, "int")}, "config_groups.weights", "of 3 bits"),
    ({"quant_method": CT, "config_groups": group([], {})}, "config_groups.weights", "of [] bits"),
    ({"quant_method": CT, "config_groups": {"g": 4}}, "config_groups", "null"),
    ({"quant_method": CT, "config_groups": group(8, "float", targets="Linear")},
     "config_groups.targets", "not a list"),
    ({"quant_method": CT, "config_groups": {**group(8, "int"), "h": group(8, "float")["g"]}},
     "config_groups", "fp8 and int8"),
    ({"quant_method": CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity", ""),
    ({**MODELOPT, "quant_algo": "MIXED_PRECISION"}, "quantized_layers", "is missing"),
    ({**MODELOPT, "quant_algo": ["FP8"]}, "quant_algo", "FP8"),
    ({**MODELOPT, "quantized_layers": {"model.layers.0.mlp": "FP8"}}, "quantized_layers", ""),
    ({**FP8, "modules_in_block_to_quantize": ["q"]}, "modules_in_block", "a way of its own"),
    ({**FP8, "expert_dtype": "fp6"}, "expert_dtype", "fp6"),
    ({"quant_method": "torchao"}, "quant_method", "torchao"),
    ({"quant_method": {"a": 1}}, "quant_method", "Supported"),
    ({}, "quant_method", "Supported"),
]  # fmt: skip


@pytest.mark.parametrize(("quantisation", "field", "words"), sample(REFUSED, 5))
@pytest.mark.parametrize("where", ["config", "hf_quant_config"])
def test_what_is_refused(
    tmp_path: Path, quantisation: dict[str, object], field: str, words: str, where: str
) -> None:
    if where == "config":
        made = folder(tmp_path, quantisation)
    elif quantisation:
        made = folder(tmp_path, hf_quant_config=beside_config(quantisation))
    else:
        made = folder(tmp_path, hf_quant_config={"producer": {}})
        field, words = "quantization", "is missing"
    with pytest.raises(InputError) as caught:
        load_model(made)
    assert str(caught.value).startswith(str(made / f"{where}.json"))
    assert field in str(caught.value.field)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("quantization", {"group_size": 64, "bits": 4}), ("quant_config", {}),
     ("quantization_bit", 4)],
)  # fmt: skip
def test_keys_of_other_tools(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, key: value}, indent=1))
    with pytest.raises(InputError, match="of another tool") as caught:
        load_model(tmp_path)
    assert caught.value.field == key


@pytest.mark.parametrize(
    ("quantisation", "bits"),
    [
        # Groups: 16 bits of scale and as many of zeros as a weight has.
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, 4 + (16 + 4) / 32),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, 4 + (16 + 4) / 64),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + (16 + 4) / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": 32}, 8 + (16 + 8) / 32),
        ({"quant_method": "gptq", "bits": 8, "group_size": 64}, 8 + (16 + 8) / 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 8 + (16 + 8) / 128),
        ({"quant_method": BNB, "load_in_4bit": True}, 4 + 32 / 64),
        ({"quant_method": BNB, "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
         4 + 8 / 64 + 32 / 64 / 256),
    ],
)  # fmt: skip
def test_bytes_of_scales(tmp_path: Path, quantisation: object, bits: float) -> None:
    model = load_model(folder(tmp_path, quantisation))
    heads = 2 * model.vocab_size * model.hidden_size
    assert model.weight_bytes == (model.num_parameters - heads) * bits / 8 + heads * 2


@pytest.mark.parametrize("name", ["config.json", "hf_quant_config.json"])
def test_a_key_that_is_there_twice(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path, hf_quant_config=beside_config(MODELOPT))
    text = (made / name).read_text().rstrip("}\n")
    (made / name).write_text(f'{text}}}, "x": {{"a": 1, "a": 2}}}}')
    if name == "config.json":
        (made / name).write_text(f'{text}, "x": 1, "x": 2}}')
    with pytest.raises(InputError, match=rf"{name}: field '[ax]': is given twice"):
        load_model(made)


def test_a_link_to_nothing_beside_the_config(tmp_path: Path) -> None:
    made = folder(tmp_path)
    (made / "hf_quant_config.json").symlink_to(made / "blobs" / "gone")
    with pytest.raises(InputError, match=r"hf_quant_config\.json: cannot be read"):
        load_model(made)


def test_two_files_that_disagree(tmp_path: Path) -> None:
    made = folder(tmp_path, {**FP8, "kv_cache_scheme": "INT8"},
                  hf_quant_config=beside_config(MODELOPT))  # fmt: skip
    with pytest.raises(InputError, match=r"hf_quant_config.json.*config\.json says fp8 and int8"):
        load_model(made)
    folder(tmp_path, {"quant_algo": "NVFP4", "quant_method": "modelopt"})
    with pytest.raises(InputError, match=r"hf_quant_config.json.*config\.json says nvfp4 and as"):
        load_model(made)
    folder(tmp_path, {**FP8, "kv_cache_scheme": "FP8"})
    assert load_model(made).dtypes.kv == "fp8"


DISAGREEING: list[tuple[dict[str, object], dict[str, object], str, str]] = [
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 1024},
        {"bits": 4, "group_size": -1}, "quantize_config.group_size",
        "is -1, but of quantization_config of .* it is 1024",
    ),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
        {"bits": 4, "group_size": 128, "desc_act": False}, "quantize_config.desc_act",
        "is false, but of quantization_config of .* it is true",
    ),
    (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, {"bits": 4},
        "quantize_config.checkpoint_format", 'is "gptq", but .* it is "gptq_v2"',
    ),
    (
        {"quant_method": "awq", "bits": 4, "group_size": 512},
        {"w_bit": 4, "q_group_size": 1024, "zero_point": True}, "quant_config.q_group_size",
        "is 1024, but .* it is 512",
    ),
    (
        {**FP8, "weight_block_size": [128, 128]},
        {**MODELOPT, "quant_algo": "FP8_PB_WO", "weight_block_size": [64, 64],
         "kv_cache_quant_algo": None}, "hf_quant_config.quantization.weight_block_size",
        r"is \[64, 64\], but .* it is \[128, 128\]",
    ),
    (
        {"quant_method": CT, "ignore": ["lm_head"], "config_groups": group(4, "int", 256)},
        {"quant_algo": "W4A16_AWQ", "group_size": 512, "exclude_modules": ["lm_head"]},
        "hf_quant_config.quantization.group_size", "is 512, but .* it is 256",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "beside", "place", "words"), DISAGREEING)
def test_two_files_that_disagree_on_how_weights_are_stored(
    tmp_path: Path, config: dict[str, object], beside: dict[str, object], place: str, words: str
) -> None:
    file, _, field = place.partition(".")
    written = beside_config(beside) if file == "hf_quant_config" else beside
    made = folder(tmp_path, config, **{file: written})
    with pytest.raises(InputError, match=words) as caught:
        load_model(made)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{made / file}.json:")
    # One that says nothing of it, or the same, agrees.
    key = field.rpartition(".")[2]
    same = {"quant_method": "x", **config}.get(key)
    less = {name: value for name, value in beside.items() if name != key}
    quiet = () if key == "checkpoint_format" else (less,)
    for other in (*quiet, {**less, key: same}) if same is not None else quiet:
        written = beside_config(other) if file == "hf_quant_config" else other
        load_model(folder(tmp_path, config, **{file: written}))


def test_what_one_of_two_files_is_silent_about(tmp_path: Path) -> None:
    """The KV cache, and whatever a list of layers does not name (DeepSeek-V4 in NVFP4)."""
    made = folder(tmp_path, FP8, hf_quant_config=beside_config(MODELOPT))
    assert load_model(made).dtypes.kv == "fp8"
    listed = {f"model.layers.{layer}.mlp": {"quant_algo": "NVFP4"} for layer in range(32)}
    mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
    folder(
        tmp_path, {**FP8, "quantized_layers": listed}, hf_quant_config=beside_config(mixed)
    )  # fmt: skip
    (group,) = load_model(made).groups
    assert (group.dtypes.attention, group.dtypes.dense) == ("fp8", "nvfp4")
    other = {name: {"quant_algo": "FP8"} for name in listed}
    folder(tmp_path, None, hf_quant_config=beside_config(mixed))
    folder(tmp_path, {**mixed, "quantized_layers": other, "quant_method": "modelopt"})
    with pytest.raises(InputError, match="Take away the one"):
        load_model(made)


@pytest.mark.parametrize("groups", [{}, {"config_groups": group(4, "float", 16, input_activations={
    "num_bits": 4})}])  # fmt: skip
def test_nvfp4_weights_beside_16_bit_activations(tmp_path: Path, groups: dict[str, object]) -> None:
    said = {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", **groups}
    model = load_model(folder(tmp_path, said))
    assert model.dtypes.weights == "nvfp4_a16"
    assert product_kernel(load_gpu("b200"), "nvfp4_a16").kind == "w4a16"
    assert product_kernel(load_gpu("b200"), "nvfp4").kind == "nvfp4"


def test_a_file_beside_the_config_that_is_no_document(tmp_path: Path) -> None:
    made = folder(tmp_path)
    (made / "hf_quant_config.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"hf_quant_config\.json: is not text"):
        load_model(made)


def test_a_decoder_that_computes_dequantises_all_of_it(tmp_path: Path) -> None:
    made = folder(tmp_path, hf_quant_config=beside_config(MODELOPT))
    config = load_decoder_config(made)
    assert config.spec.dtypes == Dtypes()
    assert config.packing is not None
    assert config.packing.method == "modelopt"
    assert config.folder == made


def test_every_type_has_a_size() -> None:
    assert all(0.5 <= size <= 4 for size in DTYPE_BYTES.values())


# A supported name does not make a supported decoder: whatever kinds of layers the refused models
# have is refused by its own key where the model calls itself an ordinary one.
@pytest.mark.parametrize(
    "change",
    [
        {"text_config": {"hidden_size": 1}}, {"vision_config": {"depth": 1}},
        {"kv_lora_rank": 512}, {"q_lora_rank": 1536}, {"index_topk": 2048},
        {"full_attention_interval": 4}, {"hybrid_override_pattern": "M-M*"},
        {"linear_attn_config": {"a": 1}}, {"block_configs": [{}]}, {"first_k_dense_replace": 3},
        {"n_routed_experts": 256}, {"n_shared_experts": 1}, {"num_experts": 8},
        {"num_local_experts": 8}, {"moe_intermediate_size": 64}, {"num_kv_shared_layers": 2},
        {"num_experts_per_tok": 2}, {"num_shared_experts": 1}, {"interleave_moe_layer_step": 2},
        {"moe_layers": [1, 3]}, {"moe_layer_frequency": 2}, {"zero_expert_num": 2},
        {"dual_chunk_attention_config": {"chunk_size": 1}}, {"attention_chunk_size": 8192},
        {"architectures": ["DeciLMForCausalLM"]}, {"architectures": "LlamaForCausalLM"},
        {"layer_types": ["full_attention", "linear_attention"]},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_decoder_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **change}, indent=1))
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert caught.value.field in change
