"""Memory on large pages: zeroed, aligned, not shared between tensors, given back."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the decoder's kernels need torch")

from nexusbench.kernels.native import memory  # noqa: E402

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mapping(address):
    """What the kernel says of the mapping that begins at an address: KiB in memory, flags."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{address:x}-.*?^Rss: +(\d+) kB.*?^VmFlags:(.*?)$", text, re.M | re.S)
    return (int(found[1]), found[2].split()) if found else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_tensors_are_zeros_of_their_own(dtype):
    tensors = [memory.zeros(shape, dtype) for shape in ((3, 5), (1000, 7), (1,), (2, 3, 4))]
    for tensor in tensors:
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert not tensor.any()
    for value, tensor in enumerate(tensors, start=1):
        tensor.fill_(value)
    for value, tensor in enumerate(tensors, start=1):
        assert bool((tensor == value).all())
    assert memory.zeros((0, 4), dtype).shape == (0, 4)


def test_slabs_are_filled_before_another_is_made():
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        pytest.skip("this system has no large pages")
    first = memory.zeros((memory.SLAB - 4096,), torch.uint8)
    second = memory.zeros((memory.SLAB // 2,), torch.uint8)
    third = memory.zeros((memory.SLAB // 2,), torch.uint8)
    assert third.data_ptr() - second.data_ptr() == memory.SLAB // 2
    assert abs(second.data_ptr() - first.data_ptr()) >= memory.SLAB - 4096
    large = memory.zeros((memory.SLAB + 1,), torch.uint8)
    assert large.data_ptr() % memory.HUGE_PAGE == 0
    large[-1] = 1  # the last byte exists


@pytest.mark.slow
def test_large_pages_are_asked_for_and_given_back():
    if not SWITCH.exists() or "[never]" in SWITCH.read_text():
        pytest.skip("this system has no large pages")
    tensor = memory.zeros((memory.SLAB,), torch.uint8)
    address = tensor.data_ptr()
    taken, flags = mapping(address)
    assert taken < memory.HUGE_PAGE // 1024  # nothing before it is touched
    assert "hg" in flags
    tensor.fill_(1)
    assert mapping(address)[0] >= memory.SLAB // 1024
    del tensor
    assert mapping(address) is None


def test_too_much_is_refused_as_torch_does():
    with pytest.raises(RuntimeError, match="allocate"):
        memory.zeros((1 << 62,), torch.uint8)
