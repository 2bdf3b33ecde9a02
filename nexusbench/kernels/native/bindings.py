"""The compiled kernels as Python functions on tensors' raw addresses.

ctypes releases the GIL for the length of a call, so worker threads compute side by side. Shapes and
dtypes are checked here, because the C++ side cannot: what it is given, it reads and writes.
torch is imported first on purpose: its OpenMP runtime is then the one that the kernels use too, so
that a worker thread has one team for both and idle teams do not spin against each other.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nexusbench.kernels.native import build

GROUP = 32  # outputs per group of a packed weight, and inputs per step of a bf16 one
_SIZES = {torch.bfloat16: 2, torch.float32: 4}
_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "level": (),
    "pack": (_I, _P, _I, _I, _I, _P, _I),
    "linear": (_I, _P, _I, _I, _P, _I, _I, _P, _P, _P, _I, _I, _I, _I),
    "rms_norm": (_I, _I, _P, _P, _D, _I, _I, _P, _I),
    "silu_mul": (_I, _P, _I, _I, _P, _I),
    "rope": (_I, _P, _P, _I, _P, _P, _P, _I, _P, _P, _D, _P, _P, _I),
    "decode_attention": (_I, _P, _P, _I, _P, _P, _P, _I, _P, _I, _D, _P, _I),
    "chunk_attention": (_P, _P, _I, _P, _P, _I, _P, _P, _I, _P, _P, _P, _I, _I, _D, _P, _I),
    "argmax": (_P, _I, _I, _P, _I),
    "layers": (_P, _I, _P, _I),
    "read": (_P, _I, _I),
}
_RETURNING = ("level", "read", "rope", "decode_attention", "chunk_attention", "layers")


class Functions:
    """The entry points of one compiled file, with their C types declared. Raises OSError."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, f"nexusbench_{name}")
            function.argtypes, function.restype = arguments, _I if name in _RETURNING else None
        self.path = path
        self.pack: Callable[..., None] = library.nexusbench_pack
        self.linear: Callable[..., None] = library.nexusbench_linear
        self.rms_norm: Callable[..., None] = library.nexusbench_rms_norm
        self.silu_mul: Callable[..., None] = library.nexusbench_silu_mul
        self.rope: Callable[..., int] = library.nexusbench_rope
        self.decode_attention: Callable[..., int] = library.nexusbench_decode_attention
        self.chunk_attention: Callable[..., int] = library.nexusbench_chunk_attention
        self.argmax: Callable[..., None] = library.nexusbench_argmax
        self.layers: Callable[..., int] = library.nexusbench_layers
        self.read: Callable[..., int] = library.nexusbench_read
        self.level: Callable[[], int] = library.nexusbench_level


@cache
def _loaded() -> tuple[Functions | None, str]:
    try:
        functions = Functions(build.library())
    except build.Unavailable as reason:
        return None, f"native kernels off: {reason}"
    except (OSError, AttributeError) as error:
        return None, f"native kernels off: the compiled file cannot be loaded ({error})"
    if functions.level() < 0:
        return None, "native kernels off: the system refuses AMX to this process"
    return functions, f"native kernels: {functions.path.name}"


_lock = threading.Lock()


def functions() -> Functions | None:
    """The kernels, compiled and loaded on the first call; None where that is impossible."""
    with _lock:  # two workers must not both compile
        return _loaded()[0]


def note() -> str:
    """One line: which kernels run, or why none do."""
    with _lock:
        return _loaded()[1]


def forget() -> None:
    """Let the next call look again (the environment has changed)."""
    with _lock:
        _loaded.cache_clear()


class Heads(ctypes.Structure):
    """The heads and the layout of their caches, as the C++ side reads them."""

    _fields_ = [
        (name, _I)
        for name in (
            "query", "kv", "dim", "block_size", "num_blocks", "block_stride", "head_stride",
            "row_stride", "neighbours",
        )
    ]  # fmt: skip


def heads_of(
    query: int, k_cache: torch.Tensor, v_cache: torch.Tensor, *, neighbours: bool = False
) -> Heads:
    """The heads of [num_blocks, kv_heads, block_size, head_dim] caches of any strides.

    Raises ValueError if they differ, or if the values of a row do not touch.
    """
    same = (k_cache.shape, k_cache.stride(), k_cache.dtype)
    if k_cache.dim() != 4 or (v_cache.shape, v_cache.stride(), v_cache.dtype) != same:
        raise ValueError(
            f"k_cache {tuple(k_cache.shape)} and v_cache {tuple(v_cache.shape)} differ in shape, "
            "strides or dtype, or are not (blocks, kv_heads, block_size, head_dim)"
        )
    if k_cache.stride(3) != 1 or k_cache.device.type != "cpu" or k_cache.shape[3] % 2:
        raise ValueError("the caches' rows must be of even length, touch and be on the CPU")
    num_blocks, kv_heads, block_size, dim = k_cache.shape
    strides = k_cache.stride()[:3]
    return Heads(query, kv_heads, dim, block_size, num_blocks, *strides, int(neighbours))


def require_fit(unfit: int) -> None:
    """Raises IndexError if a kernel found row ``unfit`` to point outside of the caches."""
    if unfit >= 0:
        raise IndexError(
            f"row {unfit} of the batch has a position, a slot or blocks that do not exist; nothing "
            "was computed"
        )


def element_size(dtype: torch.dtype) -> int:
    """2 for bf16, 4 for fp32. Raises ValueError for what the kernels do not compute."""
    size = _SIZES.get(dtype)
    if size is None:
        raise ValueError(f"native kernels compute bfloat16 and float32, not {dtype}")
    return size


def address(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's elements begin; None for no tensor."""
    return None if tensor is None else tensor.data_ptr()


def check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raises ValueError unless the tensor is on the CPU, contiguous and of shape and dtype."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
        layout = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}{layout}; wanted {dtype} {shape}"
        )
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} is on {tensor.device}; native kernels work on the CPU")


def check_rows(name: str, tensor: torch.Tensor, width: int, dtype: torch.dtype) -> int:
    """The distance between rows of a [M, width] tensor whose columns touch. Raises ValueError."""
    if tensor.dim() != 2 or tensor.shape[1] != width or tensor.dtype != dtype:
        raise ValueError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)}; wanted {dtype} (rows, {width})"
        )
    if tensor.stride(1) != 1 or tensor.device.type != "cpu":
        raise ValueError(f"{name}: columns must touch, on the CPU")
    return int(tensor.stride(0))
