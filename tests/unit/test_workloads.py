"""Traces and their transforms: what is kept, what is changed, what the notes say."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.units import NS_PER_S, ceil_div
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.trace import load_trace, prefix_ids, write_trace
from tests.examples import slow


def make(
    arrivals: list[int], lengths: list[tuple[int, int]] | None = None, block: int = 16
) -> Trace:
    """A trace with these arrivals in ns; each prompt block has an id."""
    lengths = lengths or [(20 + i, 5 + i) for i in range(len(arrivals))]
    requests = [
        TraceRequest(str(i), at, prompt, output, tuple(range(ceil_div(prompt, block))), f"t{i % 2}")
        for i, (at, (prompt, output)) in enumerate(zip(arrivals, lengths, strict=True))
    ]
    return Trace("t", requests, hash_block=block)


def arrivals_of(trace: Trace) -> list[int]:
    return [request.arrival_ns for request in trace.requests]


def ids_of(trace: Trace) -> list[str]:
    return [request.id for request in trace.requests]


def check_pure(before: Trace, copy: Trace, after: Trace) -> None:
    """The argument is untouched, exactly one note is new, arrivals start at 0 and never fall."""
    assert before == copy
    assert after.notes[: len(before.notes)] == before.notes
    assert len(after.notes) == len(before.notes) + 1
    times = arrivals_of(after)
    assert times[0] == 0
    assert all(a <= b for a, b in pairwise(times))
    assert all(isinstance(time, int) for time in times)


def deep(trace: Trace) -> Trace:
    return msgspec.convert(msgspec.to_builtins(trace), Trace)


gaps = st.lists(st.one_of(st.just(0), st.integers(0, 10**10)), min_size=0, max_size=30)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    times = [0]
    for gap in draw(gaps):
        times.append(times[-1] + gap)
    lengths = [(draw(st.integers(1, 200)), draw(st.integers(1, 100))) for _ in times]
    return make(times, lengths)


@settings(deadline=None)
@given(traces(), st.floats(0.01, 100))
def test_speed_divides_every_time(trace: Trace, factor: float) -> None:
    copy = deep(trace)
    fast = transform.speed(trace, factor)
    check_pure(trace, copy, fast)
    for was, now in zip(arrivals_of(trace), arrivals_of(fast), strict=True):
        assert now == pytest.approx(was / factor, abs=1)
    assert ids_of(fast) == ids_of(trace)


@settings(deadline=None)
@given(traces(), st.floats(0.01, 100))
def test_rate_is_met_and_meeting_it_again_changes_nothing(trace: Trace, wanted: float) -> None:
    copy = deep(trace)
    if not arrivals_of(trace)[-1]:
        with pytest.raises(UsageError, match="at once"):
            transform.rate(trace, wanted)
        return
    scaled = transform.rate(trace, wanted)
    check_pure(trace, copy, scaled)
    span = (len(trace.requests) - 1) / wanted * NS_PER_S
    assert arrivals_of(scaled)[-1] == pytest.approx(span, abs=1)
    assert len(scaled.requests) == len(trace.requests)


@settings(deadline=None)
@given(traces(), st.floats(0.1, 10), st.floats(0.1, 10), st.integers(0, 2**32))
def test_burstiness_redraws_times_only(trace: Trace, rate: float, shape: float, seed: int) -> None:
    copy = deep(trace)
    redrawn = transform.burstiness(trace, rate, shape, seed)
    check_pure(trace, copy, redrawn)
    assert redrawn.requests == transform.burstiness(trace, rate, shape, seed).requests
    assert [r.prompt_tokens for r in redrawn.requests] == [r.prompt_tokens for r in trace.requests]
    assert ids_of(redrawn) == ids_of(trace)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [0.25, *slow(1.0, 4.0)])
def test_burstiness_has_rate_and_variation_of_its_shape(shape: float) -> None:
    trace = transform.burstiness(make([0] * 20_001), 5.0, shape, seed=3)
    distances = [b - a for a, b in pairwise(arrivals_of(trace))]
    mean = sum(distances) / len(distances)
    deviation = math.sqrt(sum((d - mean) ** 2 for d in distances) / len(distances))
    assert mean / NS_PER_S == pytest.approx(1 / 5, rel=0.05)
    assert deviation / mean == pytest.approx(1 / math.sqrt(shape), rel=0.05)


@settings(deadline=None)
@given(traces(), st.integers(1, 40))
def test_limit_keeps_the_head(trace: Trace, n: int) -> None:
    copy = deep(trace)
    cut = transform.limit(trace, n)
    check_pure(trace, copy, cut)
    assert cut.requests == trace.requests[:n]


@settings(deadline=None)
@given(traces(), st.floats(0, 50), st.floats(0.1, 50))
def test_window_keeps_exactly_what_arrives_in_it(trace: Trace, start: float, width: float) -> None:
    copy = deep(trace)
    inside = [
        r for r in trace.requests if start * 1e9 <= r.arrival_ns < (start + width) * 1e9
    ]  # fmt: skip
    if not inside:
        with pytest.raises(UsageError, match="holds no request"):
            transform.window(trace, start, start + width)
        return
    cut = transform.window(trace, start, start + width)
    check_pure(trace, copy, cut)
    assert ids_of(cut) == [r.id for r in inside]
    assert arrivals_of(cut) == [r.arrival_ns - inside[0].arrival_ns for r in inside]


@settings(deadline=None)
@given(traces(), st.integers(0, 2**32))
def test_spread_ties_keeps_order_groups_and_single_requests(trace: Trace, seed: int) -> None:
    copy = deep(trace)
    spread = transform.spread_ties(trace, "uniform", seed)
    check_pure(trace, copy, spread)
    assert ids_of(spread) == ids_of(trace)
    times = arrivals_of(trace)
    distinct = sorted(set(times))
    following = dict(pairwise(distinct))
    for was, now in zip(times, arrivals_of(spread), strict=True):
        assert now >= was
        if was in following:
            assert now < following[was]
        if times.count(was) == 1:
            assert now == was
    assert spread.requests == transform.spread_ties(trace, "uniform", seed).requests


def test_spread_ties_fills_the_gap_evenly_and_resolves_the_last_group() -> None:
    trace = make([0] * 500 + [3 * NS_PER_S] * 500)
    times = arrivals_of(transform.spread_ties(trace, "uniform", 7))
    assert len(set(times)) == 1000
    assert sum(times[:500]) / 500 == pytest.approx(1.5e9, rel=0.1)
    assert 5.9e9 < times[-1] < 6e9
    assert times != arrivals_of(transform.spread_ties(trace, "uniform", 8))


@settings(deadline=None)
@given(traces(), st.floats(1e-3, 20))
def test_quantized_arrivals_are_the_next_ticks(trace: Trace, seconds: float) -> None:
    copy = deep(trace)
    ticked = transform.quantize_arrivals(trace, seconds)
    check_pure(trace, copy, ticked)
    assert ids_of(ticked) == ids_of(trace)
    tick = round(seconds * NS_PER_S)
    for was, now in zip(arrivals_of(trace), arrivals_of(ticked), strict=True):
        assert now % tick == 0
        assert was <= now < was + tick


def test_quantized_arrivals_come_together_at_the_end_of_their_second() -> None:
    half = NS_PER_S // 2
    ticked = transform.quantize_arrivals(make([0, 1, half, 2 * half, 3 * half]), 1)
    assert arrivals_of(ticked) == [0, 2 * half, 2 * half, 2 * half, 4 * half]
    assert "5 requests at 3 moments" in ticked.notes[-1]


def test_spread_ties_none_and_impossible_are_noted() -> None:
    trace = make([0, 0, 5])
    assert transform.spread_ties(trace, "none", 0).requests == trace.requests
    assert "2 of 3 requests share" in transform.spread_ties(trace, "none", 0).notes[-1]
    assert "not spread" in transform.spread_ties(make([0, 0]), "uniform", 0).notes[-1]
    assert transform.spread_ties(make([0, 5]), "uniform", 0).notes == ["no ties"]


@settings(deadline=None)
@given(traces(), st.one_of(st.none(), st.just("trace"), st.integers(1, 120)))
def test_bounds_never_lie_below_the_output(trace: Trace, bound: str | int | None) -> None:
    copy = deep(trace)
    bounded = transform.bounds(trace, bound)  # type: ignore[arg-type]
    check_pure(trace, copy, bounded)
    assert bounded.oracle_max_tokens is (bound == "trace")
    longest = max(r.output_tokens for r in trace.requests)
    for was, now in zip(trace.requests, bounded.requests, strict=True):
        assert 1 <= now.output_tokens <= now.max_tokens
        if bound == "trace":
            assert now.max_tokens == was.output_tokens
        elif bound is None:
            assert now.output_tokens == was.output_tokens
            assert longest <= now.max_tokens < 2 * longest or now.max_tokens == longest == 1
        else:
            assert now.max_tokens == bound
            assert now.output_tokens == min(was.output_tokens, bound)
    if bound is None:
        caps = {r.max_tokens for r in bounded.requests}
        assert len(caps) == 1
        assert caps.pop().bit_count() == 1


def test_bounds_count_what_they_clip() -> None:
    assert "2 of 3 outputs clipped" in transform.bounds(make([0, 0, 0]), 5).notes[-1]
    assert "ORACLE" in transform.bounds(make([0]), "trace").notes[-1]


@settings(deadline=None)
@given(traces(), st.integers(2, 250), st.sampled_from(["reject", "skip", "clip"]))
def test_fit_context_leaves_only_what_fits_unless_it_rejects(
    trace: Trace, length: int, policy: transform.ContextPolicy
) -> None:
    copy = deep(trace)
    over = sum(r.prompt_tokens + r.output_tokens > length for r in trace.requests)
    if policy != "reject" and not any(
        r.output_tokens < length
        if policy == "clip"
        else r.prompt_tokens + r.output_tokens <= length
        for r in trace.requests
    ):
        with pytest.raises(UsageError, match="none would be left"):
            transform.fit_context(trace, length, policy)
        return
    fitted = transform.fit_context(trace, length, policy)
    check_pure(trace, copy, fitted)
    assert f"{over} of {len(trace.requests)} requests exceed" in fitted.notes[-1]
    if policy == "reject":
        assert fitted.requests == trace.requests
        return
    by_id = {r.id: r for r in trace.requests}
    assert ids_of(fitted) == [i for i in by_id if i in set(ids_of(fitted))]
    for request in fitted.requests:
        was = by_id[request.id]
        assert request.prompt_tokens + request.output_tokens <= length
        assert request.output_tokens == was.output_tokens
        assert len(request.hash_ids) == ceil_div(request.prompt_tokens, trace.hash_block)
        assert request.hash_ids == was.hash_ids[: len(request.hash_ids)]
        if policy == "skip":
            assert request.prompt_tokens == was.prompt_tokens


def test_fit_context_clips_skips_and_refuses() -> None:
    trace = make([0, 1, 2, 3], [(10, 5), (100, 5), (5, 100), (1, 1)])
    clipped = transform.fit_context(trace, 50, "clip")
    assert [r.prompt_tokens for r in clipped.requests] == [10, 45, 1]
    assert clipped.notes == [
        "context 50 tokens: 2 of 4 requests exceed it; prompts clipped: 1; requests skipped: 1"
    ]
    assert ids_of(transform.fit_context(trace, 50, "skip")) == ["0", "3"]
    with pytest.raises(UsageError, match=r"'1' with 100 \+ 5 tokens"):
        transform.fit_context(trace, 50, "error")
    assert len(transform.fit_context(trace, 105, "error").requests) == 4


BAD_CALLS = [
    (lambda t: transform.speed(t, 0), "speed 0"),
    (lambda t: transform.speed(t, math.nan), "speed nan"),
    (lambda t: transform.rate(t, -1), "rate -1"),
    (lambda t: transform.rate(t, math.inf), "rate inf"),
    (lambda t: transform.burstiness(t, 1, 0, 0), "burstiness 0"),
    (lambda t: transform.limit(t, 0), "limit 0"),
    (lambda t: transform.window(t, 5, 5), "window 5:5"),
    (lambda t: transform.window(t, 1e6), "holds no request"),
    (lambda t: transform.spread_ties(t, "poisson", 0), "none or uniform"),
    (lambda t: transform.quantize_arrivals(t, 0), "quantize-arrivals 0"),
    (lambda t: transform.bounds(t, 0), "max-tokens '0'"),
    (lambda t: transform.bounds(t, "x"), "max-tokens 'x'"),
    (lambda t: transform.fit_context(t, 1, "x"), "context policy 'x'"),
    (lambda t: transform.fit_context(t, 1, "skip"), "none would be left"),
]


@pytest.mark.parametrize(("call", "says"), BAD_CALLS)
def test_impossible_transforms_are_usage_errors(call: object, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(make([0, 5]))  # type: ignore[operator]
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "window"),
    [("60:120", (60, 120)), ("60:", (60, None)), (":1.5", (0, 1.5)), (":", (0, None))],
)
def test_parse_window(text: str, window: tuple[float, float | None]) -> None:
    assert transform.parse_window(text) == window


@pytest.mark.parametrize(
    "text", ["60", "a:b", "", "5:4", "-1:4", "nan:4", "inf:", "1:nan", "1:2:3"]
)
def test_parse_window_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="window"):
        transform.parse_window(text)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=12))
def test_prefix_ids_are_equal_exactly_where_prefixes_are(chains: list[list[int]]) -> None:
    requests = [
        TraceRequest(str(i), 0, max(1, 16 * len(chain)), 1, tuple(chain))
        for i, chain in enumerate(chains)
    ]
    numbers = prefix_ids(Trace("t", requests, hash_block=16), 16)
    assert [len(row) for row in numbers] == [len(chain) for chain in chains]
    seen: dict[int, tuple[int, ...]] = {}
    known: dict[tuple[int, ...], int] = {}
    for chain, row in zip(chains, numbers, strict=True):
        for end, number in enumerate(row, 1):
            prefix = tuple(chain[:end])
            assert seen.setdefault(number, prefix) == prefix
            assert known.setdefault(prefix, number) == number
    assert sorted(seen) == list(range(len(seen)))


def test_prefix_ids_need_a_block_size_that_divides() -> None:
    trace = make([0], block=24)
    with pytest.raises(InputError, match=r"hash_block.*24.*16"):
        prefix_ids(trace, 16)
    assert prefix_ids(trace, 8) == [(0,)]
    plain = Trace("t", [TraceRequest("0", 0, 5, 5)], hash_block=24)
    assert prefix_ids(plain, 16) == [()]


@settings(deadline=None)
@given(traces(), st.booleans())
def test_written_traces_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace, named: bool
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    if named:
        for request in trace.requests:
            request.id = f"r{request.id}"
    write_trace(trace, path)
    again = load_trace(path)
    assert again.requests == trace.requests
    assert (again.name, again.format, again.hash_block) == ("t", "native", 16)
    assert [p.name for p in path.parent.iterdir()] == ["t.jsonl"]
