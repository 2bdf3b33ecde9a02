"""KV heads that are kept on several GPUs: pools, host memory, copies, physics, beliefs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from nexusbench.core.batch import BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.mixers import FullAttention
from nexusbench.core.state import Limits
from nexusbench.costs.roofline import Roofline
from nexusbench.models.config import load_model
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.profiling.profile import Subject
from nexusbench.serving import opening as kv_pools
from nexusbench.serving.assembly import assemble
from nexusbench.serving.runner import engine_of

H100 = load_gpu("h100")
TWO_HEADS = load_model("qwen2.5-3b")


def assembled(tmp_path: Path, gpus: int, **more: object):  # type: ignore[no-untyped-def]
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 100, "output_length": 10}\n')
    config = RunConfig(
        trace=str(trace), device="sim:h100", model="qwen2.5-3b", tensor_parallel_size=gpus, **more
    )
    return assemble(config)


# A GPU of 4 has one of the 2 KV heads, its weights half of all: 1,024 tokens less than with a
# quarter of them (36 layers x 2,048 x 256 values of 2 bytes are 37.7 MB a head).
@pytest.mark.parametrize(("gpus", "tokens"), [(1, 1_865_120), (4, 3_995_024), (8, 4_038_816)])
def test_tokens_of_kv(tmp_path: Path, gpus: int, tokens: int) -> None:
    made = assembled(tmp_path, gpus)
    assert made.resolved.kv_blocks * 16 == tokens
    subject = Subject(made.device, made.model, Limits(256, 2048, 32768))
    assert subject.pool().num_blocks * 16 == tokens


def test_host_memory_holds_the_copies_too(tmp_path: Path) -> None:
    # 1 GiB of host memory for each of 8 GPUs, that each put their copy of a KV head there.
    made = assembled(tmp_path, 8, swap_space=1.0)
    assert made.other_pools[0].num_blocks == 8 * 2**30 // (4 * 36_864 * 16)


def test_what_is_copied_has_the_size_of_the_copies(tmp_path: Path) -> None:
    sizes = []
    for gpus in (2, 8):
        engine = engine_of(assembled(tmp_path, gpus))
        sizes.append(engine.executor.movers._block_bytes)
    assert sizes == [16 * 36_864, 4 * 16 * 36_864]


@pytest.mark.parametrize("gpus", [2, 8])
def test_each_gpu_reads_at_least_one_head(gpus: int) -> None:
    keys = BatchShape(64, 64 * 4000)
    traffic = Physics(H100, TWO_HEADS, gpus).load(keys, H100.num_sms).attention.traffic
    each = 64 * 4000 * 36_864 / 2  # one of two heads
    assert traffic == pytest.approx(each, rel=0.02)
    _, kept = Roofline(gpu=H100, model=TWO_HEADS, tensor_parallel=gpus).operators(keys)[2]
    assert kept == pytest.approx(each, rel=0.02)


def test_each_gpu_computes_the_projections_of_the_heads_it_keeps() -> None:
    work = Physics(H100, TWO_HEADS, 8)._work
    assert work.linears[0].outputs == (2 + 2 * 1) * 128


def test_a_pool_of_more_blocks_than_can_be_kept_account_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_pools, "MOST_BLOCKS", 10_000)
    assert assembled(tmp_path, 1, kv_blocks=10_000)
    with pytest.raises(UsageError, match="Ask for fewer --kv-blocks"):
        assembled(tmp_path, 1, kv_blocks=10_001)


@pytest.mark.parametrize(
    ("model", "gpus", "ways"),
    [("qwen2.5-14b", 40, "1, 2, 4, 8 ways"), ("qwen2.5-3b", 3, "1, 2, 4, 8, 16 ways")],
)
def test_what_does_not_divide(tmp_path: Path, model: str, gpus: int, ways: str) -> None:
    # 13,824 wide layers have no 40 equal parts, though 40 heads have.
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 100, "output_length": 10}\n')
    config = RunConfig(trace=str(trace), device="sim:h100", model=model, tensor_parallel_size=gpus)
    with pytest.raises(UsageError, match=f"can be split {ways}"):
        assemble(config)


def test_norms_over_all_heads_are_summed_over_a_group() -> None:
    model, gpu = load_model("minimax-m2.5"), H100
    (group,) = model.groups
    assert isinstance(group.mixer, FullAttention)
    assert group.mixer.wide_norm
    narrow = msgspec.structs.replace(group.mixer, wide_norm=False)
    assert model.stack is not UNSET
    stack = msgspec.structs.replace(
        model.stack, groups=(msgspec.structs.replace(group, mixer=narrow),)
    )
    without = msgspec.structs.replace(model, stack=stack)
    shape = BatchShape(16, 16_000)
    for gpus in (1, 4):
        spent = [Physics(gpu, each, gpus).load(shape, 132).solo for each in (model, without)]
        more = model.num_layers * Collectives(gpu, 4).all_reduce(16 * 8) if gpus > 1 else 0.0
        assert spent[0] - spent[1] == pytest.approx(more, rel=1e-6, abs=1e-3)
