"""The simulated GPU: pieces add up, and two at once are never faster than one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.links import LAST_NS, Links
from nexusbench.testing import tiny_device, tiny_gpu, tiny_model
from tests.examples import examples

QUIET = tiny_gpu(jitter=0.0)
PREFILL, DECODE = BatchShape(0, 0, ((60, 100),)), BatchShape(8, 900)


def launch(device, step, partition, shape, sms):
    device.submit(step, Batch(partition, [], [], shape, shape.layers, shape.repeat), sms)


def ends(*launches, gpu=QUIET):
    """Run (partition, shape, sms) launches that start together; returns end by partition."""
    device = tiny_device(gpu=gpu)
    for step, (partition, shape, sms) in enumerate(launches):
        launch(device, step, partition, shape, sms)
    times = {}
    while outputs := device.wait(None):
        for output in outputs:
            times[launches[output.step][0]] = output.end_ns
    return times


def test_layers_and_repetitions():
    whole = ends(("all", PREFILL, 16))["all"]
    first = ends(("all", BatchShape(0, 0, PREFILL.chunks, (0, 2)), 16))["all"]
    second = ends(("all", BatchShape(0, 0, PREFILL.chunks, (2, 4)), 16))["all"]
    assert first < second < whole  # the last piece has the head
    assert first + second == pytest.approx(whole + 300_000, abs=4)
    once, thrice = (ends(("all", BatchShape(8, 900, repeat=k), 16))["all"] for k in (1, 3))
    assert thrice == pytest.approx(3 * once, abs=4)


@pytest.mark.parametrize("name", ["l20", "h200", "a100"])
def test_two_at_once_take_at_least_as_long_as_one(name):
    gpu = load_gpu(name)
    physics = Physics(gpu, load_model("llama-3.1-8b"))
    shapes = st.one_of(
        st.builds(BatchShape, st.integers(1, 256), st.integers(0, 400_000)),
        st.builds(
            lambda n, c: BatchShape(0, 0, ((n, c),)), st.integers(1, 8192), st.integers(0, 30_000)
        ),
    )
    total = gpu.num_sms

    @settings(max_examples=examples(60))
    @given(shapes, shapes, st.integers(1, total), st.integers(1, total))
    def check(one, two, a, b):
        side, other = physics.load(one, a), physics.load(two, b)
        assert physics.slowdown(side, other) >= 1.0
        assert side.solo > 0

    check()


@pytest.mark.parametrize("name", gpu_names())
def test_more_sms_help_on_the_whole(name):
    """Waves make single steps up and down, but twice the SMs never take longer."""
    gpu = load_gpu(name)
    physics = Physics(gpu, load_model("llama-3.1-8b"))
    for shape in (BatchShape(64, 64_000), BatchShape(0, 0, ((2048, 4000),))):
        for sms in (n for n in (4, 8, 16, 32, gpu.num_sms // 2) if 2 * n <= gpu.num_sms):
            assert physics.load(shape, 2 * sms).solo <= physics.load(shape, sms).solo * 1.0001


@settings(max_examples=examples(60))
@given(st.integers(2, 14), st.booleans())
def test_co_running_ends_later_and_the_rest_speeds_up_again(prefill, overlapping):
    decode = 16 if overlapping else 16 - prefill
    prefill = 16 if overlapping else prefill
    alone = ends(("prefill", PREFILL, prefill)), ends(("decode", DECODE, decode))
    both = ends(("prefill", PREFILL, prefill), ("decode", DECODE, decode))
    assert both["prefill"] >= alone[0]["prefill"]
    assert both["decode"] >= alone[1]["decode"]
    # Whoever ends last is slowed only while the other runs.
    last = max(both, key=both.get)
    first = min(both.values())
    physics = Physics(QUIET, tiny_model())
    loads = {"prefill": physics.load(PREFILL, prefill), "decode": physics.load(DECODE, decode)}
    other = "decode" if last == "prefill" else "prefill"
    slow = physics.slowdown(loads[last], loads[other])
    expected = first + loads[last].solo - first / slow
    assert both[last] == pytest.approx(expected, abs=10)


def test_a_wake_up_in_the_middle_changes_nothing():
    device = tiny_device(gpu=QUIET)
    launch(device, 0, "prefill", PREFILL, 10)
    launch(device, 1, "decode", DECODE, 6)
    times = {}
    while len(times) < 2:
        for output in device.wait(device.now() + 777_777):
            times[output.step] = output.end_ns
    both = ends(("prefill", PREFILL, 10), ("decode", DECODE, 6))
    assert times[0] == pytest.approx(both["prefill"], abs=50)
    assert times[1] == pytest.approx(both["decode"], abs=50)


def test_waiting_for_the_past_leaves_the_clock_alone():
    device = tiny_device(gpu=QUIET)
    device.wait(5_000)
    launch(device, 0, "all", DECODE, 16)
    assert device.wait(1_000) == []
    assert device.now() == 5_000


def test_the_seed_decides_the_noise():
    def end(seed):
        device = tiny_device(seed)
        launch(device, 0, "all", PREFILL, 16)
        return device.wait(None)[0].end_ns

    assert end(1) == end(1)
    assert len({end(seed) for seed in range(5)}) == 5
    quiet = ends(("all", PREFILL, 16))["all"]
    assert all(abs(end(seed) - quiet) <= 0.01 * quiet + 1 for seed in range(5))


# -- so slow that no clock counts it ---------------------------------------------------------------

TOO_SLOW = r"^--device sim:tiny: a launch would end \S+ years after the start, more than the 146 "


def slow(**constants):
    """The quiet GPU with other rates, or other constants of its simulation."""
    own = {key: constants.pop(key) for key in list(constants) if hasattr(QUIET, key)}
    return replace(QUIET, **own, sim=replace(QUIET.sim, **constants))


@pytest.mark.parametrize(
    "constants",
    [{"hbm_gbps": 1e-300}, {"peak_tflops": 1e-300}, {"hbm_gbps": 1e-15},
     {"step_overhead_us": 1e300}, {"step_overhead_us": float("inf")}, {"step_overhead_us": 5e15},
     {"step_overhead_us": float("nan")}],
)  # fmt: skip
def test_a_launch_past_the_end_of_the_clock_is_refused_by_name(constants):
    with pytest.raises(UsageError, match=TOO_SLOW):
        ends(("all", PREFILL, 16), gpu=slow(**constants))


def test_launches_that_only_together_pass_the_end_of_the_clock_are_refused():
    """One that ends in time alone: beside another, in its second repetition, after some others."""
    gpu = slow(step_overhead_us=LAST_NS / 1e3 * 0.6)
    assert LAST_NS * 0.6 < ends(("all", DECODE, 16), gpu=gpu)["all"] < LAST_NS
    with pytest.raises(UsageError, match=TOO_SLOW):
        ends(("all", BatchShape(8, 900, repeat=2), 16), gpu=gpu)
    device = tiny_device(gpu=gpu)
    launch(device, 0, "all", DECODE, 16)
    device.wait(None)
    with pytest.raises(UsageError, match=TOO_SLOW):
        launch(device, 1, "all", DECODE, 16)
    slowed = slow(hbm_gbps=1e-11, attention_interference=1e13, dense_interference=1e13)
    for alone in (("prefill", PREFILL, 8), ("decode", DECODE, 8)):
        assert ends(alone, gpu=slowed)
    with pytest.raises(UsageError, match=TOO_SLOW):
        ends(("prefill", PREFILL, 8), ("decode", DECODE, 8), gpu=slowed)


def test_copies_past_the_end_of_the_clock_are_refused_by_name():
    spec = tiny_device(count=2).spec
    links = Links(replace(QUIET, link_gbps=1e-9), spec)
    links.start(0, 0, 1, LAST_NS * 0.6e-9, 0)
    assert LAST_NS * 0.59 < links.next_ns < LAST_NS * 0.61
    with pytest.raises(UsageError, match="a copy of KV blocks would end 175 years after the start"):
        links.start(1, 0, 1, LAST_NS * 0.6e-9, 0)  # it waits for the one before
    with pytest.raises(UsageError, match="a copy of KV blocks would end"):
        Links(replace(QUIET, link_latency_us=1e300), spec).start(0, 0, 1, 5, 0)
