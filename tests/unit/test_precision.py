"""Data types that are asked for: what follows from them, what is said, what is refused."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.kernel_constants import EXPERTS, PRODUCTS, SmallKvConstants
from nexusbench.core.layers import DTYPE_BYTES
from nexusbench.core.specs import GpuSpec, ModelSpec, with_used_kernels
from nexusbench.models.config import caveats, load_model
from nexusbench.models.precision import Precision, computed_model_of, served_model_of
from nexusbench.physics.attention import Attention
from nexusbench.physics.gemm import ScaledGemm
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.precisions import (
    experts_kernel,
    product_constants,
    product_kernel,
    small_kv_constants,
)
from nexusbench.physics.products import Products
from nexusbench.physics.small_kv import SmallKvAttention
from nexusbench.serving.resolve import model_on_device

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


def folder(path: Path, **changes: object) -> str:
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}, indent=1))
    return str(path)


def step_ms(gpu: str, model: ModelSpec, shape: BatchShape) -> float:
    spec = load_gpu(gpu)
    return Physics(with_used_kernels(spec, model), model).load(shape, spec.num_sms).solo / 1e6


def test_fp8_is_made_of_linear_layers_alone() -> None:
    found = served_model_of("qwen3-30b-a3b", Precision(quantization="fp8"))
    plain = load_model("qwen3-30b-a3b")
    (group,) = found.model.groups
    types = group.dtypes
    assert (types.attention, types.experts, types.router) == ("fp8", "fp8", "bfloat16")
    assert found.model.head_dtype == found.model.dtypes.embeddings == "bfloat16"
    assert found.model.num_parameters >= plain.num_parameters
    assert found.model.weight_bytes < 0.52 * plain.weight_bytes
    assert found.model.dtypes.kv == "bfloat16"
    assert "quantised while they are loaded" in found.said[0]


def test_the_own_method_of_a_checkpoint_changes_nothing(tmp_path: Path) -> None:
    name = folder(tmp_path, quantization_config=AWQ)
    plain = served_model_of(name, Precision())
    assert plain.model.dtypes.weights == "int4_g128"
    for method in ("awq", "awq_marlin"):
        assert served_model_of(name, Precision(quantization=method)) == plain
    fp8 = served_model_of("qwen3-32b-fp8", Precision(quantization="fp8"))
    assert fp8 == served_model_of("qwen3-32b-fp8", Precision())


def test_a_float32_model_is_served_in_16_bit_and_that_is_said(tmp_path: Path) -> None:
    name = folder(tmp_path, torch_dtype="float32")
    found = served_model_of(name, Precision())
    assert set(found.model.dtypes.__struct_fields__) == {
        "weights", "embeddings", "kv", "activations",
    }  # fmt: skip
    assert found.model.dtypes == load_model("llama-3.1-8b").dtypes
    assert "config.json says float32; served in bfloat16" in found.said[0]
    volta = served_model_of(name, Precision(), ("float16",))
    assert volta.model.dtypes.weights == "float16"
    # What computes tokens computes what config.json says.
    assert computed_model_of(name, Precision()).model.dtypes.weights == "float32"


def test_a_type_inside_a_multi_modal_config(tmp_path: Path) -> None:
    found = served_model_of("qwen3-vl-235b-a22b", Precision(dtype="float16"))
    assert found.model.dtypes.activations == "float16"
    assert {group.dtypes.experts for group in found.model.groups} == {"float16"}


def test_weights_that_are_quantised_keep_their_type(tmp_path: Path) -> None:
    name = folder(tmp_path, quantization_config=AWQ, torch_dtype="float16")
    found = served_model_of(name, Precision(dtype="bfloat16", kv_cache_dtype="fp8_e5m2"))
    dtypes = found.model.dtypes
    assert (dtypes.weights, dtypes.activations, dtypes.kv) == ("int4_g128", "bfloat16", "fp8")


def test_an_fp8_cache_of_a_checkpoint_can_be_kept_in_16_bit(tmp_path: Path) -> None:
    settings = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    name = folder(tmp_path, quantization_config=settings)
    assert served_model_of(name, Precision(kv_cache_dtype="auto")).model.dtypes.kv == "fp8"
    found = served_model_of(name, Precision(kv_cache_dtype="bfloat16"))
    assert found.model.dtypes.kv == "bfloat16"
    assert found.model.kv_bytes_per_token == 131_072


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantization": "awq"}, "only fp8 is made of those while they are loaded"),
        ({"quantization": "nvfp4"}, "--quantization nvfp4 is unknown"),
        ({"quantization": "int8"}, "--quantization int8 is unknown"),
        ({"dtype": "float32"}, "no kernels of 32-bit products"),
        ({"dtype": "half"}, "--dtype half is unknown"),
        ({"kv_cache_dtype": "int8"}, "--kv-cache-dtype int8 is unknown"),
        ({"kv_cache_dtype": "float16"}, "computes in bfloat16, and its attention reads"),
    ],
)
def test_what_is_refused(asked: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        served_model_of("llama-3.1-8b", Precision(**asked))


def test_another_quantisation_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    name = folder(tmp_path, quantization_config=AWQ)
    with pytest.raises(UsageError, match="are quantised by awq already"):
        served_model_of(name, Precision(quantization="fp8"))


def run(**asked: Any) -> RunConfig:
    return RunConfig(trace="", **{"model": "llama-3.1-8b", **asked})


def test_a_gpu_without_8_bit_floats_multiplies_in_16_bit_and_says_so() -> None:
    found = model_on_device(run(device="sim:a100", quantization="fp8"))
    assert any("computed in 16 bit, from weights that stay small" in one for one in found.caveats)
    native = model_on_device(run(device="sim:h200", quantization="fp8"))
    assert not any("computed in 16 bit" in one for one in native.caveats)
    assert native.model == found.model


@pytest.mark.parametrize(("gpu", "said"), [("h200", True), ("b200", False)])
def test_experts_are_said_to_compute_in_what_their_kernel_does(gpu: str, said: bool) -> None:
    found = model_on_device(run(device=f"sim:{gpu}", model="gpt-oss-20b"))  # MXFP4
    assert any("computed in 16 bit" in one for one in found.caveats) == said


def test_a_v100_computes_in_float16_and_refuses_small_floats() -> None:
    found = model_on_device(run(device="sim:v100"))
    assert found.model.dtypes.activations == "float16"
    assert any("served in float16" in one for one in found.caveats)
    with pytest.raises(UsageError, match=r"weights in fp8, which NVIDIA V100.* has no kernels for"):
        model_on_device(run(device="sim:v100", quantization="fp8"))
    with pytest.raises(UsageError, match="KV in fp8, which NVIDIA V100"):
        model_on_device(run(device="sim:v100", kv_cache_dtype="fp8"))
    with pytest.raises(UsageError, match="--dtype bfloat16: this GPU computes in float16"):
        model_on_device(run(device="sim:v100", dtype="bfloat16"))


def test_a_model_that_is_given_is_checked_and_spoken_of_alike() -> None:
    found = model_on_device(run(device="sim:a100", quantization="fp8"))
    again = model_on_device(run(device="sim:a100"), found.model)
    assert set(again.caveats) < set(found.caveats)  # all but what the option says
    assert any("computed in 16 bit" in one for one in again.caveats)
    with pytest.raises(UsageError, match=r"weights in fp8, which NVIDIA V100.* has no kernels for"):
        model_on_device(run(device="sim:v100"), found.model)


def test_steps_follow_from_the_types() -> None:
    decodes, prompt = BatchShape(32, 32 * 1500), BatchShape(0, 0, ((4096, 0),))
    plain, fp8, both = (
        served_model_of("llama-3.1-8b", Precision(quantization=weights, kv_cache_dtype=kv)).model
        for weights, kv in ((None, None), ("fp8", None), ("fp8", "fp8"))
    )
    for gpu, faster in (("h200", True), ("a100", False)):
        long = [step_ms(gpu, model, prompt) for model in (plain, fp8)]
        short = [step_ms(gpu, model, decodes) for model in (plain, fp8, both)]
        assert short[0] > short[1] > short[2]
        assert (long[1] < 0.8 * long[0]) == faster
    # An H200 reads 7.0 GB of weights less, and 1.6 GB of keys and values.
    assert step_ms("h200", plain, decodes) - step_ms("h200", fp8, decodes) == pytest.approx(
        7.0e9 / 4.8e12 * 1e3, rel=0.35
    )


def test_what_computes_tokens_dequantises_and_says_so(tmp_path: Path) -> None:
    name = folder(tmp_path, quantization_config=AWQ, torch_dtype="float16")
    found = computed_model_of(name, Precision())
    assert found.model.dtypes.weights == found.model.dtypes.kv == "float16"
    assert found.model.weight_bytes == 2 * found.model.num_parameters
    assert "are dequantised to float16 when they are loaded" in found.said[0]
    with pytest.raises(UsageError, match="--kv-cache-dtype fp8 is for simulated devices"):
        computed_model_of(name, Precision(kv_cache_dtype="fp8"))
    named = tmp_path / "Llama-AWQ"
    named.mkdir()
    on_cpu = run(device="cpu", model=folder(named, quantization_config=AWQ))
    caveats = model_on_device(on_cpu).caveats
    assert len(caveats) == 1  # not that its name promises a quantisation


# aiconfigurator 0.12.0, vLLM 0.24, 32 query and 8 KV heads of 128: (GPU, batch, tokens, before,
# us over a bfloat16 cache, us over an fp8 cache).
MEASURED = [
    ("h200", 8, 1, 16383, 151.2, 100.2), ("h200", 64, 1, 4095, 270.9, 193.0),
    ("h200", 8, 1536, 0, 393.8, 488.1), ("b200", 64, 1, 4095, 158.7, 86.7),
    ("l40s", 256, 1, 1023, 1522.2, 843.9),
]  # fmt: skip


@pytest.mark.parametrize(("name", "batch", "tokens", "before", "wide", "small"), MEASURED)
def test_attention_over_an_fp8_cache_as_measured(
    name: str, batch: int, tokens: int, before: int, wide: float, small: float
) -> None:
    gpu = load_gpu(name)
    decodes = batch if tokens == 1 else 0
    chunks = () if decodes else ((tokens, before),) * batch
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency

    def made(on: GpuSpec) -> Attention:
        return Attention(on, 32, 8, 128, 1.0)

    over = SmallKvAttention(gpu, small_kv_constants(gpu), made, 32, 128, 1)
    times = [
        one.time(
            chunks, decodes, decodes * (before + 1), gpu.num_sms, bandwidth, copies=1
        ).time / 1e3
        for one in (Attention(gpu, 32, 8, 128), over)
    ]  # fmt: skip
    assert times[1] == pytest.approx(small, rel=0.2)
    assert (times[0] < times[1]) == (wide < small)


def test_layers_pay_for_their_queries_each() -> None:
    gpu = load_gpu("h200")

    def made(on: GpuSpec) -> Attention:
        return Attention(on, 32, 8, 128, 1.0, layers=4)

    own = small_kv_constants(gpu)
    four = SmallKvAttention(gpu, own, made, 32, 128, 4)
    one = SmallKvAttention(gpu, own, lambda on: Attention(on, 32, 8, 128, 1.0), 32, 128, 1)
    for shape in (((), 8, 8000), (((512, 0),), 3, 900)):
        each = (*shape, gpu.num_sms, 4000.0)
        assert four.time(*each).time == pytest.approx(4 * one.time(*each).time)
    assert four.time((), 0, 0, gpu.num_sms, 4000.0).time == 0.0


W8A8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip


def test_8_bit_integers_beside_8_bit_activations_run_at_their_rate(tmp_path: Path) -> None:
    model = load_model(folder(tmp_path, quantization_config=W8A8))
    assert model.dtypes.weights == "int8_w8a8"
    assert model.weight_bytes == load_model("llama-3.1-8b").weight_bytes - 6_979_321_856
    groups: dict[str, Any] = json.loads(json.dumps(W8A8["config_groups"]))
    groups["group_0"]["input_activations"] = None
    alone = folder(tmp_path, quantization_config={**W8A8, "config_groups": groups})
    weight_only = load_model(alone)
    assert weight_only.dtypes.weights == "int8"
    prompt = BatchShape(0, 0, ((4096, 0),))
    for gpu, native in (("a100", True), ("l40s", True), ("h200", True), ("b200", False)):
        ratio = step_ms(gpu, model, prompt) / step_ms(gpu, weight_only, prompt)
        assert (ratio < 0.75) == native, gpu
    said = model_on_device(run(device="sim:b200", model=str(tmp_path))).caveats
    assert not any("computed in 16 bit" in one for one in said)  # weights alone: as described


@pytest.mark.parametrize(("m", "measured"), [(64, 21.5), (256, 39.9), (1024, 93.2), (8192, 556.0)])
def test_a_product_of_integers_as_measured(m: int, measured: float) -> None:
    """aiconfigurator 0.12.0, SmoothQuant of TensorRT-LLM 1.0, an A100, N = K = 4,096."""
    gpu = load_gpu("a100")
    gemm = ScaledGemm(gpu, product_constants(gpu, "int8"), 1.0, 1.0)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    made = gemm.time(m, 4096, 4096, gpu.num_sms, bandwidth, copies=6).time / 1e3
    assert made == pytest.approx(measured, rel=0.15)
    # Other Ampere GPUs take these constants, not those of 8-bit floats.
    assert product_kernel(load_gpu("rtx3090"), "int8_w8a8").origin == gpu.name


def test_each_product_of_integers_quantises_its_own_inputs() -> None:
    gpu = load_gpu("a100")
    integers = Products(gpu, "int8_w8a8", 1.0)
    floats = Products(load_gpu("h200"), "fp8", 1.0)
    for products, apart in ((integers, True), (floats, False)):
        qkv, out = (
            products.time(name, 256, 4096, 4096, 108, 1500.0, 1500.0).time
            for name in ("qkv", "attn_out")
        )
        assert (qkv == out) == apart


def test_prompts_and_decodes_have_constants_of_their_own() -> None:
    gpu = load_gpu("b200")
    own = small_kv_constants(gpu)

    def time(
        constants: SmallKvConstants, chunks: tuple[tuple[int, int], ...], beside: int = 0
    ) -> float:
        made = SmallKvAttention(
            gpu, constants, lambda on: Attention(on, 32, 8, 128, 1.0), 32, 128, 1
        )  # fmt: skip
        decodes = beside if chunks else 4
        return made.time(chunks, decodes, decodes * 100, gpu.num_sms, 6000.0).time

    longer = msgspec.structs.replace(own, decode_tile=own.decode_tile * 3)
    assert time(longer, ()) > time(own, ())
    assert time(longer, ((512, 0),)) == time(own, ((512, 0),))
    # Decodes beside a prompt run in its kernel.
    assert time(longer, ((512, 0),), 4) == time(own, ((512, 0),), 4)
    slower = msgspec.structs.replace(own, prefill_tile=own.prefill_tile * 3)
    assert time(slower, ((512, 0),), 4) > time(own, ((512, 0),), 4)
    assert time(slower, ()) == time(own, ())
    # A model that is dense and 16-bit but for its cache needs the constants of its GPU.
    model = served_model_of("llama-3.1-8b", Precision(kv_cache_dtype="fp8")).model
    assert with_used_kernels(gpu, model).kernels == gpu.kernels


@pytest.mark.parametrize(
    ("name", "words"),
    [("llama-3.1-8b", "attention over it as kernels of full"), ("deepseek-v3", "of latents")],
)
def test_what_an_fp8_cache_rests_on_is_said(name: str, words: str) -> None:
    said = caveats(served_model_of(name, Precision(kv_cache_dtype="fp8")).model)
    assert any(one.startswith(f"fp8 KV cache: {words}") for one in said)


@pytest.mark.parametrize("name", gpu_names())
def test_every_kernel_is_of_a_known_kind(name: str) -> None:
    """Or is refused, where a GPU has none (CDNA 3)."""
    gpu = load_gpu(name)
    for weights, activations in itertools.product(DTYPE_BYTES, ("bfloat16", "int8", "mxfp8")):
        for found, kinds in ((product_kernel, PRODUCTS), (experts_kernel, EXPERTS)):
            with suppress(UsageError):
                assert found(gpu, weights, activations).kind in ("bf16", *kinds)


def test_a_product_of_mxfp4_is_in_16_bit_whatever_its_activations() -> None:
    for name in ("h200", "b200"):
        gpu = load_gpu(name)
        wide = product_kernel(gpu, "mxfp4")
        assert wide.kind == "w4a16"
        assert product_kernel(gpu, "mxfp4", "mxfp8") == wide
    assert experts_kernel(load_gpu("h200"), "mxfp4", "mxfp8").kind == "mxfp4"
