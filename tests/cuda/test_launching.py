"""The CUDA device on a GPU on paper: tokens, order of launches, ends, gaps, hangs, closing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from tests.examples import sample, slow

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fake_gpu import FakeGpu, fake_cuda, served  # noqa: E402

from nexusbench.core.errors import NexusbenchError  # noqa: E402
from nexusbench.core.state import Limits  # noqa: E402
from nexusbench.devices import _cuda_queue, _cuda_steps  # noqa: E402
from nexusbench.devices._cuda_steps import AHEAD  # noqa: E402
from nexusbench.devices.base import DeviceOptions, Serving  # noqa: E402
from nexusbench.devices.cpu import Cpu  # noqa: E402
from nexusbench.models.config import load_model  # noqa: E402
from nexusbench.testing import check_device, offer, serve  # noqa: E402
from nexusbench.testing._harness import Setting  # noqa: E402
from nexusbench.testing._log import check_log  # noqa: E402
from nexusbench.testing.device import CheckedDevice  # noqa: E402
from tests.sim.pieces import pieces  # noqa: E402

ROOMY = Setting(kv_blocks=2048, limits=Limits(8, 64, 4096))
LENGTHS = ((7, 5), (90, 3), (200, 6), (16, 16), (64, 1), (3, 20), (150, 9), (24, 12))
LAYERED = pieces(1, 3, 24, whole=4)  # of the tiny model
WAYS = [("vllm", None, True), ("nexus", "whole", False), ("pieces", "fixed", True)]
MORE_WAYS = [
    ("sglang", None, True), ("nexus", "fixed", True), ("nexus", "nexus", True),
    ("pieces", "fixed", False),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [True, *slow(False)])
def test_conformance(graphs: bool) -> None:
    check_device(lambda: fake_cuda(graphs=graphs))


def mixture() -> list[Any]:
    return [offer(i, 4 * i, *LENGTHS[i]) for i in range(8)]


@pytest.fixture(scope="module")
def expected() -> dict[int, list[int]]:
    """What the CPU device makes of the same requests."""
    options = DeviceOptions(8, 64, model_name="tiny", dtype="float32")
    device = Cpu.open("shared", load_model("tiny"), options)
    try:
        serve(mixture(), "vllm", device=device, setting=ROOMY)
        return {index: list(tokens) for index, tokens in device.generated().items()}
    finally:
        device.close()


@pytest.mark.parametrize(
    ("scheduler", "partitioner", "graphs"),
    sample([WAYS[-1], *WAYS[:-1], *MORE_WAYS], 7),
)
@pytest.mark.slow
def test_tokens_are_those_of_the_cpu(
    scheduler: str, partitioner: str | None, graphs: bool, expected: dict[int, list[int]]
) -> None:
    """I8, through padded graphs, layer-wise prompts and repetitions launched ahead."""
    gpu = FakeGpu()
    policy = LAYERED if scheduler == "pieces" else scheduler
    engine, got = served(mixture(), policy, partitioner, gpu=gpu, setting=ROOMY, graphs=graphs)
    check_log(engine)
    assert got == expected
    kinds = {kind for kind, _, _ in gpu.log}
    assert ("replay" in kinds) == graphs
    if scheduler == "pieces":
        assert "adopt" in kinds  # hidden states went from one stream to another


@pytest.mark.slow
def test_seeded_sampling_is_that_of_the_cpu() -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9}
    _, one = served(mixture(), "nexus", setting=ROOMY, **drawn)
    options = DeviceOptions(8, 64, model_name="tiny", dtype="float32", **drawn)
    device = Cpu.open("shared", load_model("tiny"), options)
    try:
        serve(mixture(), "vllm", device=device, setting=ROOMY)
        assert one == {index: list(tokens) for index, tokens in device.generated().items()}
    finally:
        device.close()


def prepared(gpu: FakeGpu, **options: Any) -> tuple[Any, CheckedDevice]:
    device = fake_cuda(gpu, **options)
    device.prepare(Serving(256, 16))
    return device, CheckedDevice(device)


def launches(gpu: FakeGpu) -> list[str]:
    return [partition for kind, partition, _ in gpu.log if kind == "launch"]


def with_graphs(gpu: FakeGpu, model: str = "tiny") -> tuple[Any, CheckedDevice]:
    """Those for decodes on 68 SMs are captured."""
    device = fake_cuda(gpu, model=model)
    device.prepare(Serving(256, 16, launches=(("decode", 68),)))
    gpu.log.clear()
    return device, CheckedDevice(device)


def test_decodes_go_first_whatever_the_order_of_submission() -> None:
    gpu = FakeGpu()
    device, desk = with_graphs(gpu)
    desk.submit("prefill", 64, prompt=60)
    assert launches(gpu) == []
    desk.submit("decode", 68, decodes=3)
    assert launches(gpu) == ["decode"]
    desk.drain(2)
    assert launches(gpu) == ["decode", "prefill", "prefill"]  # four layers, two at a time
    device.close()


@pytest.mark.slow
def test_a_decode_never_waits_for_the_prompt_to_be_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a prompt's layers wait for the GPU, decode steps come and go."""
    monkeypatch.setattr(_cuda_steps, "LAYERS_PER_PIECE", 1)
    gpu = FakeGpu({"prefill": 50_000_000, "decode": 1_000_000})
    device, desk = with_graphs(gpu, "small")
    assert device.spec.num_layers > AHEAD + 1
    desk.submit("prefill", 64, prompt=60)
    ended = 0
    while ended < 5:
        step = desk.submit("decode", 68, decodes=2)
        before = device.now()
        (output,) = device.wait_for_steps(None)
        assert output.step == step
        # No more than the step itself, the launches of all pieces ahead, and naps.
        assert output.end_ns - before < 1_000_000 + AHEAD * 200_000 + 200_000
        ended += 1
    assert launches(gpu).count("prefill") == AHEAD  # the rest waits: enough is on its way
    device.close()


