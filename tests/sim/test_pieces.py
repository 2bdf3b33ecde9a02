"""Layer-wise prefill and several decode steps in one launch work end to end."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import PlanRefused
from nexusbench.schedulers.base import Scheduler
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import build
from nexusbench.testing._log import check_log
from nexusbench.testing._probe import CheckedScheduler, WatchedContext
from tests.examples import examples
from tests.sim.pieces import Pieces, pieces
from tests.sim.strategies import workloads


@pytest.mark.slow
@settings(max_examples=examples(120))
@given(
    workloads(), st.integers(1, 4), st.integers(1, 6), st.sampled_from([1, 5, 24]),
    st.sampled_from(["fixed", "fixed:idle=reserve", "nexus:kv_switch=0.5", "whole"]),
)  # fmt: skip
def test_pieces_keep_the_books(workload, layers, repeat, chunk, partitioner):
    probe = CheckedScheduler(pieces(layers, repeat, chunk)())
    probe.__dict__["work_conserving"] = False
    engine = build(workload.requests, probe, partitioner, setting=workload.setting)
    probe.state = engine.state
    engine.context = WatchedContext(engine.journal)
    engine.run()
    tokens = Counter(engine.log.tables["token"].columns["request"])
    for r in engine.requests:
        assert tokens[r.index] == r.stop_len - r.num_prompt_tokens
        assert not r.blocks
        assert not r.in_flight
    if layers == 4 and repeat == 1:
        check_log(engine)


def steps(engine, table="step_done"):
    columns = engine.log.tables[table].columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_a_layer_wise_chunk_makes_its_token_with_the_last_piece():
    engine = serve([offer(0, 0, 20, 1)], pieces(1, 1, 24), "whole")
    assert [row["tokens"] for row in steps(engine)] == [0, 0, 0, 1]
    assert [row["tokens"] for row in steps(engine, "chunk")] == [20] * 4
    assert len(engine.log.tables["admitted"]) == 1


def test_layer_pieces_take_about_the_time_of_the_whole():
    whole = serve([offer(0, 0, 60, 1)], pieces(4, 1, 64), "whole")
    parts = serve([offer(0, 0, 60, 1)], pieces(1, 1, 64), "whole")
    overhead = 3 * 300_000
    assert whole.state.now < parts.state.now < 1.1 * whole.state.now + 2 * overhead


def test_a_request_that_ends_inside_a_repetition_keeps_its_blocks_until_the_launch_ends():
    held = []

    def watch(engine):
        short = engine.requests[0]
        for running in engine.state.in_flight["decode"]:
            if short in running.batch.decodes:
                ended = short.num_tokens == short.stop_len
                held.append((ended, short.in_flight, len(short.blocks)))
                assert running.batch.repeat == 8

    requests = [offer(0, 0, 8, 4), offer(1, 0, 8, 9)]
    engine = serve(requests, pieces(4, 8, 64), "whole", observer=watch)
    assert (True, True, 4) in held  # 8 + 8 tokens, blocks of 4
    assert all(flying for _, flying, _ in held)
    ended = engine.log.tables["ended"].columns
    last = max(row["time"] for row in steps(engine))
    assert dict(zip(ended["request"], ended["time"], strict=True))[0] < last
    assert sum(row["tokens"] for row in steps(engine)) == 4 + 9
    assert engine.kv.num_used == 0


def test_a_repeated_launch_reports_each_repetition():
    engine = serve([offer(0, 0, 8, 9)], pieces(4, 4, 64), "whole")
    done = Counter(row["step"] for row in steps(engine))
    assert sorted(done.values()) == [1, 4, 4]
    ends = [row["time"] for row in steps(engine)]
    assert ends == sorted(set(ends))


class Wrong(Scheduler):
    """Builds batches that the contract forbids, on one stream."""

    work_conserving = False
    how = ""

    def schedule(self, ctx):
        getattr(self, self.how)(ctx)
        return ctx.plan()

    def skips_layers(self, ctx):
        if ctx.waiting.head:
            ctx.try_schedule(ctx.waiting.head, layers=(1, 4))

    def forgets_layers(self, ctx):
        for request in [*ctx.prefilling, *ctx.waiting]:
            ctx.try_schedule(request, layers=None if request.layers_done else (0, 2))

    def too_many_layers(self, ctx):
        if ctx.waiting.head:
            ctx.try_schedule(ctx.waiting.head, layers=(0, 5))

    def no_layers(self, ctx):
        if ctx.waiting.head:
            ctx.try_schedule(ctx.waiting.head, layers=(0, 0))

    def grows_the_chunk(self, ctx):
        for request in [*ctx.prefilling, *ctx.waiting]:
            done = request.layers_done
            ctx.try_schedule(request, 20 if done else 10, layers=(2, 4) if done else (0, 2))

    def decodes_some_layers(self, ctx):
        ctx.schedule_decodes()
        for request in list(ctx.prefilling):
            ctx.try_schedule(request)
        while ctx.waiting.head:
            ctx.try_schedule(ctx.waiting.head, layers=(0, 2) if ctx.decoding else None)

    def repeats_chunks(self, ctx):
        ctx.schedule_decodes(repeat=2)
        while ctx.waiting.head:
            ctx.try_schedule(ctx.waiting.head)

    def repeats_nothing(self, ctx):
        ctx.schedule_decodes(repeat=0)
        while ctx.waiting.head:
            ctx.try_schedule(ctx.waiting.head)


@pytest.mark.parametrize("how", [name for name in vars(Wrong) if "_" in name and name[0] != "_"])
def test_forbidden_pieces_are_refused(how):
    if how == "work_conserving":
        return
    policy = Wrong()
    policy.how = how
    with pytest.raises(PlanRefused, match=r"^contract: policy"):
        serve([offer(0, 0, 30, 9), offer(1, 40, 8, 3)], policy)


def test_pieces_have_shapes_that_say_so():
    shapes: list[BatchShape] = []

    class Recorder(Pieces):
        def schedule(self, ctx):
            plan = super().schedule(ctx)
            shapes.extend(batch.shape for batch in plan.batches)
            return plan

    serve([offer(0, 0, 8, 9)], Recorder(), "whole")
    assert {shape.layers for shape in shapes} == {None, (0, 2), (2, 4)}
    assert {shape.repeat for shape in shapes} == {1, 3}
