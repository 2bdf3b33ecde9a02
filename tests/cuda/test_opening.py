"""What only runs where there is a GPU, on stand-ins for torch.cuda: opening, streams, graphs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fake_driver import FakeDriver  # noqa: E402
from fake_gpu import H200, FakeGpu, green  # noqa: E402

from nexusbench.core.errors import UsageError  # noqa: E402
from nexusbench.devices import _cuda_driver, _cuda_partitions, _cuda_runtime, cuda  # noqa: E402
from nexusbench.devices._cuda_driver import QUEUES_VARIABLE, CudaError  # noqa: E402
from nexusbench.devices._cuda_partitions import Side, Unpartitioned, open_partitions  # noqa: E402
from nexusbench.devices._cuda_runtime import TorchRuntime  # noqa: E402
from nexusbench.devices.base import DeviceOptions, Serving  # noqa: E402
from nexusbench.devices.cuda import Cuda  # noqa: E402
from nexusbench.models.config import load_model  # noqa: E402
from nexusbench.testing.device import CheckedDevice  # noqa: E402


class FakeTorchCuda:
    """As much of torch.cuda as is used; ``calls`` in order."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.pending = 0  # looks at an event until it is reached

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, *arguments, *named.items()))
            return {"mem_get_info": (3, 5), "graph_pool_handle": (0, 7)}.get(name)

        return call

    def get_device_properties(self, device: Any) -> Any:
        return SimpleNamespace(
            name="NVIDIA H200", multi_processor_count=132, major=9, minor=0,
            total_memory=H200.memory_bytes, L2_cache_size=60 << 20, uuid="12-ab",
        )  # fmt: skip

    @contextmanager
    def stream(self, stream: Any) -> Any:
        self.calls.append(("enter", stream))
        yield
        self.calls.append(("leave", stream))

    def Stream(self, device: Any) -> Any:
        return object()

    def ExternalStream(self, handle: int, device: Any) -> Any:
        stream = SimpleNamespace(handle=handle)
        stream.synchronize = lambda: self.calls.append(("wait for", handle))
        return stream

    def Event(self, enable_timing: bool = False) -> Any:
        fake = self

        class Event:
            def record(self, stream: Any) -> None:
                fake.calls.append(("record", stream))

            def query(self) -> bool:
                fake.pending -= 1
                return fake.pending < 0

            def elapsed_time(self, other: Any) -> float:
                assert enable_timing
                return 1.25

        return Event()

    def CUDAGraph(self) -> Any:
        fake = self
        return SimpleNamespace(
            capture_begin=lambda **named: fake.calls.append(("begin", named)),
            capture_end=lambda: fake.calls.append(("end",)),
            replay=lambda: fake.calls.append(("replay",)),
        )


@pytest.fixture
def torch_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    fake = FakeTorchCuda()
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(torch, "zeros", lambda *size, **kind: None)
    monkeypatch.delenv(QUEUES_VARIABLE, raising=False)
    return fake


