"""The engine's contract with real tokens: ends, sessions, prefix hits, overlap, failures."""

from __future__ import annotations

from typing import Any

import pytest

from tests.examples import slow

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from serving import cpu, served  # noqa: E402

from nexusbench.core.errors import NexusbenchError  # noqa: E402
from nexusbench.core.events import OUTCOMES  # noqa: E402
from nexusbench.core.state import Limits  # noqa: E402
from nexusbench.devices import _executor  # noqa: E402
from nexusbench.devices._cpu_shares import core_splits, nice_of, shared_splits  # noqa: E402
from nexusbench.devices.base import DeviceOptions, Serving  # noqa: E402
from nexusbench.devices.cpu import Cpu  # noqa: E402
from nexusbench.models.config import load_model  # noqa: E402
from nexusbench.testing import check_device, offer, serve  # noqa: E402
from nexusbench.testing._harness import Setting  # noqa: E402
from nexusbench.testing._log import check_log  # noqa: E402

ROOMY = Setting(kv_blocks=2048, limits=Limits(8, 128, 4096))
SCHEDULERS = ("nexus", *slow("vllm", "sglang"))


@pytest.mark.parametrize("argument", ["", *slow("shared")])
@pytest.mark.slow
def test_conformance(argument: str) -> None:
    model = load_model("tiny")
    check_device(lambda: Cpu.open(argument, model, DeviceOptions(8, 64, model_name="tiny")))


