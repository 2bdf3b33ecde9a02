"""GPU files that hold no more than a data sheet, and what their architecture's defaults make."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from msgspec import UNSET

from nexusbench.cli.main import main
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.specs import GpuSpec, SimConstants
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.experiments.neutral import gpu_file
from nexusbench.experiments.paying.tables import hardware
from nexusbench.models.config import load_model
from nexusbench.physics.architectures import ARCHITECTURES
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.operators import attainable
from nexusbench.physics.precisions import experts_kernel, product_kernel
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.serving.resolve import caveats_of

SHEET = """\
name = "mine"
architecture = "ada"
num_sms = 71
clock_mhz = 1260.0
peak_tflops = 90.5125
hbm_gib = 20.0
hbm_gbps = 216.0
l2_mib = 48.0
"""  # half of an L40S's SMs at half of its clock, a quarter of its bandwidth
ANALOGY = "BY ANALOGY, NOT VALIDATED"


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(sheet: str, **values: object) -> str:
    """``sheet`` with lines replaced; None: left out."""
    lines = dict(line.split(" = ") for line in sheet.splitlines())
    lines |= {key: json.dumps(value) for key, value in values.items()}
    return "".join(f"{key} = {value}\n" for key, value in lines.items() if value != "null")


def test_a_data_sheet_is_enough(tmp_path: Path) -> None:
    gpu, donor = load_gpu(written(tmp_path, SHEET)), load_gpu("l40s")
    assert (gpu.num_sms, gpu.hbm_gbps, gpu.sm_minimum, gpu.sm_multiple) == (71, 216.0, 4, 2)
    assert gpu.kernels is not UNSET
    assert gpu.kernels.architecture == "ada"
    same = ("dense_efficiency", "bandwidth_efficiency", "dense_launch_us", "attention_kernel")
    for key in same:
        assert getattr(gpu.sim, key) == getattr(donor.sim, key)
    # What an SM does in a cycle goes by the clock, what they do together by SMs and clock.
    assert gpu.sim.attention_block_us == 2 * donor.sim.attention_block_us
    assert gpu.sim.dense_epilogue_us == 2 * donor.sim.dense_epilogue_us
    assert gpu.sim.attention_sm_gbps == donor.sim.attention_sm_gbps / 2
    assert gpu.sim.l2_gbps == donor.sim.l2_gbps / 4
    assert gpu.ranges["attention_sm_gbps"] == (17.6 / 2, 63.0 / 2)
    assert gpu.ranges["turn_taking"] == donor.ranges["turn_taking"]


def test_each_sm_draws_as_many_bytes_in_a_cycle_as_one_of_the_donor(tmp_path: Path) -> None:
    gpu, donor = load_gpu(written(tmp_path, SHEET)), load_gpu("l40s")
    for sms in (1, 2, 5):  # before the bus limits either
        assert attainable(gpu, sms) == pytest.approx(attainable(donor, sms) / 2, rel=1e-9)


def test_what_was_filled_in_is_said(tmp_path: Path) -> None:
    gpu = load_gpu(written(tmp_path, changed(SHEET, clock_mhz=None, peak_tflops=181.0)))
    (said,) = gpu.warnings
    assert said.startswith(ANALOGY)
    for words in ("architecture ada", "clock_mhz = 2520", "sm_minimum = 4", "link_gbps = 25",
                  "all 33 constants of [sim], those of the NVIDIA L40S"):  # fmt: skip
        assert words in said
    names = {*SimConstants.__struct_fields__, "ranges", "clock_mhz", "sm_minimum", "link_gbps"}
    assert names - {"attention_write_us"} <= set(gpu.sources)  # which an L40S does not have
    assert "NVIDIA L40S" in gpu.sources["dense_efficiency"]


def test_what_a_file_gives_wins(tmp_path: Path) -> None:
    text = f"{SHEET}link_gbps = 300.0\n[sim]\ndense_efficiency = 0.5\nturn_taking = 1.0\n"
    gpu, donor = load_gpu(written(tmp_path, text)), load_gpu("l40s")
    assert (gpu.sim.dense_efficiency, gpu.sim.jitter) == (0.5, donor.sim.jitter)
    assert "turn_taking" not in gpu.ranges
    assert "clock_gain" in gpu.ranges
    assert (gpu.link_gbps, gpu.link_latency_us) == (300.0, 5.0)
    (said,) = gpu.warnings
    assert "31 of 33 constants of [sim] (attention_efficiency, " in said
    assert "link_gbps" not in said
    assert "dense_efficiency" not in gpu.sources


def test_a_halved_tensor_rate_takes_the_constants_of_a_card_that_has_one(tmp_path: Path) -> None:
    """512 FLOP per SM and cycle instead of 1,024, as on GeForce cards."""
    half = load_gpu(written(tmp_path, changed(SHEET, peak_tflops=45.8)))
    assert half.sim.dense_efficiency == load_gpu("rtx4090").sim.dense_efficiency
    assert "those of the NVIDIA GeForce RTX 4090" in half.warnings[0]
    assert load_gpu("a10g").sim.dense_launch_us == load_gpu("rtx3090").sim.dense_launch_us
    assert load_gpu("l4").sim.dense_launch_us == load_gpu("l40s").sim.dense_launch_us


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_defaults(tmp_path: Path, name: str) -> None:
    gpu = load_gpu(written(tmp_path, changed(SHEET, architecture=name)))
    own = ARCHITECTURES[name]
    assert (gpu.sm_minimum, gpu.sm_multiple) == (own.sm_minimum, own.sm_multiple)
    assert gpu.warnings[0].startswith(ANALOGY)
    for donor in (*own.donors, own.kernels):  # complete themselves
        assert not any("leaves out" in said for said in load_gpu(donor).warnings)
    options = DeviceOptions(max_num_seqs=8, max_num_batched_tokens=512)
    assert Sim(gpu, load_model("qwen2.5-3b"), options).physics.dense(16, gpu.num_sms).time > 0


def test_the_times_of_a_gpu_described_by_what_is_left_out_are_its_own(tmp_path: Path) -> None:
    """An H200's data sheet makes an H200, but for its link."""
    own = load_gpu("h200")
    keys = ("name", "num_sms", "clock_mhz", "peak_tflops", "hbm_gib", "hbm_gbps", "l2_mib")
    lines = [f"{key} = {json.dumps(getattr(own, key))}\n" for key in keys]
    made = load_gpu(written(tmp_path, "".join([*lines, 'architecture = "hopper"\n'])))
    assert made.sim == own.sim
    assert made.ranges == own.ranges
    assert made.link_gbps == own.host_gbps


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        (changed(SHEET, architecture="adda"), "architecture", "Did you mean 'ada'?"),
        (SHEET.replace('"ada"', "3"), "architecture", "is no architecture: 3"),
        (f'{SHEET}[kernels]\narchitecture = "hopper"\n', "kernels.architecture", "Leave one"),
        (f"{SHEET}[sim]\njiter = 0.1\n", "sim.jiter", "Did you mean 'jitter'?"),
        (f"{SHEET}sim = 3\n", "sim", "is not a table"),
        (f"{SHEET}caveats = 3\n", "caveats", "wrong type"),
        (changed(SHEET, architecture="hopper", num_sms=6), "sm_minimum", "8 exceeds num_sms 6"),
    ],
)
def test_a_broken_sheet_is_located(tmp_path: Path, text: str, field: str, words: str) -> None:
    with pytest.raises(InputError, match=r"mine\.toml") as caught:
        load_gpu(written(tmp_path, text))
    assert caught.value.field == field
    assert words in str(caught.value)


