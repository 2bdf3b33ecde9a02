"""SGLang's PD multiplexing picks the row that its table has for a decode batch size."""

from __future__ import annotations

import pytest

from nexusbench.core.batch import Batch, BatchShape, Plan
from nexusbench.core.errors import InputError
from nexusbench.core.state import EngineState
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.pdmux import PdmuxPartitioner, PdmuxPartitionerOptions
from nexusbench.testing import tiny_device, tiny_gpu
from nexusbench.testing._harness import LIMITS

BOTH = ("prefill", "decode")
H200 = tiny_gpu(num_sms=132, sm_minimum=8, sm_multiple=8)
L20 = tiny_gpu(num_sms=92, sm_minimum=4, sm_multiple=2)
CHUNK = BatchShape(0, 0, ((2048, 0),))


def pdmux(gpu, **options):
    made = PdmuxPartitioner(PdmuxPartitionerOptions(**options))
    spec = tiny_device(gpu=gpu).spec
    return made, EngineState(spec, KVCacheManager(100, 4), LIMITS, BOTH, made.initial(spec))


def beside(decodes, layers=None):
    prefill = Batch("prefill", [], [], CHUNK, layers)
    return Plan([prefill, Batch("decode", [], [], BatchShape(decodes, 1000 * decodes))])


# SGLang's documentation for the H200: [prefill SMs, decode SMs, from this batch size on].
DOCUMENTED = [(1, 20), (4, 20), (5, 28), (9, 28), (10, 36), (15, 52), (19, 52), (20, 68), (25, 76),
              (400, 76)]  # fmt: skip


@pytest.mark.parametrize(("decodes", "sms"), DOCUMENTED)
def test_the_documented_table(decodes, sms):
    made, state = pdmux(H200, divisions="h200")
    assert made.split(beside(decodes), state).sms == (132 - sms, sms)


@pytest.mark.parametrize(("decodes", "sms"), DOCUMENTED)
def test_another_gpu_gets_the_nearest_legal_split_to_the_same_share(decodes, sms):
    made, state = pdmux(L20, divisions="h200")
    found = made.split(beside(decodes), state).of("decode")
    legal = [split.of("decode") for split in state.device.splits if not split.overlapping]
    assert abs(found / 92 - sms / 132) == min(abs(n / 92 - sms / 132) for n in legal)


@pytest.mark.parametrize("gpu", [H200, L20], ids=["132 SMs", "92 SMs"])
def test_without_a_table_the_row_is_the_batch_size_over_six(gpu):
    """Eight groups of streams, of which six are splits: row clamp(6 b // 36, 1, 6)."""
    made, state = pdmux(gpu)
    rows = []
    for decodes in range(1, 60):
        split = made.split(beside(decodes), state)
        if not rows or split != rows[-1][0]:
            rows.append((split, decodes))
    assert [least for _, least in rows] == [1, 12, 18, 24, 30, 36]
    shares = [split.of("decode") for split, _ in rows]
    assert shares == sorted(shares)
    assert all(16 <= split.of("decode") <= split.of("prefill") for split, _ in rows)


def test_fewer_legal_splits_than_groups():
    made, state = pdmux(tiny_gpu(num_sms=40, sm_minimum=8, sm_multiple=8))
    assert {made.split(beside(n), state).sms for n in range(1, 99)} == {(24, 16)}
    made, state = pdmux(tiny_gpu(num_sms=16, sm_minimum=2, sm_multiple=2))
    assert {made.split(beside(n), state).sms for n in range(1, 99)} == {(8, 8)}


def test_the_split_holds_while_a_prefill_batch_goes_through_its_layers():
    made, state = pdmux(H200)
    state.split = made.split(beside(1, (0, 8)), state)
    for layers in ((8, 16), (16, 24)):
        assert made.split(beside(50, layers), state) == state.split
    assert made.split(Plan([Batch("decode", [], [], BatchShape(50, 100))]), state) == state.split
    assert made.split(beside(50, (0, 8)), state).sms != state.split.sms


@pytest.mark.parametrize("options", [{"sm_group_num": 2}, {"decode_bs_divisor": 0}])
def test_impossible_options_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        pdmux(H200, **options)
