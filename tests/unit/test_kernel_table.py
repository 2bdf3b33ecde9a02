"""Kernel tables: reading, refusing, interpolating, and what the physics makes of them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

import msgspec
import pytest

from nexusbench.core.batch import BatchShape, spread_of
from nexusbench.core.errors import InputError
from nexusbench.core.specs import Dtypes, ModelSpec, MoeSpec
from nexusbench.experiments.fidelity.kernels import read_samples
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.physics.measured import MeasuredPhysics, shape_of
from nexusbench.physics.tables import (
    PER_LAYER,
    PER_SEQUENCE,
    PER_STEP,
    KernelTable,
    load_table,
)  # fmt: skip
from nexusbench.physics.time_grids import TimeCurve, TimeGrid, grid_of

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


def unequal(long: int, chunks: tuple[tuple[int, int], ...] = ()) -> BatchShape:
    """64 decodes, ``long`` of them over 4,096 tokens and the others over 512."""
    lengths = [4096] * long + [512] * (64 - long)
    return BatchShape(64, sum(lengths), chunks, unequal=spread_of(lengths))


def test_decodes_count_as_equally_long_with_a_table(tmp_path: Path) -> None:
    """Its kernels take twice as long; it has rows of equal lengths alone."""
    physics = Physics(GPU, LLAMA)
    measured = MeasuredPhysics(GPU, LLAMA, table(write(tmp_path)))
    for shape in (unequal(3), unequal(3, ((16, 0),))):
        equal = msgspec.structs.replace(shape, unequal=msgspec.UNSET)
        assert physics.attention(shape, 128).time > physics.attention(equal, 128).time
        assert measured.attention(shape, 128) == measured.attention(equal, 128)
        assert measured.attention(shape, 128).time > physics.attention(shape, 128).time


SKEW = "regime,n,nb,pc,kp,kvs,kv_big,t_skew_us\n"


def test_batches_of_unequal_decodes_are_scored(tmp_path: Path) -> None:
    """Times in such a table are sums of three launches of one layer."""
    physics = Physics(GPU, LLAMA)
    rows = []
    for long, chunks in ((3, ()), (8, ((16, 0),))):
        us = 3 * physics.attention(unequal(long, chunks), 128).time / 32 / 1e3
        rows.append(f"x,64,{long},{sum(c for c, _ in chunks)},0,512,4096,{us}\n")
    (write(tmp_path) / "skew.csv").write_text(SKEW + "".join(rows))
    samples = read_samples(GPU, "rtx4090", LLAMA, str(tmp_path)).samples[-2:]
    assert [sample.operator for sample in samples] == ["unequal decode", "unequal mixed"]
    for sample in samples:
        assert sample.physics_us == pytest.approx(sample.measured_us, rel=1e-9)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,64,3,0,0,512,4096,0", r"skew\.csv:2: field 't_skew_us': is 0, not above 0"),
        ("x,64,3.5,0,0,512,4096,9", r"skew\.csv:2: field 'nb': is 3\.5, not a count"),
        ("x,64,64,0,0,512,4096,9", r"skew\.csv:2: field 'nb': has 64 of 64 sequences at 4096"),
        ("x,64,3,0,0,4096,512,9", r"skew\.csv:2: field 'nb': has 3 of 64 sequences at 512"),
        ("x,64,3,0,0,512,-1,9", r"skew\.csv:2: field 'kv_big': is -1, not a count"),
        ("x,64,3,0,0,512,y,9", r"skew\.csv:2: field 'kv_big': is 'y'"),
    ],
)
def test_a_damaged_table_of_unequal_decodes_is_refused(
    tmp_path: Path, row: str, words: str
) -> None:
    (write(tmp_path) / "skew.csv").write_text(f"{SKEW}{row}\n")
    with pytest.raises(InputError, match=words):
        read_samples(GPU, "rtx4090", LLAMA, str(tmp_path))


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
    with pytest.raises(InputError, match=r"is of a dense model, and llama-3\.1-8b is a mixture"):
        load_table(tmp_path, GPU, experts, 1)


def published(name: str) -> Path:
    data = os.environ.get("NEXUSBENCH_DATA")
    if not data:
        pytest.skip("NEXUSBENCH_DATA is not set")
    return Path(data) / name


QWEN = "configs/Qwen--Qwen3-30B-A3B"
SHIPPED = [
    ("rtx4090-llama-3.1-8b", "rtx4090", "llama-3.1-8b", 1),
    ("rtxpro6000-llama-3.1-8b-tp2", "rtxpro6000", "llama-3.1-8b", 2),
    ("rtxpro6000-qwen3-30b-a3b-tp1", "rtxpro6000", QWEN, 1),
    ("rtxpro6000-qwen3-30b-a3b-tp2", "rtxpro6000", QWEN, 2),
]


def model_of(name: str) -> ModelSpec:
    return load_model(str(published(name)) if "/" in name else name)


@pytest.mark.parametrize(("name", "gpu", "model", "degree"), SHIPPED)
def test_a_published_folder_gives_its_own_points(
    name: str, gpu: str, model: str, degree: int
) -> None:
    card, spec = load_gpu(gpu), model_of(model)
    made = load_table(published(f"kernels/{name}"), card, spec, degree)
    physics = MeasuredPhysics(card, spec, made, degree)
    for point in list(made.attention)[:: max(1, len(made.attention) // 40)]:
        found = physics.attention(shape_of(point), card.num_sms).time
        assert found == pytest.approx(made.attention[point] * 1e3 * spec.num_layers, rel=1e-9)
    layers = made.layer_us(64) * spec.num_layers + made.step_us(64)
    dense = physics.dense(64, card.num_sms).time / 1e3
    if spec.moe is None:
        assert dense == pytest.approx(layers)
    elif made.experts is not None:  # 64 tokens touch nearly all 128 experts: 828 us a layer
        assert (dense - layers) / spec.num_layers == pytest.approx(816, abs=6)
    else:
        assert dense > layers


@pytest.mark.parametrize(
    ("name", "gpu", "model", "degree", "told"),
    [
        (SHIPPED[1][0], "rtxpro6000", "llama-3.1-8b", 1, "is of tensor parallelism 2, but 1 is"),
        (SHIPPED[2][0], "rtxpro6000", QWEN, 2, "is of tensor parallelism 1, but 2 is to be run"),
        (SHIPPED[2][0], "h200", QWEN, 1, "meta.yaml:4: field 'gpu': is NVIDIA RTX PRO 6000"),
        (SHIPPED[2][0], "rtxpro6000", "llama-3.1-8b", 1, "'intermediate_size': is 3072, but"),
        (SHIPPED[0][0], "rtx4090", "llama-3.1-8b", 2, r"'tp_degrees': is \[1\]: nothing was"),
    ],
)
def test_a_published_folder_of_something_else_is_refused(
    name: str, gpu: str, model: str, degree: int, told: str
) -> None:
    folder = published(f"kernels/{name}")
    with pytest.raises(InputError, match=told):
        load_table(folder, load_gpu(gpu), model_of(model), degree)


def test_a_degree_that_no_folder_names_shows_in_the_output_head(tmp_path: Path) -> None:
    """Under a name of its own the times of two GPUs are not taken for those of one."""
    for source in published("kernels/rtxpro6000-llama-3.1-8b-tp2").iterdir():
        (tmp_path / source.name).symlink_to(source)
    card = load_gpu("rtxpro6000")
    assert load_table(tmp_path, card, LLAMA, 2).attention
    with pytest.raises(InputError, match=r"would read 2,\d+ GB/s .* as a shard of 1: the times"):
        load_table(tmp_path, card, LLAMA, 1)


def test_degrees_lie_below_one_meta_yaml(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "tp1").mkdir()
    for name in ("dense.csv", "attention.csv", "per_sequence.csv"):
        (tmp_path / name).rename(tmp_path / "tp1" / name)
    assert table(tmp_path).attention == table(tmp_path / "tp1").attention
    with pytest.raises(InputError, match="holds tp1: nothing was measured for 2"):
        load_table(tmp_path, GPU, LLAMA, 2)
    with pytest.raises(InputError, match="is of tensor parallelism 1, but 2 is to be run"):
        load_table(tmp_path / "tp1", GPU, LLAMA, 2)


def test_a_union_of_grids_goes_through_all_points_and_between_them() -> None:
    """x + 10 y on two grids that share one point only: linear between them too."""
    points = {
        (x, y): float(1 + x + 10 * y)
        for xs, ys in (((0, 2, 8), (0, 4)), ((0, 3, 9), (0, 5, 7)))
        for x, y in product(xs, ys)
    }
    made = grid_of(points)
    assert made is not None
    assert all(made(point) == value for point, value in points.items())
    assert made((2, 5)) == pytest.approx(53.0)
    assert made((2.5, 4.5)) == pytest.approx(1 + 2.5 + 45)
    # A grid that lacks a point is not two grids.
    del points[3, 5]
    assert grid_of(points) is None
    assert grid_of({p: 1.0 for p in product((1, 2, 3), (1, 2)) if p != (2, 2)}) is None


def test_experts_are_those_of_the_counts_around(tmp_path: Path) -> None:
    curves = {1: TimeCurve([(8, 50.0)]), 3: TimeCurve([(8, 60.0), (24, 220.0)])}
    made = KernelTable({}, {}, {}, experts=curves)
    assert made.experts_us(1, 8) == 50.0
    assert made.experts_us(3, 16) == 140.0
    assert made.experts_us(2, 16) == pytest.approx((50.0 + 140.0) / 2)
    assert made.experts_us(3, 100) == 220.0


def test_a_missing_folder_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        table(tmp_path / "none")
    (write(tmp_path) / "attention.csv").unlink()
    with pytest.raises(InputError, match=r"attention\.csv: cannot be read"):
        table(tmp_path)


def test_a_fit_halves_any_table_by_whole_shapes() -> None:
    """A card that no constants were fitted on has halves too, and no product stands in both."""
    folder = published("kernels/rtxpro6000-llama-3.1-8b-tp2")
    samples = read_samples(load_gpu("rtxpro6000"), "mine", LLAMA, str(folder)).samples
    halves: dict[object, set[bool]] = {}
    for sample in samples:
        assert not sample.fitted
        if sample.curve is not None:
            halves.setdefault(sample.curve, set()).add(sample.may_be_fitted)
    assert all(len(own) == 1 for own in halves.values())
    assert {True} in halves.values()
    assert {False} in halves.values()
