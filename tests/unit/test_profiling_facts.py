"""Facts from points with known answers."""

from __future__ import annotations

import json

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.costs.base import Target
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.stages import Stages
from nexusbench.profiling.curves import LatencyCurve, step_time
from nexusbench.profiling.facts import derive_facts, stored_facts, utilisation

TARGET = Target(load_gpu("l20"), load_model("qwen2.5-3b"))
SPLITS = [(p, 92 - p) for p in range(4, 89, 2)]
PREFILL, DECODE = BatchShape(0, 0, ((1024, 0),)), BatchShape(64, 64 * 1000)


def line(shape, law, kind, positions=(8, 16, 32, 46, 60, 76, 92), **fields):
    return [Point(PointSetting(kind, shape, sms), law(sms), 0.0, (law(sms),), **fields)
            for sms in positions]  # fmt: skip


def facts(points):
    return derive_facts(points, TARGET, SPLITS)


def test_saturation_of_known_curves():
    """a/sms + b is within 5 % of all 92 SMs from a/(0.05 all + a/92) SMs on."""
    a, b = 9.2e6, 9e5
    curve = LatencyCurve.of(line(DECODE, lambda sms: a / sms + b, "decode"), step_time)
    for within in (0.05, 0.10):
        exact = a / (within * (a / 92 + b) + a / 92)
        legal = [sms for _, sms in SPLITS]
        assert curve.saturation(within, sorted(legal)) == min(n for n in legal if n >= exact)


def test_a_flat_curve_saturates_at_once_and_a_steep_one_never():
    flat = LatencyCurve.of(line(DECODE, lambda sms: 1e6, "decode"), step_time)
    assert flat.saturation(0.05, range(4, 93, 2)) == 8
    steep = LatencyCurve.of(line(PREFILL, lambda sms: 1e9 / sms, "prefill"), step_time)
    assert steep.saturation(0.05, range(4, 93, 2)) == 88


def test_savings_of_a_law_of_one_over_r():
    found = facts(line(PREFILL, lambda sms: 1e9 / sms, "prefill"))
    saved = {row.percent: row.saved for row in found.benefit}
    assert saved[10] is None
    assert saved[40] == pytest.approx(0.25, abs=1e-4)
    assert saved[80] == pytest.approx(0.125, abs=1e-4)


def test_noise_cannot_make_latency_rise():
    times = {8: 10.0, 16: 5.0, 32: 5.2, 92: 4.9}
    curve = LatencyCurve.of(line(DECODE, times.get, "decode", tuple(times)), step_time)
    assert list(curve.ns) == sorted(curve.ns, reverse=True)
    assert curve.at(92) == 4.9
    assert curve.at(93) is None


def test_operator_classes_only_where_they_are_told():
    told = line(DECODE, lambda sms: 1e6, "decode", operators_ns={"dense": 6e5, "attention": 4e5})
    found = facts(told)
    assert {row.operators for row in found.saturation} == {"step", "dense", "attention"}
    assert "bandwidth" not in found.reasons
    size = Stages(TARGET.gpu, TARGET.model).work(DECODE).decode_bytes
    assert found.bandwidth[0].gb_per_s == pytest.approx(size / 4e5, rel=1e-3)
    silent = facts(line(DECODE, lambda sms: 1e6, "decode"))
    assert "does not report" in silent.reasons["saturation of decode dense"]
    assert silent.bandwidth == ()


def test_contention_and_front_of_splits():
    points = []
    # (prefill SMs, prefill ns, decode ns): the middle one is beaten by the last.
    for sms, prefill, decode in ((20, 4e8, 1e7), (46, 3e8, 2.2e7), (60, 2e8, 2e7)):
        points += [
            Point(PointSetting("pair", PREFILL, sms, DECODE, 92 - sms), prefill, 0.0, (prefill,),
                  alone_ns=prefill / 1.25),
            Point(PointSetting("pair", DECODE, 92 - sms, PREFILL, sms), decode, 0.0, (decode,),
                  alone_ns=decode / 1.5),
        ]  # fmt: skip
    found = facts(points)
    assert {row.slowdown for row in found.contention if row.phase == "decode"} == {1.5}
    assert {row.slowdown for row in found.contention if row.phase == "prefill"} == {1.25}
    assert [row.front for row in found.splits] == [True, False, True]
    assert found.splits[0].prefill_tokens_per_s == pytest.approx(1024 / 0.4)


def test_energy_is_null_with_a_reason_or_joules_per_token():
    without = facts(line(PREFILL, lambda sms: 1e8, "prefill"))
    assert without.efficiency[0].joules_per_token is None
    assert without.reasons["joules per token"] == "no counter gave energy"
    points = line(PREFILL, lambda sms: 1e8, "prefill", counters={"nvml.energy": 20.48})
    assert facts(points).efficiency[0].joules_per_token == pytest.approx(0.02)
    assert "joules per token" not in facts(points).reasons


def test_utilisation_is_one_at_the_roof():
    stages = Stages(TARGET.gpu, TARGET.model)
    work = stages.work(PREFILL)
    flops = sum(flops for flops, _ in work.dense) + work.chunk_flops
    mfu, mbu = utilisation(stages, PREFILL, flops / stages.flops_per_ns)
    assert mfu == pytest.approx(1.0)
    assert 0 < mbu < 1


def test_held_out_points_are_no_facts():
    points = [msgspec.structs.replace(p, setting=msgspec.structs.replace(p.setting, held_out=True))
              for p in line(PREFILL, lambda sms: 1e9 / sms, "prefill")]  # fmt: skip
    assert facts(points).saturation == ()


def test_facts_survive_their_file():
    found = facts(line(PREFILL, lambda sms: 1e9 / sms, "prefill"))
    assert stored_facts(json.loads(msgspec.json.encode(found))) == found
