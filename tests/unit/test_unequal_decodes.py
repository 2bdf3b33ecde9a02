"""Decodes of unequal lengths: what a batch says of them, and what they cost (decisions/0017)."""

from __future__ import annotations

import random

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from nexusbench.core.batch import Batch, BatchShape, spread_of
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.models.config import load_model
from nexusbench.physics.attention import Attention
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.unequal import UnequalDecodes, two_lengths
from nexusbench.testing import offer, serve

L20, LLAMA = load_gpu("l20"), load_model("llama-3.1-8b")
LENGTHS = [1000] * 60 + [5000] * 4  # 64 decodes of 8 KV heads: L20's kernel splits no keys


def shape_of(lengths: list[int], chunks: tuple[tuple[int, int], ...] = ()) -> BatchShape:
    return BatchShape(len(lengths), sum(lengths), chunks, unequal=spread_of(lengths))


def as_equal(shape: BatchShape) -> BatchShape:
    return replace(shape, unequal=UNSET)


def added(physics: Physics, shape: BatchShape, sms: int) -> float:
    """Ns that the lengths add to the attention of all layers."""
    found, equal = physics.attention(shape, sms), physics.attention(as_equal(shape), sms)
    assert (found.traffic, found.memory, found.compute) == (
        equal.traffic, equal.memory, equal.compute
    )  # fmt: skip
    return found.time - equal.time


@pytest.mark.parametrize(("long", "short", "most"), [(1, 500, 900), (7, 1, 70_000), (63, 3, 4)])
def test_a_batch_of_two_lengths_is_found_again(long: int, short: int, most: int) -> None:
    lengths = [short] * (64 - long) + [most] * long
    found = two_lengths(64, sum(lengths), *spread_of(lengths))
    assert found == pytest.approx((long, most - short), rel=1e-6)


def test_equal_lengths_have_none_that_is_longer() -> None:
    for lengths in ([7], [900] * 40):
        assert two_lengths(len(lengths), sum(lengths), *spread_of(lengths)) == (0.0, 0.0)


def test_at_least_one_sequence_is_the_longest() -> None:
    draw = random.Random(1)
    for _ in range(200):
        lengths = [1 + int(5000 * draw.random() ** 3) for _ in range(draw.randint(2, 60))]
        long, more = two_lengths(len(lengths), sum(lengths), *spread_of(lengths))
        assert long > 0.999
        assert more <= max(lengths) - min(lengths) + 1e-6


def test_the_longest_go_on_alone() -> None:
    """32 tiles of 4 long sequences have 4,000 keys more: 2.048 MB each, in blocks of 128 keys whose
    products with 64 rows take longer than to read them; 32 layers.
    """
    made = Physics(L20, LLAMA)
    sms, bandwidth = 92, made._bandwidth[92]
    rate = L20.peak_tflops * 1e3 / 92 * L20.sim.attention_efficiency
    block = 4.0 * 64 * 128 * 128 / rate + 472.0 * 64 * 128 / 16384
    each, drawn = 4000 / 128 * block, 128 * 512.0 / block
    assert 14.0 < drawn < 19.0  # GB/s; 17 and 18 fit skew.csv, of a card with the same SMs
    expected = 32 * each / (1 + 4 * 8 * drawn / bandwidth)
    assert added(made, shape_of(LENGTHS), sms) == pytest.approx(expected, rel=1e-9)
    # Beside a chunk each query head has a thread block of its own.
    beside = 32 * each / (1 + 4 * 32 * drawn / bandwidth)
    assert added(made, shape_of(LENGTHS, ((512, 0),)), sms) == pytest.approx(beside, rel=1e-9)


def test_split_keys_even_lengths_out() -> None:
    few = shape_of([1000, 1000, 9000])
    made = Physics(L20, LLAMA)
    assert added(made, few, 92) == 0.0
    assert added(made, replace(few, chunks=((512, 0),)), 92) > 0.0


@pytest.mark.parametrize("gpu", gpu_names())
def test_only_kernels_that_do_not_balance_wait_for_the_longest(gpu: str) -> None:
    spec = load_gpu(gpu)
    waits = spec.sim.attention_kernel in ("fa2", "contiguous")
    lengths = [1000] * 252 + [5000] * 4
    assert (added(Physics(spec, LLAMA), shape_of(lengths), spec.num_sms) > 0.0) == waits


@pytest.mark.parametrize(("gpu", "told"), [("l20", True), ("h100", False)])
def test_batches_say_their_lengths_where_they_count(gpu: str, told: bool) -> None:
    device = Sim(load_gpu(gpu), LLAMA, DeviceOptions(max_num_seqs=8, max_num_batched_tokens=512))
    submit, seen = device.submit, []

    def watched(step: int, batch: Batch, sms: int) -> None:
        seen.append((batch.shape.unequal, [r.num_computed_tokens for r in batch.decodes]))
        submit(step, batch, sms)

    device.submit = watched  # type: ignore[method-assign]
    serve([offer(i, 3.0 * i, 40 + 90 * i, 20) for i in range(8)], "vllm", device=device)
    assert max(len(lengths) for _, lengths in seen) > 4
    for unequal, lengths in seen:
        assert unequal == (spread_of(lengths) if told else UNSET)


def test_a_window_bounds_what_the_longest_have_more() -> None:
    kernel = Attention(L20, 32, 8, 128)
    lengths = [1000] * 60 + [5000] * 4
    whole = UnequalDecodes(kernel, 32, 128, 2.0, 1)
    wide = UnequalDecodes(kernel, 32, 128, 2.0, 1, window=3000)
    narrow = UnequalDecodes(kernel, 32, 128, 2.0, 1, window=800)
    beside = shape_of(lengths, ((512, 0),))
    assert wide.ns(beside, 800.0) == pytest.approx(whole.ns(beside, 800.0) / 2, rel=1e-6)
    assert narrow.ns(beside, 800.0) == 0.0


def test_remote_decodes_do_not_count() -> None:
    """Of 70 decodes 6 are computed elsewhere: the time is that of the other 64."""
    made = UnequalDecodes(Attention(L20, 32, 8, 128), 32, 128, 2.0, 1)
    shape = shape_of(LENGTHS)
    away = replace(
        shape, num_decodes=70, decode_context=shape.decode_context + 60_000, remote=(6, 60_000)
    )
    assert made.ns(away, 800.0) == pytest.approx(made.ns(shape, 800.0), rel=1e-12)
