"""What the engine refuses, logs and reports, seen from a policy's side."""

from __future__ import annotations

import pytest

from nexusbench.core.batch import Batch, BatchShape, Plan, Preemption, Split, Transfer
from nexusbench.core.errors import EngineStalled, InvariantBreach, PlanRefused, UsageError
from nexusbench.core.state import Limits
from nexusbench.devices.sim import Sim
from nexusbench.partitioners.base import Partitioner
from nexusbench.partitioners.fixed import FixedPartitioner
from nexusbench.schedulers.base import Scheduler
from nexusbench.testing import offer, serve, tiny_device
from nexusbench.testing._harness import Setting, build, make_scheduler

REQUESTS = [offer(i, 10 * i, 30, 6) for i in range(4)]


class Policy(Scheduler):
    """vLLM's plan, changed by ``change`` before it is returned."""

    work_conserving = False

    def __init__(self, change):
        super().__init__()
        self.change = change

    def schedule(self, ctx):
        ctx.schedule_decodes()
        for request in [*ctx.prefilling, *ctx.waiting]:
            ctx.try_schedule(request)
        return self.change(ctx.plan(), ctx) or ctx.plan()


def refused(change):
    with pytest.raises(PlanRefused) as caught:
        serve(REQUESTS, Policy(change))
    return str(caught.value)


def test_moves_made_by_hand():
    r = REQUESTS[0]
    made_up = [Transfer(r, 0, 1, [])]
    assert "otherwise than with the context" in refused(lambda p, c: Plan(transfers=made_up))
    swap = [Preemption(r, "swap")]
    assert "otherwise than with the context" in refused(lambda p, c: Plan(preemptions=swap))


def test_batches_made_by_hand():
    def elsewhere(plan, ctx):
        plan.batches[0].partition = "decode"
        return plan

    assert "knows no partition 'decode'" in refused(elsewhere)
    empty = Batch("all", [], [], BatchShape(0, 0))
    assert "launches 0 tokens; the budget is 1 to 64" in refused(lambda p, c: Plan([empty]))
    much = Batch("all", [], [], BatchShape(65, 0))
    assert "launches 65 tokens" in refused(lambda p, c: Plan([much]))

    def copied(plan, ctx):
        (batch,) = plan.batches
        return Plan([Batch("all", list(batch.decodes), list(batch.chunks), batch.shape)])

    assert "did not build with the context" in refused(copied)


def test_an_illegal_split_is_refused():
    class Odd(Partitioner):
        serves = (("all",),)

        def initial(self, spec):
            return spec.whole

        def split(self, plan, state):
            return Split(("all",), (7,))

    with pytest.raises(PlanRefused, match=r"^I5: .* wants the illegal split 7"):
        serve(REQUESTS, "vllm", Odd)


def test_a_refused_plan_leaves_no_trace():
    def change(plan, ctx):
        return Plan([Batch("all", [], [], BatchShape(65, 0))])

    engine = build(REQUESTS, Policy(change))
    with pytest.raises(PlanRefused):
        engine.run()
    assert engine.kv.num_used == 0
    assert [r.id for r in engine.state.waiting] == ["r0"]
    assert not engine.state.num_running


def test_a_stall_says_who_is_stuck():
    class Nothing(Scheduler):
        work_conserving = False

        def schedule(self, ctx):
            return Plan()

    with pytest.raises(EngineStalled) as caught:
        serve([offer(i, 0, 5, 5) for i in range(5)], Nothing)
    assert str(caught.value).startswith("I10: scheduler 'test-engine-contract' planned nothing")
    assert "5 waiting (r0, r1, r2, ...); 512 of 512 KV blocks free" in str(caught.value)


def test_a_policy_that_only_asks_to_be_woken_is_stopped():
    class Snoozer(Scheduler):
        work_conserving = False

        def schedule(self, ctx):
            return Plan(wake_at=ctx.now + 1)

    with pytest.raises(EngineStalled, match="I10"):
        serve(REQUESTS, Snoozer)


def test_a_policy_may_preempt_now_and_launch_later():
    class Hesitant(Scheduler):
        """Throws the first request out once, and launches nothing in that instant."""

        work_conserving = False
        thrown_out = False

        def schedule(self, ctx):
            if ctx.decoding and not self.thrown_out:
                self.thrown_out = True
                ctx.preempt(ctx.decoding[0])
                return ctx.plan()
            ctx.schedule_decodes()
            for request in [*ctx.prefilling, *ctx.waiting]:
                ctx.try_schedule(request)
            return ctx.plan()

    engine = serve([offer(0, 0, 30, 6)], Hesitant)
    assert engine.requests[0].num_preemptions == 1
    assert engine.num_ended == 1


