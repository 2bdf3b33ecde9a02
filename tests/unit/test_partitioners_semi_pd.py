"""semi-PD: SMs move towards the violated SLO, as far as models fitted to the run say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import Batch, BatchShape, Chunk, Plan
from nexusbench.core.errors import InputError
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState, Limits
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners._latency import LatencyWindow, fit_line, percentile, queueing
from nexusbench.partitioners._launches import NotedLaunch
from nexusbench.partitioners.semi_pd import SemiPdPartitioner, SemiPdPartitionerOptions
from nexusbench.testing import tiny_device, tiny_gpu

GPU = tiny_gpu(num_sms=100, sm_minimum=2, sm_multiple=1)
BOTH = ("prefill", "decode")
MS = 1_000_000
PROMPT, DECODES = BatchShape(0, 0, ((100, 0),)), BatchShape(1, 100)


class Traffic:
    """A made-up run of whole windows: a prompt of 100 ms on all SMs every ``every`` ms, done
    ``ttft(x)`` after it came, and one long decode with ``tpot(y)`` between its tokens, all in ms.
    """

    def __init__(self, ttft, tpot, every=500.0, limits=(None, None), **options):
        self.ttft, self.tpot, self.every = ttft, tpot, every
        self.made = SemiPdPartitioner(SemiPdPartitionerOptions(window=8, idle="reserve", **options))
        spec = tiny_device(gpu=GPU).spec
        bounds = Limits(8, 64, 1024, *limits)
        split = self.made.initial(spec)
        self.state = EngineState(spec, KVCacheManager(100, 4), bounds, BOTH, split)
        self.decoder = Request("long", 0, 0, 8, 8, 10_000, num_tokens=9, num_computed_tokens=8)
        self.count, self.time, self.stepped = 1, 0.0, 0.0
        self.launch(Batch("prefill", [], [Chunk(self.decoder, 8, 0)], PROMPT), 0, 0)

    @property
    def x(self):
        return self.state.split.of("prefill")

    def launch(self, batch, start, end):
        self.state.now = round(start * MS)
        self.state.split = self.made.split(Plan([batch]), self.state)
        self.made.completed(batch, round(end * MS))

    def window(self):
        """Four prompts and four decode steps, then the decision (at the next launch)."""
        for _ in range(4):
            self.time += self.every
            end = self.time + self.ttft(self.x)
            r = Request(f"r{self.count}", self.count, round(self.time * MS), 100, 8, 108)
            r.num_tokens, r.num_computed_tokens = 101, 100
            self.count += 1
            batch = Batch("prefill", [], [Chunk(r, 100, 0)], PROMPT)
            self.launch(batch, end - 100 * 100 / self.x, end)
        for _ in range(3 if self.decoder.num_tokens == 9 else 4):
            begin, self.stepped = self.stepped, self.stepped + self.tpot(100 - self.x)
            self.decoder.num_tokens += 1
            self.launch(Batch("decode", [self.decoder], [], DECODES), begin, self.stepped)
        empty = Batch("prefill", [], [], PROMPT)
        self.state.split = self.made.split(Plan([empty]), self.state)
        return self.x


@given(
    st.floats(1, 1e4), st.floats(-100, 1e4), st.floats(0, 30),
    st.lists(st.integers(35, 98), min_size=2, max_size=8, unique=True),
)  # fmt: skip
def test_the_queueing_model_recovers_its_constants(a1, b1, load, percents):
    points = [(queueing(x, load), a1 * queueing(x, load) + b1) for x in percents]
    found = fit_line(points, 1.0)
    assert found.slope == pytest.approx(a1, rel=1e-6)
    assert found.offset == pytest.approx(b1, rel=1e-6, abs=1e-3)


@given(
    st.floats(1, 1e4), st.floats(-100, 1e4),
    st.lists(st.integers(2, 98), min_size=2, max_size=8, unique=True),
)  # fmt: skip
def test_the_inverse_model_recovers_its_constants(a2, b2, percents):
    found = fit_line([(1 / y, a2 / y + b2) for y in percents], 1.0)
    assert found.slope == pytest.approx(a2, rel=1e-6)
    assert found.offset == pytest.approx(b2, rel=1e-6, abs=1e-3)


def test_one_split_says_nothing_of_the_slope():
    assert fit_line([(0.1, 5.0), (0.1, 7.0)], 20.0).slope == 20.0
    assert fit_line([(0.1, 5.0), (0.1, 7.0)], 20.0).at(0.1) == 7.0
    assert fit_line([(0.1, 7.0), (0.2, 5.0)], 20.0).slope == 20.0  # more SMs are not slower


@pytest.mark.parametrize("x", [40, 80])
@pytest.mark.parametrize("every", [200.0, 1000.0])
def test_the_load_is_rate_times_time_per_prompt_whatever_the_split(x, every):
    window = LatencyWindow(100)
    for i in range(20):
        r = Request(f"r{i}", i, round(i * every * MS), 100, 8, 108)
        r.num_tokens, r.num_computed_tokens = 101, 100
        batch = Batch("prefill", [], [Chunk(r, 100, 0)], PROMPT)
        launch = NotedLaunch(batch, 0, x, None, round(100 * MS * 100 / x))
        window.add(batch, launch, r.arrival_ns + launch.ns)
    seen = window.close(90.0, 0)
    assert seen.prompt_ns == pytest.approx(100 * MS)
    assert seen.load == pytest.approx(100 * 100 / every)
    assert seen.ttft == pytest.approx(100 * MS * 100 / x)
    assert seen.tpot is None


def test_percentiles_are_values_that_were_seen():
    values = [float(v) for v in range(10, 0, -1)]
    assert [percentile(values, p) for p in (1, 10, 50, 90, 91, 100)] == [1, 1, 5, 9, 10, 10]
    assert percentile([3.0], 90) == 3.0


def test_both_slos_hold_and_the_split_stays():
    run = Traffic(lambda x: 200.0, lambda y: 20.0, ttft_ms=300.0, tbt_ms=30.0)
    assert [run.window() for _ in range(4)] == [50] * 4


def test_sms_move_towards_the_violated_slo():
    late = Traffic(lambda x: 400.0, lambda y: 20.0, ttft_ms=300.0, tbt_ms=30.0)
    slow = Traffic(lambda x: 200.0, lambda y: 40.0, ttft_ms=300.0, tbt_ms=30.0)
    assert late.window() > 50
    assert slow.window() < 50


def test_at_most_max_step_steps_a_window_and_never_past_the_last_split():
    run = Traffic(lambda x: 9000.0, lambda y: 1.0, ttft_ms=1.0, tbt_ms=30.0, max_step=2)
    assert [run.window() for _ in range(6)] == [60, 70, 80, 90, 98, 98]


def test_it_moves_by_single_sms_where_the_device_can():
    run = Traffic(lambda x: 9000.0, lambda y: 1.0, ttft_ms=1.0, step_size=1, max_step=1)
    assert [run.window() for _ in range(3)] == [51, 52, 53]


def test_the_only_split_of_a_small_device_is_kept():
    made = SemiPdPartitioner(SemiPdPartitionerOptions(window=1, ttft_ms=1.0))
    spec = tiny_device(gpu=tiny_gpu(num_sms=4, sm_minimum=2, sm_multiple=2)).spec
    state = EngineState(spec, KVCacheManager(100, 4), Limits(8, 64, 1024), BOTH, made.initial(spec))
    assert state.split.sms == (2, 2)
    late = Request("late", 0, 0, 8, 8, 16, num_tokens=9, num_computed_tokens=8)
    made.completed(Batch("prefill", [], [Chunk(late, 8, 0)], PROMPT), 9 * MS)
    assert made.split(Plan([Batch("prefill", [], [], PROMPT)]), state).sms == (2, 2)
    assert made.mode == "TTFT violated"


def test_it_takes_the_smallest_step_that_its_model_finds_enough():
    """TPOT = 1000 / y: 20 ms at 50 %, and 16 ms needs 62.5 %: three steps of 5 %."""
    run = Traffic(lambda x: 1.0, lambda y: 1000.0 / y, ttft_ms=300.0, tbt_ms=16.0)
    assert run.window() == 35
    assert [run.window() for _ in range(3)] == [35] * 3


def test_it_refits_when_the_traffic_changes():
    """First TPOT falls steeply with y, then hardly: the same violation takes more SMs."""
    run = Traffic(lambda x: 1.0, lambda y: 10.0, 20_000.0, ttft_ms=300.0, tbt_ms=16.0, max_step=8)
    assert run.window() == 50
    run.tpot = lambda y: 900.0 / y
    assert run.window() == 40
    run.tpot = lambda y: 300.0 / y + 12.0  # 17 ms at 60 %; 16 ms at 75 %
    for _ in range(8):
        run.window()
    assert 100 - run.x == 75


@pytest.mark.parametrize(("both", "x"), [("keep", 50), ("prefill", 70)])
def test_when_both_are_violated_the_prose_keeps_and_the_print_gives_to_prefill(both, x):
    run = Traffic(lambda x: 4000.0, lambda y: 400.0, ttft_ms=300.0, tbt_ms=30.0, both=both)
    assert run.window() == x


@pytest.mark.parametrize(("guard", "x"), [(True, 65), (False, 70)])
def test_the_guard_takes_no_step_that_breaks_the_other_slo(guard, x):
    """TPOT is 20 ms at 50 % and believed inverse: 28.6 at 35 %, 33.3 at 30 %."""
    run = Traffic(lambda x: 9000.0, lambda y: 1000.0 / y, ttft_ms=1.0, tbt_ms=30.0, guard=guard)
    assert run.window() == x


def test_the_slo_is_the_option_else_the_users_else_the_papers():
    def moved(ttft, **given):
        return Traffic(lambda x: ttft, lambda y: 1.0, **given).window() != 50

    assert moved(400.0, limits=(300.0, None))
    assert not moved(400.0, limits=(300.0, None), ttft_ms=500.0)
    assert not moved(2200.0)
    assert moved(2300.0)


def test_between_two_windows_nothing_moves():
    run = Traffic(lambda x: 9000.0, lambda y: 1.0, ttft_ms=1.0)
    run.window()
    before = run.state.split
    assert run.made.split(Plan([Batch("prefill", [], [], PROMPT)]), run.state) is before


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"percentile": 101.0}, {"step_size": -1.0}, {"ttft_ms": 0.0}]
)
def test_impossible_options_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SemiPdPartitioner(SemiPdPartitionerOptions(**options)).initial(tiny_device(gpu=GPU).spec)
