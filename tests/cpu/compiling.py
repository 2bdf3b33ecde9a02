"""Compile the Triton kernels for a GPU that need not be there, and tell what they take of it.

``python compiling.py 90 bf16 128`` prints, for every tile of the tables that heads of 128 values
use: kernel, shared memory in bytes, registers a thread, spilled bytes, how many of its PTX
instructions multiply on tensor cores in the type given and how many copy asynchronously.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nexusbench.kernels.attention import tuning
from nexusbench.kernels.attention.triton_decode import decode_segments, merge_segments
from nexusbench.kernels.attention.triton_prefill import prefill_rows

INDICES = (
    "starts", "segments", "merges", "lengths", "blocks", "tile_sequence", "tile_row",
    "query_starts", "blocks_row",
)  # fmt: skip
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def kernels(head: int, itemsize: int) -> list[tuple[Any, dict[str, Any], dict[str, int]]]:
    """Kernel, constants and launch options of every row of the tables."""
    shape = {"GROUP": 4, "SIZE": head, "SIZE_PAD": head}
    loop = {**shape, "PAGE": 16, "UPCAST": False, "PRECISION": "ieee"}
    decode = tuning.decode_tile(head, itemsize)
    made: list[tuple[Any, dict[str, Any], dict[str, int]]] = [
        (
            decode_segments, {**loop, "GROUP_PAD": 16, "KEYS": decode.keys},
            {"num_warps": decode.warps, "num_stages": decode.stages},
        ),
        (merge_segments, shape, {"num_warps": 1}),
    ]  # fmt: skip
    for tile in dict.fromkeys(tuning.prefill_tiles(head, itemsize)):
        constants = {**loop, "ROWS": tile.rows, "KEYS": tile.keys}
        made.append((prefill_rows, constants, {"num_warps": tile.warps, "num_stages": tile.stages}))
    return made


def main(architecture: int, dtype: str, head: int) -> None:
    types = dict.fromkeys(INDICES, "*i32") | {"blocks_row": "i32"}
    types |= dict.fromkeys(("qkv", "cache", "out"), f"*{dtype}")
    types |= {"partial": "*fp32", "logsums": "*fp32", "scale": "fp32"}
    for kernel, constants, options in kernels(head, 4 if dtype == "fp32" else 2):
        names = kernel.arg_names
        signature = {
            name: "constexpr" if name in constants else types.get(name, "i32") for name in names
        }
        # As at a launch: everything but the index arrays is a multiple of 16.
        aligned = [
            place for place, name in enumerate(names)
            if name not in constants and name not in INDICES and name != "scale"
        ]  # fmt: skip
        source = ASTSource(
            fn=kernel, signature=signature, constexprs=constants,
            attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
        )  # fmt: skip
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        ptx = made.asm["ptx"]
        name = {"fp16": "f16", "fp32": "tf32"}.get(dtype, dtype)
        multiplies = rf"(?:wgmma|mma)\.\S*\.{name}\.{name}\b"
        registers, spilled = usage(made.asm["cubin"])
        print(
            kernel.__name__, made.metadata.shared, registers, spilled,
            len(re.findall(multiplies, ptx)), ptx.count("cp.async"),
        )  # fmt: skip


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of local memory, as cuobjdump reads them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
