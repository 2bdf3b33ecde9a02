"""Compile every Triton kernel for a GPU that need not be there: ``python compiling.py 90 bf16``."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nexusbench.kernels.attention.triton_decode import decode_part, merge_parts
from nexusbench.kernels.attention.triton_prefill import prefill_tiles

INDICES = (
    "part_sequence", "part_first", "part_last", "part_starts", "lengths", "blocks",
    "tile_sequence", "tile_row", "query_starts",
)  # fmt: skip
HEADS = {"HEADS": 32, "SIZE": 128, "SIZE_PAD": 128}
LOOP = {"GROUP": 4, "SIZE": 128, "SIZE_PAD": 128, "PAGE": 16, "KEYS": 64, "UPCAST": False}
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (decode_part, {**HEADS, **LOOP, "GROUP_PAD": 16, "PRECISION": "tf32"}),
    (merge_parts, HEADS),
    (prefill_tiles, {**LOOP, "ROWS": 64, "PRECISION": "tf32"}),
]


def main(architecture: int, dtype: str) -> None:
    types = dict.fromkeys(INDICES, "*i32")
    types |= dict.fromkeys(("qkv", "cache", "out"), f"*{dtype}")
    types |= {"partial": "*fp32", "logsums": "*fp32", "scale": "fp32"}
    for kernel, constants in KERNELS:
        signature = {
            name: "constexpr" if name in constants else types.get(name, "i32")
            for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        print(kernel.__name__, len(made.asm["cubin"]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