def test_a_prompt_is_launched_beside_decodes_that_end_at_once() -> None:
    """As with a model so small that a step has ended before the engine has decided."""
    gpu = FakeGpu({"prefill": 1_000, "decode": 1})
    device, desk = prepared(gpu)
    prompt = desk.submit("prefill", 64, prompt=60)
    steps, ended = 0, []
    while prompt not in ended:
        desk.submit("decode", 68, decodes=1)
        steps += 1
        assert steps < 10
        ended += [output.step for output in device.wait_for_steps(None)]
        if device._queue.busy("decode"):
            ended += [output.step for output in device.wait_for_steps(None)]
    device.close()


def test_no_more_than_so_many_pieces_are_ahead() -> None:
    gpu = FakeGpu({"decode": 10_000_000})
    device, desk = prepared(gpu)
    gpu.log.clear()
    desk.submit("decode", 68, decodes=2, repeat=3 * AHEAD)
    device.wait(device.now() + 5_000_000)
    assert launches(gpu).count("decode") == AHEAD + 1  # one more to capture it
    outputs = desk.drain(1)
    assert len(outputs) == 3 * AHEAD
    assert [output.last for output in outputs] == [False] * (3 * AHEAD - 1) + [True]
    device.close()


def test_graphs_are_per_side_and_size_and_captured_once() -> None:
    gpu = FakeGpu()
    device, desk = prepared(gpu)
    for partition, sms, decodes in (
        ("decode", 68, 2), ("decode", 68, 3), ("decode", 68, 5), ("decode", 20, 3), ("all", 132, 3),
        ("decode", 68, 4), ("decode", 20, 1),
    ):  # fmt: skip
        desk.submit(partition, sms, decodes=decodes)
        desk.drain(1)
    captured = [(partition, sms) for kind, partition, sms in gpu.log if kind == "capture"]
    few, whole = ("decode", 20), ("all", 132)
    assert captured == [("decode", 68), ("decode", 68), few, whole, few]  # sizes 4, 8, 4, 4, 1
    device.close()


def test_expected_launches_are_captured_before_the_run() -> None:
    gpu = FakeGpu()
    device = fake_cuda(gpu)
    device.prepare(Serving(256, 16, launches=(("prefill", 64), ("decode", 68))))
    before = [entry for entry in gpu.log if entry[0] == "capture"]
    assert before == [("capture", "decode", 68)] * 3  # sizes 8, 4, 1
    desk = CheckedDevice(device)
    for decodes in range(1, 9):
        desk.submit("decode", 68, decodes=decodes)
        desk.drain(1)
    assert [entry for entry in gpu.log if entry[0] == "capture"] == before
    assert device.partitions.num_contexts == 2 * 15 + 2
    assert device.generated() == {}
    device.close()


def test_a_spent_budget_leaves_decodes_without_graphs() -> None:
    gpu = FakeGpu()
    gpu.graph_bytes = 700 << 20
    device, desk = prepared(gpu)
    for decodes in (1, 3, 8):
        desk.submit("decode", 68, decodes=decodes)
        assert len(desk.drain(1)[0].tokens or []) == decodes
    assert [kind for kind, _, _ in gpu.log].count("capture") == 2  # 1 GiB: the third is too many
    device.close()


@pytest.mark.slow
def test_without_a_backend_that_can_be_captured_there_are_no_graphs() -> None:
    gpu = FakeGpu(graphs=False)
    engine, got = served(mixture(), "vllm", gpu=gpu, setting=ROOMY)
    assert {len(tokens) for tokens in got.values()} == {n for _, n in LENGTHS}
    assert "capture" not in {kind for kind, _, _ in gpu.log}
    assert engine.device.host_gaps()["all"].count > 10


