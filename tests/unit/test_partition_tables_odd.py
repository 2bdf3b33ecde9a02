"""Tables of partitions as others write them: what is refused, what is left out and said, and which
kernels are never mixed into one curve.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nexusbench.cli.validate import app
from nexusbench.core.errors import InputError
from nexusbench.experiments.fidelity.partitions import alone
from nexusbench.experiments.fidelity.partitions.formats import read_partitions
from nexusbench.experiments.fidelity.partitions.points import PartitionPoints
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.profiles.sharing import COLUMNS
from tests.unit.partition_tables import CORUN, write_rows

KERNELS = "op,K,N,tokens_or_batch,context,sms,ms"
STEPS = "model,gpus,mps_percent,batch,tokens_each,phase,ms"
PROFILE = ",".join(COLUMNS)
OWN, BESIDE = "L20,false,llama-3.1-8b", "decode step,8,128,"


def read(folder: Path, gpu: str, header: str, rows: list[str]) -> PartitionPoints:
    return read_partitions(write_rows(folder, header, rows), load_gpu(gpu))


def relative(found: PartitionPoints) -> dict[int, float]:
    """Simulated times over those on all SMs, by line."""
    return {p.line: p.simulated for p in found.points if p.unit.startswith("time")}


@pytest.mark.parametrize(
    ("gpu", "header", "rows", "problem"),
    [
        ("h200", "sms,gb_per_s", ["8,300,5", "132,4000"], ":2: has more cells than the 2 columns"),
        (
            "v100",
            "blocks_each,alone_40sms_gb_s,alone_20sms_gb_s,beside_other_40sms_gb_s",
            ["80,470,300,250"],
            "field 'alone_20sms_gb_s': is one of 2 columns where one is read",
        ),
        ("h200", "stage,sms,rel_to_132,rel_to_64", ["compute,8,9,5"], "'rel_to_64': is one of 2"),
        ("h200", ",".join(f"c{i}" for i in range(2000)), ["1"], "has 2,000 columns"),
        (
            "a100", STEPS, ["llama-30b,8,50,1,8,prefill,1"],
            "field 'gpus': the 52 heads of llama-30b do not divide over 8",
        ),
        (
            "l20", PROFILE, [f"{OWN},decode attention,8,2048,,92,1,{BESIDE},46,1,,,"],
            "field 'beside_sms': is not the 92 SMs",
        ),
        (
            "l20", f"{CORUN},of", ["1,8,8,1,1,two_stream,,,1,1,1,,step"],
            "field 'model': is missing",
        ),
    ],
)  # fmt: skip
def test_faults_of_tables_are_named(
    tmp_path: Path, gpu: str, header: str, rows: list[str], problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        read(tmp_path, gpu, header, rows)
    assert caught.value.line is not None


@pytest.mark.parametrize(
    ("header", "lacks"),
    [
        ("op,K,N,tokens,context,sms,ms", r"\(op,K,.*\) lacks tokens_or_batch\. A table has"),
        ("blocks_each,alone_40sms_gb_s", r" lacks beside_other_Nsms_gb_s\."),
        ("stage,sms,rel", r"\(stage,sms,rel_to_N\) lacks rel_to_N\."),
        ("SMs;GB/s", r"of no known format\. A table has"),
        # Each has all columns of a format that it is not of.
        (PROFILE.partition(",beside")[0], r"\(device,.*\) lacks beside_operator,beside_batch"),
        (STEPS.replace("phase", "stage,sms,tokens"), r"\(model,.*\) lacks phase\."),
    ],
)
def test_the_nearest_format_is_named(tmp_path: Path, header: str, lacks: str) -> None:
    with pytest.raises(InputError, match=lacks):
        read(tmp_path, "h200", header, ["1"])


def test_blanks_around_columns_and_empty_last_cells_do_not_matter(tmp_path: Path) -> None:
    plain = read(tmp_path, "h200", "sms,gb_per_s", ["8,300", "132,4000"])
    blank = read(tmp_path, "h200", " sms, gb_per_s,,", ["8, 300,,", "132 ,4000,,,"])
    assert (blank.points, blank.notes) == (plain.points, plain.notes)


def test_kernels_of_one_shape_are_curves_of_their_own(tmp_path: Path) -> None:
    def rows(op: str, ms: float) -> list[str]:
        return [f"{op},,,64,8192,{sms},{ms}" for sms in (32, 132)]

    fa2, paged = rows("decode_attention_fa2", 1.0), rows("decode_attention_fa2_paged", 3.0)
    both = read(tmp_path, "h100", KERNELS, [*fa2, *paged])
    alone = [relative(read(tmp_path, "h100", KERNELS, kernel)) for kernel in (fa2, paged)]
    assert relative(both) == {2: alone[0][2], 4: alone[1][2]}
    assert [p.measured for p in both.points if p.line in (2, 4) and p.unit != "ms"] == [1.0, 1.0]
    prefill = [f"prefill_attention_fa2{c},,,2048,,{s},9" for c in ("", "_noncausal")
               for s in (32, 132)]  # fmt: skip
    both = read(tmp_path, "h100", KERNELS, prefill)
    alone = [relative(read(tmp_path, "h100", KERNELS, prefill[i : i + 2])) for i in (0, 2)]
    assert relative(both) == {2: alone[0][2], 4: alone[1][2]}


def test_heads_of_two_models_are_curves_of_their_own(tmp_path: Path) -> None:
    rows = [f"8,4096,{sms},1,{heads},{heads},128" for heads in (8, 64) for sms in (27, 108)]
    header = "batch,context,sms,ms,heads,kv_heads,head_size"
    both = relative(read(tmp_path, "a100", header, rows))
    alone = [relative(read(tmp_path, "a100", header, rows[i : i + 2])) for i in (0, 2)]
    assert both == {2: alone[0][2], 4: alone[1][2]}


def test_a_stage_of_two_models_is_two_curves(tmp_path: Path) -> None:
    rows = [f"decode batch 16,32,2,{model}" for model in ("llama-3.1-8b", "llama-3.1-70b")]
    both = relative(read(tmp_path, "h200", "stage,sms,rel_to_132,model", rows))
    second = relative(read(tmp_path, "h200", "stage,sms,rel_to_132,model", rows[1:]))
    assert both[3] == second[2] != both[2]


def test_stages_are_told_by_their_words_in_any_case(tmp_path: Path) -> None:
    for stage in ("Decode step batch 16", "Compute"):
        assert read(tmp_path, "h200", "stage,sms,rel_to_132", [f"{stage},32,2"]).points


def test_many_stages_take_no_time_by_their_square(tmp_path: Path) -> None:
    rows = [f"compute {i},32,2" for i in range(20_000)]
    begun = time.process_time()
    assert len(read(tmp_path, "h200", "stage,sms,rel_to_132", rows).points) == 20_000
    assert time.process_time() - begun < 5.0


def test_steps_of_many_prompts_are_read_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["llama-7b,1,100,4096,8,prefill,900", "llama-7b,1,50,4096,8,prefill,1500"]
    assert read(tmp_path, "a100", STEPS, rows).points
    monkeypatch.setattr(alone, "MOST_PROMPTS", 8000)
    with pytest.raises(InputError, match=r":3: field 'batch': .* 8,000 prompts"):
        read(tmp_path, "a100", STEPS, rows)


def test_kernels_that_are_not_simulated_are_left_out_and_named(tmp_path: Path) -> None:
    rows = ["gemm,4096,4096,64,,132,0.02", "gemm_fp8,4096,4096,64,,132,0.01"]
    rows += [f"prefill_attention_fa2,,,1024,{context},132,0.1" for context in ("", 0, 1024, 8192)]
    found = read(tmp_path, "h100", KERNELS, rows)
    assert {point.line for point in found.points} == {2, 4, 5, 6}
    said = [note for note in found.notes if note.startswith("not scored")]
    assert ["from line 3 on: kernels of fp8" in said[0], "from line 7 on" in said[1]] == [True] * 2


def test_a_model_is_known_by_its_name_or_by_the_one_that_is_asked_for(tmp_path: Path) -> None:
    def times(name: str, model: str | None = None) -> tuple[list[float], list[str]]:
        path = write_rows(tmp_path, STEPS, [f"{name},1,100,8,128,decoding,20"])
        asked = None if model is None else load_model(model)
        found = read_partitions(path, load_gpu("a100"), asked)
        return [point.simulated for point in found.points], found.notes

    plain, _ = times("llama-3.1-8b")
    assert times("meta-llama/Llama-3.1-8B")[0] == plain
    with pytest.raises(InputError, match=r"no model is called 'mine'.*--model"):
        times("org/Mine")
    found, notes = times("org/Mine", "llama-3.1-8b")
    assert found == plain
    assert "model 'org/Mine' is taken for llama-3.1-8b" in notes
    found, notes = times("llama-7b", "llama-3.1-8b")  # the table's own name is known
    assert found != plain
    assert not any("is taken for" in note for note in notes)


def test_a_table_of_one_sm_count_says_why_nothing_is_compared(tmp_path: Path) -> None:
    found = read(tmp_path, "h200", "sms,memory_kernel_ms", ["8,3", "8,4"])
    assert not found.points
    assert found.notes == ["all rows are on 8 SMs: there is no time on fewer to compare"]


def test_rows_that_do_not_say_what_runs_are_named(tmp_path: Path) -> None:
    row = "8,4096,4096,5.2,0.96,two_stream,108,108,6,1,6,1"
    notes = read(tmp_path, "a100", CORUN, [row]).notes
    assert any(note.startswith("1 rows are taken for one layer's attention") for note in notes)
    notes = read(tmp_path, "a100", f"{CORUN},of", [f"{row},attention"]).notes
    assert not any("are taken for" in note for note in notes)


@pytest.mark.parametrize(
    ("half", "said"),
    [("all", (False, False)), ("held-out", (True, True)), ("fitted", (True, False))],
)
def test_the_screen_says_what_half_is_empty(
    tmp_path: Path, half: str, said: tuple[bool, bool]
) -> None:
    path = write_rows(tmp_path, "sms,gb_per_s", ["8,300", "132,4000"])
    made = CliRunner().invoke(app, ["partitions", "h200", str(path), "--half", half])
    assert ("held-out: shapes outside" in made.output, "is empty" in made.output) == said


def test_a_table_without_a_row_on_all_sms_says_over_what_its_times_are(tmp_path: Path) -> None:
    rows = ["8,300", "64,2000"]
    said = "times are over those on 64 of the 132 SMs: no row is on more"
    assert said in read(tmp_path, "h200", "sms,gb_per_s", rows).notes
    assert said not in read(tmp_path, "h200", "sms,gb_per_s", [*rows, "132,4000"]).notes
