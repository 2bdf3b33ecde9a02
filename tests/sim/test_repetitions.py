"""Several decode steps in one launch, with a belief that learns and with tokens that end requests;
beliefs on a pair of GPUs.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nexusbench.core.state import Limits
from nexusbench.devices.sim import Sim
from nexusbench.partitioners.fixed import FixedPartitioner
from nexusbench.testing import offer, tiny_device, tiny_gpu
from nexusbench.testing._harness import Setting, build, make_scheduler
from tests.sim.pieces import pieces

EXACT = tiny_gpu(jitter=0.0)
END = 7  # the token that ends a request


def rows(engine, table):
    columns = engine.log.tables[table].columns
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class Pupil:
    """A belief that predicts a second for everything and writes down what it is told."""

    name, learns, monotone = "pupil", True, True

    def __init__(self):
        self.told = []
        self.asked = []

    def predict(self, shape, sms, neighbour=None):
        self.asked.append((shape, sms, neighbour))
        return 1e9

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        return [1e9 for _ in sms]

    def observe(self, shape, sms, predicted_ns, actual_ns):
        self.told.append((shape, sms, predicted_ns, actual_ns))


def learning(belief):
    def make(partitions, **_):
        made = FixedPartitioner(partitions=partitions)
        made.belief = belief
        return made

    return make


def test_each_repetition_teaches_what_a_whole_launch_of_its_pace_takes():
    belief = Pupil()
    setting = Setting(gpu=EXACT)
    engine = build([offer(0, 0, 8, 9)], pieces(4, 4, 64)(), learning(belief), setting=setting)
    engine.run()
    starts = {row["step"]: row["time"] for row in rows(engine, "submitted")}
    repeats = {0: 1, 1: 4, 2: 4}
    expected = []
    for row in rows(engine, "step_done"):
        taken = row["time"] - starts[row["step"]]
        expected.append(taken * repeats[row["step"]])
        starts[row["step"]] = row["time"]
    assert [told[3] for told in belief.told] == expected
    assert len(expected) == 9
    assert {told[2] for told in belief.told} == {1_000_000_000}
    # All repetitions of a launch take alike here: neither the first alone nor their sum.
    four = expected[1:5]
    assert max(four) - min(four) <= 8
    assert [told[0].repeat for told in belief.told] == [1, 4, 4, 4, 4, 4, 4, 4, 4]
    assert all(told[1] == 16 for told in belief.told)


class Typing(Sim):
    """Makes tokens: 1, 2, 3 ... by launch and repetition, or what ``script`` says."""

    script: dict = {}

    def submit(self, step, batch, sms):
        self.batches = {**getattr(self, "batches", {}), step: batch}
        super().submit(step, batch, sms)

    def wait(self, until):
        outputs = super().wait(until)
        for output in outputs:
            batch = self.batches[output.step]
            producers = [r.index for r in batch.decodes]
            producers += [
                c.request.index for c in batch.chunks
                if c.context + c.num_tokens == c.request.num_tokens
            ]  # fmt: skip
            counts = self.__dict__.setdefault("counts", {})
            output.tokens = []
            for index in producers:
                counts[index] = counts.get(index, 0) + 1
                output.tokens.append(END if counts[index] in self.script.get(index, ()) else 1)
        return outputs


def typed(requests, policy, script, **options):
    device = tiny_device(gpu=EXACT)
    device.__class__ = Typing
    device.script = script
    engine = build(
        requests, policy, "whole", device=device,
        setting=Setting(gpu=EXACT, stop_tokens=frozenset({END}), **options),
    )  # fmt: skip
    engine.run()
    return engine


def ends(engine):
    return {
        row["request"]: (row["time"], engine.log.strings[row["reason"]])
        for row in rows(engine, "ended")
    }


def tokens(engine):
    counts = {}
    for row in rows(engine, "token"):
        counts[row["request"]] = counts.get(row["request"], 0) + 1
    return counts


def test_a_token_that_ends_a_request_in_the_middle_of_a_launch_of_several_steps():
    """Four steps in a launch: the second of them ends the first request, whose row goes on."""
    requests = [offer(0, 0, 8, 20), offer(1, 0, 8, 9)]
    engine = typed(requests, pieces(4, 4, 64)(), {0: {3}})
    assert tokens(engine) == {0: 3, 1: 9}
    (first, why), (second, other) = ends(engine)[0], ends(engine)[1]
    assert (why, other) == ("stop", "length")
    step = next(row["step"] for row in rows(engine, "step_done") if row["time"] == first)
    repetitions = [row["time"] for row in rows(engine, "step_done") if row["step"] == step]
    assert repetitions.index(first) == 1, "it ends with the repetition that made the token"
    assert len(repetitions) == 4
    assert second > first
    assert engine.requests[0].num_tokens == 8 + 3
    assert engine.kv.num_used == 0


def test_what_a_row_computes_after_its_end_ends_nothing_again():
    """The rows of a launch all go on to its last step; such tokens belong to no request."""
    engine = typed([offer(0, 0, 8, 20)], pieces(4, 4, 64)(), {0: {3, 4, 5}})
    assert tokens(engine) == {0: 3}
    assert ends(engine)[0][1] == "stop"
    assert len(rows(engine, "ended")) == 1


@pytest.mark.parametrize(("count", "why"), [(1, "stop"), (4, "stop"), (5, "stop"), (6, "length")])
def test_a_token_that_ends_a_request_does_so_up_to_its_last(count, why):
    engine = typed([offer(0, 0, 8, 5)], make_scheduler("vllm"), {0: {count}})
    assert tokens(engine) == {0: min(count, 5)}
    assert ends(engine)[0][1] == why


def test_a_chunk_that_completes_no_prompt_makes_no_token():
    requests = [offer(0, 0, 100, 4), offer(1, 0, 8, 4)]
    engine = typed(requests, make_scheduler("vllm"), {0: {2}})
    assert tokens(engine) == {0: 2, 1: 4}
    assert [why for _, why in ends(engine).values()] == ["stop", "length"]


# -- beliefs on a pair -----------------------------------------------------------------------------


def paired(belief, scheduler="vllm-pd"):
    policy = make_scheduler(scheduler)
    gpu = EXACT
    requests = [offer(i, 5 * i, 100, 20) for i in range(8)]

    def make(partitions, **_):
        from nexusbench.partitioners.whole import WholePartitioner

        made = WholePartitioner(partitions=partitions)
        made.belief = belief
        return made

    limits = Limits(8, 256, 1024)
    engine = build(requests, policy, make, setting=Setting(gpu=gpu, limits=limits))
    engine.run()
    return engine


def test_on_a_pair_the_other_gpu_is_no_neighbour():
    belief = Pupil()
    engine = paired(belief)
    assert len(rows(engine, "submitted")) == len(belief.asked) > 20
    assert all(neighbour is None for _, _, neighbour in belief.asked)
    assert all(sms == 16 for _, sms, _ in belief.asked)
    both = {row["partition"] for row in rows(engine, "submitted")}
    assert both == {0, 1}, "both GPUs have computed, side by side"


def test_what_a_belief_is_told_of_a_pair_is_each_launch_of_its_own_gpu():
    belief = Pupil()
    engine = paired(belief)
    started = {row["step"]: row["time"] for row in rows(engine, "submitted")}
    took = [row["time"] - started[row["step"]] for row in rows(engine, "step_done")]
    assert [told[3] for told in belief.told] == took
    assert {bool(told[0].chunks) for told in belief.told} == {True, False}


def test_a_belief_of_a_pair_is_asked_for_what_its_own_gpu_computes():
    """Adrenaline sends attention away: the decode GPU's belief is asked without those keys."""
    belief = Pupil()
    policy = make_scheduler("adrenaline")
    requests = [offer(i, 2 * i, 60, 40) for i in range(8)]
    seen = []
    schedule = policy.schedule

    def watched(ctx):
        plan = schedule(ctx)
        seen.extend(batch.shape for batch in plan.batches)
        return plan

    policy.schedule = watched

    def make(partitions, belief=None, **_):
        from nexusbench.partitioners.adrenaline import AdrenalinePartitioner

        return AdrenalinePartitioner(partitions=partitions, belief=replaced)

    replaced = belief
    engine = build(requests, policy, make, setting=Setting(gpu=replace(EXACT, link_gbps=100.0)))
    engine.run()
    away = [shape for shape in seen if shape.remote is not None]
    asked = [shape for shape, _, _ in belief.asked]
    assert all(shape.remote is None for shape in asked)
    assert all(shape.at_home in asked for shape in away)
