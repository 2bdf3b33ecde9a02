"""Data-parallel engines: one log, one clock, a router; mixtures of experts step together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import EngineStalled, InvariantBreach, NexusbenchError, UsageError
from nexusbench.core.host import EngineHost
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import ModelSpec
from nexusbench.devices._sim_ranks import FreeRanks
from nexusbench.devices.sim import Sim
from nexusbench.engine.fleet import Fleet
from nexusbench.engine.router import REFRESH_NS, LeastLoaded
from nexusbench.metrics.summary import summarise
from nexusbench.models.config import load_model
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.host import load_engine
from nexusbench.physics.launches import Physics
from nexusbench.physics.lockstep import IDLE, Lockstep
from nexusbench.physics.operators import NOTHING, OperatorClass
from nexusbench.serving.assembly import assemble
from nexusbench.serving.runner import engine_of, run, serve
from nexusbench.testing import offer, tiny_device
from nexusbench.testing._harness import build, make_scheduler
from tests.sim.deployments import refusal_of, trace_of

DENSE, EXPERTS = "qwen2.5-3b", "qwen3-30b-a3b"
H200 = load_gpu("h200")
MS = 1_000_000


def config(trace: Path, engines: int = 2, model: str = DENSE, **more: Any) -> RunConfig:
    return RunConfig(
        trace=str(trace), device="sim:h200", model=model, scheduler="vllm",
        data_parallel_size=engines, **more,
    )  # fmt: skip


def many(tmp_path: Path) -> Path:
    rows = [(7.0 * i, 50 + 300 * (i % 5), 3 + i % 17) for i in range(60)]
    return trace_of(tmp_path, *rows)


def columns(made: Any, table: str) -> list[dict[str, int]]:
    found = made.events.tables[table]
    return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


def engines_of(made: Any) -> dict[int, int]:
    """By request the engine that computed it."""
    partition = {row["step"]: int(row["partition"]) for row in columns(made, "submitted")}
    return {row["request"]: partition[row["step"]] for row in columns(made, "chunk")}


# -- one clock, one log ----------------------------------------------------------------------------


def test_a_fleet_of_one_is_byte_for_byte_a_single_run() -> None:
    requests = [offer(i, 9.0 * i, 20 + 7 * (i % 9), 3 + i % 11) for i in range(40)]
    requests += [offer(40, 0, 30, 4, after=39, think_ms=50), offer(41, 300, 60, 9, timeout_ms=15)]
    requests.sort(key=lambda r: r.index)
    single = build(requests, make_scheduler("vllm"), device=tiny_device(3))
    single.run()
    device = tiny_device(3)
    one = build(requests, make_scheduler("vllm"), device=device)
    fleet = Fleet([one], FreeRanks([device]), audit_every=1)
    fleet.run()
    assert fleet.log.digest() == single.log.digest()
    assert fleet.num_tokens == single.num_tokens > 0


def test_two_engines_serve_the_same_way_twice(tmp_path: Path) -> None:
    trace = many(tmp_path)
    first, again = (run(config(trace)) for _ in range(2))
    assert first.event_digest == again.event_digest
    assert bool(first.events.finished.all())
    assert first.events.facts.partitions == ("all@0", "all@1")
    assert set(engines_of(first).values()) == {0, 1}
    steps = [row["step"] for row in columns(first, "submitted")]
    assert steps == list(range(len(steps)))


def test_two_dense_engines_do_not_slow_each_other(tmp_path: Path) -> None:
    alone = run(config(trace_of(tmp_path, (0.0, 700, 30)), 1))
    both = run(config(trace_of(tmp_path, (0.0, 700, 30), (0.0, 700, 30))))
    assert engines_of(both) == {0: 0, 1: 1}
    ends = [row["time"] for row in columns(both, "ended")]
    assert ends == [pytest.approx(columns(alone, "ended")[0]["time"], rel=0.01)] * 2
    assert ends[0] != ends[1]  # each has a noise of its own


def test_rows_count_the_blocks_and_queues_of_all_engines(tmp_path: Path) -> None:
    made = run(config(trace_of(tmp_path, (0.0, 800, 5), (0.0, 160, 5)), kv_blocks=100))
    last = columns(made, "submitted")[1]
    assert (last["kv_used"], last["running"]) == (50 + 10, 2)
    assert made.events.facts.kv_blocks == 200
    assert made.events.facts.gpus == 2
    assert made.resolved.num_sms == 2 * H200.num_sms  # type: ignore[union-attr]
    summary = summarise(made.events)
    assert summary.value("sms_all") == H200.num_sms
    assert summary.value("split_in_force") == 0.0


def test_a_closed_loop_keeps_its_users_busy_on_both_engines(tmp_path: Path) -> None:
    made = run(config(trace_of(tmp_path, *[(0.0, 400, 20)] * 24), concurrency=6))
    assert bool(made.events.finished.all())
    assert max(row["running"] for row in columns(made, "submitted")) == 6
    homes = list(engines_of(made).values())
    assert 8 <= homes.count(0) <= 16


def test_clients_cancel_on_the_engine_that_has_their_request(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, (0.0, 900, 400), (0.0, 900, 400), timeout=200)
    made = run(config(trace))
    ended = columns(made, "ended")
    assert [row["outcome"] for row in ended] == [3, 3]
    assert engines_of(made) == {0: 0, 1: 1}


def test_clients_give_up_while_all_engines_compute(tmp_path: Path) -> None:
    # Two prompts are computed, and two wait: these end when their clients leave, not a step later.
    made = run(config(trace_of(tmp_path, *[(0.0, 8000, 3)] * 4, timeout=20), max_num_seqs=1))
    ended = {row["request"]: row["time"] for row in columns(made, "ended")}
    assert [ended[request] for request in (2, 3)] == [20 * MS, 20 * MS]
    assert min(ended[request] for request in (0, 1)) > 20 * MS


def test_a_turn_that_never_comes_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 300, "output_length": 5, "session": "b", "turn": 0},
        {"input_length": 320, "output_length": 5, "session": "b", "think_time": 10, "turn": 1},
        {"timestamp": 5, "input_length": 900, "output_length": 400, "session": "a", "turn": 0,
         "timeout": 50},
        {"input_length": 950, "output_length": 5, "session": "a", "think_time": 10, "turn": 1},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run(config(path))
    assert sorted(row["outcome"] for row in columns(made, "ended")) == [0, 0, 3, 3]
    assert engines_of(made)[2] == 1  # the one that ended both turns of the second session


def test_a_stalled_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assembly = assemble(config(trace_of(tmp_path, (0.0, 100, 5), (0.0, 100, 5))))
    second = assembly.peers[0].scheduler
    monkeypatch.setattr(second, "schedule", lambda ctx: ctx.plan())
    monkeypatch.setattr(second, "work_conserving", False)
    with pytest.raises(EngineStalled, match="'vllm' planned nothing"):
        engine_of(assembly).run()


def test_blocks_that_are_lost_on_the_second_engine_are_found(tmp_path: Path) -> None:
    fleet = engine_of(assemble(config(trace_of(tmp_path, (0.0, 100, 5), (0.0, 100, 5)))))
    fleet.engines[1].kv.pool.take(1)  # type: ignore[union-attr]
    with pytest.raises(InvariantBreach, match="I3"):
        fleet.run()


# -- the router ------------------------------------------------------------------------------------


def test_a_request_is_sent_on_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both engines compute long prompts while the third and the fourth request come.
    rows = [(0.0, 8000, 3), (0.0, 8000, 3), (31.0, 100, 3), (32.0, 100, 3)]
    fleet = engine_of(assemble(config(trace_of(tmp_path, *rows))))
    times: list[int] = []

    def route(self: LeastLoaded) -> int:
        times.append(fleet.now_ns)
        return len(times) % 2

    monkeypatch.setattr(LeastLoaded, "route", route)
    fleet.run()
    assert times == [0, 0, 31 * MS, 32 * MS]


def test_an_engine_that_is_done_gets_the_next_request(tmp_path: Path) -> None:
    rows = [(0.0, 100, 400), (1.0, 100, 2), (500.0, 100, 2)]
    assert engines_of(run(config(trace_of(tmp_path, *rows)))) == {0: 0, 1: 1, 2: 1}


def test_the_least_loaded_engine_gets_the_next_request() -> None:
    class State:
        def __init__(self, waiting: int, running: int) -> None:
            self.waiting, self.num_running = range(waiting), running

    states: list[Any] = [State(2, 10), State(0, 12), State(3, 0)]
    router = LeastLoaded(states)
    # Nothing is known yet: in turn, since each that was sent counts as waiting.
    assert [router.route() for _ in range(4)] == [0, 1, 2, 0]
    router.look(REFRESH_NS - 1)
    assert router.route() == 1  # still by what was sent
    router.look(REFRESH_NS)
    # 18, 12, 12: then 18, 16, 12 ...
    assert [router.route() for _ in range(4)] == [1, 2, 1, 2]
    states[0].num_running = 0
    router.look(2 * REFRESH_NS - 1)
    assert router.route() == 0  # 18 against 20 and 20: the counts are those of 100 ms
    router.look(2 * REFRESH_NS)
    assert [router.route() for _ in range(2)] == [0, 0]  # 8, then 12 against 12 and 12
    states[1].num_running = 0
    router.look(7 * REFRESH_NS // 2)  # late: those of 300 ms
    assert [router.route() for _ in range(2)] == [1, 1]
    states[2].waiting = range(0)
    router.look(4 * REFRESH_NS)
    assert [router.route() for _ in range(2)] == [1, 2]


# -- steps together --------------------------------------------------------------------------------


def test_experts_make_ranks_step_together(tmp_path: Path) -> None:
    # One long prompt, and one short one that comes while it is computed.
    trace = trace_of(tmp_path, (0.0, 8000, 40), (5.0, 200, 40))
    made = run(config(trace, model=EXPERTS, enable_expert_parallel=True))
    assert engines_of(made) == {0: 0, 1: 1}
    submitted, done = columns(made, "submitted"), columns(made, "step_done")
    ends = {row["step"]: row["time"] for row in done}
    first, second = submitted[0], submitted[1]
    assert second["time"] == ends[first["step"]]  # it waited for the step that was under way
    by_start: dict[int, set[int]] = {}
    for row in submitted:
        by_start.setdefault(row["time"], set()).add(ends[row["step"]])
    assert all(len(ended) == 1 for ended in by_start.values())
    assert sum(row["time"] == second["time"] for row in submitted) == 2


def test_a_rank_without_work_takes_part(tmp_path: Path) -> None:
    alone = run(config(trace_of(tmp_path, (0.0, 100, 40)), 1, model=EXPERTS))
    beside = run(config(trace_of(tmp_path, (0.0, 100, 40)), 2, model=EXPERTS))
    assert {row["partition"] for row in columns(beside, "submitted")} == {0}
    # It gathers and scatters in every layer, and reads half of each expert.
    assert beside.events.makespan != alone.events.makespan


MODEL = load_model(EXPERTS)


def lockstep(parallel: Parallelism, host: EngineHost | None = None) -> tuple[Lockstep, Physics]:
    physics = Physics(H200, MODEL, parallel.tensor, host=IDLE, parallel=parallel)
    return Lockstep(H200, physics, parallel, host, 1024), physics


def test_a_step_is_the_slowest_rank_and_the_experts_of_all_tokens() -> None:
    together, physics = lockstep(Parallelism(1, 2, True))
    few, many_ = BatchShape(3, 3000), BatchShape(700, 700 * 3000)
    sms = H200.num_sms
    slow = physics.load(many_, sms).solo
    assert slow > physics.load(few, sms).solo
    both = Collectives(H200, 2)
    gathered = both.all_gather(703 * (2048 + 128) * 2.0)
    exchanged = gathered + both.reduce_scatter(703 * 2048 * 2.0)
    expected = slow + physics.routed(703, sms).time + 48 * exchanged
    expected += H200.sim.step_overhead_us * 1e3
    for shapes in ([few, many_], [many_, few]):
        assert together.load(shapes).solo == pytest.approx(expected, rel=1e-12)


def test_a_rank_leaves_experts_and_their_sums_to_all(tmp_path: Path) -> None:
    sms = H200.num_sms
    whole = Physics(H200, MODEL)
    rank = Physics(H200, MODEL, parallel=Parallelism(1, 2, True))
    assert rank.dense(100, sms).time == pytest.approx(
        whole.dense(100, sms).time - whole.routed(100, sms).time
    )
    pair = Physics(H200, MODEL, 2, host=IDLE, parallel=Parallelism(2, 2, True))
    load = pair.load(BatchShape(100, 1000), sms)
    reduced = Collectives(H200, 2).all_reduce(100 * 2048 * 2.0)  # after attention only
    assert load.solo - load.dense.time - load.attention.time == pytest.approx(48 * reduced)


def test_engines_of_several_gpus_gather_their_sums(tmp_path: Path) -> None:
    four, physics = lockstep(Parallelism(2, 2, True), load_engine("ideal"))
    shapes = [BatchShape(600, 60_000), BatchShape(600, 60_000)]
    every, own = Collectives(H200, 4), Collectives(H200, 2)
    once = every.all_gather(1200 * (2048 + 128) * 2.0) + every.reduce_scatter(1200 * 2048 * 2.0)
    once += own.all_gather(600 * 2048 * 2.0)
    expected = physics.load(shapes[0], H200.num_sms).solo
    expected += physics.routed(1200, H200.num_sms).time + 48 * once
    assert four.load(shapes).solo == pytest.approx(expected)


def test_graphs_fill_every_rank_up_to_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    together, physics = lockstep(Parallelism(1, 2, True))
    seen: list[int] = []

    def routed(tokens: int, sms: int) -> OperatorClass:
        seen.append(tokens)
        return NOTHING

    monkeypatch.setattr(physics, "routed", routed)
    for one, other in ((1, None), (3, 1), (9, 16), (257, 4), (513, 4)):
        shapes = [BatchShape(one, one * 100), None if other is None else BatchShape(other, other)]
        together.load(shapes)
    assert seen == [2, 8, 32, 2 * 272, 517]


def test_host_time_is_that_of_the_rank_with_most_sequences() -> None:
    host = msgspec.structs.replace(
        load_engine("ideal"), asynchronous=False, step_us=1000.0, sequence_us=100.0
    )
    shapes = [BatchShape(3, 300), BatchShape(20, 2000)]
    free = lockstep(Parallelism(1, 2, True), load_engine("ideal"))[0].load(shapes).solo
    made = lockstep(Parallelism(1, 2, True), host)[0].load(shapes).solo
    assert made - free == pytest.approx(1e6 + 20 * 1e5)


def test_host_time_of_a_step_in_which_one_rank_has_prompts() -> None:
    ideal = load_engine("ideal")
    host = msgspec.structs.replace(ideal, asynchronous=False, prompt_layer_us=100.0)
    prompts, decodes = BatchShape(3, 300, ((50, 0),)), BatchShape(20, 2000)
    for shapes, layers in (
        ([prompts, decodes], 48), ([decodes, prompts], 48), ([decodes, decodes], 0)
    ):  # fmt: skip
        free = lockstep(Parallelism(1, 2, True), ideal)[0].load(shapes).solo
        made = lockstep(Parallelism(1, 2, True), host)[0].load(shapes).solo
        assert made - free == pytest.approx(layers * 1e5)


def test_whole_experts_and_shares_of_all_of_them_read_the_same_weights() -> None:
    # At many tokens each GPU reads all that it has: half of the experts, or half of each.
    traffic = []
    for whole in (True, False):
        physics = Physics(H200, MODEL, 2, parallel=Parallelism(2, 1, whole))
        traffic.append(physics.routed(2000, H200.num_sms).traffic)
    one = Physics(H200, MODEL).routed(2000, H200.num_sms).traffic
    # What is between the products is not halved by whole experts: zeros stand for the others.
    assert 0.5 * one < traffic[1] < traffic[0] < 0.65 * one


def test_layers_one_by_one_cannot_step_together() -> None:
    together, _ = lockstep(Parallelism(1, 2, True))
    with pytest.raises(UsageError, match="leave --data-parallel-size away"):
        together.load([BatchShape(0, 0, ((64, 0),), (0, 4)), None])


def test_a_rank_is_not_asked_twice_in_a_step(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, (0.0, 100, 5))
    assembly = assemble(config(trace, model=EXPERTS, enable_expert_parallel=True))
    sim, request = assembly.device, assembly.requests[0]
    assert isinstance(sim, Sim)
    engine = engine_of(assembly)
    assert isinstance(engine, Fleet)
    engine.admit(0)
    engine.engines[0].decide()
    batch = engine.engines[0].state.in_flight["all"][0].batch
    assert batch.chunks[0].request is request
    with pytest.raises(NexusbenchError, match="is under way"):
        sim.submit(1, batch, sim.spec.num_sms)


# -- what a GPU holds ------------------------------------------------------------------------------


def test_weights_of_each_gpu() -> None:
    experts = 48 * 128 * 3 * 2048 * 768 * 2.0
    routers = 48 * 2048 * 128 * 2.0  # on each GPU
    rest = MODEL.weight_bytes - experts - routers
    assert Parallelism(1, 2, True).weight_bytes(MODEL) == rest + routers + experts / 2
    assert Parallelism(2, 4, False).weight_bytes(MODEL) == rest / 2 + routers + experts / 8
    dense: ModelSpec = load_model(DENSE)
    assert Parallelism(1, 8, False).weight_bytes(dense) == dense.weight_bytes
    assert Parallelism(2, 1, False).weight_bytes(dense) == dense.weight_bytes / 2


def test_what_tensor_parallelism_does_not_divide_is_on_each_gpu() -> None:
    dense: ModelSpec = load_model("llama-3.1-8b")
    half = 32 * 4096 * 2 * 128 * 2.0 / 2  # of a KV head: there are 8 for 16 GPUs
    assert Parallelism(16).weight_bytes(dense) == dense.weight_bytes / 16 + half
    latent = load_model("deepseek-v3")
    both = 61 * 7168 * (1536 + 512 + 64) * 1.0  # fp8: down to the latents of queries and keys
    more = 8 * Parallelism(8).weight_bytes(latent) - latent.weight_bytes
    routers = 58 * 7168 * 256 * 2.0
    assert more == pytest.approx(7 * (both + routers), rel=0.01)


def test_an_output_head_of_its_own_type_is_on_the_last_stage() -> None:
    model = load_model("qwen3.6-27b-nvfp4")
    first, last = (Parallelism(pipeline=2).weight_bytes(model, (a, a + 32)) for a in (0, 32))
    embedding = 248_320 * 5120 * 2.0
    assert first - last == pytest.approx(embedding * (1 - 0.5625 / 2), rel=1e-3)


def test_the_memory_that_experts_leave_is_for_keys_and_values(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, (0.0, 100, 5))
    blocks = [
        assemble(config(trace, engines, model=EXPERTS)).resolved.kv_blocks // engines
        for engines in (1, 2, 4)
    ]
    saved = 48 * 128 * 3 * 2048 * 768 * 2.0 / (16 * MODEL.kv_bytes_per_token)
    assert blocks[1] - blocks[0] == pytest.approx(saved / 2, abs=2)
    assert blocks[2] - blocks[1] == pytest.approx(saved / 4, abs=2)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"device": "cpu", "model": "tiny"}, "--data-parallel-size is for simulated devices"),
        (
            {"device": "cpu", "model": "tiny", "data_parallel_size": 1,
             "enable_expert_parallel": True},
            "--enable-expert-parallel is for simulated devices",
        ),
        ({"enable_expert_parallel": True}, "qwen2.5-3b has no experts"),
        (
            {"model": EXPERTS, "data_parallel_size": 1, "enable_expert_parallel": True},
            "over several GPUs, this is one",
        ),
        (
            {"model": EXPERTS, "data_parallel_size": 3, "enable_expert_parallel": True},
            "128 experts of qwen3-30b-a3b cannot be dealt out evenly to 3 GPUs",
        ),
        ({"model": EXPERTS, "data_parallel_size": 5}, "768 wide and cannot be shared by 5 GPUs"),
        ({"model": EXPERTS, "kernel_table": "none"}, "has the times of experts of one width"),
        (
            {"model": EXPERTS, "kernel_table": "none", "tensor_parallel_size": 2,
             "enable_expert_parallel": True},
            "has the times of experts of one width",
        ),
        ({"scheduler": "nexus"}, "'nexus' divides its GPU"),
        ({"scheduler": "vllm-pd"}, "'vllm-pd' divides its GPU, or runs on several"),
        ({"swap_space": 1.0}, "recomputed, not swapped"),
        ({"scheduler": "vllm:preemption=swap"}, "recomputed, not swapped"),
    ],
)  # fmt: skip
def test_what_cannot_be_spread_is_refused_by_name(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    asked = msgspec.structs.replace(config(trace_of(tmp_path, (0.0, 100, 5))), **more)
    assert message in refusal_of(asked)


def test_more_gpus_than_a_server_has_are_said(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, (0.0, 100, 5))

    def said(**more: Any) -> list[str]:
        asked = msgspec.structs.replace(config(trace, model=EXPERTS), **more)
        return [text for text in assemble(asked).resolved.caveats if "between servers" in text]

    assert not said(data_parallel_size=8)
    assert said(data_parallel_size=16)[0].startswith("16 GPUs: NOT VALIDATED")
    assert not said(data_parallel_size=16, device="sim:gb200")
    assert not said(data_parallel_size=16, model=DENSE)  # replicas
    assert said(data_parallel_size=4, tensor_parallel_size=4)


def test_a_fleet_is_kept_and_read_like_any_run(tmp_path: Path) -> None:
    from nexusbench.results.reader import RunReader

    made = serve(assemble(config(many(tmp_path))), tmp_path / "results")
    assert made.folder is not None
    reader = RunReader(made.folder)
    assert reader.manifest.partitions == ["all@0", "all@1"]
    assert reader.manifest.event_digest == made.event_digest
