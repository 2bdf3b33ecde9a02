"""Products in low precision, quantisation, and which kernel a GPU has for a data type."""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import KernelConstants
from nexusbench.core.specs import Dtypes, GpuSpec, ModelSpec, MoeSpec, with_used_kernels
from nexusbench.models.config import load_model
from nexusbench.physics.gemm import Gemm, Quantise, ScaledGemm
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.precisions import (
    expert_constants,
    experts_kernel,
    product_constants,
    product_kernel,
    quantise_constants,
    served_experts,
)
from nexusbench.physics.products import Products

H200, A100, B200 = load_gpu("h200"), load_gpu("a100"), load_gpu("b200")
TEXT = (files("nexusbench.data") / "gpus" / "h200.toml").read_text(encoding="utf-8")


def attained(gpu: GpuSpec) -> float:
    return gpu.hbm_gbps * gpu.sim.bandwidth_efficiency


def product(gpu: GpuSpec, kind: str, size: float, m: int, n: int, k: int, copies: int = 6) -> float:
    gemm = ScaledGemm(gpu, product_constants(gpu, kind), size, size)
    return gemm.time(m, k, n, gpu.num_sms, attained(gpu), copies=copies).time / 1e3


def quantised(gpu: GpuSpec, scales: str, rows: int, values: int) -> float:
    quantise = Quantise(gpu, quantise_constants(gpu), scales)
    return quantise.time(rows, values, gpu.num_sms, attained(gpu)).time / 1e3


def with_weights(weights: str, moe: MoeSpec | None = None) -> ModelSpec:
    model = load_model("llama-3.1-8b")
    return msgspec.structs.replace(model, dtypes=Dtypes(weights=weights), moe=moe)


@pytest.mark.parametrize(
    ("m", "measured"), [(1, 12.03), (64, 10.79), (128, 13.66), (1024, 37.0), (4096, 135.8)]
)
def test_an_fp8_product_as_measured(m: int, measured: float) -> None:
    """aiconfigurator 0.12.0, vLLM 0.24, an H200, N = K = 4,096, the activations quantised too."""
    made = product(H200, "fp8", 1.0, m, 4096, 4096) + quantised(H200, "tensor", m, 4096)
    assert made == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(("m", "measured"), [(1, 9.09), (512, 10.87), (2048, 24.2), (8192, 77.8)])
def test_an_nvfp4_product_as_measured(m: int, measured: float) -> None:
    """The same of a B200, on one set of weights."""
    made = product(B200, "nvfp4", 0.5625, m, 4096, 4096, copies=1)
    assert made + quantised(B200, "block", m, 4096) == pytest.approx(measured, rel=0.2)


def test_tiles_are_chosen_by_rows_and_columns() -> None:
    """On Ada, tiles of 256 rows between 4,096 and 8,192 columns: 2,049 rows cost what 2,304 do."""
    gpu = load_gpu("l40s")
    for columns, same in ((4096, False), (8192, True), (16384, False)):
        few, many = (product(gpu, "fp8", 1.0, m, columns, 65536) for m in (2049, 2304))
        assert (few == pytest.approx(many, rel=0.02)) is same


def test_tiles_are_chosen_by_rows_and_computed_in_whole_clusters() -> None:
    own = msgspec.structs.replace(product_constants(H200, "fp8"), wave_share=1.0)
    gemm = ScaledGemm(H200, own, 1.0, 1.0)

    def busy(rows: int) -> float:
        return gemm.time(rows, 8192, 5632, H200.num_sms, attained(H200)).busy

    assert busy(1) == busy(16) < busy(17) == busy(64) < busy(65) == busy(128)
    # Two SMs share rows: 129 rows cost what 256 do, and 257 what 512 do.
    assert busy(129) == busy(256) < busy(257) == busy(512)


def test_large_products_take_their_types_share_of_the_time_and_small_ones_their_bytes() -> None:
    sms, bandwidth = B200.num_sms, attained(B200)
    wide = [Gemm(B200).time(m, 8192, 8192, 2.0, 2.0, sms, bandwidth).time for m in (16, 8192)]
    for kind, size, rate in (("fp8", 1.0, 0.5), ("nvfp4", 0.5625, 0.25)):
        few, many = (1e3 * product(B200, kind, size, m, 8192, 8192, 0) for m in (16, 8192))
        assert few < 0.95 * wide[0]
        assert rate * 0.9 < many / wide[1] < rate * 1.6