def outcomes(engine: Any) -> dict[int, tuple[str, str]]:
    ended = engine.log.tables["ended"].columns
    return {
        request: (OUTCOMES[outcome], engine.log.strings[reason])
        for request, outcome, reason in zip(
            ended["request"], ended["outcome"], ended["reason"], strict=True
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_invariants_hold_on_a_mixture(scheduler: str) -> None:
    lengths = [(7, 5), (90, 3), (300, 6), (16, 16), (64, 1), (3, 20), (150, 9), (24, 12)]
    requests = [offer(i, 4 * i, *lengths[i % 8]) for i in range(16)]
    engine, got = served("tiny", requests, scheduler, setting=ROOMY)
    check_log(engine)
    assert {i: len(tokens) for i, tokens in got.items()} == {
        i: lengths[i % 8][1] for i in range(16)
    }
    assert set(outcomes(engine).values()) == {("finished", "length")}


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_end_token_ends_a_request(scheduler: str) -> None:
    requests = [offer(i, i, 20, 30) for i in range(3)]
    _, free = served("tiny", requests, scheduler, setting=ROOMY)
    stop = free[0][11]
    setting = Setting(kv_blocks=2048, limits=Limits(8, 128, 4096), stop_tokens=frozenset({stop}))
    engine, got = served("tiny", requests, scheduler, setting=setting)
    ends = outcomes(engine)
    for index, tokens in free.items():
        cut = tokens.index(stop) + 1 if stop in tokens else len(tokens)
        assert got[index] == tokens[:cut]
        early = stop in tokens and cut < len(tokens)
        assert ends[index] == ("finished", "stop" if early else "length")


@pytest.mark.slow
def test_the_same_prompt_in_other_company_gives_the_same_tokens() -> None:
    alone, together = [offer(0, 0, 50, 12)], [offer(i, 0, 50, 12) for i in range(6)]
    _, one = served("tiny", alone, "vllm", setting=ROOMY)
    _, many = served("tiny", together, "nexus", setting=ROOMY)
    assert many[0] == one[0]
    assert len({tuple(tokens) for tokens in many.values()}) == 6  # other prompts, other texts


@pytest.mark.slow
def test_seeded_sampling_depends_on_nothing_but_request_and_place() -> None:
    requests = [offer(i, i, 30, 15) for i in range(4)]
    options = {"temperature": 1.5, "top_p": 0.9}
    _, one = served("tiny", requests, "vllm", setting=ROOMY, **options)
    _, two = served("tiny", requests, "nexus", setting=ROOMY, **options)
    _, greedy = served("tiny", requests, "nexus", setting=ROOMY)
    assert one == two != greedy


def test_prefix_hits_are_real() -> None:
    """Equal ids are equal tokens: the second request skips what the first has computed."""
    ids = tuple(range(30))
    first, second = (
        offer(0, 0, 240, 2, prefix_ids=ids),
        offer(1, 0, 240, 2, prefix_ids=ids, after=0),
    )
    engine, got = served("tiny", [first, second], "vllm", setting=ROOMY)
    assert list(engine.log.tables["admitted"].columns["cached_tokens"]) == [0, 236]
    assert got[0] == got[1]


def test_clients_that_give_up_in_flight() -> None:
    requests = [
        offer(0, 0, 3000, 400, timeout_ms=60, max_tokens=512),
        offer(1, 1, 30, 400, cancel_after_ms=80, max_tokens=512),
        offer(2, 2, 30, 4),
    ]
    setting = Setting(kv_blocks=4096, limits=Limits(8, 512, 4096))
    engine, got = served("tiny", requests, "nexus", setting=setting)
    assert outcomes(engine) == {
        0: ("cancelled", "timeout"),
        1: ("cancelled", "cancelled by client"),
        2: ("finished", "length"),
    }
    assert len(got[2]) == 4
    assert len(got[1]) == requests_tokens(engine, 1)
    assert engine.kv.num_used == 0


def requests_tokens(engine: Any, index: int) -> int:
    return list(engine.log.tables["token"].columns["request"]).count(index)


def test_a_closed_loop_of_sessions() -> None:
    requests = [offer(0, 0, 20, 3), offer(1, 0, 40, 3, after=0, think_ms=20), offer(2, 0, 9, 3)]
    setting = Setting(kv_blocks=512, concurrency=2)
    engine, _ = served("tiny", requests, "nexus", setting=setting)
    ended = dict(
        zip(*[engine.log.tables["ended"].columns[c] for c in ("request", "time")], strict=True)
    )
    arrived = dict(
        zip(*[engine.log.tables["arrived"].columns[c] for c in ("request", "time")], strict=True)
    )
    assert arrived[1] == ended[0] + 20_000_000


@pytest.mark.slow
def test_prefill_and_decode_overlap_in_time() -> None:
    """Under nexus on spatial cores, recorded steps of the two partitions run at the same time."""
    requests = [offer(i, 30 * i, 400, 25) for i in range(5)]
    setting = Setting(kv_blocks=2048, limits=Limits(8, 200, 4096))
    engine, _ = served("tiny", requests, "nexus", "fixed", setting=setting)
    submitted = engine.log.tables["submitted"].columns
    done = engine.log.tables["step_done"].columns
    ends = dict(zip(done["step"], done["time"], strict=True))
    spans = [
        (partition, start, ends[step])
        for step, start, partition in zip(
            submitted["step"], submitted["time"], submitted["partition"], strict=True
        )
    ]
    prefills = [span for span in spans if span[0] == 0]
    decodes = [span for span in spans if span[0] == 1]
    shared = sum(max(0, min(p[2], d[2]) - max(p[1], d[1])) for p in prefills for d in decodes)
    # A strictly alternating device would have none; a twentieth is far beyond clock resolution.
    assert shared > 0.05 * sum(end - start for _, start, end in prefills)
    cores = engine.device.spec.num_sms
    assert any(sms < cores for sms in submitted["sms"])


def test_a_failing_step_names_itself_and_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = _executor.sample, []

    def broken(*arguments: Any) -> list[int]:
        calls.append(1)
        if len(calls) == 9:
            raise RuntimeError("the disk is on fire\nand more")
        return original(*arguments)

    monkeypatch.setattr(_executor, "sample", broken)
    with cpu("tiny") as device:
        with pytest.raises(NexusbenchError) as caught:
            serve([offer(i, 0, 60, 30) for i in range(4)], "nexus", device=device)
        text = str(caught.value)
        assert text.startswith("step ")
        assert "on partition '" in text
        assert text.endswith("failed: RuntimeError: the disk is on fire")
        workers = list(device._workers.values())
    assert workers
    assert not any(worker._thread.is_alive() for worker in workers)


def test_closing_gives_up_a_long_step() -> None:
    with cpu("tiny") as device:
        device.prepare(Serving(1024, 16))
        from nexusbench.testing.device import CheckedDevice

        CheckedDevice(device).submit("all", device.spec.num_sms, decodes=2, repeat=1_000_000)
        before = device.now()
        device.close()
        assert device.now() - before < 5_000_000_000


def test_interrupt_ends_a_wait() -> None:
    import threading

    with cpu("tiny") as device:
        timer = threading.Timer(0.05, device.interrupt)
        timer.start()
        assert device.wait(device.now() + 30_000_000_000) == []
        assert device.now() < 20_000_000_000


@pytest.mark.parametrize(
    ("cores", "per_core", "count", "step"),
    [
        (2, 1, 1, 1),
        (4, 2, 1, 2),
        (2, 2, 1, 1),
        (8, 1, 7, 1),
        (16, 1, 15, 1),
        (64, 2, 15, 4),
        (96, 2, 15, 6),
    ],
)
def test_splits_by_cores(cores: int, per_core: int, count: int, step: int) -> None:
    *apart, both = core_splits(cores, per_core)
    assert both.overlapping
    assert both.sms == (cores, cores)
    assert len(apart) == count
    assert apart[0].sms[0] == step
    assert all(sum(split.sms) == cores and min(split.sms) >= 1 for split in apart)


def test_shared_splits_are_priorities() -> None:
    *apart, _ = shared_splits()
    for split in apart:
        assert sum(split.sms) == 100
        low = min(split.sms)
        assert (nice_of(low) > 0) == (low < 50)
        assert nice_of(max(split.sms)) == 0
