"""Recurrent states: by hand, by what must hold, and their measured kernels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from nexusbench.core.errors import InputError
from nexusbench.core.kernel_constants import KernelConstants, StateConstants
from nexusbench.core.mixers import Projection, StateMixer
from nexusbench.experiments.fidelity.aiconfigurator import installed
from nexusbench.experiments.fidelity.state_tables import read_states
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.operators import NOTHING
from nexusbench.physics.precisions import state_constants
from nexusbench.physics.states import StateScan
from tests.examples import slow
from tests.unit.test_physics_by_hand import GPU, near

# On 10 SMs of 1,000 FLOP/ns; HBM gives 100 bytes/ns.
OWN = StateConstants(
    efficiency=0.5, prepared=0.25, tile_us=2.0, launch_us=5.0, passes=1.5, overlap=0.1, conv_us=3.0,
    conv_passes=2.0, step_us=4.0, step_passes=1.25, step_conv_us=1.0, step_conv_passes=1.5,
    l2_gbps=1000.0, l2_share=0.001,
)  # fmt: skip
KINDS = {"delta": OWN, "channel-delta": replace(OWN, prepared=1.0)}
SMALL = replace(GPU, kernels=KernelConstants("hopper", states=KINDS))
DELTA = StateMixer(
    kind="gated delta net", heads=4, key_dim=64, value_dim=128, conv_values=3 * 1024,
    matrices=(
        Projection("state_qkvz", 256, 2048), Projection("state_ba", 256, 8),
        Projection("state_out", 512, 256),
    ),
)  # fmt: skip
CHANNEL = replace(DELTA, kind="Kimi delta attention")
SCAN = replace(DELTA, kind="Mamba2", conv_values=0)
CACHED = replace(
    SMALL, kernels=KernelConstants("hopper", states={"delta": replace(OWN, l2_share=0.5)})
)
STATE = 4 * 64 * 128 * 4.0
CHUNK = 2 * 64 * (3 * 64 * 128 + 64 * 128) / 500  # ns of 64 tokens of a head


def test_a_convolution_alone_takes_its_time_and_no_other():
    alone = replace(DELTA, kind="conv", heads=0, key_dim=0, value_dim=0, conv_values=3 * 1024)
    scan = StateScan(SMALL, alone)
    chunks = ((130, 77), (9, 0))
    prompts = scan.convolution(139, 2, 10, 100.0)
    assert scan.time(chunks, 0, 0, 10, 100.0) == prompts
    assert scan.time((), 8, 800, 10, 100.0) == scan.step_convolution(8, 10, 100.0, 0)
    assert prompts.time > 0
    assert scan.scan(chunks, 10, 100.0) == scan.step(8, 10, 100.0, 0) == NOTHING


def test_chunks_of_a_head_follow_one_another():
    made = StateScan(SMALL, DELTA).scan(((130, 77),), 10, 100.0)
    # 4 heads on 10 SMs: each walks through 3 chunks; a quarter as much is done on all SMs.
    busy = 2000 + 3 * CHUNK + 12 * CHUNK * 0.25 / 10
    moving = (130 * 4 * 2 * 192 * 2 * 1.5 + 2 * STATE) / 100
    assert made.time == near(5000 + busy + 0.1 * moving)
    assert made.held == near((busy + 0.1 * moving) * 0.4)
    # More prompts fill the GPU before they take longer.
    two = StateScan(SMALL, DELTA).scan(((130, 0),) * 2, 10, 1e9)
    assert two.busy == near(2000 + 3 * CHUNK + 24 * CHUNK * 0.25 / 10)


def test_with_a_decay_a_channel_more_is_prepared():
    one, other = (StateScan(SMALL, mixer).scan(((640, 0),), 10, 1e9) for mixer in
                  (DELTA, CHANNEL))  # fmt: skip
    assert other.busy - one.busy == near(40 * CHUNK * 0.75 / 10)


def test_without_the_delta_rule_chunks_do_not_wait():
    scan = StateScan(SMALL, SCAN)
    chunk = 2 * 64 * (2 * 64 * 128 + 64 * 128 + 64 * 64) / 500
    made = scan.scan(((640, 0),), 10, 1e9)
    assert made.busy == near(4 * (2000 + chunk))  # 40 tiles on 10 SMs
    # There is no convolution.
    assert scan.time(((640, 0),), 0, 0, 10, 1e9) == made


def test_a_decode_reads_and_writes_its_state_whatever_its_length():
    scan = StateScan(SMALL, DELTA, layers=3)
    made = scan.time((), 5, 5 * 100, 10, 100.0)
    state = 5 * (2 * STATE + 4 * 2 * 192 * 2) * 1.25
    conv = 5 * (2 * 3 * 1024 * 2 + 2 * 1024 * 2) * 1.5
    assert made.traffic == near(3 * (state + conv))
    assert made.time == near(3 * (4000 + state / 100 + 1000 + conv / 100))
    assert made.memory == near(3 * (state + conv) / 100)
    assert scan.time((), 5, 5 * 100_000, 10, 100.0) == made
    # A benchmark on the same states finds them in L2, a serving step does not.
    small, size = StateScan(CACHED, replace(DELTA, heads=1)), (STATE / 2 + 2 * 192 * 2) * 1.25
    assert small.step(1, 10, 100.0, 1).time == near(4000 + size / 1000)
    assert small.step(1, 10, 100.0, 0).time == near(4000 + size / 100)


def test_convolutions_of_prompts_move_their_channels():
    made = StateScan(SMALL, DELTA).convolution(100, 2, 10, 100.0)
    size = 100 * 1024 * 2 * 2 * 2.0 + 2 * 3 * 1024 * 2
    assert made.time == near(3000 + size / 100)
    # What the projection wrote before is in L2.
    assert StateScan(CACHED, DELTA).convolution(20, 1, 10, 100.0).time == near(
        3000 + (20 * 1024 * 2 * 2 * 2.0 + 3 * 1024 * 2) / 1000
    )


@pytest.mark.parametrize("mixer", [DELTA, CHANNEL, SCAN])
def test_times_grow_with_tokens_and_sequences(mixer: StateMixer) -> None:
    scan = StateScan(SMALL, mixer)
    assert scan.time((), 0, 0, 10, 100.0) == NOTHING
    prompts = [scan.time(((n, 0),), 0, 0, 10, 100.0).time for n in (1, 64, 65, 1000, 9000)]
    assert prompts == sorted(prompts)
    # The tokens before a chunk are in its state.
    assert scan.time(((64, 0),), 0, 0, 10, 100.0) == scan.time(((64, 9000),), 0, 0, 10, 100.0)
    decodes = [scan.time((), n, n, 10, 100.0).time for n in (1, 2, 30, 400)]
    assert decodes == sorted(decodes)
    both = scan.time(((640, 0),), 7, 7, 10, 100.0).time
    alone = scan.time(((640, 0),), 0, 0, 10, 100.0).time + scan.time((), 7, 7, 10, 100.0).time
    assert both == near(alone)


def test_heads_of_states_are_divided() -> None:
    low = Projection("state_f_a", 256, 64)
    half = replace(CHANNEL, matrices=(*CHANNEL.matrices, low)).shard(2)
    assert (half.heads, half.conv_values) == (2, 3 * 512)
    assert [(one.inputs, one.outputs) for one in half.matrices] == [
        (256, 1024), (256, 4), (256, 256), (256, 64)
    ]  # fmt: skip
    assert half.state_bytes == CHANNEL.state_bytes / 2


def test_every_gpu_has_constants_of_states() -> None:
    for name in gpu_names():
        for kind in KINDS:
            assert isinstance(state_constants(load_gpu(name), kind), StateConstants)
    assert state_constants(SMALL, "channel-delta").prepared == 1.0
    delta = load_gpu("l40s").kernels.states["delta"]
    assert state_constants(load_gpu("a100"), "delta") == delta


@pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator is not installed (pip install nexusbench[validate])",
)
@pytest.mark.parametrize("gpu", ["h200", *slow("h100", "b200", "l40s", "rtxpro6000")])
def test_measured_kernels(gpu: str) -> None:
    """Of every fifth row, of a short table all; nothing was fitted on the H100."""
    bound = 15.0 if gpu in ("h200", "b200") else 21.0
    found = read_states(installed(gpu), load_gpu(gpu), True, 1 if gpu == "rtxpro6000" else 5)
    for operator in ("gdn-prefill", "gdn-decode", "kda-prefill", "kda-decode", "gdn conv-prefill"):
        own = [s for s in found if s.operator == operator and not s.fitted]
        errors = [s.physics_us / s.measured_us - 1 for s in own]
        assert len(own) >= 3
        assert 100 * np.abs(errors).mean() < bound, operator


def state_table(folder: Path, **changes: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "kernel_source": ["chunk_gated_delta_rule_flashinfer", "causal_conv1d_fn", "another"],
        "phase": ["context"] * 3, "batch_size": [2] * 3, "seq_len": [100] * 3,
        "num_k_heads": [16] * 3, "head_k_dim": [128] * 3, "num_v_heads": [32] * 3,
        "head_v_dim": [128] * 3, "latency": [0.1] * 3, **changes,
    }  # fmt: skip
    path = folder / "linear_attention" / "vllm" / "1.0" / "gdn_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)
    return folder


def test_a_row_is_one_kernel(tmp_path: Path) -> None:
    gpu = load_gpu("h200")
    scan, conv = read_states(state_table(tmp_path), gpu, True)
    mixer = StateMixer(
        kind="gated delta net", heads=32, key_dim=128, value_dim=128, matrices=(),
        conv_values=3 * (2 * 16 + 32) * 128,
    )  # fmt: skip
    one, bandwidth = StateScan(gpu, mixer), gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    assert scan.physics_us * 1e3 == near(one.scan(((100, 0),) * 2, 132, bandwidth).time)
    assert conv.physics_us * 1e3 == near(one.convolution(200, 2, 132, bandwidth).time)
    assert (scan.operator, conv.operator) == ("gdn-prefill", "gdn conv-prefill")


def test_a_broken_table_names_row_and_column(tmp_path: Path) -> None:
    broken = state_table(tmp_path, latency=[0.1, -1.0, 0.1])
    with pytest.raises(InputError, match=r"gdn_perf\.parquet: field 'latency': row 2: "):
        read_states(broken, load_gpu("h200"), False)