def test_scales_of_a_tensor_are_found_row_by_row() -> None:
    times = {scales: quantised(H200, scales, 8192, 1024) for scales in ("static", "row", "tensor")}
    assert times["static"] < times["row"] < times["tensor"]
    twice = quantised(H200, "tensor", 16384, 1024) / times["tensor"]
    assert twice == pytest.approx(2.0, rel=0.1)
    assert quantised(H200, "static", 1, 4096) < 3.0
    # In L2 and beyond it: what further rows cost.
    times = [quantised(H200, "static", rows, 8192) for rows in (512, 1024, 8192, 16384)]
    assert (times[1] - times[0]) / 512 < 0.8 * (times[3] - times[2]) / 8192


def test_a_neighbour_leaves_quantisation_less_bandwidth() -> None:
    quantise = Quantise(H200, quantise_constants(H200), "block")
    few, all_ = (
        quantise.time(8192, 8192, sms, attained(H200) * share).time
        for sms, share in ((33, 0.25), (132, 1.0))
    )
    assert few > 2.5 * all_


@pytest.mark.parametrize(
    ("gpu", "weights", "activations", "kind"),
    [
        ("a100", "fp8", "bfloat16", "w8a16"),
        ("l20", "fp8", "bfloat16", "fp8"),
        ("h200", "fp8_block", "bfloat16", "fp8_block"),
        ("h200", "nvfp4", "bfloat16", "w4a16"),
        ("b200", "nvfp4", "bfloat16", "nvfp4"),
        ("rtx5090", "nvfp4", "bfloat16", "nvfp4"),
        ("h200", "int4_g128", "bfloat16", "w4a16"),
        ("h200", "int8_g128", "bfloat16", "w8a16"),
        ("a100", "int8", "int8", "int8"),
        ("v100", "int8", "int8", "w8a16"),
        ("h200", "mxfp4", "bfloat16", "w4a16"),
        ("h200", "bfloat16", "bfloat16", "bf16"),
    ],
)
def test_the_kernel_of_a_data_type(gpu: str, weights: str, activations: str, kind: str) -> None:
    kernel = product_kernel(load_gpu(gpu), weights, activations)
    assert kernel.kind == kind
    assert bool(kernel.scales) == (kind in ("fp8", "fp8_block", "nvfp4", "int8"))


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_has_constants_for_every_data_type_it_computes(name: str) -> None:
    gpu = load_gpu(name)
    types = ("bfloat16", "fp8", "fp8_block", "int8", "int4", "nvfp4", "mxfp4")
    for weights in types[:3] if name == "mi300x" else types:
        kernel = experts_kernel(gpu, weights)
        assert expert_constants(gpu, kernel.kind).fixed_us > 0
        assert kernel.origin
        if product_kernel(gpu, weights).scales:
            own = product_constants(gpu, product_kernel(gpu, weights).kind)
            assert own.tiles or own.column_tiles or own.waves
    assert quantise_constants(gpu).launch_us > 0


def test_a_kernel_says_whose_constants_it_takes() -> None:
    assert product_kernel(H200, "fp8").origin == H200.name
    assert product_kernel(load_gpu("l20"), "fp8").origin == load_gpu("l40s").name
    assert experts_kernel(A100, "bfloat16").origin == load_gpu("l40s").name
    assert product_kernel(A100, "fp8").origin == A100.name


@pytest.mark.parametrize(
    ("gpu", "kind", "origin"),
    [
        ("b200", "mxfp4_mxfp8", "b200"), ("gb200", "mxfp4_mxfp8", "b200"),
        ("b300", "mxfp4_mxfp8", "b200"), ("h200", "mxfp4", "h200"),
        ("rtxpro6000", "mxfp4", "rtxpro6000"), ("a100", "mxfp4", "l40s"),
    ],
)  # fmt: skip
def test_servers_quantise_activations_of_mxfp4_experts_where_cores_multiply_them(
    gpu: str, kind: str, origin: str
) -> None:
    spec = load_gpu(gpu)
    made = served_experts(spec, "mxfp4", "bfloat16")
    assert made.kind == kind
    assert made.origin == load_gpu(origin).name
    assert experts_kernel(spec, "mxfp4").kind == "mxfp4"  # as a table says
    assert served_experts(spec, "nvfp4", "bfloat16") == experts_kernel(spec, "nvfp4")


def test_sixteen_bit_products_that_read_fewer_bytes() -> None:
    sms, bandwidth = A100.num_sms, attained(A100)
    made = Products(A100, "fp8", 1.0).time("qkv", 16, 4096, 6144, sms, bandwidth, bandwidth)
    assert made == Gemm(A100).time(16, 4096, 6144, 1.0, 2.0, sms, bandwidth)


def test_only_what_attention_writes_is_quantised_by_a_kernel_of_its_own() -> None:
    products, bandwidth = Products(H200, "fp8", 1.0), attained(H200)
    sizes = 512, 4096, 4096, H200.num_sms, bandwidth, bandwidth
    gate, out = (products.time(name, *sizes) for name in ("gate_up", "attn_out"))
    assert out.time - gate.time == pytest.approx(1e3 * quantised(H200, "static", 512, 4096))


