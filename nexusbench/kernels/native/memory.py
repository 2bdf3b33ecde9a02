"""Large pages for what every decode step reads: packed weights and the KV cache.

A core that reads memory as fast as it can spends a tenth to a fifth of its time on looking up
addresses, one entry per 4 KiB; more where a hypervisor translates them a second time. Linux gives
2 MiB pages to memory that asks for them (``madvise``, the default of most distributions). Where it
does not, this is ordinary memory.
"""

from __future__ import annotations

import math
import mmap

import torch

HUGE_PAGE = 2 << 20


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros on the CPU, on large pages where the system has them and the tensor fills one.

    Raises RuntimeError where there is no memory, as torch does.
    """
    size = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size < HUGE_PAGE or advice is None:
        return torch.zeros(shape, dtype=dtype)
    try:
        # Room for a start on a page's border; what nobody touches takes no memory.
        region = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise RuntimeError(f"cannot allocate {size:,} bytes: {error}") from None
    begin = -torch.frombuffer(region, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    try:
        region.madvise(advice, begin, size)
    except OSError:  # a kernel without large pages
        pass
    whole = torch.frombuffer(region, dtype=torch.uint8, count=size, offset=begin)
    return whole.view(dtype).view(shape)