def test_a_gap_is_counted_only_if_work_was_there() -> None:
    gpu = FakeGpu()
    device, desk = prepared(gpu, graphs=False)
    desk.submit("decode", 68, decodes=2)
    desk.drain(1)
    assert device.host_gaps() == {}  # nothing came before
    gpu.clock += 40_000  # the engine decides
    desk.submit("decode", 68, decodes=2)
    desk.drain(1)
    gap = device.host_gaps()["decode"]
    assert gap.count == 1
    assert 40_000 <= gap.total_ns == gap.longest_ns < 400_000
    device.wait(device.now() + 50_000_000)  # no work for a while
    desk.submit("decode", 68, decodes=2)
    desk.drain(1)
    assert device.host_gaps()["decode"] == gap
    device.close()


def test_naps_are_short_and_end_by_the_deadline() -> None:
    gpu = FakeGpu({"decode": 30_000_000})
    device, desk = prepared(gpu)
    desk.submit("decode", 68, decodes=2)
    gpu.rests.clear()
    until = device.now() + 7_000_000
    assert device.wait(until) == []
    assert until <= device.now() < until + 20_000
    assert 20 <= len(gpu.rests) < 400  # neither spinning nor asleep
    assert max(gpu.rests) <= 200_000
    desk.drain(1)
    gpu.rests.clear()
    until = device.now() + 60_000_000
    assert device.wait(until) == []
    assert until <= device.now() < until + 20_000
    assert len(gpu.rests) < 30
    device.close()


def test_interrupt_ends_a_wait() -> None:
    gpu = FakeGpu()
    gpu.hangs = True
    device, desk = prepared(gpu)
    desk.submit("decode", 68, decodes=2)
    device.interrupt()
    assert device.wait(None) == []
    device.interrupt()
    assert device.wait(device.now() + 10**12) == []
    assert device.now() < 10**12
    device.close()


def test_the_watchdog_names_partition_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    device, desk = prepared(gpu)
    gpu.hangs = True
    desk.submit("decode", 68, decodes=2)
    with pytest.raises(NexusbenchError) as caught:
        device.wait(None)
    text = str(caught.value)
    assert text.startswith("step 0 on partition 'decode' (68 SMs) has not ended in 120 s")
    assert "--no-graphs" in text
    assert device.now() >= _cuda_queue.TIMEOUT_NS
    gpu.settled = 0
    device.close()
    assert gpu.settled == 0  # it would wait for ever


@pytest.mark.parametrize("where", ["launching", "running"])
def test_a_failing_step_names_itself(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    device, desk = prepared(gpu, graphs=False)
    wrong = RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
    if where == "running":
        gpu.failure = wrong
    else:

        def broken() -> None:
            raise wrong

        gpu.computed = broken  # type: ignore[method-assign]
    desk.submit("all", 132, prompt=40)
    with pytest.raises(NexusbenchError) as caught:
        device.wait(None)
    assert str(caught.value) == (
        "step 0 on partition 'all' (132 SMs) failed: RuntimeError: CUDA error: an illegal memory "
        "access was encountered"
    )
    gpu.failure = None
    device.close()


def test_closing_gives_up_what_is_not_launched() -> None:
    gpu = FakeGpu()
    device, desk = prepared(gpu)
    desk.submit("all", 132, decodes=2, repeat=1_000_000)
    device.wait(device.now() + 1_000_000)
    done = len(gpu.log)
    device.close()
    device.close()
    assert len(gpu.log) == done
    assert gpu.settled > 0


@pytest.mark.slow
def test_a_closed_device_holds_no_memory() -> None:
    """The next one of the process needs it, also while somebody knows this one or its engine."""
    device = fake_cuda()
    weights = weakref.ref(device._decoder)
    engine = serve(mixture(), "nexus", device=device, setting=ROOMY)
    kv = weakref.ref(engine.device._served.kv)
    gaps = device.host_gaps()
    device.close()
    gc.collect()  # the fake's hold on the decoder is a cycle
    assert weights() is None
    assert kv() is None
    assert device.host_gaps() == gaps != {}
    assert device.environment()["dtype"] == "float32"


def test_closing_after_a_failure_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    device, desk = prepared(gpu)
    desk.submit("all", 132, prompt=40)

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    gpu.settle = broken  # type: ignore[method-assign]
    device.close()


@pytest.mark.slow
def test_requests_leave_nothing_behind() -> None:
    device = fake_cuda()
    setting = Setting(kv_blocks=2048, limits=Limits(8, 64, 4096))
    serve(mixture(), LAYERED, "fixed", setting=setting, device=device)
    served_, maker = device._served, device._maker
    assert served_ is not None
    assert maker is not None
    assert served_.halfway == {}
    assert served_.prompts._known == {}
    device.close()
