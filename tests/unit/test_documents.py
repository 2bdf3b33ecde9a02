"""Documents and tables: every fault names file, and line or key path; nothing is unbounded."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nexusbench.core.documents import (
    convert,
    decode_json,
    parse_toml,
    read_document,
    read_table_text,
    read_text,
)
from nexusbench.core.errors import BaselineError, InputError
from nexusbench.experiments.fidelity import aiconfigurator, vidur
from nexusbench.gates.spec import load_spec
from nexusbench.models.shards import check_header
from nexusbench.physics.gpus import load_gpu
from nexusbench.results._columns import table_of


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    n: int


class Outer(msgspec.Struct):
    inner: Inner
    many: list[Inner] = []


@pytest.mark.parametrize(
    ("text", "field", "problem"),
    [
        (b'{"inner": {}}', "inner.n", "is missing"),
        (b"{}", "inner", "is missing"),
        (b'{"inner": {"n": 1, "m": 2}}', "inner.m", "not a key that is known"),
        (b'{"inner": {"n": 1}, "many": [{"n": "x"}]}', "many[0].n", "Expected `int`, got `str`"),
        (b'{"inner": {"n": NaN}}', None, "not valid JSON"),
        (b'{"inner": {"n": 1}', None, "not valid JSON"),
        (b"\xff", None, "not valid JSON"),
        (b'{"other": ' + b"[" * 100_000, None, "nested too deeply"),
    ],
)
def test_json_names_the_key(text: bytes, field: str | None, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_json(text, Outer, "x.json")
    assert str(caught.value).startswith("x.json: ")
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_a_converted_value_says_where_it_stands() -> None:
    with pytest.raises(BaselineError, match=r"x\.json: field 'a\.b\.inner\.n': not an x: Expected"):
        convert({"inner": {"n": 1.5}}, Outer, "x.json", at="a.b", what="an x", error=BaselineError)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = 1\nb = \n", r":2: not valid TOML"),
        ("[a]\nx = [1, nan]\n", r"field 'a\.x\[1\]': is nan"),
        ("x = -inf\n", "field 'x': is -inf"),
        ("x = 99999999999999999999\n", "field 'x': is beyond 64 bits"),
        (f"x = {'9' * 5000}\n", "not valid TOML"),
        (f"x = {'[' * 40}{']' * 40}\n", "nested too deeply"),
        (f"x = {'[' * 20_000}\n", "nested too deeply"),
        ("y = 1\n" + ".".join("a" * 200_000) + " = 1\n", ":2: has a key of more than 32 parts"),
        (".".join([r'"\""'] * 100_000) + " = 1\n", ":1: has a key of more than 32 parts"),
        ("x = 1\ny = [1,\n", ":2: not valid TOML"),
        ('"' + '\\"' * 400_000 + '" = ', ":1: not valid TOML"),
        (f'"{"a" * 900_000}" = ', r":1: not valid TOML.{0,250}$"),
        ("\n".join(f"k{n} = 1" for n in range(200_000)), "is longer than"),
    ],
)
@pytest.mark.slow
def test_toml_is_bounded_and_finite(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_toml(text, "x.toml")


def test_files_are_read_within_a_bound(tmp_path: Path) -> None:
    for pipe in (Path("/dev/zero"), tmp_path / "pipe"):
        if pipe.parent == tmp_path:
            os.mkfifo(pipe)
        with pytest.raises(InputError, match=f"{pipe}: is a pipe or a device, no ordinary file"):
            read_document(pipe)
    with pytest.raises(InputError, match="pipe: is a pipe or a device"):
        table_of(tmp_path / "pipe", {"x": "int64"})
    with pytest.raises(InputError, match="pipe: is a pipe or a device"):
        check_header(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * (16 * 2**20 + 1))
    with pytest.raises(InputError, match="is larger than 16 MiB"):
        read_document(tmp_path / "large")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_document(tmp_path)
    file = tmp_path / "x.txt"
    file.write_bytes(b"\xef\xbb\xbfone\ntwo\n\xff")
    with pytest.raises(InputError, match=r"x\.txt:3: is not UTF-8: byte 0xff"):
        read_text(file)
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(bytes(3_000_000)))
    with pytest.raises(InputError, match="unpacks to more than 2 MiB"):
        read_table_text(packed, hint="", most=2**21)
    packed.write_bytes(gzip.compress(b"abc")[:-4])
    with pytest.raises(InputError, match="ends before the end"):
        read_table_text(packed, hint="")


def kernels(folder: Path, **changes: Any) -> Path:
    columns = {
        "gemm_dtype": ["bfloat16"] * 2, "m": [1, 2], "n": [64, 64], "k": [64, 64],
        "latency": [0.1, 0.2], **changes,
    }  # fmt: skip
    path = folder / "gemm" / "vllm" / "1.0" / "gemm_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return folder


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"m": None}, "field 'm': has no such column"),
        ({"m": ["1", "2"]}, "field 'm': is a column of string"),
        ({"m": [1, 0]}, "field 'm': row 2 is 0"),
        ({"n": [None, 64]}, "field 'n': row 1 is None"),
        ({"k": [64, 2**62]}, "field 'k': row 2 is"),
        ({"latency": [0.1, float("nan")]}, "field 'latency': row 2 is nan"),
        ({"latency": [0.1, -1.0]}, "field 'latency': row 2 is -1.0"),
        ({"gemm_dtype": [1, 2]}, "field 'gemm_dtype': is a column of int64"),
    ],
)
def test_tables_of_kernels_name_row_and_column(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=f"gemm_perf.parquet: {told}"):
        aiconfigurator.read(kernels(tmp_path, **changes), load_gpu("h100"), "h100")


def test_a_column_that_not_every_table_has_is_checked_too(tmp_path: Path) -> None:
    one = {
        "kernel_source": ["vllm_flash_attn"], "attn_dtype": ["bfloat16"],
        "kv_cache_dtype": ["bfloat16"], "batch_size": [1], "isl": [16], "num_heads": [32],
        "num_key_value_heads": [8], "head_dim": [128], "step": [0], "window_size": ["none"],
        "latency": [0.1],
    }  # fmt: skip
    path = kernels(tmp_path) / "attention" / "vllm" / "1.0" / "context_attention_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(one), path)
    with pytest.raises(InputError, match=r"perf\.parquet: field 'window_size': row 1"):
        aiconfigurator.read(tmp_path, load_gpu("h100"), "h100")


@pytest.mark.parametrize("cell", ["", "x", "inf", "nan", "0", "-3", "1.5", "9" * 30])
def test_a_dense_table_names_line_and_column(tmp_path: Path, cell: str) -> None:
    row = dict.fromkeys(vidur.COLUMNS, "64")
    row["num_tensor_parallel_workers"] = "1"
    file = tmp_path / "dense.csv"
    for key in ("num_tokens", "num_tensor_parallel_workers", "n_head"):
        lines = [",".join(row), ",".join(row.values()), ",".join({**row, key: cell}.values())]
        file.write_text("\n".join(lines))
        with pytest.raises(InputError, match=rf"dense\.csv:3: field '{key}': is "):
            vidur.read(file, load_gpu("a100"))


def test_a_spec_that_asks_for_more_than_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(f'seeds = {list(range(2000))}\nrepeats = 1000\n[[runs]]\ntrace = "t"\n')
    with pytest.raises(InputError, match="more than 100,000 runs"):
        load_spec(path)
