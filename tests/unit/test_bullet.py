"""Bullet: who goes next, when decode pauses, and whose SMs (arXiv 2504.19516, Algorithm 1)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import Batch, BatchShape, Chunk, Plan
from nexusbench.core.errors import InputError
from nexusbench.core.state import EngineState, Limits
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.bullet import BulletPartitioner as Resources
from nexusbench.partitioners.bullet import BulletPartitionerOptions
from nexusbench.policies.bullet import (
    LOOK_AHEAD,
    NORM_TTFT_MS,
    TPOT_MS,
    BulletSlo,
    Pace,
    PromptsAtHand,
    Prospects,
    expected,
)
from nexusbench.testing import check_scheduler, offer, serve, tiny_device, tiny_gpu
from nexusbench.testing._harness import LIMITS, make_scheduler

MS = 1_000_000
BOTH = ("prefill", "decode")
GPU = tiny_gpu(num_sms=40, sm_minimum=2, sm_multiple=2)
PREFILL, DECODE = BatchShape(0, 0, ((100, 0),)), BatchShape(8, 800)


class Linear:
    """A belief: so many ns per prompt token, and per decode step, on all 40 SMs; both divide."""

    monotone, learns = True, False

    def __init__(self, token=1.0, step=1.0, num_sms=40):
        self.token, self.step, self.num_sms = token, step, num_sms

    def predict(self, shape, sms, neighbour=None):
        tokens = sum(n for n, _ in shape.chunks)
        time = tokens * self.token if tokens else self.step * shape.repeat
        return time * self.num_sms / sms


def waiting(index, prompt, arrival_ms=0.0):
    request = offer(index, arrival_ms, prompt, 8)
    request.num_tokens = prompt
    return request


def decoding(index, generated, prompt=10):
    request = waiting(index, prompt)
    request.num_computed_tokens, request.num_tokens = prompt + generated - 1, prompt + generated
    return request


# -- SLOs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked", "slo"),
    [
        ((None, None, None), (None, None), BulletSlo(NORM_TTFT_MS * MS, True, TPOT_MS * MS)),
        ((None, None, None), (500.0, 40.0), BulletSlo(500 * MS, False, 40 * MS)),
        ((None, 700.0, 30.0), (500.0, 40.0), BulletSlo(700 * MS, False, 30 * MS)),
        ((1.5, None, None), (500.0, 40.0), BulletSlo(1.5 * MS, True, 40 * MS)),
    ],
)
def test_options_come_before_goodput_and_goodput_before_the_paper(options, asked, slo):
    keys = ("norm_ttft_ms", "ttft_ms", "tbt_ms")
    wished = BulletPartitionerOptions(**dict(zip(keys, options, strict=True)))
    assert expected(wished, Limits(8, 64, 1024, *asked)) == slo


def test_pace_is_time_since_the_first_token_over_the_tokens_since():
    pace, request = Pace(), decoding(0, 1)
    pace.completed(Batch("prefill", [], [Chunk(request, 10, 0)], PREFILL), 100)
    request.num_tokens += 4  # five tokens, the sixth comes at 600: 500 ns over five gaps
    assert not pace.late([request], 600, 100)
    assert pace.late([request], 601, 100)
    crowd = [request, *[decoding(i, 5) for i in range(1, 10)]]  # seen with their next tokens only
    assert not pace.late(crowd, 9_999, 100)  # one of ten may be late
    assert pace.late(crowd[:9], 9_999, 100)


# -- the queue -------------------------------------------------------------------------------------

PROMPTS = st.lists(
    st.tuples(st.integers(1, 60).map(lambda n: 32 * n), st.integers(0, 4000)), max_size=12
)


def misses(order, now, slo):
    """Who misses a TTFT, if prompts go in this order from ``now`` on, a ns per token."""
    late = set()
    for r in order:
        now += r.num_tokens
        if now - r.arrival_ns > slo.ttft_of(r):
            late.add(r.index)
    return late


@given(PROMPTS, st.floats(0.5, 8))
def test_no_pending_ttft_breaks_for_the_sake_of_a_shorter_prompt(prompts, norm):
    slo, now = BulletSlo(norm, True, 1.0), 4000
    queue = [waiting(i, n, arrival / MS) for i, (n, arrival) in enumerate(prompts)]
    prospects = Prospects(Linear())
    chosen = prospects.next_prompt(queue, float(now), slo, 40)
    if not queue:
        assert chosen is None
        return
    place = queue.index(chosen)
    passed = [chosen, *queue[:place], *queue[place + 1 :]]
    assert misses(passed, now, slo) - misses(queue, now, slo) <= set()
    in_time = all(r.index not in misses(queue, now, slo) for r in queue)
    if in_time and len(queue) <= LOOK_AHEAD:  # nobody shorter could have gone first
        for other in [r for r in queue if r.num_tokens < chosen.num_tokens]:
            at = queue.index(other)
            order = [other, *queue[:at], *queue[at + 1 :]]
            assert misses(order, now, slo)


def admitted(engine):
    return list(engine.log.tables["admitted"].columns["request"])


def test_a_short_prompt_passes_a_long_one_that_can_wait_and_not_one_that_cannot():
    long_first = [offer(0, 0, 64, 2), offer(1, 1, 400, 2), offer(2, 2, 8, 2)]
    patient = serve(long_first, "bullet:norm_ttft_ms=50,layers_per_step=4")
    hurried = serve(long_first, "bullet:norm_ttft_ms=0.01,layers_per_step=4")
    plain = serve(long_first, "bullet:norm_ttft_ms=50,layers_per_step=4,order=fcfs")
    assert admitted(patient) == [0, 2, 1]
    assert admitted(hurried) == admitted(plain) == [0, 1, 2]


def test_prompts_join_a_batch_while_it_is_bound_by_memory():
    prospects = Prospects(Linear(num_sms=40))
    assert prospects.saturating_tokens(40) == pytest.approx(1)  # never bound by memory

    class Floor(Linear):
        def predict(self, shape, sms, neighbour=None):
            return max(300.0, super().predict(shape, sms))

    assert Prospects(Floor()).saturating_tokens(40) == pytest.approx(300)
    assert Prospects(Floor()).saturating_tokens(20) == pytest.approx(150)


def test_a_ttft_breaks_by_the_time_since_the_arrival():
    """Both arrived at 600 ns; from 1,000 on they take 100 and 200 ns: TTFTs of 500 and 700 ns."""
    pending = [(waiting(0, 10, 600 / MS), 100.0), (waiting(1, 10, 600 / MS), 200.0)]
    prospects = Prospects(Linear())
    assert not prospects.breaks_ttft(pending, 1000, BulletSlo(700.0, False, 1.0))
    assert prospects.breaks_ttft(pending, 1000, BulletSlo(699.0, False, 1.0))


class Asked(Linear):
    """A belief that keeps the shapes it was asked about."""

    def __init__(self, **times):
        super().__init__(**times)
        self.shapes = []

    def predict(self, shape, sms, neighbour=None):
        self.shapes.append(shape)
        return super().predict(shape, sms, neighbour)


def test_a_decode_step_is_predicted_for_the_context_of_all_its_requests():
    belief = Asked()
    Prospects(belief).decode([decoding(0, 5), decoding(1, 8, prompt=20)], 40)
    assert belief.shapes == [BatchShape(2, 14 + 27)]


def test_prefill_goes_by_layers_and_a_batch_stays_together():
    requests = [offer(0, 0, 60, 3), offer(1, 30, 20, 3)]
    for step, launches in ((1, 4), (2, 2), (3, 2), (4, 1), (9, 1)):
        policy = f"bullet:layers_per_step={step},order=fcfs"
        chunk = serve(requests, policy).log.tables["chunk"].columns
        assert [list(chunk["request"]).count(i) for i in (0, 1)] == [launches, launches]


@pytest.mark.slow
def test_the_default_order_keeps_the_contract():
    check_scheduler("bullet", examples=2)  # tests/conformance asks for fcfs and spf


@pytest.mark.parametrize("option", ["layers_per_step=0", "tbt_ms=0", "norm_ttft_ms=-1"])
def test_what_must_be_positive_is_refused(option):
    name, _, value = option.partition("=")
    with pytest.raises(
        InputError, match=rf"'{name}': scheduler 'bullet' cannot use '{value}': Expected `\w+` >"
    ):
        make_scheduler(f"bullet:{option}")


# -- pausing ---------------------------------------------------------------------------------------

# Two that decode for long, then a burst of prompts.
BURST = [offer(0, 0, 20, 60), offer(1, 0, 20, 60), *[offer(2 + i, 300, 60, 2) for i in range(6)]]


def run_burst(**options):
    """(longest gap of the first request's tokens in ms, mean TTFT of the burst in ms)."""
    given = ",".join(f"{key}={value}" for key, value in options.items())
    engine = serve(BURST, f"bullet:layers_per_step=1,{given}", "fixed")
    times, firsts = [], {}
    done, token = engine.log.tables["step_done"].columns, engine.log.tables["token"].columns
    made = iter(token["request"])
    for time, count in zip(done["time"], done["tokens"], strict=True):
        for _ in range(count):
            index = next(made)
            firsts.setdefault(index, time)
            if index == 0:
                times.append(time)
    gaps = [b - a for a, b in pairwise(times)]
    late = [firsts[r.index] - r.arrival_ns for r in engine.requests[2:]]
    return max(gaps) / MS, sum(late) / len(late) / MS


def test_decode_pauses_in_a_burst_only_while_the_p90_of_tpot_holds():
    plain_gap, plain_ttft = run_burst(norm_ttft_ms=0.1, tbt_ms=80, pause="false")
    gap, ttft = run_burst(norm_ttft_ms=0.1, tbt_ms=80, pause="true")
    assert gap > 2 * plain_gap
    assert ttft < plain_ttft
    # The more TPOT bears, the longer; and not at all if decode hardly meets it.
    gaps = [run_burst(norm_ttft_ms=0.1, tbt_ms=tbt, pause="true")[0] for tbt in (1, 40, 150)]
    assert gaps[0] == plain_gap < gaps[1] < gap < gaps[2]


def test_decode_does_not_pause_while_every_ttft_holds():
    assert run_burst(norm_ttft_ms=1000, tbt_ms=80, pause="true") == (
        run_burst(norm_ttft_ms=1000, tbt_ms=80, pause="false")
    )


# -- SMs -------------------------------------------------------------------------------------------


def resources(belief, decodes, queue=(), **options):
    made = Resources(BulletPartitionerOptions(**options), belief=belief)
    device = tiny_device(gpu=GPU)
    state = EngineState(
        device.spec, KVCacheManager(100, 4), LIMITS, BOTH, made.initial(device.spec)
    )
    for request in decodes:  # all had their first tokens at 0
        grown, request.num_tokens = request.num_tokens, request.num_prompt_tokens + 1
        computed, request.num_computed_tokens = request.num_computed_tokens, 10
        made.completed(Batch("prefill", [], [Chunk(request, 10, 0)], PREFILL), 0)
        request.num_tokens, request.num_computed_tokens = grown, computed
    state.decoding.extend(decodes)
    for request in queue:
        request.order_key = request.index
        state.waiting.add(request)
    return made, state


def ask(made, state):
    batches = [Batch("prefill", [], [], PREFILL), Batch("decode", [], [], DECODE)]
    state.split = made.split(Plan(batches), state)
    return state.split.sms


def decodes(count=10, generated=10):
    return [decoding(i, generated) for i in range(count)]


def test_decode_gets_the_fewest_sms_that_meet_its_slo_while_p90_holds():
    made, state = resources(Linear(10 * MS, 10 * MS), decodes(), tbt_ms=25)
    state.now = 200 * MS  # 20 ms per token so far
    assert ask(made, state) == (24, 16)  # 10 ms x 40/16 = 25 ms
    assert made.mode == "reduce-decode"


def test_sms_go_to_prefill_when_ttft_breaks_and_tpot_holds():
    late = [waiting(100 + i, 200) for i in range(10)]
    made, state = resources(Linear(step=10 * MS, token=MS), decodes(), late, tbt_ms=100)
    state.now = 300 * MS
    assert state.split.sms == (20, 20)
    assert ask(made, state)[0] == 36  # 10 ms x 40/4 = 100 ms
    assert made.mode == "reduce-decode"


def test_decode_gets_more_sms_when_p90_of_tpot_breaks_and_ttft_bears_it():
    calm = [waiting(100, 192, arrival_ms=499)]  # wants 576 ms, takes 192 on all SMs
    made, state = resources(Linear(step=10 * MS, token=MS), decodes(), calm, tbt_ms=25)
    state.now = 500 * MS  # 50 ms per token so far
    prefill, decode = ask(made, state)
    assert made.mode == "reduce-prefill"
    assert (prefill, decode) == (14, 26)  # 192 ms x 40/14 = 549 ms; on 12 it would be 640
    for one in state.decoding[:-1]:
        one.num_tokens += 100  # nine of ten are well within it now
    assert ask(made, state)[1] <= decode
    assert made.mode == "reduce-decode"


def test_both_in_danger_are_balanced():
    late = [waiting(100 + i, 64) for i in range(4)]
    made, state = resources(Linear(step=30 * MS, token=MS), decodes(), late, tbt_ms=40)
    state.now = 600 * MS
    chosen = ask(made, state)
    assert made.mode == "balanced"

    def worst(prefill, decode):
        ttft = (600 + 4 * 64 * 40 / prefill) / (NORM_TTFT_MS * 64)
        return max(ttft, 30 * 40 / decode / 40)

    legal = [s.sms for s in state.device.splits if not s.overlapping]
    assert worst(*chosen) == min(worst(*sms) for sms in legal)


def test_decode_takes_sms_at_once_and_gives_them_back_by_two_steps_or_more():
    belief = Linear(10 * MS, 10 * MS)
    made, state = resources(belief, [], tbt_ms=25)
    assert ask(made, state) == (24, 16)
    belief.step = 8.8 * MS  # 14.1 of 40 would do: one step less
    assert ask(made, state) == (24, 16)
    belief.step = 10.1 * MS
    assert ask(made, state) == (22, 18)
    belief.step = 8.7 * MS
    assert ask(made, state) == (26, 14)


def test_prompts_are_predicted_until_they_last_as_long_as_is_asked():
    """Two prompts of 96 ns each last 192 ns: the third need not be predicted."""
    belief = Asked()
    _, state = resources(belief, [], [waiting(i, 96) for i in range(3)])
    prompts = PromptsAtHand(belief, PREFILL, state)
    for most, predicted in ((192.0, 2), (193.0, 3)):
        belief.shapes.clear()
        outlast = prompts.outlasts(most)
        assert len(belief.shapes) == predicted
        assert outlast(most, 40)


def test_a_decode_step_does_not_outlast_the_prompts_at_hand():
    belief = Linear(token=0.1 * MS, step=10 * MS)  # the prefill under way takes 10 ms on all SMs
    made, state = resources(belief, decodes(2), tbt_ms=100)
    assert ask(made, state) == (20, 20)  # both take 20 ms
    for index in range(20):
        request = waiting(100 + index, 200, 0.0)
        request.order_key = index
        state.waiting.add(request)
    assert ask(made, state) == (36, 4)  # 100 ms, as long as the SLO lets it: there is work enough
    state.decoding.extend(decodes(LIMITS.max_num_seqs))
    assert ask(made, state) == (20, 20)  # no seats: those who wait cannot use the SMs