def test_the_primary_context_comes_first(
    torch_cuda: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> FakeDriver:
        assert os.environ[QUEUES_VARIABLE] == "32"
        assert [call[0] for call in torch_cuda.calls] == ["init", "set_device"]
        return FakeDriver()

    monkeypatch.setattr(_cuda_partitions, "load_driver", load)
    partitions = open_partitions(0)
    assert len(partitions.splits) == 16
    assert partitions.whole.stream.handle > 0


def test_without_green_contexts_the_error_names_the_other_way(
    torch_cuda: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = FakeDriver(fails={"cuDeviceGetDevResource": 0})
    monkeypatch.setattr(_cuda_partitions, "load_driver", lambda: old)
    with pytest.raises(UsageError) as caught:
        open_partitions(0)
    assert isinstance(caught.value.__cause__, CudaError)
    text = str(caught.value)
    assert text.startswith("the SMs of NVIDIA H200 cannot be partitioned: cuDeviceGetDevResource")
    assert text.endswith("--device cuda:streams")
    assert isinstance(open_partitions(0, green=False), Unpartitioned)


def test_streams_marks_and_graphs(torch_cuda: FakeTorchCuda) -> None:
    runtime = TorchRuntime(0, 0.9)
    side = Side("decode", 68, torch_cuda.ExternalStream(5, None))
    torch_cuda.calls.clear()
    with runtime.on(side):
        mark = runtime.mark(side)
    assert torch_cuda.calls == [
        ("enter", side.stream), ("record", side.stream), ("leave", side.stream)
    ]  # fmt: skip
    torch_cuda.pending = 1
    assert [mark.reached(), mark.reached()] == [False, True]
    assert mark.ns_since(runtime.mark(side)) == 1_250_000
    torch_cuda.calls.clear()
    replay = runtime.capture(side, "decode", lambda: torch_cuda.calls.append("work"))
    once_more = {"pool": (0, 7), "capture_error_mode": "thread_local"}
    assert torch_cuda.calls == [
        ("enter", side.stream), "work", ("wait for", 5), ("graph_pool_handle",),
        ("begin", once_more), "work", ("end",), ("leave", side.stream),
    ]  # fmt: skip
    replay()
    assert torch_cuda.calls[-1] == ("replay",)
    runtime.capture(side, "decode", lambda: None)
    assert sum(call[0] == "graph_pool_handle" for call in torch_cuda.calls) == 1
    assert runtime.memory() == (3, 5)


def test_a_failed_capture_is_ended(torch_cuda: FakeTorchCuda) -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        if len(runs) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")

    side = Side("decode", 68, torch_cuda.ExternalStream(5, None))
    with pytest.raises(RuntimeError, match="not permitted"):
        TorchRuntime(0, 0.9).capture(side, "decode", work)
    assert ("end",) in torch_cuda.calls


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """``Cuda.open`` itself, on a GPU on paper."""
    gpu = FakeGpu()
    monkeypatch.setattr(cuda, "missing", lambda index, green: [])
    monkeypatch.setattr(cuda, "read_facts", lambda index: H200)
    monkeypatch.setattr(cuda, "_partitions", lambda index, green_: green())
    monkeypatch.setattr(_cuda_runtime, "TorchRuntime", lambda index, share: gpu)
    monkeypatch.setenv(QUEUES_VARIABLE, "32")
    return gpu


def test_open(opened: FakeGpu) -> None:
    options = DeviceOptions(8, 64, model_name="tiny")
    device = Cuda.open("", load_model("tiny"), options)
    assert device.spec.name == "cuda"
    assert device.gpu.name == "NVIDIA H200 (SXM)"
    assert device.random_weights
    # 100 of 140 GiB are free, 14 may not be used, some is reserved.
    assert 80 * 2**30 < device.spec.kv_bytes < 86 * 2**30
    device.prepare(Serving(64, 16, launches=(("all", 132),)))
    CheckedDevice(device).submit("all", 132, decodes=2)
    assert len(device.wait_for_steps(None)[0].tokens or []) == 2
    told = device.environment()
    assert (told["driver"], told["queues"], told["gpu"]) == ("CUDA 13.0", "32", "NVIDIA H200")
    assert told["context_memory"] == "4.0 MiB each"
    assert device.partitions.num_contexts == 1  # of the undivided GPU; nobody wants a pair
    device.close()


def test_open_refuses_what_a_gpu_cannot(opened: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("tiny")
    for changed, words in (
        ({"tensor_parallel": 2}, "leave --tensor-parallel-size out"),
        ({"kernel_table": "x"}, "--kernel-table is for simulated devices"),
    ):
        with pytest.raises(UsageError, match=words):
            Cuda.open("", model, DeviceOptions(8, 64, model_name="tiny", **changed))
    from nexusbench.models.decoder import Decoder

    def full(*arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand more")

    monkeypatch.setattr(Decoder, "load", full)
    with pytest.raises(UsageError, match="tiny does not fit into the memory of NVIDIA H200"):
        Cuda.open("", model, DeviceOptions(8, 64, model_name="tiny"))


def test_facts_are_read_from_torch_and_the_driver(
    torch_cuda: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {13: 1_980_000, 36: 3_201_000, 37: 6144}
    names = {13: "CLOCK_RATE", 36: "MEMORY_CLOCK_RATE", 37: "GLOBAL_MEMORY_BUS_WIDTH"}
    kinds = {f"CU_DEVICE_ATTRIBUTE_{name}": number for number, name in names.items()}
    api = SimpleNamespace(
        CUdevice_attribute=SimpleNamespace(**kinds),
        cuDeviceGet=lambda index: (0, index),
        cuDeviceGetAttribute=lambda kind, device: (0, values[kind]),
        cuDriverGetVersion=lambda: (0, 13000),
    )
    monkeypatch.setattr(_cuda_driver, "load_driver", lambda: api)
    monkeypatch.setattr(_cuda_driver, "has_bindings", lambda: True)
    facts = _cuda_driver.read_facts(0)
    assert (facts.num_sms, facts.capability, facts.driver_version) == (132, (9, 0), "CUDA 13.0")
    assert facts.uuid == "GPU-12-ab"
    assert (facts.clock_khz, facts.memory_khz, facts.bus_bits) == (1_980_000, 3_201_000, 6144)
    monkeypatch.setattr(_cuda_driver, "has_bindings", lambda: False)
    assert _cuda_driver.read_facts(0).driver == 0
