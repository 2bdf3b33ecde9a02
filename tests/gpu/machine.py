"""What the GPU tests and benchmarks ask of the machine: the only place that knows the device's
modules, so that a renamed function is changed here and nowhere else.

Nothing here touches CUDA when it is imported: without a GPU the tests are still collected.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import platform
import sys
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

INDEX = 0
DEVICE = "cuda"


def missing() -> str | None:
    """What this machine lacks to run kernels on GPU 0 and what to do, or None."""
    try:
        ctypes.CDLL("libcuda.so.1")  # first, since torch takes seconds to import
    except OSError:
        return "no NVIDIA driver was found (libcuda.so.1 cannot be loaded)"
    try:
        import torch
    except ImportError:
        return 'torch is not installed: pip install "nexusbench[cuda]"'
    if torch.version.cuda is None:
        return f'torch {torch.__version__} is a build without CUDA: pip install "nexusbench[cuda]"'
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU that it can use (nvidia-smi says why)"
    try:
        importlib.import_module("triton")
    except ImportError:
        return 'the package triton is not installed: pip install "nexusbench[triton]"'
    return None


def missing_for_partitions() -> str | None:
    """The same for green contexts: the CUDA device's own answer."""
    lacking = missing()
    if lacking is not None:
        return lacking
    try:
        driver = importlib.import_module("nexusbench.devices._cuda_driver")
    except ImportError as error:
        return f"this version has no CUDA device ({error})"
    return "; ".join(driver.missing(INDEX)) or None


@functools.cache
def partitions() -> Any:
    """``nexusbench.devices._cuda_partitions.Partitions`` of GPU 0, one for the process.

    Never closed: torch keeps what it knows of their streams, and the process ends soon.
    """
    module = importlib.import_module("nexusbench.devices._cuda_partitions")
    module.allow_queues()
    return module.open_partitions(INDEX)


def disjoint_splits(opened: Any, at_most: int) -> list[Any]:
    """Up to so many of the splits that share no SM, from the fewest prefill SMs to the most."""
    splits = [split for split in opened.splits if not split.overlapping]
    if len(splits) <= at_most:
        return splits
    step = (len(splits) - 1) / (at_most - 1)
    return [splits[round(index * step)] for index in range(at_most)]


def on(side: Any) -> Any:
    """Torch's work inside goes to the side's stream; None is torch's current one."""
    import torch

    return nullcontext() if side is None else torch.cuda.stream(side.stream)


def open_device(model: str = "tiny", argument: str = "", **options: Any) -> Any:
    """An open ``cuda`` device; small limits unless told."""
    from nexusbench.devices.base import DeviceOptions, devices
    from nexusbench.models.config import load_model

    given = {
        "max_num_seqs": 8, "max_num_batched_tokens": 64, "model_name": model,
        "load_format": "auto", "dtype": "float32", **options,
    }  # fmt: skip
    return devices.load("cuda").open(argument, load_model(model), DeviceOptions(**given))


def shorten_watchdog(device: Any, seconds: float) -> None:
    """Let the device give up on a launch after so long; it must have been prepared."""
    device._queue._timeout_ns = round(seconds * 1e9)


def stream_of(device: Any, partition: str, sms: int) -> Any:
    """The stream that the device launches on."""
    return device.partitions.side(partition, sms).stream


def graphs_of(device: Any) -> int:
    """Decode graphs that the device has captured."""
    return int(device._maker.graphs.num_captured)


def peak_gbps() -> float:
    """The GPU's HBM bandwidth by its data sheet, or by its driver where none is shipped."""
    from nexusbench.devices.base import devices

    return float(devices.load("cuda").describe("").hbm_gbps)


def identity() -> dict[str, str | int]:
    """The GPU, driver and versions, for results."""
    import torch

    properties = torch.cuda.get_device_properties(INDEX)
    found: dict[str, str | int] = {
        "gpu": properties.name,
        "num_sms": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    for package in ("torch", "triton", "cuda-bindings", "nvidia-ml-py", "nvidia-cuda-cupti"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def missing_packages() -> list[str]:
    """What the package and these tests import that is not installed."""
    needed = ("msgspec", "numpy", "psutil", "pyarrow", "pytest", "rich", "scipy", "typer")
    return [name for name in needed if find_spec(name) is None]


def main() -> int:
    """Print what the machine is, or what it lacks: exit code 2."""
    lacking = [f"the package {name} is not installed" for name in missing_packages()]
    if not lacking:
        found = missing_for_partitions()
        lacking = [] if found is None else [found]
    if lacking:
        print(f"these tests need an NVIDIA GPU: {'; '.join(lacking)}", file=sys.stderr)
        return 2
    print(json.dumps(identity(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
