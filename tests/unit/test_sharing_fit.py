"""Constants of sharing from measured partitions: the law of a curve, what a table tells, and a
simulated GPU found again from its own profile.
"""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from nexusbench.cli.main import main
from nexusbench.cli.validate import app
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.draw_law import DrawLaw, attained, nearest_law
from nexusbench.experiments.fidelity.partitions.formats import read_partitions
from nexusbench.experiments.fidelity.partitions.points import MILLISECONDS
from nexusbench.experiments.fidelity.sharing_fit import (
    SharingFit,
    _some_lines,
    fit_sharing,
    half_errors,
)
from nexusbench.experiments.ranges import with_constants
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.operators import attainable
from tests.unit.partition_tables import write_rows, write_table

H200 = load_gpu("h200")
TRUTH_LAWS = {"bandwidth_curve": DrawLaw(52.0, 0.8), "weights_curve": DrawLaw(50.0, 0.5)}
TRUTH = {
    "turn_taking": 0.5,
    "attention_interference": 0.5,
    "dense_interference": 0.3,
    "stream_interference": 0.2,
    "clock_gain": 0.1,
    "attention_sm_gbps": 30.0,
}


def fitted_gpu(made: SharingFit, gpu: GpuSpec = H200) -> GpuSpec:
    sim = msgspec.structs.replace(gpu.sim, **made.constants, **made.curves)
    return msgspec.structs.replace(gpu, sim=sim)


# -- the law ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("knee", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("gbps", [20.0, 60.0, 300.0])
def test_a_law_rises_ever_less_to_all_that_hbm_attains(gbps: float, knee: float) -> None:
    curve = DrawLaw(gbps, knee).curve(H200)
    assert (curve[0], curve[-1]) == ((0.0, 0.0), (1.0, 1.0))
    gains = [after[1] - before[1] for before, after in pairwise(curve)]
    assert min(gains) >= 0
    assert all(later <= earlier + 2e-4 for earlier, later in pairwise(gains))


def test_the_ends_of_the_knee() -> None:
    """Without one x / (x + 1), with the sharpest the smaller of x and 1."""
    one = H200.num_sms * 50.0 / attained(H200)
    soft = dict(DrawLaw(50.0, 0.0).curve(H200))
    assert soft[0.5] == pytest.approx((one / 2 / (one / 2 + 1)) * (one + 1) / one, abs=1e-4)
    sharp = dict(DrawLaw(50.0, 0.99).curve(H200))
    assert sharp[0.25] == pytest.approx(one / 4, abs=0.02)
    assert sharp[0.875] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("law", [DrawLaw(70.0, 0.9), DrawLaw(45.0, 0.2)])
def test_a_law_is_found_again_from_its_curve(law: DrawLaw) -> None:
    found = nearest_law(law.curve(H200), H200)
    assert found.gbps == pytest.approx(law.gbps, rel=0.02)
    assert found.knee == pytest.approx(law.knee, abs=0.05)


# -- what a table tells ----------------------------------------------------------------------------


def scan(folder: Path, law: DrawLaw) -> Path:
    """What a streaming kernel would draw on a GPU with this curve."""
    sim = msgspec.structs.replace(H200.sim, bandwidth_curve=law.curve(H200))
    gpu = msgspec.structs.replace(H200, sim=sim)
    rows = [f"{sms},{attainable(gpu, sms):.6g}" for sms in range(8, 133, 16)]
    return write_rows(folder, "sms,gb_per_s", [*rows, f"132,{attainable(gpu, 132):.6g}"])


def test_a_scan_tells_one_curve_and_leaves_the_rest(tmp_path: Path) -> None:
    truth = DrawLaw(50.0, 0.7)
    made = fit_sharing(H200, scan(tmp_path, truth), evaluations=100)
    assert made.constants == {}
    assert set(made.curves) == {"bandwidth_curve"}
    assert set(made.left) == {"weights_curve", *TRUTH}
    assert made.better(0)
    wanted = dict(truth.curve(H200))
    assert max(abs(y - wanted[x]) for x, y in made.curves["bandwidth_curve"]) < 0.02
    assert set(made.ranges) == {"bandwidth_curve"}
    low, high = made.ranges["bandwidth_curve"]
    assert 0.7 < low <= 1.0 <= high < 1.4


