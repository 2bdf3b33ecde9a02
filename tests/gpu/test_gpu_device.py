"""The ``cuda`` device: its contract, its tokens under every scheduler, its watchdog, its memory."""

from __future__ import annotations

from functools import cache

import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.state import Limits
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import check_device, offer, serve
from nexusbench.testing._harness import Setting
from nexusbench.testing._log import check_log
from tests.gpu import machine

LENGTHS = ((7, 12), (90, 3), (300, 6), (16, 16), (64, 1), (3, 20), (150, 9), (24, 12))
TIE = 1e-3  # of logits: fp32 sums in another order
ONE_GPU = [name for name in schedulers.names() if schedulers.load(name).num_gpus == 1]


@pytest.mark.parametrize("argument", ["", "streams"])
def test_conformance(argument: str) -> None:
    check_device(lambda: machine.open_device(argument=argument))


def prompts() -> dict[int, list[int]]:
    """Token ids of each request."""
    return {
        index: [(7 * place + 31 * index) % 4096 for place in range(LENGTHS[index % 8][0])]
        for index in range(16)
    }


@cache
def expected() -> dict[int, tuple[list[int], list[float]]]:
    """Greedy tokens of the same weights by torch on the CPU, one request at a time, in float32; and
    by how much each is preferred.
    """
    from nexusbench.kernels.attention.sdpa import SdpaAttention
    from nexusbench.kernels.planner import plan_attention
    from nexusbench.models.architecture import load_decoder_config
    from nexusbench.models.decoder import Decoder
    from nexusbench.models.step import make_step

    decoder = Decoder.load(load_decoder_config("tiny"), dtype="float32", device="cpu")
    found = {}
    for index, prompt in prompts().items():
        kv = decoder.new_kv(64, 16)
        backend, ids, margins = SdpaAttention(kv), list(prompt), []
        done = 0
        for _ in range(LENGTHS[index % 8][1]):
            plan = plan_attention([len(ids) - done], [done], [list(range(64))], 16)
            logits = decoder.forward(make_step(plan, [ids[done:]], backend, 4096), kv)
            best = logits[-1].topk(2)
            done = len(ids)
            ids.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
        found[index] = (ids[len(prompt) :], margins)
    return found


def check_tokens(got: dict[int, list[int]]) -> None:
    assert set(got) == set(expected())
    for index, (tokens, margins) in expected().items():
        assert len(got[index]) == len(tokens)
        for place, (mine, theirs, margin) in enumerate(
            zip(got[index], tokens, margins, strict=True)
        ):
            if mine != theirs:
                assert margin <= TIE, f"request {index}, token {place}: margin {margin:.2g}"
                break  # from here on it is another text


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no-graphs"])
@pytest.mark.parametrize("scheduler", ONE_GPU)
def test_tokens_are_those_of_the_reference(scheduler: str, graphs: bool) -> None:
    """I8: whatever the schedule, the partition and the way of launching."""
    setting = Setting(kv_blocks=256, limits=Limits(8, 64, 4096), prompts=prompts())
    requests = [offer(i, 2 * i, *LENGTHS[i % 8]) for i in range(16)]
    device = machine.open_device(graphs=graphs)
    try:
        engine = serve(requests, scheduler, setting=setting, device=device)
        check_log(engine)
        check_tokens({i: list(tokens) for i, tokens in device.generated().items()})
    finally:
        device.close()


def test_nexus_computes_on_two_partitions_at_once() -> None:
    setting = Setting(kv_blocks=2048, limits=Limits(8, 512, 4096))
    device = machine.open_device(max_num_batched_tokens=512)
    try:
        requests = [offer(i, 5 * i, 700, 40) for i in range(8)]
        engine = serve(requests, "nexus", setting=setting, device=device)
        check_log(engine)
    finally:
        device.close()
    submitted = engine.log.tables["submitted"].columns
    done = engine.log.tables["step_done"].columns
    ends = dict(zip(done["step"], done["time"], strict=True))
    spans: dict[int, list[tuple[int, int]]] = {0: [], 1: []}  # prefill, decode
    rows = (submitted[name] for name in ("step", "time", "partition"))
    for step, begin, partition in zip(*rows, strict=True):
        spans[partition].append((begin, ends[step]))
    assert any(a < d and c < b for a, b in spans[0] for c, d in spans[1])


def test_a_thousand_switches_of_the_device_leak_nothing() -> None:
    import torch

    from nexusbench.profiling.desk import BatchDesk, Pool, ShapedBatch

    device = machine.open_device()
    try:
        splits = machine.disjoint_splits(device.partitions, 4)
        desk = BatchDesk(device, Pool(256, 16, Limits(8, 64, 1024)))
        prompt, decodes = (
            ShapedBatch(BatchShape(0, 0, ((32, 0),))),
            ShapedBatch(BatchShape(4, 160, ())),
        )

        def switch(number: int) -> None:
            split = splits[number % len(splits)]
            sides = [desk.batch(prompt, "prefill")]
            sides.append(desk.batch(decodes, "decode", beside=sides[0]))
            for batch, sms in zip(sides, split.sms, strict=True):
                desk.submit(batch, sms)
            desk.drain(sides)

        for number in range(3 * len(splits)):
            switch(number)
        torch.cuda.synchronize()
        graphs, used = machine.graphs_of(device), torch.cuda.memory_reserved()
        for number in range(1000):
            switch(number)
        torch.cuda.synchronize()
        assert machine.graphs_of(device) == graphs
        assert torch.cuda.memory_reserved() <= used + (16 << 20)
    finally:
        device.close()


def test_a_launch_that_does_not_end_is_named() -> None:
    from nexusbench.profiling.desk import BatchDesk, Pool, ShapedBatch
    from tests.gpu import probes

    device = machine.open_device()
    sms = device.spec.num_sms
    try:
        desk = BatchDesk(device, Pool(64, 16, Limits(8, 64, 1024)))
        batch = desk.batch(ShapedBatch(BatchShape(2, 40, ())), "all")
        desk.submit(batch, sms)
        desk.drain([batch])
        machine.shorten_watchdog(device, 0.3)
        probes.busy_for(machine.stream_of(device, "all", sms), 3.0)
        desk.submit(batch, sms)
        with pytest.raises(NexusbenchError, match=r"step 1 on partition 'all' .* has not ended in"):
            desk.drain([batch])
    finally:
        device.close()
