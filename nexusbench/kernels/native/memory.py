"""Large pages for what every decode step reads: packed weights and the KV cache.

A core that reads as fast as it can spends a tenth to a fifth of its time on looking up addresses,
one per 4 KiB, and more where a hypervisor translates them once again. Linux gives 2 MiB pages to
memory that asks for them (``madvise``, the default of most distributions). Where it does not, this
is ordinary memory.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading

import torch

HUGE_PAGE = 2 << 20
SLAB = 32 * HUGE_PAGE  # smaller tensors share one: a layer's are too small to fill whole pages
_PAGE = 4096


class _Slab:
    """Zeroed memory given out from front to back; it lives as long as a tensor in it."""

    def __init__(self, size: int) -> None:
        # Room for a start on a large page's border; pages that are never touched take no memory.
        length = -(-size // HUGE_PAGE) * HUGE_PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.region = mmap.mmap(-1, length + HUGE_PAGE, flags=flags)
        address = torch.frombuffer(self.region, dtype=torch.uint8, count=1).data_ptr()
        self.used = -address % HUGE_PAGE
        self.end = self.used + length
        with contextlib.suppress(OSError):  # a kernel without large pages
            self.region.madvise(mmap.MADV_HUGEPAGE, self.used, length)

    def take(self, size: int) -> torch.Tensor:
        """The next ``size`` bytes."""
        begin, self.used = self.used, -(-(self.used + size) // _PAGE) * _PAGE
        return torch.frombuffer(self.region, dtype=torch.uint8, count=size, offset=begin)


_lock = threading.Lock()
_shared: list[_Slab] = []  # the one that is being filled


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU, on large pages where the system has them.

    Raises RuntimeError where there is no memory, as torch does.
    """
    size = math.prod(shape) * dtype.itemsize
    if size == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    try:
        if size >= SLAB:
            taken = _Slab(size).take(size)
        else:
            with _lock:
                if not _shared or _shared[0].used + size > _shared[0].end:
                    _shared[:] = [_Slab(SLAB)]
                taken = _shared[0].take(size)
    except OSError as error:
        raise RuntimeError(f"cannot allocate {size:,} bytes: {error}") from None
    return taken.view(dtype).view(shape)