def test_a_range_ends_where_the_error_has_grown_by_a_tenth(tmp_path: Path) -> None:
    path = scan(tmp_path, DrawLaw(50.0, 0.7))
    path.write_text(path.read_text().replace("\n8,", "\n8,1"))  # no law fits it whole
    made = fit_sharing(H200, path, evaluations=100)
    ranges = {"bandwidth_curve": (0.1, 10.0)}
    gpu = msgspec.structs.replace(fitted_gpu(made), ranges=ranges)

    def error(factor: float) -> float:
        there = with_constants(gpu, {"bandwidth_curve": factor})
        points = [p for p in read_partitions(path, there).points if p.unit != MILLISECONDS]
        return half_errors(points)["stream"][0] or 0.0

    low, high = made.ranges["bandwidth_curve"]
    best = error(1.0)
    assert best > 1
    assert low < 1 < high
    assert all(error(end) <= 1.11 * best for end in (low, high))
    assert error(high * 1.03) > 1.1 * best
    assert error(low * 0.97) > 1.1 * best


def test_pairs_tell_nothing_of_curves(tmp_path: Path) -> None:
    _, path = write_table(tmp_path, "corun")
    made = fit_sharing(load_gpu("a100"), path, evaluations=40)
    assert {"bandwidth_curve", "weights_curve", "attention_sm_gbps", "clock_gain"} <= set(made.left)
    assert "turn_taking" in made.constants
    assert made.curves == {}
    assert any(note.startswith("TOO FEW ROWS") for note in made.notes)


def test_held_out_rows_decide_nothing(tmp_path: Path) -> None:
    shapes = [(batch, context) for batch in (8, 16, 32) for context in (4096, 8192)]
    rows = [f"{b},{c},{sms},{b * c * 7e-5 / sms**0.9:.6g}" for b, c in shapes for sms in (32, 132)]
    path = write_rows(tmp_path, "batch,context,sms,ms", rows)
    made = fit_sharing(H200, path, evaluations=30)
    fitted = {p.line for p in read_partitions(path, H200).points if p.fitted}
    assert 0 < len(fitted) < len(rows)
    for i, row in enumerate(rows):
        if i + 2 not in fitted and ",32," in row:
            head, _, ms = row.rpartition(",")
            rows[i] = f"{head},{2 * float(ms):.6g}"
    other = fit_sharing(H200, write_rows(tmp_path, "batch,context,sms,ms", rows), evaluations=30)
    assert (other.constants, other.curves) == (made.constants, made.curves)
    assert other.after != made.after


def test_a_fit_that_is_no_better_says_so(tmp_path: Path) -> None:
    """No law of two numbers is closer than the very curve that a table was made of."""
    shares = [(sms, attainable(H200, sms)) for sms in range(8, 133, 4)]
    path = write_rows(tmp_path, "sms,gb_per_s", [f"{sms},{rate!r}" for sms, rate in shares])
    made = CliRunner().invoke(app, ["fit", "h200", str(path), "--family", "sharing"])
    assert made.exit_code == 0
    assert "NOT BETTER: the fitted half" in made.stderr
    assert "NOT BETTER: the held-out half" in made.stderr


def test_a_table_without_anything_to_fit_is_refused(tmp_path: Path) -> None:
    gpu, path = write_table(tmp_path, "servers")
    with pytest.raises(InputError, match="no half to fit"):
        fit_sharing(load_gpu(gpu), path)


# -- the command -----------------------------------------------------------------------------------


def test_the_lines_that_are_printed_are_those_of_a_gpu_file(tmp_path: Path) -> None:
    path = scan(tmp_path, DrawLaw(50.0, 0.7))
    command = ["fit", "h200", str(path), "--family", "sharing", "--evaluations", "40"]
    made = CliRunner().invoke(app, command)
    assert made.exit_code == 0, made.output
    document = tomllib.loads(made.stdout)
    curve = document["sim"]["bandwidth_curve"]
    assert curve == [list(point) for point in sorted(map(tuple, curve))]
    low, high = document["ranges"]["bandwidth_curve"]
    assert low <= 1 <= high
    assert "turn_taking: left as it is, the table says nothing about it" in made.stderr
    assert re.search(r"stream +[\d.]+ -> [\d.]+ +[\d.]+ -> [\d.]+", made.stderr)
    own = (files("nexusbench.data") / "gpus" / "h200.toml").read_text(encoding="utf-8")
    lines = made.stdout.split("[sim]\n")[1].split("\n[ranges]")[0]
    changed = tmp_path / "own.toml"
    pattern = r"bandwidth_curve = \[.*?\n\]\n"
    changed.write_text(re.sub(pattern, lines, own, count=1, flags=re.DOTALL))
    assert [list(p) for p in load_gpu(changed).sim.bandwidth_curve] == curve


def test_an_unknown_family_is_told_which_there_are(tmp_path: Path) -> None:
    path = scan(tmp_path, DrawLaw(50.0, 0.7))
    made = CliRunner().invoke(app, ["fit", "h200", str(path), "--family", "sharding"])
    assert isinstance(made.exception, UsageError)
    assert "gemm, attention, window, " in str(made.exception)
    assert "experts, experts-fp8, " in str(made.exception)
    assert "or sharing, not 'sharding'" in str(made.exception)


