"""What of the CUDA driver API is used, and what a machine lacks that cannot use it."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import msgspec

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.units import GIB, MIB

# Green contexts came with CUDA 12.4, their streams (cuGreenCtxStreamCreate) with 12.5.
LEAST_DRIVER = 12050
# The oldest architecture with bfloat16 tensor cores and asynchronous copies, as our kernels need.
LEAST_CAPABILITY = (8, 0)
# Streams may share a hardware queue and then wait for each other; 8 is the default, 32 the most
# (CUDA programming guide, environment variables; pytorch #176582). Read when CUDA starts.
QUEUES_VARIABLE, QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS", "32"
STREAMS = "streams"
_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Argument(NamedTuple):
    """What follows ``cuda:``."""

    gpu: int
    green: bool


class CudaError(NexusbenchError):
    """A call of the CUDA driver failed; the message names the call, the error and its number."""


class Driver(Protocol):
    """The functions of ``cuda.bindings.driver`` that are called; each returns (error, *outputs).

    Every argument and result is an opaque object of the bindings, which have no types.
    """

    CUdevResourceType: Any
    CUgreenCtxCreate_flags: Any
    CUstream_flags: Any

    def cuInit(self, flags: int) -> Any: ...
    def cuDriverGetVersion(self) -> Any: ...
    def cuDeviceGet(self, ordinal: int) -> Any: ...
    def cuGetErrorName(self, error: Any) -> Any: ...
    def cuDeviceGetDevResource(self, device: Any, kind: Any) -> Any: ...
    def cuDevSmResourceSplitByCount(
        self, groups: int, resource: Any, flags: int, least: int
    ) -> Any: ...
    def cuDevResourceGenerateDesc(self, resources: list[Any], count: int) -> Any: ...
    def cuGreenCtxCreate(self, description: Any, device: Any, flags: Any) -> Any: ...
    def cuGreenCtxGetDevResource(self, context: Any, kind: Any) -> Any: ...
    def cuGreenCtxStreamCreate(self, context: Any, flags: Any, priority: int) -> Any: ...
    def cuStreamDestroy(self, stream: Any) -> Any: ...
    def cuGreenCtxDestroy(self, context: Any) -> Any: ...


class GpuFacts(msgspec.Struct, frozen=True):
    """One GPU as torch and its driver describe it; 0 where a version does not say."""

    name: str
    num_sms: int
    capability: tuple[int, int]
    memory_bytes: int
    l2_bytes: int = 0
    clock_khz: int = 0
    memory_khz: int = 0
    bus_bits: int = 0
    driver: int = 0  # 13000 is CUDA 13.0
    uuid: str = ""  # GPU-..., as NVML has it

    @property
    def driver_version(self) -> str:
        """As people write it."""
        return f"CUDA {self.driver // 1000}.{self.driver % 1000 // 10}"


def parse_argument(argument: str) -> Argument:
    """What follows ``cuda:`` ('' for nothing). Raises UsageError for an unknown word."""
    if argument == STREAMS:
        return Argument(0, green=False)
    if argument and not argument.isdecimal():
        raise UsageError(
            f"--device cuda:{argument} is unknown: write cuda, cuda:N for GPU N, or cuda:{STREAMS}"
        )
    return Argument(int(argument or 0), green=True)


def checked(driver: Driver, call: str, *arguments: Any) -> Any:
    """``driver.call(*arguments)``: None, its one output or a tuple of them. Raises CudaError."""
    error, *outputs = getattr(driver, call)(*arguments)
    if int(error) != 0:
        name = driver.cuGetErrorName(error)[1]
        text = name.decode() if isinstance(name, bytes) else str(name)
        raise CudaError(f"{call} failed: {text} ({int(error)})")
    return outputs[0] if len(outputs) == 1 else (tuple(outputs) or None)


def load_driver() -> Driver:
    """The driver API through cuda-bindings, initialised. Raises UsageError without it."""
    try:
        driver: Driver = importlib.import_module("cuda.bindings.driver")
        checked(driver, "cuInit", 0)
    except CudaError as error:
        raise UsageError(f"the NVIDIA driver does not start: {error}") from None
    # Without libcuda the bindings raise types of their own, which differ between versions.
    except Exception as error:
        raise UsageError(
            f"the CUDA driver API cannot be called ({type(error).__name__}: {error}): "
            'pip install "nexusbench[cuda]"'
        ) from error
    return driver


def has_driver() -> bool:
    """Whether an NVIDIA driver is installed; cheap, and touches no GPU."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


