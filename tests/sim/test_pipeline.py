"""Pipeline stages: what each holds and takes, batches that follow each other, host time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.host import EngineHost
from nexusbench.core.parallelism import Parallelism
from nexusbench.devices._sim_pipeline import Pipeline
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.metrics.summary import summarise
from nexusbench.models.config import load_model
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.host import load_engine
from nexusbench.physics.launches import Physics
from nexusbench.physics.lockstep import IDLE
from nexusbench.serving.runner import run
from tests.sim.deployments import refusal_of, trace_of

H200 = load_gpu("h200")
STEADY = msgspec.structs.replace(H200, sim=msgspec.structs.replace(H200.sim, jitter=0.0))
MODEL = load_model("llama-3.1-8b")
GAP = H200.sim.step_overhead_us * 1e3


def pipeline(stages: int, tensor: int = 1, host: EngineHost | None = None) -> Sim:
    options = DeviceOptions(
        256, 8192, tensor_parallel=tensor, pipeline_parallel=stages, host=host
    )  # fmt: skip
    sim = Sim(STEADY, MODEL, options, name="h200")
    Pipeline(sim, options.parallel, host, 0)
    return sim


def batch(shape: BatchShape) -> Batch:
    return Batch("all", [], [], shape)


def ends(sim: Sim, *shapes: BatchShape) -> list[int]:
    for step, shape in enumerate(shapes):
        sim.submit(step, batch(shape), H200.num_sms)
    found = []
    for _ in shapes:
        (output,) = sim.wait(None)
        assert output.solo_ns == -1  # type: ignore[union-attr]
        found.append(output.end_ns)
    return found


def stage_ns(shape: BatchShape, begin: int, end: int, tensor: int = 1) -> float:
    physics = Physics(STEADY, MODEL, tensor, host=IDLE)
    return physics.load(msgspec.structs.replace(shape, layers=(begin, end)), H200.num_sms).solo


def handed(tokens: int) -> float:
    return H200.link_latency_us * 1e3 + tokens * 2 * 4096 * 2.0 / H200.link_gbps


SHAPE = BatchShape(40, 40_000)


def test_what_is_left_over_goes_to_stages_in_the_middle() -> None:
    assert Parallelism(pipeline=4).stages(32) == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert Parallelism(pipeline=4).stages(10) == [(0, 2), (2, 5), (5, 8), (8, 10)]
    assert Parallelism(pipeline=2).stages(3) == [(0, 2), (2, 3)]
    assert Parallelism().stages(5) == [(0, 5)]


def test_a_batch_passes_all_stages_and_the_links_between() -> None:
    first, second = stage_ns(SHAPE, 0, 16), stage_ns(SHAPE, 16, 32)
    assert second > first  # the head
    assert ends(pipeline(2), SHAPE) == [int(first + second + 2 * GAP + handed(40)) + 1]


def test_batches_follow_each_other() -> None:
    first, second = stage_ns(SHAPE, 0, 16) + GAP, stage_ns(SHAPE, 16, 32) + GAP
    found = ends(pipeline(2), SHAPE, SHAPE)
    assert found[0] == int(first + second + handed(40)) + 1
    # The second one waits for the slower stage, which has the head.
    assert found[1] == int(first + handed(40) + 2 * second) + 1


def test_groups_send_a_share_each_and_gather() -> None:
    parts = [stage_ns(SHAPE, begin, begin + 16, 2) for begin in (0, 16)]
    link = H200.link_latency_us * 1e3 + 40 * 4096 * 2.0 / H200.link_gbps
    link += Collectives(H200, 2).all_gather(40 * 2 * 4096 * 2.0)
    assert ends(pipeline(2, 2), SHAPE) == [int(parts[0] + parts[1] + 2 * GAP + link) + 1]


def test_the_host_plans_one_batch_after_the_other() -> None:
    ideal = load_engine("ideal")
    host = msgspec.structs.replace(ideal, asynchronous=False, step_us=9e4, sequence_us=100.0)
    work = 9e7 + 40 * 1e5
    free, slow = ends(pipeline(2, host=ideal), SHAPE), ends(pipeline(2, host=host), SHAPE, SHAPE)
    assert slow == [pytest.approx(free[0] + work, abs=2), pytest.approx(free[0] + 2 * work, abs=2)]
    ahead = msgspec.structs.replace(host, asynchronous=True)
    found = ends(pipeline(2, host=ahead), SHAPE, SHAPE)
    assert found == [pytest.approx(free[0] + work, abs=2), pytest.approx(free[0] + 2 * work, abs=2)]


def test_the_host_takes_longer_for_a_batch_with_prompts() -> None:
    ideal = load_engine("ideal")
    host = msgspec.structs.replace(ideal, asynchronous=False, prompt_layer_us=100.0)
    prompts = BatchShape(40, 40_000, ((500, 0),))
    for shape, work in ((SHAPE, 0.0), (prompts, 32 * 1e5)):
        free, slow = ends(pipeline(2, host=ideal), shape), ends(pipeline(2, host=host), shape)
        assert slow == [pytest.approx(free[0] + work, abs=2)]


def test_a_host_that_plans_ahead_has_planned_while_others_computed() -> None:
    host = msgspec.structs.replace(load_engine("ideal"), step_us=1000.0)
    for asynchronous, waits in ((True, 0.0), (False, 1e6)):
        sim = pipeline(2, host=msgspec.structs.replace(host, asynchronous=asynchronous))
        (first,), (second,) = ends(sim, SHAPE), ends(sim, SHAPE)
        step = first - 1e6
        assert step > 2e6
        assert second - first == pytest.approx(step + waits, abs=2)


def test_weights_and_blocks_of_stages() -> None:
    two = Parallelism(pipeline=2)
    parts = [two.weight_bytes(MODEL, layers) for layers in two.stages(32)]
    assert parts[0] == pytest.approx(parts[1])
    assert parts[0] + parts[1] == pytest.approx(MODEL.weight_bytes)
    three = Parallelism(pipeline=3)
    parts = [three.weight_bytes(MODEL, layers) for layers in three.stages(32)]
    embedding = 128_256 * 4096 * 2.0
    assert three.stages(32) == [(0, 11), (11, 22), (22, 32)]
    assert parts[0] - parts[1] == pytest.approx(embedding, rel=1e-3)
    # The first stage has most weights for as many layers as the second: it decides.
    options = DeviceOptions(256, 8192, pipeline_parallel=3)
    whole = Sim(STEADY, MODEL, DeviceOptions(256, 8192)).spec.kv_bytes
    left = whole + MODEL.weight_bytes - parts[0]
    assert Sim(STEADY, MODEL, options).spec.kv_bytes == pytest.approx(left * 32 / 11, rel=1e-6)
    tied = load_model("qwen2.5-3b")
    ends_ = [two.weight_bytes(tied, layers) for layers in two.stages(36)]
    assert ends_[0] + ends_[1] - tied.weight_bytes == pytest.approx(
        151_936 * 2048 * 2.0, rel=1e-2
    )  # both have the matrix that they share


def config(trace: Path, **more: Any) -> RunConfig:
    fields = {"pipeline_parallel_size": 2, "scheduler": "vllm", **more}
    return RunConfig(trace=str(trace), device="sim:h200", model="llama-3.1-8b", **fields)


def test_as_many_batches_are_in_flight_as_there_are_stages(tmp_path: Path) -> None:
    made = run(config(trace_of(tmp_path, *[(0.0, 900, 30)] * 8), max_num_batched_tokens=1800))
    submitted = made.events.tables["submitted"]
    assert submitted["time"][:3].tolist() == [0, 0, made.events.tables["step_done"]["time"][0]]
    assert bool(made.events.finished.all())
    assert made.events.facts.gpus == 2
    again = run(config(trace_of(tmp_path, *[(0.0, 900, 30)] * 8), max_num_batched_tokens=1800))
    assert again.event_digest == made.event_digest
    assert any("chunks of one prompt wait" in text for text in made.resolved.caveats)  # type: ignore[union-attr]
    summary = summarise(made.events)
    assert not summary.failed
    assert summary.value("contention") is None


def test_two_engines_of_two_stages(tmp_path: Path) -> None:
    rows = [(3.0 * i, 300 + i, 20) for i in range(40)]
    made = run(config(trace_of(tmp_path, *rows), data_parallel_size=2, concurrency=9))
    assert bool(made.events.finished.all())
    assert made.events.facts.gpus == 4
    assert set(made.events.tables["submitted"]["partition"].tolist()) == {0, 1}
    # Two batches of each engine begin before any ends.
    rows = [(0.0, 900, 2)] * 8
    made = run(config(trace_of(tmp_path, *rows), data_parallel_size=2, max_num_batched_tokens=900))
    assert made.events.tables["submitted"]["time"][:4].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"device": "cpu", "model": "tiny"}, "--pipeline-parallel-size is for simulated devices"),
        ({"scheduler": "nexus"}, "with --pipeline-parallel-size choose one that does not"),
        ({"scheduler": "vllm:preemption=swap"}, "with --pipeline-parallel-size requests are"),
        ({"pipeline_parallel_size": 33}, "llama-3.1-8b has 32 layers"),
        ({"model": "gpt-oss-120b"}, "differ in what they keep"),
        (
            {"model": "qwen3-30b-a3b", "data_parallel_size": 2},
            "engines of a mixture of experts cannot be simulated with several stages",
        ),
    ],
)  # fmt: skip
def test_what_has_no_stages_is_refused_by_name(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    asked = msgspec.structs.replace(config(trace_of(tmp_path, (0.0, 100, 5))), **more)
    assert message in refusal_of(asked)


def test_a_pipeline_takes_whole_steps() -> None:
    with pytest.raises(UsageError, match="leave --pipeline-parallel-size away"):
        pipeline(2).submit(0, batch(BatchShape(0, 0, ((64, 0),), (0, 4))), H200.num_sms)
