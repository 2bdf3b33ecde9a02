"""Kernels that tell where and when they ran. Imports Triton: only inside tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

# Many times what the SMs of any GPU hold at a time, so that each gets some.
PROGRAMS = 8192
_SPINS = 400


@triton.jit
def where_and_when(sms, begins, ends, spins, SIZE: tl.constexpr):
    """The SM of each program, and the GPU's clock in ns as it began and ended."""
    place = tl.arange(0, SIZE)
    begin = tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )
    sm = tl.inline_asm_elementwise(
        "mov.u32 $0, %smid;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )
    value = place.to(tl.float32)
    for _ in range(spins):
        value = value * 1.0001 + 1.0
    # The sum is never negative; the compiler does not know, and so keeps the loop.
    kept = (tl.sum(value, 0) < 0).to(tl.int32)
    # Given the result so that it cannot be read before.
    end = tl.inline_asm_elementwise(
        "mov.u64 $0, %globaltimer;", "=l,r", [kept], dtype=tl.int64, is_pure=False, pack=1
    )
    here = tl.program_id(0)
    tl.store(sms + here, sm + kept)
    tl.store(begins + here, begin)
    tl.store(ends + here, end)


class Trace(NamedTuple):
    """Buffers of a launch, filled when it has ended."""

    sms: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor

    def seen(self) -> set[int]:
        """SMs that computed."""
        return set(self.sms.tolist()) - {-1}

    def span(self) -> tuple[int, int]:
        """From the first begin to the last end, ns of the GPU's clock."""
        return int(self.begins.min()), int(self.ends.max())


def new_trace(programs: int = PROGRAMS) -> Trace:
    """Empty buffers."""
    sms = torch.full((programs,), -1, dtype=torch.int32, device="cuda")
    times = [torch.zeros(programs, dtype=torch.int64, device="cuda") for _ in range(2)]
    return Trace(sms, *times)


def launch(trace: Trace, spins: int = _SPINS) -> None:
    """On torch's current stream."""
    where_and_when[(len(trace.sms),)](*trace, spins, SIZE=128)


def sms_of(stream: Any) -> set[int]:
    """The SMs on which the stream's work runs."""
    trace = new_trace()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        launch(trace)
    stream.synchronize()
    return trace.seen()


def busy_for(stream: Any, seconds: float) -> None:
    """Keep the stream busy for about so long; returns at once."""
    with torch.cuda.stream(stream):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.cuda._sleep(10_000_000)
        end.record()
        end.synchronize()
        per_ms = 10_000_000 / begin.elapsed_time(end)
        torch.cuda._sleep(int(per_ms * 1e3 * seconds))
