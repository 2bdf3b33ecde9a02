"""The shipped models, families read from config.json, and broken ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.kv_layout import kv_layout
from nexusbench.core.specs import Dtypes, MoeSpec
from nexusbench.core.work import model_work
from nexusbench.models.config import caveats, load_model, missing_quantisation, model_names
from tests.examples import sample

NAMES = [
    "deepseek-r1",
    "deepseek-v3",
    "deepseek-v3.1-nvfp4",
    "deepseek-v4-flash",
    "gemma-3-12b",
    "gemma-3-27b",
    "gemma-4-31b-nvfp4",
    "glm-4.5-air",
    "glm-4.6",
    "glm-5.2-fp8",
    "gpt-oss-120b",
    "gpt-oss-20b",
    "kimi-k2",
    "kimi-k2.5-nvfp4",
    "llama-2-7b",
    "llama-3.1-405b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "llama-3.3-70b",
    "minimax-m2.5",
    "minimax-m2.5-nvfp4",
    "mistral-7b",
    "mistral-nemo",
    "mistral-small-24b",
    "mixtral-8x22b",
    "mixtral-8x7b",
    "nemotron-3-nano-30b-a3b",
    "nemotron-super-49b",
    "phi-4",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen2.5-3b",
    "qwen2.5-72b",
    "qwen2.5-7b",
    "qwen3-14b",
    "qwen3-235b-a22b",
    "qwen3-30b-a3b",
    "qwen3-32b",
    "qwen3-32b-fp8",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-coder-480b-a35b",
    "qwen3-vl-235b-a22b",
    "qwen3.6-27b-nvfp4",
    "small",
    "tiny",
]
BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "vocab_size": 1000,
}
REMOVED = object()


def config(tmp_path: Path, **changes: object) -> Path:
    data = {key: value for key, value in {**BASE, **changes}.items() if value is not REMOVED}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return path


def test_the_shipped_models_are_found_in_any_case() -> None:
    assert model_names() == NAMES
    assert load_model("Llama-3.1-8B") == load_model("llama-3.1-8b")
    assert load_model("Llama-3.1-8B").name == "llama-3.1-8b"


@pytest.mark.parametrize(
    ("name", "billions", "kv_bytes", "context", "dtype"),
    [
        ("qwen2.5-3b", 3.09, 36 * 2 * 2 * 128 * 2, 32768, "bfloat16"),
        ("qwen2.5-14b", 14.77, 48 * 2 * 8 * 128 * 2, 131072, "bfloat16"),
        ("qwen3-4b", 4.02, 36 * 2 * 8 * 128 * 2, 40960, "bfloat16"),
        ("llama-3.1-8b", 8.03, 32 * 2 * 8 * 128 * 2, 131072, "bfloat16"),
        ("llama-3.1-70b", 70.55, 80 * 2 * 8 * 128 * 2, 131072, "bfloat16"),
        ("llama-2-7b", 6.74, 32 * 2 * 32 * 128 * 2, 4096, "float16"),
    ],
)
def test_shipped_sizes(name: str, billions: float, kv_bytes: int, context: int, dtype: str) -> None:
    model = load_model(name)
    assert model.num_parameters / 1e9 == pytest.approx(billions, rel=0.003)
    assert model.kv_bytes_per_token == kv_bytes
    assert model.max_model_len == context
    assert model.dtypes == Dtypes(dtype, dtype, dtype, dtype)
    assert model.tie_word_embeddings == (name in ("qwen2.5-3b", "qwen3-4b"))
    assert model.moe is None


# As transformers 5.23 counts them: the text part, without layers that predict further tokens.
PARAMETERS = {
    "llama-3.3-70b": 70_553_706_496, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648, "qwen3-8b": 8_190_735_360,
    "qwen3-235b-a22b": 235_093_634_560, "mistral-7b": 7_248_023_552,
    "mistral-small-24b": 23_572_403_200, "gpt-oss-20b": 20_914_757_184,
    "gemma-3-12b": 11_766_034_176, "gemma-3-27b": 27_009_346_304, "phi-4": 14_659_507_200,
    "kimi-k2": 1_026_408_209_408, "glm-4.6": 352_797_814_784, "glm-4.5-air": 106_852_245_504,
    "minimax-m2.5": 228_689_748_992,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_that_many_serve_have_their_published_sizes(name: str) -> None:
    model = load_model(name)
    assert model.num_parameters == pytest.approx(PARAMETERS[name], rel=1e-4)
    # Billions that a token uses, as model cards round them; some count embeddings.
    cards = {"qwen3-235b-a22b": 22, "kimi-k2": 32, "glm-4.6": 32, "glm-4.5-air": 12,
             "minimax-m2.5": 10}  # fmt: skip
    if name in cards:
        rest = model.active_parameters - model.embedding_parameters
        assert rest / 1e9 == pytest.approx(cards[name], rel=0.1)


def test_every_shipped_model_has_its_source() -> None:
    text = (files("nexusbench.data") / "models" / "sources.toml").read_text(encoding="utf-8")
    assert sorted(tomllib.loads(text)) == NAMES
    for name in NAMES:
        expected = "built in" if name in ("small", "tiny") else "https://huggingface.co/"
        assert load_model(name).source.startswith(expected)


@pytest.mark.slow
def test_needs_no_torch() -> None:
    code = "import sys, nexusbench.models.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_and_its_folder_give_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    path = config(folder)
    model = load_model(folder)
    assert model == load_model(str(path))
    assert (model.name, model.source) == ("my-model", str(path))
    assert (model.head_dim, model.num_kv_heads, model.max_model_len) == (8, 2, 512)
    other = path.rename(folder / "tiny.json")
    assert load_model(other).name == "tiny"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_dense_families(tmp_path: Path, family: str) -> None:
    model = load_model(config(tmp_path, model_type=family, head_dim=32))
    assert model.head_dim == 32
    assert model.moe is None


def test_old_llama_configs_leave_the_kv_heads_out(tmp_path: Path) -> None:
    assert load_model(config(tmp_path, num_key_value_heads=REMOVED)).num_kv_heads == 8
    with pytest.raises(InputError, match="num_key_value_heads"):
        load_model(config(tmp_path, model_type="mistral", num_key_value_heads=None))


def test_mixtral(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        model_type="mixtral",
        sliding_window=None,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    assert load_model(path).moe == MoeSpec(8, 2, 128)


@pytest.mark.parametrize(("shared", "count"), [(None, 0), (0, 0), (192, 4)])
def test_qwen_moe_and_its_shared_experts(tmp_path: Path, shared: object, count: int) -> None:
    path = config(
        tmp_path,
        model_type="qwen2_moe",
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=shared,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    assert load_model(path).moe == MoeSpec(60, 4, 48, count)
    whole = json.loads(path.read_text())
    # What is left out is no 0 in this family, and there are no shared experts in the others.
    removed = {key: value for key, value in whole.items() if not key.startswith("shared")}
    path.write_text(json.dumps(removed))
    with pytest.raises(InputError, match="'shared_expert_intermediate_size': is missing"):
        load_model(path)
    path.write_text(json.dumps({**whole, "model_type": "qwen3_moe"}))
    if shared:
        with pytest.raises(InputError, match="Only qwen2_moe has"):
            load_model(path)
    else:
        assert load_model(path).moe == MoeSpec(60, 4, 48, 0)


def test_two_counts_of_experts_that_differ(tmp_path: Path) -> None:
    path = config(
        tmp_path, model_type="qwen3_moe", num_experts=60, num_local_experts=64,
        num_experts_per_tok=4, moe_intermediate_size=48,
    )  # fmt: skip
    with pytest.raises(
        InputError, match="'num_local_experts': is 64, but the other count of experts 60"
    ):
        load_model(path)


def test_qwen3_30b_a3b_has_its_published_size(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        model_type="qwen3_moe",
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        vocab_size=151936,
    )
    assert load_model(path).num_parameters / 1e9 == pytest.approx(30.5, rel=0.003)


@pytest.mark.parametrize(
    ("quantisation", "weights"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        (None, "float16"),
    ],
)
def test_quantisation_touches_only_the_weights(
    tmp_path: Path, quantisation: object, weights: str
) -> None:
    path = config(tmp_path, torch_dtype="float16", quantization_config=quantisation)
    assert load_model(path).dtypes == Dtypes(weights, "float16", "float16", "float16")


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"torch_dtype": REMOVED}, "bfloat16"),
        ({"torch_dtype": REMOVED, "dtype": "float32"}, "float32"),
        ({"torch_dtype": "torch.float16"}, "float16"),
    ],
)
def test_dtype_under_both_its_names(tmp_path: Path, changes: dict[str, object], dtype: str) -> None:
    assert load_model(config(tmp_path, **changes)).dtypes.weights == dtype


def test_a_name_that_promises_a_quantisation_is_told(tmp_path: Path) -> None:
    llama = BASE | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for name, told in (("Llama-FP8", "its name says FP8"), ("Llama", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(llama))
        model = load_model(tmp_path / name)
        assert missing_quantisation(model).startswith(told)
        assert bool(missing_quantisation(model)) == bool(told)
        assert caveats(model) == ([missing_quantisation(model)] if told else [])
    quantised = llama | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "Llama-FP8" / "config.json").write_text(json.dumps(quantised))
    assert missing_quantisation(load_model(tmp_path / "Llama-FP8")) == ""


def test_a_window_that_is_off_is_fine(tmp_path: Path) -> None:
    load_model(config(tmp_path, model_type="qwen2", sliding_window=64, use_sliding_window=False))
    load_model(config(tmp_path, model_type="mistral", sliding_window=512))
    load_model(config(tmp_path, layer_types=["full_attention", "full_attention"]))


MOE = {"num_local_experts": 8, "num_experts_per_tok": 2, "model_type": "mixtral"}
QWEN_MOE = {**MOE, "model_type": "qwen2_moe", "moe_intermediate_size": 48}
# Changes to a good config, the field the message must name, and its words.
BROKEN: list[tuple[dict[str, object], str, str]] = [
    ({"model_type": "gpt2"}, "model_type", "Supported: deepseek_v2, "),
    ({"model_type": ["llama"]}, "model_type", "not supported"),
    ({"model_type": REMOVED}, "model_type", "is missing"),
    ({"hidden_size": REMOVED}, "hidden_size", "is missing"),
    ({"hidden_size": "64"}, "hidden_size", "not an integer"),
    ({"hidden_size": 64.0}, "hidden_size", "not an integer"),
    ({"hidden_size": True}, "hidden_size", "not an integer"),
    ({"hidden_size": float("nan")}, "hidden_size", "is NaN"),
    ({"hidden_size": 10**12}, "hidden_size", "between 1 and"),
    ({"num_hidden_layers": 0}, "num_hidden_layers", "is 0"),
    ({"vocab_size": -5}, "vocab_size", "is -5"),
    ({"max_position_embeddings": None}, "max_position_embeddings", "is missing"),
    ({"intermediate_size": [1]}, "intermediate_size", "not an integer"),
    ({"num_key_value_heads": 3}, "num_key_value_heads", "does not divide the 8"),
    ({"num_key_value_heads": 16}, "num_key_value_heads", "does not divide the 8"),
    ({"hidden_size": 63}, "num_attention_heads", "head_dim is not given"),
    ({"head_dim": 0}, "head_dim", "is 0"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "true or false"),
    ({"torch_dtype": "float64"}, "torch_dtype", "Supported: bfloat16"),
    ({"dtype": 16}, "dtype", "Supported: bfloat16"),
    ({"hidden_act": "gelu"}, "hidden_act", "SwiGLU"),
    ({"use_sliding_window": 3}, "use_sliding_window", "true or false"),
    ({"layer_types": ["sliding_attention"]}, "layer_types", "has 1 entries"),
    ({"layer_types": ["full_attention", "conv"]}, "layer_types", 'has "conv"'),
    (
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": REMOVED},
        "sliding_window",
        "is missing",
    ),
    ({"layer_types": 3}, "layer_types", "not a list"),
    ({"quantization_config": "fp8"}, "quantization_config", "not an object"),
    ({"quantization_config": {"quant_method": "awq", "bits": 3}}, "quant_method", "bits 3"),
    ({"quantization_config": {"quant_method": "hqq"}}, "quant_method", "Supported"),
    ({**MOE, "num_local_experts": REMOVED}, "num_local_experts", "is missing"),
    ({**MOE, "num_experts_per_tok": 9}, "num_experts_per_tok", "exceeds the 8"),
    ({**QWEN_MOE, "moe_intermediate_size": REMOVED}, "moe_intermediate_size", "is missing"),
    ({**QWEN_MOE, "mlp_only_layers": 3}, "mlp_only_layers", "not a list"),
]


@pytest.mark.parametrize(("changes", "field", "words"), BROKEN)
def test_a_broken_config_is_located(
    tmp_path: Path, changes: dict[str, object], field: str, words: str
) -> None:
    path = config(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert field in message
    assert words in message
    assert "\n" not in message
    assert caught.value.field is not None
    if REMOVED not in changes.values():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert caught.value.line is not None
        assert caught.value.field.split(".")[-1] in lines[caught.value.line - 1]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 1, "is empty"),
        (b'{\n  "hidden_size": 64,\n  "vocab', 3, "not valid JSON"),
        (b'{\n  "hidden_size": 64,\n', 3, "not valid JSON"),
        (b"[1, 2]", None, "holds a JSON list, not an object"),
        (b"null", None, "not an object"),
        (b"\xff\xfe{", None, "UTF-8"),
        (b"[" * 200_000, None, "not a usable JSON document"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", None, "not a usable JSON document"),
    ],
)
def test_a_file_that_is_no_config(
    tmp_path: Path, content: bytes, line: int | None, words: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_model(path)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lama-3.1-8b", "Did you mean 'llama-3.1-8b'?"),
        ("Qwen/Qwen2.5-3B", "Did you mean 'qwen2.5-3b'?"),
        ("zzz", "Known: deepseek-r1"),
        ("", "Known: deepseek-r1"),
    ],
)
def test_an_unknown_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        load_model(name)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("gpus", "copies"),
    [(1, 1), (2, 1), (4, 2), (8, 4)],
)
def test_kv_heads_are_kept_on_several_gpus_where_there_are_fewer(gpus: int, copies: int) -> None:
    model = load_model("qwen2.5-3b")  # 2 KV heads
    assert kv_layout(model, gpus).token_bytes == copies * 36_864
    assert model_work(model, gpus).kv_bytes_per_token * gpus == kv_layout(model, gpus).token_bytes


HOSTILE: tuple[object, ...] = (
    REMOVED, None, 0, -1, 3, 1e308, 1.5, float("nan"), float("inf"), "x", "", True, [], {}, [[]],
    {"a": {"a": 1}}, 10**9, 2**63, 10**400, "1", [1] * 1000, json.loads("[" * 400 + "]" * 400),
)  # fmt: skip
KEYS = (
    *BASE, "architectures", "head_dim", "tie_word_embeddings", "dtype", "sliding_window",
    "layer_types", "quantization_config", "num_experts", "num_experts_per_tok",
    "moe_intermediate_size", "decoder_sparse_step", "mlp_only_layers", "text_config",
    "shared_expert_intermediate_size", "use_sliding_window", "compression_config",
)  # fmt: skip


@pytest.mark.parametrize("key", sample(KEYS, 5))
def test_any_value_of_any_key_is_read_or_located(tmp_path: Path, key: str) -> None:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    for family in ({}, {"model_type": "qwen3_moe", **experts}):
        for value in HOSTILE:
            path = config(tmp_path, **{**family, key: value})
            try:
                model = load_model(path)
            except InputError as error:
                assert error.field, value  # noqa: PT017 - most are read, whichever it is
                assert len(str(error)) < 400 + len(str(path))  # noqa: PT017
            else:
                assert model.num_layers <= 4096
                assert 0 < model.weight_bytes < 1e30


def test_a_config_that_is_no_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b" " * (17 << 20))
    with pytest.raises(InputError, match="more than 16 MiB"):
        load_model(tmp_path)
    for name in ("x" * 5000, "a\0b", "/dev/null", "/proc/self/mem"):
        with pytest.raises(InputError, match=r"no shipped model|cannot be read"):
            load_model(name)
