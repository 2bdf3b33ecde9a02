"""How much work a kernel of Llama-3.1-8B is, counted from shapes, and what it should reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HEADS = (32, 8, 128)  # query heads, KV heads, values of a head
WIDTH = 2  # bytes of a bf16 value
# (outputs, inputs) of the dense layers, from the published config.json
LAYERS = {
    "qkv": (6144, 4096),
    "output": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
# Least share of a ceiling, by kernel and case: what this project set itself.
_TARGETS = (
    ("decode", "64 x 4096", "of_copy", 0.8, "of the copy's bandwidth"),
    ("prefill", "8192 after 0", "of_gemm", 0.6, "of the GEMM's rate"),
)


@dataclass(frozen=True)
class Work:
    """Bytes that must move at least, and FLOPs."""

    num_bytes: int
    flops: int

    def gbps(self, ms: float) -> float:
        return self.num_bytes / ms / 1e6

    def tflops(self, ms: float) -> float:
        return self.flops / ms / 1e9


def copy(values: int, width: int) -> Work:
    """Read once, written once."""
    return Work(2 * values * width, 0)


def dense(tokens: int, outputs: int, inputs: int) -> Work:
    """Weights and inputs read, outputs written."""
    moved = outputs * inputs + tokens * (inputs + outputs)
    return Work(moved * WIDTH, 2 * tokens * outputs * inputs)


def decode(batch: int, context: int) -> Work:
    """One token each for ``batch`` sequences that attend to ``context`` keys."""
    return decode_of([context] * batch)


def decode_of(contexts: Sequence[int]) -> Work:
    heads, kv_heads, size = HEADS
    keys = sum(contexts)
    moved = 2 * keys * kv_heads * size + 2 * len(contexts) * heads * size
    return Work(moved * WIDTH, 4 * keys * heads * size)


def prefill(tokens: int, context: int) -> Work:
    """A chunk of ``tokens`` after ``context``; half of its own square is masked."""
    heads, kv_heads, size = HEADS
    pairs = tokens * context + tokens * (tokens + 1) // 2
    moved = 2 * (context + tokens) * kv_heads * size + 2 * tokens * heads * size
    return Work(moved * WIDTH, 4 * pairs * heads * size)


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the kernels on all SMs reach their shares of the ceilings; unmeasured is not met."""
    found = []
    for kernel, case, share, least, text in _TARGETS:
        reached = [
            row[share]
            for row in rows
            if (row["partition"], row["kernel"], row["case"]) == ("all", kernel, case)
            and share in row
        ]
        value = reached[0] if reached else None
        found.append(
            {
                "what": f"{kernel} {case}: {least:.0%} {text}",
                "found": "not measured" if value is None else f"{value:.1%}",
                "met": value is not None and value >= least,
            }
        )
    return found
