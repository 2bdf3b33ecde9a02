"""Blocks of vLLM's pool, in ours: the same bytes, where its groups of layers are known."""

from __future__ import annotations

import json

import msgspec
import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.mixers import FullAttention, StateMixer, WindowAttention
from nexusbench.experiments.fidelity.bench_serve import import_bench_serve
from nexusbench.experiments.fidelity.recorded_pool import simulated_blocks
from nexusbench.experiments.fidelity.recording import read_recording
from nexusbench.experiments.fidelity.replay import replay
from nexusbench.models.config import load_model
from tests.unit.stacks import stack

FULL = FullAttention(num_heads=8, num_kv_heads=2, head_dim=64)
SHARED = FullAttention(num_heads=8, num_kv_heads=2, head_dim=64, shares_kv=True)
WINDOW = WindowAttention(num_heads=8, num_kv_heads=2, head_dim=64, window=100)
WIDE = WindowAttention(num_heads=8, num_kv_heads=4, head_dim=64, window=100)
STATE = StateMixer(kind="mamba2", heads=4, key_dim=16, value_dim=32, matrices=())


def test_blocks_of_all_layers_are_blocks_of_all_layers():
    assert simulated_blocks(2588, load_model("llama-3.1-8b"), 1, 16) == (2588, [])


def test_gpt_oss_has_the_same_pages_in_both():
    assert simulated_blocks(1000, load_model("gpt-oss-120b"), 1, 16) == (1000, [])


def test_groups_are_as_large_as_the_smallest_kind_and_the_last_is_padded():
    """Gemma 3's 10 and 52 layers: vLLM's blocks are of ten, our pages of two."""
    blocks, (note,) = simulated_blocks(1000, stack((10, FULL), (52, WINDOW), (3, SHARED)), 1, 16)
    assert blocks == 5000
    assert "8 layers that are not there beside the 62 of made-up" in note
    assert simulated_blocks(7, stack((3, FULL), (9, WINDOW)), 1, 16) == (7, [])


def test_of_kinds_that_are_nearly_as_large_the_larger_one_counts():
    """12 and 13 layers are two groups of 13; pages are of one layer."""
    blocks, (note,) = simulated_blocks(100, stack((13, FULL), (12, WINDOW)), 1, 16)
    assert blocks == 1300
    assert "1 layers that are not there" in note
    assert simulated_blocks(100, stack((5, FULL), (4, WINDOW)), 1, 16)[0] == 400


def test_heads_that_are_kept_on_several_gpus_count_on_both_sides():
    model = stack((10, FULL), (20, WINDOW))
    assert simulated_blocks(100, model, 8, 16) == simulated_blocks(100, model, 1, 16) == (100, [])


@pytest.mark.parametrize(
    ("mixer", "why"),
    [(STATE, "layers of mamba2"), (WIDE, "layers with KV heads of different sizes")],
)
def test_blocks_whose_size_is_not_known_are_refused(mixer, why):
    with pytest.raises(UsageError, match=f"KV blocks of made-up, which has {why}.*--kv-blocks"):
        simulated_blocks(100, stack((10, FULL), (20, mixer)), 1, 16)


def test_the_type_of_the_cache_is_of_no_matter():
    model = stack((10, FULL), (50, WINDOW))
    small = msgspec.structs.replace(model, dtypes=msgspec.structs.replace(model.dtypes, kv="fp8"))
    assert simulated_blocks(100, small, 1, 16) == simulated_blocks(100, model, 1, 16)


def test_a_replay_has_as_many_bytes_as_were_recorded(tmp_path):
    """gemma-3-12b: 8 layers of all tokens and 40 of a window, in both in pages of eight layers."""
    detail = {
        "date": "20260101-000000", "model_id": "google/gemma-3-12b-it", "duration": 3.0,
        "input_lens": [100], "output_lens": [3], "ttfts": [0.1], "itls": [[0.02, 0.03]],
        "start_times": [10.0], "errors": [""],
    }  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(detail))
    import_bench_serve(tmp_path / "bench.json", tmp_path / "run")
    meta = tmp_path / "run" / "meta.json"
    told = json.loads(meta.read_text())
    told["kv_cache"]["num_gpu_blocks"] = 3000
    meta.write_text(json.dumps(told))
    recording = read_recording(tmp_path / "run")
    assert recording.resolved.kv_blocks == 3000
    made = replay(recording, RunConfig(trace="", device="sim:h100", model="gemma-3-12b"))
    assert made.resolved.kv_blocks == 3000
    assert made.resolved.kv_groups.page_bytes == 16 * 8 * 8 * 2 * 256 * 2
    with pytest.raises(UsageError, match=r"KV blocks of qwen3\.6-27b-nvfp4"):
        replay(recording, RunConfig(trace="", device="sim:b200", model="qwen3.6-27b-nvfp4"))