def test_a_decode_step_in_fp8_is_nearly_half_of_one_in_16_bit() -> None:
    shape = BatchShape(16, 16 * 512)
    steps = [
        Physics(H200, with_weights(weights)).load(shape, H200.num_sms).dense.time
        for weights in ("bfloat16", "fp8")
    ]
    assert 0.5 < steps[1] / steps[0] < 0.8
    prompts = BatchShape(0, 0, ((8192, 0),))
    steps = [
        Physics(B200, with_weights(weights)).load(prompts, B200.num_sms).dense.time
        for weights in ("bfloat16", "fp8", "nvfp4")
    ]
    assert all(later < 0.82 * earlier for earlier, later in pairwise(steps))


def test_kernels_do_not_belong_to_a_16_bit_model_without_experts() -> None:
    other = msgspec.structs.replace(H200, kernels=KernelConstants("hopper"))
    plain, fp8 = with_weights("bfloat16"), with_weights("fp8")
    assert with_used_kernels(H200, plain) == with_used_kernels(other, plain)
    assert with_used_kernels(H200, fp8) != with_used_kernels(other, fp8)
    mixture = with_weights("bfloat16", MoeSpec(8, 2, 1024))
    assert with_used_kernels(H200, mixture, 2) == H200


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[kernels.products.fp8]", "[kernels.products.fp9]", r"products.fp9': is no"),
        ('architecture = "hopper"', 'architecture = "hoper"', r"kernels.architecture': Invalid"),
        ("tensor_row_ns =", "tensor_row =", r"field 'kernels.quantise"),
        ("  [128, 0, 128, 128, 1.0, 2],\n", "", "leave out products of more than 128 rows"),
        ("  [128, 0, 128, 128, 1.0, 2],", "  [128, 0, 0, 128, 1.0, 2],", r"hold \[128, 0, 0"),
        ("[kernels.quantise]\nlaunch_us = 1.92", "[kernels.quantise]\nlaunch_us = -1.0",
         r"field 'kernels.quantise.launch_us': is -1"),
        ("  [128, 0, 128, 128, 1.0, 2],\n]", "]\ncolumn_tiles = [[0, 0, 0, 64, 16, 64, 1.0]]",
         r"stand beside column_tiles"),
        ("single_wave = 3.0\n", "single_wave = -1.0\n", r"fp8_block.waves.single_wave': is -1"),
        ("[kernels.products.fp8_block.waves]",
         "tiles = [[0, 0, 16, 64, 1.0, 1]]\n[kernels.products.fp8_block.waves]", "beside waves"),
        ("elementwise = ", "elementwise = 1e9 #", r"elementwise': is 1000000000"),
    ],
)  # fmt: skip
def test_a_broken_table_of_kernels_is_refused(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert old in TEXT
    file = tmp_path / "own.toml"
    file.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=told) as caught:
        load_gpu(str(file))
    assert str(file) in str(caught.value)


def test_a_gpu_file_without_kernels_takes_those_of_its_architecture(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    head, rest = TEXT.split("[kernels]", 1)
    file.write_text(head + rest[rest.index("[ranges]") :])
    gpu = load_gpu(str(file))
    assert product_kernel(gpu, "fp8").kind == "fp8"
    assert product_constants(gpu, "fp8") == product_constants(H200, "fp8")


@pytest.mark.parametrize(
    ("tiles", "told"),
    [
        ("[[0, 0, 0, 64, 16, 64, 1.0]]", "leave out products of more than 0 rows"),
        ("[[0, 0, 64, 0, 16, 64, 1.0]]", "leave out products of more than 0 rows"),
        ("[[0, 32, 0, 0, 16, 64, 1.0]]", "leave out products of more than 32 rows"),
        ("[[0, 0, 0, 64, 16, 64, 1.0], [0, 0, 64, 64, 16, 64, 1.0]]", r"hold \[0, 0, 64, 64"),
        ("[[0, 0, 0, 0, 16, 64, 1.5]]", r"hold \[0, 0, 16, 64, 1.5, 1\]"),
    ],
)
def test_tiles_by_columns_leave_out_no_shape(tmp_path: Path, tiles: str, told: str) -> None:
    text = (files("nexusbench.data") / "gpus" / "l40s.toml").read_text(encoding="utf-8")
    start = text.index("column_tiles")
    file = tmp_path / "own.toml"
    file.write_text(
        text[:start] + f"column_tiles = {tiles}" + text[text.index("\n]\n", start) + 2 :]
    )
    with pytest.raises(InputError, match=told):
        load_gpu(str(file))
