"""Measured partitions: formats and their faults, what is compared with what, halves, bounds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nexusbench.cli.validate import app
from nexusbench.core.errors import InputError
from nexusbench.experiments.fidelity.partitions.formats import FORMATS, read_partitions
from nexusbench.experiments.fidelity.partitions.points import PartitionPoints
from nexusbench.experiments.fidelity.partitions.reading import is_called
from nexusbench.experiments.fidelity.partitions.scores import PartitionScore, summarise
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from tests.unit.partition_tables import CORUN, TABLES, write_rows, write_table


def read(folder: Path, name: str, *more: str) -> PartitionPoints:
    gpu, path = write_table(folder, name, *more)
    return read_partitions(path, load_gpu(gpu))


def scored(found: PartitionPoints) -> dict[str, PartitionScore]:
    return {score.operator: score for score in summarise(found.points)[0]}


def validate(*arguments: object) -> tuple[int, str, BaseException | None]:
    made = CliRunner().invoke(app, ["partitions", *map(str, arguments)])
    return made.exit_code, made.output, made.exception


# -- formats ---------------------------------------------------------------------------------------


def test_there_is_a_table_of_every_format() -> None:
    columns = [tuple(header.split(",")) for _, header, _, _ in TABLES.values()]
    assert all(any(known.matches(own) for own in columns) for known in FORMATS)


@pytest.mark.parametrize("name", TABLES)
def test_every_format_is_found_by_its_columns_and_scored(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name)
    assert TABLES[name][3] <= set(scored(found))
    assert all(p.measured > 0 and math.isfinite(p.simulated) for p in found.points)
    assert all(p.simulated > 0 for p in found.points)
    assert not any("not used" in note for note in found.notes)


TEXTS = {
    "gpu", "what", "stage", "op", "mode", "model", "phase",
    "device", "simulated", "operator", "beside_operator",
}  # fmt: skip
MAY_BE_BLANK = {
    "K", "N", "context", "both_ms", "prefill_tok_s", "gpus",
    "tokens", "beside_tokens", "beside_ms", "slowdown", "beside_slowdown", "work_rate",
}  # fmt: skip


@pytest.mark.parametrize("cell", ["", "nan", "-1", "0", "1e999", "x", "1" * 400])
@pytest.mark.parametrize("name", TABLES)
def test_a_bad_number_is_named_with_its_line(tmp_path: Path, name: str, cell: str) -> None:
    gpu, header, rows, _ = TABLES[name]
    columns = header.split(",")
    unread = {c for known in FORMATS for c in known.unread} | {"rel_to_108"}
    cells = [line.split(",") for line in rows if not line.startswith(("RTX", '"', "other"))]
    for at, column in enumerate(columns):
        if column in TEXTS | unread or (column in MAY_BE_BLANK and not cell):
            continue
        row = next(row for row in cells if row[at])
        path = write_rows(tmp_path, header, [",".join([*row[:at], cell, *row[at + 1 :]])])
        with pytest.raises(InputError) as caught:
            read_partitions(path, load_gpu(gpu))
        assert (caught.value.field, caught.value.line) == (column, 2)
        assert len(str(caught.value)) < 400


def test_an_unknown_header_is_told_what_is_known(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "sms,seconds", ["8,1"])
    with pytest.raises(InputError, match=r"sms,seconds, which .*sms,gb_per_s.*alone_Nsms_gb_s"):
        read_partitions(path, load_gpu("h100"))


@pytest.mark.parametrize(
    ("header", "rows", "problem"),
    [
        ("sms,gb_per_s", [], "holds no rows"),
        ("sms,gb_per_s,sms", ["8,1,8"], "twice"),
        ("", ["8,1"], "no header line"),
        ("sms,gb_per_s", ["133,5"], "is 133 SMs; NVIDIA H100 .* has 132"),
        ("op,K,N,tokens_or_batch,context,sms,ms", ["conv,1,1,1,1,8,1"], "is 'conv'"),
        (CORUN, ["1,1,1,1,1,mixed,8,8,1,1,1,1"], "field 'mode': is 'mixed'.*two_stream"),
        (CORUN, ["1,1,1,1,1,split,80,80,1,1,1,1"], "uses 160 SMs; .* has 132"),
        (f"{CORUN},of", ["1,1,1,1,1,split,8,8,1,1,1,1,kernel"], "field 'of': is 'kernel'"),
        ("stage,sms,rel_to_0", ["compute,8,2"], "is of 0 SMs"),
        ("blocks_each,alone_40sms_gb_s,beside_other_30sms_gb_s", ["8,5,5"], "not of the same SMs"),
        ("gpu,sms,gb_per_s", ["H200,8,5"], "has no row of NVIDIA H100.*: its rows are of H200"),
        ("batch,context,sms,ms,heads,kv_heads", ["1,8,8,1,12,5"], "12 heads are no multiple of 5"),
        (
            "model,gpus,mps_percent,batch,tokens_each,phase,ms",
            ["llama-8t,1,50,1,8,prefill,1"],
            "field 'model': no model is called 'llama-8t'.*llama-13b",
        ),
        (
            "model,gpus,mps_percent,batch,tokens_each,phase,ms",
            ["llama-7b,64,50,1,8,prefill,1"],
            "the 32 heads of llama-7b do not divide over 64 GPUs",
        ),
    ],
)
def test_faults_are_named(tmp_path: Path, header: str, rows: list[str], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        read_partitions(write_rows(tmp_path, header, rows), load_gpu("h100"))
    assert str(tmp_path) in str(caught.value)


def test_columns_that_are_not_used_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "sms,gb_per_s,clock", ["8,5,1", "132,50,1"])
    assert "column 'clock' is not used" in read_partitions(path, load_gpu("h100")).notes


def test_only_the_rows_of_the_gpu_count(tmp_path: Path) -> None:
    rows = ["H200,16,600", "H200,132,4000", "RTX 4090,16,300", "RTX 4090,128,900"]
    path = write_rows(tmp_path, "gpu,sms,gb_per_s", rows)
    found = read_partitions(path, load_gpu("h200"))
    assert {point.line for point in found.points} == {2, 3}
    assert "2 rows are of other GPUs: RTX 4090" in found.notes


@pytest.mark.parametrize(
    ("spec", "name", "same"),
    [
        ("NVIDIA H200 (SXM)", "H200", True),
        ("NVIDIA H200 (SXM)", "H100", False),
        ("NVIDIA GeForce RTX 5070 Ti", "RTX 5070 Ti", True),
        ("NVIDIA GeForce RTX 5070 Ti", "RTX 5070", False),
        ("NVIDIA GeForce RTX 5070", "RTX 5070 Ti", False),
        ("NVIDIA A100-SXM4-80GB", "A100", True),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA", False),
    ],
)
def test_names_of_gpus(spec: str, name: str, same: bool) -> None:
    assert is_called(spec, name) is same


# -- what is compared with what --------------------------------------------------------------------


def test_times_are_over_the_time_on_all_sms_and_that_row_is_not_scored(tmp_path: Path) -> None:
    found = read(tmp_path, "scan")
    assert [(p.sms, p.measured) for p in found.points] == [((16,), 3.0), ((64,), 1.25)]


def test_repeated_rows_on_all_sms_are_averaged(tmp_path: Path) -> None:
    found = read(tmp_path, "scan", "132,4")
    assert [(p.sms, p.measured) for p in found.points] == [((16,), 2.0), ((64,), 2.5 / 3)]


def test_a_table_that_is_as_simulated_has_no_error(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "mlp")
    simulated = {p.sms[0]: p.simulated for p in read_partitions(path, load_gpu(gpu)).points}
    rows = [f"8192,54,{7 * simulated[54]}", "8192,108,7"]
    path = write_rows(tmp_path, "tokens,sms,ms", rows)
    assert scored(read_partitions(path, load_gpu(gpu)))["prefill mlp"].all.p95 < 1e-9
    path = write_rows(tmp_path, "tokens,sms,ms", [f"8192,54,{14 * simulated[54]}", "8192,108,7"])
    slow = scored(read_partitions(path, load_gpu(gpu)))["prefill mlp"]
    assert slow.all.bias == pytest.approx(-50)


def test_absolute_times_have_rows_of_their_own(tmp_path: Path) -> None:
    found = scored(read(tmp_path, "steps"))
    assert found["decode step"].all.n == 1
    assert found["decode step, absolute"].all.n == 2
    assert not any(p.unit == "ms" for p in read(tmp_path, "mlp").points)  # of no told shape
    path = write_rows(tmp_path, "tokens,sms,ms,hidden,wide", ["64,54,2,512,2048"])
    assert [p.unit for p in read_partitions(path, load_gpu("a100")).points] == ["ms"]


def test_a_curve_without_a_row_on_all_sms_is_named(tmp_path: Path) -> None:
    found = read(tmp_path, "decode attention", "4,4096,54,1")
    assert len([p for p in found.points if "absolute" not in p.operator]) == 1
    assert any(note.startswith("1 of 2 curves") for note in found.notes)


def test_what_a_call_costs_is_read_from_the_shortest_kernel(tmp_path: Path) -> None:
    header = "op,K,N,tokens_or_batch,context,sms,ms"
    rows = [
        f"decode_attention_fa2,,,{batch},{context},{sms},{ms}"
        for batch, context, ms in ((1, 8, 0.05), (64, 4096, 0.6))
        for sms in (16, 132)
    ]
    path = write_rows(tmp_path, header, rows)
    found = read_partitions(path, load_gpu("h100"))
    at = {(p.shape[-2:], p.sms[0]): p.simulated for p in found.points if p.unit == "ms"}
    assert at["=8", 132] == pytest.approx(0.05)
    gemm = ["gemm,4096,4096,16,,132,0.02"]
    with_gemm = read_partitions(write_rows(tmp_path, header, [*rows, *gemm]), load_gpu("h100"))
    only_gemm = read_partitions(write_rows(tmp_path, header, gemm), load_gpu("h100"))
    assert with_gemm.points[-1].simulated == only_gemm.points[-1].simulated
    path = write_rows(tmp_path, header, rows)
    assert at["=8", 16] == pytest.approx(0.05, rel=0.02)
    assert any("are added to every simulated time for the call" in n for n in found.notes)
    # A kernel that computes for longer tells nothing of its call.
    path = write_rows(tmp_path, header, rows[2:])
    alone = read_partitions(path, load_gpu("h100"))
    longer = {p.sms[0]: p.simulated for p in alone.points if p.unit == "ms"}
    call = at["96", 132] - longer[132]
    assert call > 0.01
    assert at["96", 16] - longer[16] == pytest.approx(call)
    assert not any("for the call" in n for n in alone.notes)


def test_the_model_tells_shapes_that_the_table_does_not(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "decode attention")
    own = read_partitions(path, load_gpu(gpu)).points[-1].simulated
    other = read_partitions(path, load_gpu(gpu), load_model("llama-3.1-8b")).points[-1].simulated
    assert other < 0.5 * own  # 8 KV heads of 128 instead of 32 of 224
    path = write_rows(
        tmp_path, "batch,context,sms,ms,heads,kv_heads,head_size", ["8,4096,108,1,32,8,128"]
    )
    assert read_partitions(path, load_gpu(gpu)).points[-1].simulated == other


def test_work_rates_follow_from_times(tmp_path: Path) -> None:
    rates = {p.operator: p.measured for p in read(tmp_path, "corun").points}
    assert rates["work rate streams"] == pytest.approx(6.16 / 6)
    assert rates["work rate split"] == pytest.approx(6.16 / 9.6)
    assert rates["slow-down split decode"] == pytest.approx(1.6 / 0.96)
    # Which of two single kernels waits is a matter of order.
    assert "slow-down streams decode" not in rates
    later = read(tmp_path, "corun", "8,4096,2048,5.2,0.96,green,54,54,9.6,1.6,12,0.5")
    assert later.points[-3].measured == pytest.approx(6.16 / 12)
    assert read(tmp_path, "copies").points[0].measured == pytest.approx(470 / 250)
    assert read(tmp_path, "reads").points[0].measured == pytest.approx(800 / 300)
    lanes = {p.operator: p.measured for p in read(tmp_path, "lanes").points}
    assert lanes["work rate streams"] == pytest.approx(950 / 1100 + 80 / 500)


def test_errors_of_a_work_rate_are_in_hundredths(tmp_path: Path) -> None:
    point = read(tmp_path, "gemv").points[0]
    score = scored(PartitionPoints([point]))["work rate streams"]
    assert score.unit == "work rate x 100"
    assert score.all.bias == pytest.approx(100 * (point.simulated - point.measured))


def test_whole_steps_beside_each_other_are_scored_on_both_sides(tmp_path: Path) -> None:
    path = write_rows(tmp_path, f"{CORUN},of,model", [
        "4,4096,4096,206,7.8,two_stream,128,128,241,23,241,,step,qwen2.5-3b",
        "4,4096,4096,206,7.8,split,96,32,250,12,250,,step,qwen2.5-3b",
    ])  # fmt: skip
    found = scored(read_partitions(path, load_gpu("rtx4090")))
    assert {"slow-down streams decode", "slow-down split prefill", "work rate split"} <= set(found)


def test_an_engines_steps_go_on_until_the_other_side_is_done(tmp_path: Path) -> None:
    header = CORUN.removesuffix(",both_ms,sequential_over_both") + ",model"
    row = "4,4096,4096,206,7.8,two_stream,,,241,23,qwen2.5-3b"
    points = read_partitions(write_rows(tmp_path, header, [row]), load_gpu("rtx4090")).points
    at = {p.operator: p for p in points}
    assert at["work rate streams"].sms == (128, 128)
    assert at["work rate streams"].measured == pytest.approx(206 / 241 + 7.8 / 23)
    slowed = [at[f"slow-down streams {side}"] for side in ("prefill", "decode")]
    assert [p.measured for p in slowed] == pytest.approx([241 / 206, 23 / 7.8])
    rate = sum(1 / p.simulated for p in slowed)
    assert at["work rate streams"].simulated == pytest.approx(rate)
    # The decodes of one step would be done long before the prefill.
    assert slowed[1].simulated > 1.5


def test_a_step_is_of_all_sequences_on_whole_sms(tmp_path: Path) -> None:
    header = "model,gpus,mps_percent,batch,tokens_each,phase,ms"
    rows = [f"llama-7b,1,{p},{b},512,{phase},1" for phase, b, p in (
        ("prefill", 4, 100), ("prefill", 16, 100), ("prefill", 4, 31), ("decoding", 64, 100),
        ("decoding", 256, 100),
    )]  # fmt: skip
    found = read_partitions(write_rows(tmp_path, header, rows), load_gpu("a100")).points
    times = {p.line: p.simulated for p in found if p.unit == "ms"}
    assert times[3] / times[2] == pytest.approx(4, rel=0.1)
    assert times[6] / times[5] > 1.5
    assert {p.sms for p in found if p.line == 4} == {(34,)}  # 31 % of 108 are 33.5


def test_a_table_that_fits_two_formats_is_of_the_one_with_more_columns(tmp_path: Path) -> None:
    path = write_rows(tmp_path, "tokens,batch,context,sms,ms", ["1,8,64,8,2", "1,8,64,132,1"])
    found = read_partitions(path, load_gpu("h100"))
    assert "decode attention" in scored(found)
    assert "column 'tokens' is not used" in found.notes


# -- halves ----------------------------------------------------------------------------------------


def many(folder: Path, order: int = 1) -> PartitionPoints:
    rows = [f"{8 * i},4096,{sms},{132 / sms}" for i in range(1, 41) for sms in (32, 64, 132)]
    path = write_rows(folder, "batch,context,sms,ms", rows[::order])
    return read_partitions(path, load_gpu("h100"))


def test_halves_are_whole_curves_and_hang_on_nothing_else(tmp_path: Path) -> None:
    halves: dict[str, set[bool]] = {}
    for point in many(tmp_path).points:
        halves.setdefault(point.shape, set()).add(point.fitted)
    assert all(len(half) == 1 for half in halves.values())
    assert 10 <= sum(True in half for half in halves.values()) <= 30
    for point in many(tmp_path, -1).points:
        assert halves[point.shape] == {point.fitted}
    alone = write_rows(tmp_path, "batch,context,sms,ms", ["8,4096,32,2", "8,4096,132,1"])
    for point in read_partitions(alone, load_gpu("h200")).points:
        assert halves[point.shape] == {point.fitted}


def test_scores_of_the_halves_make_up_the_whole(tmp_path: Path) -> None:
    score = scored(many(tmp_path))["decode attention"]
    assert score.held_out is not None
    assert score.fitted is not None
    assert score.held_out.n + score.fitted.n == score.all.n == 80
    assert score.of("held-out") == ("held-out", score.held_out)
    assert score.of("all") == ("all", score.all)
    mean = score.held_out.mape * score.held_out.n + score.fitted.mape * score.fitted.n
    assert mean / 80 == pytest.approx(score.all.mape)


def test_every_second_sm_count_of_one_curve_is_held_out(tmp_path: Path) -> None:
    points = read(tmp_path, "scan", "96,2.2", "8,12", "16,6.1").points
    held_out = [point.sms for point in points if not point.fitted]
    # Of 8, 16, 64, 96 and all 132; a row that is repeated is in the half of its count.
    assert sorted(held_out) == [(16,), (16,), (96,)]


# -- the command -----------------------------------------------------------------------------------


def test_the_document_lists_scores_and_points(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "corun")
    code, output, _ = validate(gpu, path, "--json")
    made: dict[str, Any] = json.loads(output)
    assert code == 0
    assert (made["command"], made["simulated"]) == ("validate partitions", True)
    by_name = {score["operator"]: score for score in made["scores"]}
    rate = by_name["work rate split"]
    assert (rate["unit"], rate["rows"]) == ("work rate x 100", 1)
    assert {"mape", "median", "p95", "bias", "half", "halves"} <= set(rate)
    points = [p for p in made["points"] if p["operator"] == "work rate split"]
    assert points[0]["sms"] == [54, 54]
    error = 100 * (points[0]["simulated"] - points[0]["measured"])
    assert rate["bias"] == pytest.approx(error)


def test_a_broken_bound_exits_with_3_and_names_the_unit(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "corun")
    code, output, _ = validate(gpu, path, "--half", "all", "--bound", "work rate split:0.001")
    assert code == 3
    assert "work rate split" in output
    assert "(work rate x 100) breaks its bound of 0.001 (work rate x 100)" in output
    assert validate(gpu, path, "--bound", "work rate split:1000")[0] == 0


def test_bounds_hold_the_half_that_was_asked_for(tmp_path: Path) -> None:
    score = scored(many(tmp_path))["decode attention"]
    assert score.held_out is not None
    assert score.fitted is not None
    low, high = sorted((score.held_out.mape, score.fitted.mape))
    bound = f"decode attention:{(low + high) / 2}"
    better = "held-out" if score.held_out.mape == low else "fitted"
    other = "fitted" if better == "held-out" else "held-out"
    path = tmp_path / "table.csv"
    assert validate("h100", path, "--half", better, "--bound", bound)[0] == 0
    assert validate("h100", path, "--half", other, "--bound", bound)[0] == 3
    assert validate("h100", path, "--bound", bound)[0] == (0 if better == "held-out" else 3)


def test_the_screen_names_both_and_what_is_not_scored(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "servers")
    code, output, _ = validate(gpu, path)
    assert code == 0
    assert "NVIDIA H100" in output
    assert "simulated, against" in output
    assert "nothing in this table can be scored" in output
    _, path = write_table(tmp_path, "kernels")
    code, output, _ = validate("h200", path)
    assert "NVIDIA H200 (SXM) (132 SMs), simulated" in output
    assert "gemm above 1024 tokens" in output


def test_a_bound_on_what_is_not_there_is_refused(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "servers")
    error = validate(gpu, path, "--bound", "stream:8")[2]
    assert "nothing of that name was scored" in str(error)
