"""MuxWise's estimator: coefficients found again, and the cells of the guard."""

from __future__ import annotations

from itertools import product

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.costs.linear import LinearCost, LinearOptions, cell_of, power_of_4
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiling.fitting import build
from tests.unit.profiled import target

L20 = target("l20", "qwen2.5-3b")
PREFILL, DECODE = (2e-3, 3e-3, 4e3, 1e6), (30.0, 2e4, 8e6)  # ns, at 92 SMs
COUNTS = (10, 20, 40, 92)


def scale(sms):
    """Coefficients are a + b/SMs, so that interpolation in 1/SMs is exact."""
    return 0.3 + 0.7 * 92 / sms


def prefill_ns(chunks, sms):
    a, b, c, d = PREFILL
    return scale(sms) * (sum(a * n * n + b * n * r + c * n for n, r in chunks) + d)


def decode_ns(batch, context, sms):
    a, b, c = DECODE
    return scale(sms) * (a * context + b * batch + c)


def point(kind, shape, sms, ns, beside=None, alone_ns=None):
    setting = PointSetting(kind, shape, sms, *(beside or ()))
    return Point(setting, ns, 0.0, (ns,), alone_ns=alone_ns)


def alone():
    points = []
    for n, r, sms in product((64, 700, 4000), (0, 900, 20_000), COUNTS):
        points.append(point("prefill", BatchShape(0, 0, ((n, r),)), sms, prefill_ns([(n, r)], sms)))
    for batch, mean, sms in product((1, 16, 200), (100, 3000), COUNTS):
        shape = BatchShape(batch, batch * mean)
        points.append(point("decode", shape, sms, decode_ns(batch, batch * mean, sms)))
    return points


def pair(prefill, decode, sms, slowdowns):
    """Both sides of a pair, ``slowdowns`` of (prefill, decode)."""
    sides = ((prefill, decode, sms, slowdowns[0]), (decode, prefill, sms[::-1], slowdowns[1]))
    return [
        point("pair", own, s[0], 1e6 * slow, (other, s[1]), alone_ns=1e6)
        for own, other, s, slow in sides
    ]


NEAR, FAR = BatchShape(0, 0, ((2048, 0),)), BatchShape(0, 0, ((2048, 30_000),))
SMALL = BatchShape(16, 16 * 512)
PAIRS = [
    *pair(NEAR, SMALL, (52, 40), (1.1, 1.2)),
    *pair(BatchShape(0, 0, ((3000, 0),)), SMALL, (52, 40), (1.3, 1.6)),
    *pair(FAR, SMALL, (52, 40), (1.05, 2.0)),
    *pair(NEAR, SMALL, (72, 20), (1.02, 1.4)),
]


def model(**options):
    chosen = LinearOptions(**options)
    return build(LinearCost, chosen, LinearCost.fit([*alone(), *PAIRS], L20, chosen), L20)


def test_known_coefficients_are_found():
    made = model()
    fitted = made.parameters
    for sms in (10, 20, 40, 92):
        at = fitted.prefill_axis.index(1 / sms)
        found = [line[at] for line in fitted.prefill]
        assert found == pytest.approx([scale(sms) * x for x in PREFILL], rel=1e-6)
        at = fitted.decode_axis.index(1 / sms)
        found = [line[at] for line in fitted.decode]
        assert found == pytest.approx([scale(sms) * x for x in DECODE], rel=1e-6)


@pytest.mark.parametrize("sms", [4, 10, 13, 30, 66, 92])
def test_predictions_between_and_below_the_measured_sm_counts(sms):
    made = model()
    chunks = ((100, 50), (900, 0), (33, 7000))
    expected = prefill_ns(chunks, sms)
    assert made.predict(BatchShape(0, 0, chunks), sms) == pytest.approx(expected, rel=1e-6)
    expected = decode_ns(77, 123_456, sms)
    assert made.predict(BatchShape(77, 123_456), sms) == pytest.approx(expected, rel=1e-6)


def test_a_mixed_batch_is_a_prefill_that_also_reads_the_decodes_contexts():
    made = model()
    shape = BatchShape(10, 50_000, ((500, 0),))
    squares, _, tokens, fixed = PREFILL
    expected = squares * 500**2 + tokens * 510 + fixed + DECODE[0] * 50_000
    assert made.predict(shape, 40) == pytest.approx(scale(40) * expected, rel=1e-6)


def test_cells_are_powers_of_4():
    assert [power_of_4(n) for n in (0, 1, 3, 4, 15, 16, 63, 64, 2048, 4095, 4096)] == [
        0, 1, 1, 2, 2, 3, 3, 4, 6, 6, 7,
    ]  # fmt: skip
    assert cell_of(NEAR, SMALL) == cell_of(SMALL, NEAR) == (1, 0, 3, 2)


def test_the_guard_is_the_worst_or_the_mean_of_a_cell():
    alone_ns = model().predict(SMALL, 40)
    assert model().predict(SMALL, 40, (NEAR, 52)) == pytest.approx(1.6 * alone_ns)
    mean = model(guard="mean")
    assert mean.predict(SMALL, 40, (NEAR, 52)) == pytest.approx(1.4 * alone_ns)
    assert model(guard="none").predict(SMALL, 40, (NEAR, 52)) == alone_ns


def test_prefill_is_guarded_too_unless_told_otherwise():
    alone_ns = model().predict(NEAR, 52)
    assert model().predict(NEAR, 52, (SMALL, 40)) == pytest.approx(1.3 * alone_ns)
    decode_only = model(guarded="decode")
    assert decode_only.predict(NEAR, 52, (SMALL, 40)) == alone_ns
    assert decode_only.predict(SMALL, 40, (NEAR, 52)) > decode_only.predict(SMALL, 40)


def test_an_unseen_cell_takes_the_nearest():
    made = model()
    one = made.predict(SMALL, 40)
    longer = BatchShape(0, 0, ((2048, 130_000),))  # one cell from FAR, three from NEAR
    assert made.predict(SMALL, 40, (longer, 52)) == pytest.approx(2.0 * one)
    shorter = BatchShape(0, 0, ((600, 0),))
    assert made.predict(SMALL, 40, (shorter, 52)) == pytest.approx(1.6 * one)
    other = made.predict(SMALL, 22)
    assert made.predict(SMALL, 22, (NEAR, 70)) == pytest.approx(1.4 * other)
    assert made.predict(SMALL, 22, (NEAR, 70)) == made.predict(SMALL, 22, (NEAR, 70))
