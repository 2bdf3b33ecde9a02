"""Sessions, closed loops, timeouts and cancellations in the engine."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.errors import InvariantBreach, UsageError
from nexusbench.core.events import OUTCOMES
from nexusbench.core.request import Request
from nexusbench.core.state import Limits
from nexusbench.engine.arrivals import BY_CLIENT, NEVER, ORPHANED, TIMEOUT, Arrivals
from nexusbench.engine.engine import Engine
from nexusbench.schedulers.vllm import VllmScheduler
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, build, make_scheduler
from nexusbench.testing._log import check_log, first_difference
from tests.examples import examples
from tests.sim.strategies import POLICIES, workloads

MS = 1_000_000


def ends(engine: Engine) -> dict[int, tuple[str, str, int]]:
    """Outcome, reason and time (ns) of each request; each has exactly one."""
    columns = engine.log.tables["ended"].columns
    rows = zip(*(columns[name] for name in ("request", "outcome", "reason", "time")), strict=True)
    found = {r: (OUTCOMES[outcome], engine.log.strings[why], t) for r, outcome, why, t in rows}
    assert len(found) == len(columns["request"]) == len(engine.requests)
    return found


def arrivals(engine: Engine) -> dict[int, int]:
    columns = engine.log.tables["arrived"].columns
    return dict(zip(columns["request"], columns["time"], strict=True))


def tokens(engine: Engine, index: int) -> int:
    return list(engine.log.tables["token"].columns["request"]).count(index)


class Slow(VllmScheduler):
    """Serves one request at a time, and so makes every user wait."""

    work_conserving = False

    def schedule(self, ctx):
        if ctx.num_running:
            ctx.schedule_decodes(victim=ctx.last_running)
            for request in list(ctx.prefilling):
                ctx.try_schedule(request)
        elif ctx.waiting.head is not None:
            ctx.try_schedule(ctx.waiting.head)
        return ctx.plan()


def two_sessions() -> list[Request]:
    """Two users with three turns each, who think 50 ms."""
    requests = []
    for _ in range(2):
        for turn in range(3):
            after = len(requests) - 1 if turn else -1
            requests.append(offer(len(requests), 0, 20, 8, after=after, think_ms=50))
    return requests


def test_a_turn_arrives_when_the_one_before_has_ended_and_its_user_has_thought() -> None:
    engine = serve(two_sessions(), "vllm")
    ended, arrived = ends(engine), arrivals(engine)
    assert {outcome for outcome, _, _ in ended.values()} == {"finished"}
    for index in (1, 2, 4, 5):
        assert arrived[index] == ended[index - 1][2] + 50 * MS
        assert engine.requests[index].arrival_ns == arrived[index]


def test_a_slow_scheduler_delays_later_turns() -> None:
    fast, slow = serve(two_sessions(), "vllm"), serve(two_sessions(), lambda: Slow())
    assert arrivals(fast)[0] == arrivals(slow)[0] == arrivals(fast)[3] == arrivals(slow)[3] == 0
    for turn in (4, 5):  # of the user who must wait for the other
        assert arrivals(slow)[turn] > arrivals(fast)[turn] + 50 * MS
    # An open-loop trace of the same requests would arrive the same under both.
    times = [offer(i, 10 * i, 20, 8) for i in range(6)]
    assert arrivals(serve(times, "vllm")) == arrivals(serve(times, lambda: Slow()))


@pytest.mark.parametrize("scheduler", ["vllm", "sglang", "nexus"])
def test_timeouts_free_kv_wherever_the_request_is(scheduler: str) -> None:
    requests = [
        offer(0, 0, 200, 60, timeout_ms=400),  # in flight or decoding when its client gives up
        offer(1, 0, 200, 60),
        offer(2, 5, 60, 30, timeout_ms=1),  # waiting
        offer(3, 5, 60, 30, cancel_after_ms=60, timeout_ms=900),
    ]
    setting = Setting(limits=Limits(2, 64, 1024))
    engine = serve(requests, scheduler, setting=setting)
    check_log(engine)
    found = ends(engine)
    assert found[0][:2] == ("cancelled", TIMEOUT)
    assert found[1][0] == "finished"
    assert found[2] == ("cancelled", TIMEOUT, 6 * MS)  # the engine is woken for it
    assert found[3][:2] == ("cancelled", BY_CLIENT)
    assert found[0][2] >= 400 * MS
    assert engine.kv.num_used == 0
    assert engine.num_tokens == sum(tokens(engine, i) for i in range(4))
    assert 0 < tokens(engine, 0) < 60  # what was generated until then stays reported
    assert tokens(engine, 2) == 0


def test_what_is_in_flight_is_freed_when_its_launch_ends() -> None:
    """I11: the client gives up in the middle of a long prefill."""
    setting = Setting(limits=Limits(4, 256, 1024))
    alone = serve([offer(0, 0, 250, 20)], "vllm", setting=setting)
    first_step = alone.log.tables["step_done"].columns["time"][0]
    watched: list[tuple[int, bool, int]] = []

    def observe(engine: Engine) -> None:
        request = engine.requests[0]
        watched.append((engine.state.now, request.in_flight, len(request.blocks)))

    request = offer(0, 0, 250, 20, timeout_ms=first_step / MS / 2)
    engine = serve([request], "vllm", setting=setting, observer=observe)
    assert ends(engine)[0] == ("cancelled", TIMEOUT, first_step)
    assert any(now < first_step and flying and blocks for now, flying, blocks in watched)
    assert watched[-1] == (first_step, False, 0)
    assert tokens(engine, 0) == 1  # the launch made it, and I4 keeps it


def test_finishing_at_the_very_moment_of_the_timeout_is_finishing() -> None:
    end = ends(serve([offer(0, 0, 30, 6)], "vllm"))[0][2]
    exactly = serve([offer(0, 0, 30, 6, timeout_ms=end / MS)], "vllm")
    assert ends(exactly)[0] == ("finished", "length", end)
    before = serve([offer(0, 0, 30, 6, timeout_ms=(end - 1) / MS)], "vllm")
    assert ends(before)[0] == ("cancelled", TIMEOUT, end)


def test_a_session_ends_with_a_turn_that_does_not_finish() -> None:
    requests = [
        offer(0, 0, 2000, 5),  # exceeds the context: rejected
        offer(1, 0, 20, 5, after=0, think_ms=9),
        offer(2, 0, 20, 5, after=1),
        offer(3, 0, 40, 40, timeout_ms=30),
        offer(4, 0, 20, 5, after=3),
        offer(5, 0, 20, 5),
        offer(6, 0, 20, 5, after=5, think_ms=3),
    ]
    engine = serve(requests, "nexus")
    found = ends(engine)
    assert [found[i][0] for i in range(7)] == [
        "rejected", "cancelled", "cancelled", "cancelled", "cancelled", "finished", "finished",
    ]  # fmt: skip
    for orphan, parent in ((1, 0), (2, 0), (4, 3)):
        assert found[orphan][1:] == (ORPHANED, found[parent][2])
        # It counts as offered, at the moment when its session ended.
        assert arrivals(engine)[orphan] == found[parent][2]
        assert engine.requests[orphan].arrival_ns == found[parent][2]


def test_closed_loop_keeps_its_users_busy() -> None:
    requests = [offer(i, 0, 20 + i, 4 + i % 5) for i in range(20)]
    requests[7] = offer(7, 0, 2000, 5)  # a rejection frees its user too
    requests[9] = offer(9, 0, 30, 60, timeout_ms=40)
    requests[13] = offer(13, 0, 30, 5, after=12, think_ms=5)
    setting = Setting(concurrency=3, limits=Limits(8, 64, 1024))
    present: list[int] = []
    engine = serve(
        requests, "vllm", setting=setting,
        observer=lambda e: present.append(e.state.num_running + len(e.state.waiting)),
    )  # fmt: skip
    assert max(present) == 3
    found, arrived = ends(engine), arrivals(engine)
    assert [i for i in range(20) if not arrived[i]] == [0, 1, 2]
    times = {time for _, _, time in found.values()}
    assert all(arrived[i] in times for i in range(3, 20) if i != 13)
    assert arrived[13] == found[12][2] + 5 * MS
    # The user of 12 thinks and sends 13 before anybody new is let in for him.
    assert list(arrived) != sorted(arrived)


def test_first_come_first_served_is_by_arrival_not_by_place_in_the_trace() -> None:
    requests = [
        offer(0, 0, 16, 2),
        offer(1, 0, 16, 2, after=0, think_ms=400),
        offer(2, 300, 200, 90),
        offer(3, 350, 16, 2),
    ]
    engine = serve(requests, "vllm", setting=Setting(limits=Limits(1, 64, 1024)))
    admitted = engine.log.tables["admitted"].columns["request"]
    assert list(admitted) == [0, 2, 3, 1]
    assert [r.arrival_rank for r in engine.requests] == [0, 3, 1, 2]


def test_arrivals_refuse_what_has_no_order() -> None:
    with pytest.raises(UsageError, match="stands after it"):
        Arrivals([offer(0, 0, 1, 1, after=1), offer(1, 0, 1, 1)])
    with pytest.raises(UsageError, match="two requests follow"):
        Arrivals([offer(0, 0, 1, 1), offer(1, 0, 1, 1, after=0), offer(2, 0, 1, 1, after=0)])


def test_arrivals_in_an_open_loop_are_a_cursor() -> None:
    books = Arrivals([offer(i, 10 * i, 1, 1) for i in range(3)])
    assert (books.chained, books.next_ns, books.num_left) == (False, 0, 3)
    assert [r.index for r in books.pop_due(10 * MS)] == [0, 1]
    assert books.next_ns == 20 * MS
    assert [r.index for r in books.pop_due(NEVER - 1)] == [2]
    assert (books.next_ns, books.num_left) == (NEVER, 0)


def test_a_request_cannot_end_twice() -> None:
    engine = build([offer(0, 0, 8, 2)], make_scheduler("vllm"))
    engine.run()
    with pytest.raises(InvariantBreach, match="ended twice") as caught:
        engine.executor.end(engine.requests[0], 0, "again")
    assert caught.value.invariant == "I1"


@st.composite
def client_driven(draw):
    """A random workload in which some requests follow others and some clients give up."""
    workload = draw(workloads(max_requests=12))
    requests = workload.requests
    free = []  # indexes that nobody follows yet
    for r in requests:
        if free and draw(st.booleans()):
            r.after = free.pop(draw(st.integers(0, len(free) - 1)))
            r.think_ns = draw(st.sampled_from([0, 1, 30 * MS]))
        free.append(r.index)
        r.timeout_ns = draw(st.sampled_from([0, 0, 0, 1, 40 * MS, 900 * MS]))
        if r.prefix_ids and draw(st.booleans()):
            r.named_tokens = r.num_prompt_tokens
        r.cancel_after_ns = draw(st.sampled_from([0, 0, 0, 25 * MS, 900 * MS]))
    return workload, draw(st.sampled_from([0, 0, 1, 2, 5]))


@settings(max_examples=examples(200))
@given(POLICIES, client_driven())
def test_books_hold_whatever_clients_do(policy, made):
    workload, users = made
    scheduler, partitioner = policy
    values = {name: getattr(workload.setting, name) for name in Setting.__struct_fields__}
    setting = Setting(**{**values, "concurrency": users})
    engines = [serve(workload.requests, scheduler, partitioner, setting=setting) for _ in range(2)]
    engine = engines[0]
    assert engine.log.digest() == engines[1].log.digest()  # I6
    check_log(engine)
    assert engine.kv.num_used == 0
    found, arrived = ends(engine), arrivals(engine)
    for r in engine.requests:
        outcome, reason, time = found[r.index]
        if reason == ORPHANED:
            assert found[r.after][0] != "finished"
            assert arrived[r.index] == time
        elif r.after >= 0:
            assert arrived[r.index] == found[r.after][2] + r.think_ns
        limits = [limit for limit in (r.timeout_ns, r.cancel_after_ns) if limit]
        if outcome == "finished" and limits:
            assert time <= arrived[r.index] + min(limits)
        if reason in (TIMEOUT, BY_CLIENT):
            assert time >= arrived[r.index] + min(limits)


@settings(max_examples=examples(25))
@given(POLICIES, st.integers(1, 40))
def test_nothing_depends_on_what_clients_will_do(policy, longer):
    """I9: two runs are the same until a true length, and so a later turn, tells them apart."""
    scheduler, partitioner = policy

    def session(output: int) -> list[Request]:
        first = [offer(i, 7 * i, 24, 12 + 3 * i) for i in range(5)]
        turns = [offer(5, 0, 30, 10, after=1, think_ms=4), offer(6, 0, 30, 10, after=4)]
        first[4] = offer(4, 28, 24, output)
        return [*first, *turns]

    setting = Setting(limits=Limits(3, 64, 1024), kv_blocks=40)
    one, two = (
        serve(session(n), scheduler, partitioner, setting=setting) for n in (20, 20 + longer)
    )
    until = min(ends(one)[4][2], ends(two)[4][2])
    assert first_difference(one.log, two.log, until) is None


class FourSteps(VllmScheduler):
    """Decodes four steps in one launch."""

    work_conserving = False

    def schedule(self, ctx):
        if ctx.decoding:
            ctx.schedule_decodes(repeat=4)
        elif ctx.waiting.head is not None:
            ctx.try_schedule(ctx.waiting.head)
        return ctx.plan()


@pytest.mark.parametrize("output", [3, 40])
def test_giving_up_in_a_launch_of_several_steps(output: int) -> None:
    """Blocks stay held until the launch ends, whether or not all tokens came before."""
    alone = serve([offer(0, 0, 20, output)], lambda: FourSteps())
    steps = alone.log.tables["step_done"].columns["time"]
    timeout = (steps[0] + steps[1]) / 2 / MS  # in the first of the four
    engine = serve([offer(0, 0, 20, output, timeout_ms=timeout)], lambda: FourSteps())
    check_log(engine)
    outcome, reason, time = ends(engine)[0]
    assert (outcome, reason) == ("cancelled", TIMEOUT)
    assert time == (steps[2] if output == 3 else steps[4])
    assert tokens(engine, 0) == min(output, 5)
    assert engine.kv.num_used == 0
