"""Rows of aiconfigurator's parquet tables, checked column by column."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nexusbench.core.documents import located
from nexusbench.core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

RowT = TypeVar("RowT", bound=msgspec.Struct)
_COUNT, _TIME = (1, 2**31), (1e-9, 1e9)
# Columns that are read, and the least and greatest value of those that hold numbers.
COLUMNS: dict[str, dict[str, tuple[float, float] | None]] = {
    "gemm": {"gemm_dtype": None, "m": _COUNT, "n": _COUNT, "k": _COUNT, "latency": _TIME},
    "attention": {
        "kernel_source": None, "attn_dtype": None, "kv_cache_dtype": None,
        "batch_size": (1, 2**16), "isl": _COUNT, "num_heads": (1, 2**16),
        "num_key_value_heads": (1, 2**16), "head_dim": (1, 2**16), "step": (0, 2**31),
        "latency": _TIME,
    },
    "quantize": {"quant_dtype": None, "m": _COUNT, "k": _COUNT, "latency": _TIME},
    # A difference of two times, which may be none.
    "computescale_perf": {"quant_dtype": None, "m": _COUNT, "k": _COUNT, "latency": (0.0, 1e9)},
    "moe": {
        "kernel_source": None, "moe_dtype": None, "distribution": None, "num_tokens": (1, 2**20),
        "hidden_size": (1, 2**20), "inter_size": (1, 2**20), "topk": (1, 2**10),
        "num_experts": (1, 2**14), "moe_tp_size": (1, 2**14), "moe_ep_size": (1, 2**14),
        "latency": _TIME,
    },
}  # fmt: skip


@lru_cache
def rows_of(
    folder: Path, family: str, name: str, kind: type[RowT], engine: str = "vllm"
) -> list[RowT]:
    """The newest table of a family that was taken with ``engine``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(
        folder.glob(f"{family}/{engine}/*/{name}.parquet"),
        key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdecimal()],
    )
    if not paths:
        raise InputError(
            f"holds no {family}/{engine}/*/{name}.parquet",
            file=folder,
            hint="Give a system's folder",
        )
    hint = "Give a system's folder of aiconfigurator"
    try:
        table = pq.read_table(paths[-1])
    except (OSError, ValueError, pa.ArrowException) as error:
        problem = f"cannot be read: {' '.join(str(error).split())}"
        raise InputError(problem, file=paths[-1], hint=hint) from None
    for column, bounds in (COLUMNS.get(name) or COLUMNS[family]).items():
        _check_column(table, column, bounds, paths[-1], hint)
    found = []
    for number, row in enumerate(table.to_pylist(), start=1):
        try:
            found.append(msgspec.convert(row, kind))
        except msgspec.ValidationError as error:  # a column that not every table has
            field, problem = located(error)
            problem = f"row {number}: {problem}"
            raise InputError(problem, file=paths[-1], field=field, hint=hint) from None
    return found


def _check_column(
    table: pa.Table, name: str, bounds: tuple[float, float] | None, file: Path, hint: str
) -> None:
    """Text where there are no ``bounds``, else numbers within them, whole ones but for a time.
    Raises InputError that names file, column and row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in table.column_names:
        raise InputError("has no such column", file=file, field=name, hint=hint)
    column, kind = table.column(name), table.schema.field(name).type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_floating(kind) if name == "latency" else pa.types.is_integer(kind)
    if not (text if bounds is None else number):
        raise InputError(f"is a column of {kind}", file=file, field=name, hint=hint)
    good = pc.is_valid(column)
    if bounds is not None:
        within = pc.greater_equal(column, bounds[0]), pc.less_equal(column, bounds[1])
        good = pc.and_(good, pc.and_(*within))
    wrong = pc.index(pc.fill_null(good, False), False).as_py()
    if wrong >= 0:
        found = column[wrong].as_py()
        problem = f"row {wrong + 1} is {found!r:.40}"
        raise InputError(problem, file=file, field=name, hint=hint)