def missing(index: int = 0, *, green: bool = True) -> list[str]:
    """What this machine lacks to compute on GPU ``index``, each with what to do; [] if nothing.

    ``green``: with partitions, so with cuda-bindings too. Imports torch where it is installed and
    nothing else is missing.
    """
    install = 'pip install "nexusbench[cuda]"'
    found: list[str] = []
    if not has_driver():
        found.append(f"no NVIDIA driver was found ({_LIBRARY} cannot be loaded)")
    for package in ("torch", "safetensors"):
        if find_spec(package) is None:
            found.append(f"{package} is not installed ({install})")
    if green and not has_bindings():
        found.append(f"the package cuda-bindings is not installed ({install})")
    if find_spec("torch") is None:
        return found
    if found and "torch" not in sys.modules:  # its import takes seconds, and would change nothing
        built = version("torch")
        if built.endswith("+cpu"):
            found.append(f"torch {built} is a build without CUDA ({install})")
        return found
    import torch

    if torch.version.cuda is None:
        found.append(f"torch {torch.__version__} is a build without CUDA ({install})")
    elif not found:
        found += _unfit(index, green=green)
    return found


def allow_queues() -> None:
    """Ask for a hardware queue per stream, unless the user asks otherwise; before CUDA starts."""
    os.environ.setdefault(QUEUES_VARIABLE, QUEUES)


def has_bindings() -> bool:
    """Whether cuda-bindings are installed."""
    try:
        version("cuda-bindings")
    except PackageNotFoundError:
        return False
    return True


def _unfit(index: int, *, green: bool) -> list[str]:
    """Why a GPU of a machine that has driver, torch and bindings will not do."""
    import torch

    allow_queues()  # the next line starts CUDA
    if not torch.cuda.is_available():
        return [f"torch {torch.__version__} finds no GPU that it can use"]
    if not 0 <= index < torch.cuda.device_count():
        return [f"there is no GPU {index}: torch sees {torch.cuda.device_count()}"]
    facts = read_facts(index)
    found = []
    if facts.capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        has = ".".join(map(str, facts.capability))
        found.append(f"{facts.name} is too old: compute capability {has}, {least} is needed")
    if green and 0 < facts.driver < LEAST_DRIVER:
        found.append(
            f"the driver speaks {facts.driver_version}; partitions need CUDA 12.5 or newer"
        )
    return found


def read_facts(index: int) -> GpuFacts:
    """GPU ``index`` as torch sees it, its clocks from the driver where the bindings are there."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    facts = GpuFacts(
        name=properties.name,
        num_sms=properties.multi_processor_count,
        capability=(properties.major, properties.minor),
        memory_bytes=properties.total_memory,
        l2_bytes=getattr(properties, "L2_cache_size", 0),
        uuid=f"GPU-{properties.uuid}" if getattr(properties, "uuid", None) else "",
    )
    return _with_driver(facts, index) if has_bindings() else facts


def _with_driver(facts: GpuFacts, index: int) -> GpuFacts:
    """Clocks, bus width and version: CUDA 13 took the first two out of the runtime's properties."""
    api: Any = load_driver()
    device, kinds = checked(api, "cuDeviceGet", index), api.CUdevice_attribute
    wanted = {
        "clock_khz": kinds.CU_DEVICE_ATTRIBUTE_CLOCK_RATE,
        "memory_khz": kinds.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE,
        "bus_bits": kinds.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH,
    }
    values = {
        name: int(checked(api, "cuDeviceGetAttribute", kind, device))
        for name, kind in wanted.items()
    }
    return msgspec.structs.replace(facts, driver=int(checked(api, "cuDriverGetVersion")), **values)


def memory_line(facts: GpuFacts) -> str:
    """``140.4 GiB of memory, 60 MiB of L2``."""
    return f"{facts.memory_bytes / GIB:.1f} GiB of memory, {facts.l2_bytes / MIB:.0f} MiB of L2"
