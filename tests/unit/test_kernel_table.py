"""Kernel tables: reading, refusing, interpolating, and what the physics makes of them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError
from nexusbench.core.specs import Dtypes, MoeSpec
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.measured import MeasuredPhysics
from nexusbench.physics.tables import (
    PER_LAYER,
    PER_SEQUENCE,
    PER_STEP,
    KernelTable,
    TimeCurve,
    TimeGrid,
    load_table,
)  # fmt: skip

GPU, LLAMA = load_gpu("rtx4090"), load_model("llama-3.1-8b")
META = """\
gpu: NVIDIA GeForce RTX 4090
tp_degrees: [1, 2]
engine_effective:
  hf_overrides:
    intermediate_size: 14336
    num_attention_heads: 32
    num_key_value_heads: 8
    vocab_size: 128256
"""


def write(folder: Path, slower: float = 2.0) -> Path:
    """A table that is ``slower`` times the physics at every point."""
    model = Physics(GPU, LLAMA)
    (folder / "meta.yaml").write_text(META)
    lines = ["layer,tokens,time_us"]
    for tokens in (1, 16, 256, 2048):
        each = model.dense(tokens, 128).time / 32 / 1e3 * slower
        lines += [f"{name},{tokens},{each / 8:.6f}" for name in PER_LAYER]
        lines += [f"{name},{tokens},0.001" for name in PER_STEP]
    (folder / "dense.csv").write_text("\n".join(lines))
    lines = ["layer,sequences,time_us"]
    for count in (1, 16, 256):
        us = model.head(count, 128).time / 1e3 * slower
        lines += [f"{name},{count},{us / 2:.6f}" for name in PER_SEQUENCE]
    (folder / "per_sequence.csv").write_text("\n".join(lines))
    lines = ["prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"]
    points = {*product((0, 16, 2048), (0, 4096), (0, 1, 128), (0, 16, 4096))}
    for chunk, before, count, keys in sorted(points):
        if bool(count) == bool(keys) and (chunk or (count and not before)):
            chunks = ((chunk, before),) if chunk else ()
            made = model.attention(BatchShape(count, count * keys, chunks), 128)
            lines.append(f"{chunk},{before},{count},{keys},{made.time / 32 / 1e3 * slower:.6f}")
    (folder / "attention.csv").write_text("\n".join(lines))
    return folder


def table(folder: Path) -> KernelTable:
    return load_table(folder, GPU, LLAMA, 1)


def test_curves_and_grids_go_through_their_points() -> None:
    curve = TimeCurve([(1, 10.0), (3, 30.0), (4, 80.0)])
    assert [curve(x) for x in (1, 2, 3, 4, 8)] == [10, 20, 30, 80, 160]
    grid = TimeGrid({(x, y): x + 10.0 * y for x in (0, 2, 8) for y in (1, 5)})
    assert grid((0, 1)) == 10
    assert grid((5, 3)) == 35
    assert grid((100, 0)) == 18


def test_the_physics_is_stretched_to_the_table(tmp_path: Path) -> None:
    plain, measured = Physics(GPU, LLAMA), MeasuredPhysics(GPU, LLAMA, table(write(tmp_path)))
    for shape in (
        BatchShape(0, 0, ((2048, 0),)),
        BatchShape(16, 16 * 900),
        BatchShape(40, 40 * 700, ((300, 0), (200, 512))),
    ):
        for sms in (128, 40):
            here, there = plain.attention(shape, sms), measured.attention(shape, sms)
            assert there.time == pytest.approx(2 * here.time, rel=1e-4)
            assert there.traffic == here.traffic
        assert measured.head(16, 40).time == pytest.approx(2 * plain.head(16, 40).time, rel=1e-4)
    for tokens in (1, 16, 256, 2048):
        expected = 2 * plain.dense(tokens, 128).time
        assert measured.dense(tokens, 128).time == pytest.approx(expected, rel=1e-3)


def test_gzip_is_read_and_the_digest_covers_every_file(tmp_path: Path) -> None:
    first = table(write(tmp_path)).sha256
    plain = tmp_path / "attention.csv"
    (tmp_path / "attention.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert table(tmp_path).sha256 != first  # other bytes, same numbers


FAULTS: list[tuple[str, Callable[[str], str], str]] = [
    ("dense.csv", lambda t: t.replace("qkv_proj,16,", "qkv_proj,x,"), "field 'tokens': is 'x'"),
    ("dense.csv", lambda t: t.replace("time_us", "us", 1), ":1: field 'time_us': is missing"),
    ("dense.csv", lambda t: t.replace("qkv_proj", "qkv"), "0 rows of 'qkv_proj'"),
    ("dense.csv", lambda t: t + "\nqkv_proj,16,3.0", "(16,) stands twice"),
    ("attention.csv", lambda t: t[: t.rindex("\n")], "the mixed grid lacks the point"),
    ("attention.csv", lambda t: t[: t.rindex(",")] + ",-1", "is '-1', not a time above 0"),
    ("attention.csv", lambda t: t[: t.rindex(",")] + ",nan", "field 'time_us'"),
    ("per_sequence.csv", lambda t: "", ":1: field 'layer': is missing"),
    ("meta.yaml", lambda t: t.replace("14336", "11008"), ":5: field 'intermediate_size'"),
    ("meta.yaml", lambda t: t.replace("4090", "3090"), ":1: field 'gpu': is NVIDIA GeForce RTX 3"),
    ("meta.yaml", lambda t: t.replace("    vocab_size: 128256\n", ""), "field 'vocab_size'"),
    ("meta.yaml", lambda t: t.replace("[1, 2]", "[2]"), ":2: field 'tp_degrees'"),
    ("meta.yaml", lambda t: t + "variant: fp8\n", ":9: field 'variant': is fp8, but weights in"),
    ("meta.yaml", lambda t: t + "variant: odd\n", ":9: field 'variant'"),
    (
        "meta.yaml",
        lambda t: t + "    hidden_size: 5120\n",
        "field 'hidden_size': is 5120, but 4096",
    ),
    ("dense.csv", lambda t: t.replace("qkv_proj,16,", f"qkv_proj,{'9' * 5000},"), "not a count"),
    ("dense.csv", lambda t: t.replace("qkv_proj,16,", "qkv_proj,9999999999,"), "not a count"),
    ("dense.csv", lambda t: t.replace("qkv_proj,16,", "qkv_proj,16,1e300,"), "field 'time_us'"),
    ("dense.csv", lambda t: t.replace("qkv_proj,16,", "qkv_proj,16,1e-300,"), "field 'time_us'"),
    ("dense.csv", lambda t: t + "\n" + "x" * 200_000, "is no line of CSV"),
    ("dense.csv", lambda t: t + "\nqkv_proj", "field 'tokens': is ''"),
    ("meta.yaml", lambda t: t + "oops\n", ":9: is not 'name: value'"),
    ("meta.yaml", lambda t: t + t.splitlines()[0] + "\n", ":9: field 'gpu': stands in line 1 too"),
]


@pytest.mark.parametrize(("name", "change", "message"), FAULTS)
def test_a_malformed_table_is_refused(
    tmp_path: Path, name: str, change: Callable[[str], str], message: str
) -> None:
    path = write(tmp_path) / name
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError) as error:
        table(tmp_path)
    assert message in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"layer,tokens,time_us\n" + b"#" * (65 << 20)), "more than 64 MiB"),
        (gzip.compress(b"layer,tokens,time_us")[:-9], "cannot be read"),
        (gzip.compress(b"layer,tokens,time_us")[:12] + b"\xff" * 20, "cannot be read"),
        (b"not gzip", "cannot be read: Not a gzipped file"),
        (gzip.compress(b"\xff\xfe"), "is not text in UTF-8"),
    ],
)
@pytest.mark.slow
def test_a_damaged_or_endless_archive_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (write(tmp_path) / "dense.csv").unlink()
    (tmp_path / "dense.csv.gz").write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        table(tmp_path)
    assert "dense.csv.gz" in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    (write(tmp_path) / "dense.csv").unlink()
    os.mkfifo(tmp_path / "dense.csv")
    with pytest.raises(InputError, match="is no ordinary file"):
        table(tmp_path)


def test_other_models_than_it_was_measured_for_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    fp8 = msgspec.structs.replace(LLAMA, dtypes=Dtypes(weights="fp8"))
    with pytest.raises(InputError, match="is bf16, but weights in fp8"):
        load_table(tmp_path, GPU, fp8, 1)
    experts = msgspec.structs.replace(LLAMA, moe=MoeSpec(8, 2, 14336))
    with pytest.raises(InputError, match="is a mixture of experts"):
        load_table(tmp_path, GPU, experts, 1)


def test_a_missing_folder_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        table(tmp_path / "none")
    (write(tmp_path) / "attention.csv").unlink()
    with pytest.raises(InputError, match=r"attention\.csv: cannot be read"):
        table(tmp_path)