# -- a GPU found again -----------------------------------------------------------------------------


def truth_file(folder: Path) -> Path:
    """The shipped H200's file with other constants of sharing."""
    text = (files("nexusbench.data") / "gpus" / "h200.toml").read_text(encoding="utf-8")
    for name, law in TRUTH_LAWS.items():
        points = ", ".join(f"[{x}, {y}]" for x, y in law.curve(H200))
        pattern = rf"^{name} = \[.*?\n\]\n"
        flags = re.DOTALL | re.MULTILINE
        text, count = re.subn(pattern, f"{name} = [{points}]\n", text, count=1, flags=flags)
        assert count == 1
    for name, value in TRUTH.items():
        pattern = rf"^{name} = .*$"
        text, count = re.subn(pattern, f"{name} = {value}", text, count=1, flags=re.MULTILINE)
        assert count == 1
    # The shipped ranges are of the shipped constants.
    text = re.sub(r"^\[ranges\].*?(?=^\[sources\])", "", text, count=1, flags=flags)
    path = folder / "truth.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_a_simulated_gpu_is_found_again_from_its_profile(tmp_path: Path) -> None:
    """From the shipped H200's constants; judged by a profile of other batches."""
    device = f"sim:{truth_file(tmp_path)}"
    profile = ("profile", "--device", device, "--quick", "--no-progress")
    own, other = tmp_path / "own", tmp_path / "other"
    assert main([*profile, "-o", str(own)]) == 0
    sizes = ("--max-num-batched-tokens", "3000", "--max-num-seqs", "300", "--seed", "1")
    assert main([*profile, "-o", str(other), *sizes]) == 0
    made = fit_sharing(H200, own / "partitions.csv", evaluations=400)
    assert made.better(0)
    assert made.left == ()

    def errors_of(gpu: GpuSpec) -> dict[str, float]:
        points = read_partitions(other / "partitions.csv", gpu).points
        points = [msgspec.structs.replace(p, fitted=True) for p in points]
        found = half_errors([p for p in points if p.unit != MILLISECONDS])
        return {name: fitted or 0.0 for name, (fitted, _) in found.items()}

    before, after = errors_of(H200), errors_of(fitted_gpu(made))
    noise = errors_of(load_gpu(device.removeprefix("sim:")))
    for operator, error in after.items():
        assert error < 0.6 * before[operator], operator
        assert error < noise[operator] + 1.5, operator
    for name, value in TRUTH.items():
        assert made.constants[name] == pytest.approx(value, rel=0.25), name
    assert made.constants["turn_taking"] == pytest.approx(0.5, abs=0.05)
    # Steps say little of plain streams: attention draws less on few SMs than its curve allows.
    for name, most in (("weights_curve", 0.08), ("bandwidth_curve", 0.3)):
        wanted = dict(TRUTH_LAWS[name].curve(H200))
        off = [abs(y / wanted[x] - 1) for x, y in made.curves[name] if x >= 0.125]
        assert max(off) < most, name


def test_a_large_table_is_fitted_on_whole_shapes_of_its_fitted_half(tmp_path: Path) -> None:
    """Of 500 curves over 4 SM counts some are simulated for every set of constants: all rows of
    each, the one on all SMs too, and none that is held out.
    """
    table = tmp_path / "steps.csv"
    lines = ["model,gpus,mps_percent,batch,tokens_each,phase,ms"]
    for batch in range(1, 17):
        for tokens in range(100, 1600, 47):
            for percent in (30, 50, 80, 100):
                ms = 10 + batch * tokens / 1e4 + 100 / percent
                lines.append(f"llama-7b,1,{percent},{batch},{tokens},decoding,{ms}")
    table.write_text("\n".join(lines))
    gpu = load_gpu("a100")
    points = read_partitions(table, gpu).points
    lines_read = _some_lines(points)
    assert lines_read is not None
    operators = {point.operator for point in points}  # a step is scored by its batch too
    assert 0 < len(lines_read) <= len(operators) * (120 + 4)
    some = read_partitions(table, gpu, None, lines_read).points
    assert {point.line for point in some} == lines_read
    assert all(point.fitted for point in some)
    assert set(some) <= set(points)
    shapes = {point.shape for point in some}
    whole = [point for point in points if point.shape in shapes]
    assert len(whole) == len(some)
    fitted = [point for point in points if point.fitted]
    assert _some_lines(fitted[:120]) is None
    assert _some_lines(fitted[:121]) is not None
