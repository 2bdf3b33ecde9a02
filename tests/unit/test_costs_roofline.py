"""The analytic belief: hand-computed, monotone in SMs, and contention only slows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import BatchShape
from nexusbench.costs.base import cost_models
from nexusbench.costs.roofline import Roofline, RooflineOptions
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.testing import tiny_gpu, tiny_model

CHUNKS = st.lists(st.tuples(st.integers(1, 2048), st.integers(0, 20_000)), max_size=3)


@st.composite
def shapes(draw):
    chunks = tuple(draw(CHUNKS))
    decodes = draw(st.integers(0 if chunks else 1, 256))
    return BatchShape(decodes, decodes * draw(st.integers(1, 4000)), chunks)


def belief(**options):
    return Roofline(RooflineOptions(**options), gpu=tiny_gpu(), model=tiny_model())


BELIEFS = [
    belief(),
    belief(bandwidth_sms=0.0),
    Roofline(gpu=load_gpu("h200"), model=load_model("llama-3.1-8b")),
    Roofline(gpu=load_gpu("l20"), model=load_model("llama-3.1-70b"), tensor_parallel=8),
]


def test_a_decode_by_hand():
    """One decode with 99 tokens behind it, on all SMs: every operator waits for memory."""
    model = tiny_model()
    linears = sum(x.inputs * x.outputs * x.count for x in model.linears)
    linears += model.hidden_size * model.vocab_size
    activations = sum((x.inputs + x.outputs) * x.count for x in model.linears)
    kv = 100 * 2 * 4 * 2 * 64 * 2  # tokens, K and V, layers, heads, size, bytes
    expected = (2 * linears + 2 * activations + kv) / 0.5  # bytes per ns
    assert belief().predict(BatchShape(1, 99), 16) == pytest.approx(expected)


def test_a_long_prefill_by_hand():
    """A chunk so long that every dense operator computes: FLOPs over the peak."""
    model, n = tiny_model(), 4096
    dense = 2 * n * sum(x.inputs * x.outputs * x.count for x in model.linears)
    head = 256 * 1000 * 2 / 0.5  # one row: reading its weights takes longer
    pairs = n * (n + 1) / 2
    attention = pairs * 4 * 4 * 64 * 4
    expected = (dense + attention) / 50.0 + head  # FLOP per ns
    assert belief().predict(BatchShape(0, 0, ((n, 0),)), 16) == pytest.approx(expected)


@pytest.mark.parametrize("model", BELIEFS)
def test_more_sms_never_take_longer(model):
    most = model._num_sms

    @given(shapes(), st.integers(1, most - 1))
    def check(shape, sms):
        assert model.predict(shape, sms + 1) <= model.predict(shape, sms)

    check()


@pytest.mark.parametrize("model", BELIEFS)
def test_a_neighbour_never_speeds_up(model):
    most = model._num_sms

    @given(shapes(), shapes(), st.integers(1, most - 1))
    def check(shape, other, sms):
        alone = model.predict(shape, sms)
        assert model.predict(shape, sms, (other, most - sms)) >= alone

    check()


@pytest.mark.parametrize("model", BELIEFS)
def test_more_work_never_takes_less(model):
    @given(shapes(), st.integers(1, 500))
    def check(shape, more):
        before = model.predict(shape, 8)
        longer = BatchShape(shape.num_decodes + 1, shape.decode_context + more, shape.chunks)
        assert model.predict(longer, 8) > before
        wider = BatchShape(shape.num_decodes, shape.decode_context, (*shape.chunks, (more, 0)))
        assert model.predict(wider, 8) >= before

    check()


def test_contention_can_be_switched_off_and_spares_prefill():
    decode, prefill = BatchShape(64, 64_000), BatchShape(0, 0, ((2048, 8000),))
    beside = (prefill, 8)
    assert belief().predict(decode, 8, beside) > belief().predict(decode, 8)
    off = belief(contention=False)
    assert off.predict(decode, 8, beside) == off.predict(decode, 8)
    assert belief().predict(prefill, 8, (decode, 8)) == belief().predict(prefill, 8)
    assert belief().predict(decode, 8, (decode, 8)) == belief().predict(decode, 8)


def test_layers_and_repetitions_scale():
    whole = BatchShape(0, 0, ((64, 10),))
    half = BatchShape(0, 0, ((64, 10),), (0, 2))
    assert belief().predict(half, 16) == pytest.approx(belief().predict(whole, 16) / 2)
    decode, three = BatchShape(3, 300), BatchShape(3, 300, repeat=3)
    assert belief().predict(three, 16) == pytest.approx(3 * belief().predict(decode, 16))


def test_the_registry_knows_it():
    made = cost_models.create("roofline:contention=false", gpu=tiny_gpu(), model=tiny_model())
    assert made.options == RooflineOptions(contention=False)
    assert made.name == "roofline"