def test_a_clock_that_runs_back_is_i2():
    class Backwards(Sim):
        def now(self):
            return 1_000_000_000 - super().now()

    device = tiny_device()
    device.__class__ = Backwards
    with pytest.raises(InvariantBreach, match="invariant I2 broken"):
        serve(REQUESTS, "vllm", device=device)


def test_lost_blocks_are_i3():
    def change(plan, ctx):
        ctx.kv.pool.take(1)

    with pytest.raises(InvariantBreach, match="invariant I3 broken: block"):
        serve(REQUESTS, Policy(change))


def test_a_token_too_many_is_i4():
    policy = make_scheduler("vllm")

    def finished(request):
        if request.index == 2:
            request.num_tokens += 1

    policy.finished = finished
    with pytest.raises(InvariantBreach, match=r"invariant I4 broken: 'r2' has 37 tokens"):
        serve(REQUESTS, policy)


def test_rejections_come_at_arrival_and_say_why():
    requests = [offer(0, 0, 900, 200), offer(1, 5, 90, 40), offer(2, 5, 8, 2)]
    engine = serve(requests, "vllm", setting=Setting(kv_blocks=20))
    ended = engine.log.tables["ended"].columns
    reasons = {
        r: engine.log.strings[c] for r, c in zip(ended["request"], ended["reason"], strict=True)
    }
    assert reasons[0] == "exceeds max_model_len 1024"
    assert reasons[1] == "exceeds the KV pool of 20 blocks"
    assert list(ended["outcome"]) == [1, 1, 0]


def test_the_first_of_two_batches_launched_at_once_is_predicted_with_its_neighbour():
    asked = []

    class Belief:
        name = "recorder"

        def predict(self, shape, sms, neighbour=None):
            asked.append((bool(shape.chunks), neighbour is not None))
            return 1.0

    requests = [offer(0, 0, 30, 9), offer(1, 0, 64, 9)]
    engine = build(
        requests, make_scheduler("nexus"), lambda **x: FixedPartitioner(partitions=x["partitions"])
    )
    engine.partitioner.belief = Belief()
    engine.run()
    columns = engine.log.tables["submitted"].columns
    times = list(columns["time"])
    together = [i for i in range(len(times) - 1) if times[i] == times[i + 1]]
    assert together
    for i in together:
        assert asked[i][1]
        assert asked[i + 1][1]


@pytest.mark.parametrize("guess", [2.0**63, float("inf"), float("nan")])
def test_a_prediction_that_cannot_be_logged_is_refused_by_name(guess):
    class Belief:
        name, learns = "gloomy", False

        def predict(self, shape, sms, neighbour=None):
            return guess

    engine = build(REQUESTS, make_scheduler("vllm"))
    engine.partitioner.belief = Belief()
    with pytest.raises(UsageError, match=r"cost model 'gloomy' predicts \S+ ns for a launch of 30"):
        engine.run()


def test_idle_neighbours_sms_are_expanded_into_or_reserved():
    requests = [offer(0, 0, 100, 9), offer(1, 12, 100, 9)]
    for idle, lone in (("expand", 16), ("reserve", 6)):
        engine = serve(requests, "nexus", f"fixed:prefill=37.5,idle={idle}")
        columns = engine.log.tables["submitted"].columns
        assert columns["sms"][0] == lone
        assert {6, 10} <= set(columns["sms"])


def test_arrivals_wake_an_idle_partition_and_not_a_busy_one():
    requests = [offer(0, 0, 60, 2), offer(1, 3, 10, 1), offer(2, 500, 10, 1)]
    engine = serve(requests, "vllm")
    columns = engine.log.tables["submitted"].columns
    done = engine.log.tables["step_done"].columns["time"]
    assert columns["time"][1] == done[0]
    assert columns["time"][-1] == 500_000_000


def test_seats_bound_who_runs():
    engine = serve(REQUESTS, "vllm", setting=Setting(limits=Limits(2, 64, 1024)))
    assert max(engine.log.tables["submitted"].columns["running"]) == 2