def test_a_file_that_names_no_architecture_says_what_it_counts_as(tmp_path: Path) -> None:
    for name, counts_as in (("l20", "ampere"), ("h200", "hopper")):
        whole = msgspec.structs.replace(load_gpu(name), kernels=UNSET)
        gpu = load_gpu(written(tmp_path, gpu_file(whole)))
        (said,) = gpu.warnings
        assert f"names no architecture: it counts as {counts_as}" in said
        assert gpu.sim == whole.sim


def test_gpus_whose_kernels_were_measured_say_nothing() -> None:
    said = {name for name in gpu_names() if load_gpu(name).warnings}
    sheets = {"a10g", "l4", "rtx6000ada"}
    assert said - sheets == {
        "a40", "a6000", "mi300x", "orin", "rtx3090", "rtx5070ti", "rtx5090", "v100",
    }  # fmt: skip
    assert sheets < said
    assert all(load_gpu(name).warnings[0].startswith(ANALOGY) for name in said)


def test_a_written_file_keeps_its_caveats(tmp_path: Path) -> None:
    gpu = load_gpu("l4")
    again = load_gpu(written(tmp_path, gpu_file(gpu)))
    assert again.warnings == gpu.warnings
    assert again.sim == gpu.sim


def test_what_a_gpu_lacks_is_refused() -> None:
    amd, llama = load_gpu("mi300x"), load_model("llama-3.1-8b")
    for weights, kind in (("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("int4", "w4a16")):
        named = rf"AMD Instinct MI300X has no kernel for .*\({kind}\).*: it computes bf16, fp8"
        with pytest.raises(UsageError, match=named):
            product_kernel(amd, weights)
        with pytest.raises(UsageError, match=named):
            experts_kernel(amd, weights)
    four_bit = msgspec.structs.replace(llama.dtypes, weights="int4")
    options = DeviceOptions(max_num_seqs=8, max_num_batched_tokens=512)
    with pytest.raises(UsageError, match="Take a checkpoint of such weights, or another GPU"):
        Sim(amd, msgspec.structs.replace(llama, dtypes=four_bit), options)
    assert product_kernel(amd, "fp8").origin == experts_kernel(amd, "fp8").origin == amd.name
    assert product_kernel(amd, "bfloat16").kind == "bf16"
    # Others dequantise what their tensor cores have not.
    assert product_kernel(load_gpu("a100"), "nvfp4").kind == "w4a16"
    assert product_kernel(load_gpu("v100"), "int8", "int8").kind == "w8a16"


def test_caveats_stand_before_figures_and_change_no_fingerprint() -> None:
    for device, words in (("sim:l4", "architecture ada"), ("sim:mi300x", "Infinity Cache")):
        said = caveats_of(RunConfig(trace="t", device=device, model="qwen2.5-3b"))
        assert any(words in one for one in said)
        assert said[0].startswith(ANALOGY)
    assert caveats_of(RunConfig(trace="t", device="sim:h200", model="qwen2.5-3b")) == []
    model, options = load_model("qwen2.5-3b"), DeviceOptions(8, 512)

    def hashed(gpu: GpuSpec) -> str:
        return fingerprint_of(Sim(gpu, model, options), model).device_sha256

    gpu = load_gpu("l4")
    assert hashed(gpu) == hashed(msgspec.structs.replace(gpu, caveats=UNSET))


def test_the_map_of_where_splitting_pays_says_it_below_its_gpus() -> None:
    about = SimpleNamespace(gpus=("sim:l20", "sim:l4"))
    survey = SimpleNamespace(spec=SimpleNamespace(about=about, traffic=[]), capacity={})
    page = hardware(survey)  # type: ignore[arg-type]
    assert "| sim:l4 | 121 | 300 |" in page
    (said,) = [line for line in page.splitlines() if ANALOGY in line]
    assert said.startswith("sim:l4: ")


def test_a_sheet_on_the_command_line_says_what_was_filled_in(tmp_path: Path, capfd) -> None:
    trace = tmp_path / "one.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 128, "output_length": 2}\n')
    own = written(tmp_path, SHEET)
    asked = ["serve-trace", str(trace), "--device", f"sim:{own}", "--model", "qwen2.5-3b"]
    assert main([*asked, "--scheduler", "vllm,sglang", "--results", str(tmp_path / "kept")]) == 0
    out, err = capfd.readouterr()
    assert err.count(ANALOGY) == out.count(ANALOGY) == 1
    manifest = json.loads(next((tmp_path / "kept").glob("*/manifest.json")).read_text())
    (said,) = manifest["resolved"]["caveats"]
    assert said.startswith(ANALOGY)
    assert "NVIDIA L40S" in manifest["resolved"]["gpu"]["sources"]["attention_tile_us"]
    own.write_text('name = "mine"\n')
    assert main([*asked, "--no-save"]) == 2
    assert "missing too: peak_tflops" in capfd.readouterr().err
