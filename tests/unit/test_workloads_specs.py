"""Specs make the shipped traces, byte for byte; their lengths are those of the paper's Table 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nexusbench.core.errors import InputError, UsageError
from nexusbench.workloads.arrivals import Poisson
from nexusbench.workloads.base import Trace
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.lengths import Quantiles
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.streams import stream
from nexusbench.workloads.trace import load_trace, write_trace

FOLDER = Path(__file__).parents[2] / "workloads"
NAMES = ("mixed", "ldc", "arxiv", "sharegpt")

# Nexus paper, Table 1: mean, P50, P95, P99 of input and output tokens.
TABLE_1 = {
    "ldc": ((5905, 5461, 9292, 9817), (180, 159, 339, 454)),
    "arxiv": ((3832, 3575, 6460, 6894), (200, 181, 357, 443)),
    "sharegpt": ((496, 432, 970, 1367), (97, 37, 383, 474)),
}
RATES = {"mixed": 2.0, "ldc": 2.0, "arxiv": 2.5, "sharegpt": 6.0}

MINIMAL = """
[workload]
name = "w"
num_requests = 5
[arrivals]
process = "poisson"
rate = 1.0
[[classes]]
name = "a"
input = { quantiles = [[0, 1], [1, 9]] }
output = { quantiles = [[0, 1], [1, 9]] }
"""


def statistics(tokens: list[int]) -> tuple[float, ...]:
    """Mean, P50, P95, P99."""
    values = np.array(tokens)
    return (float(values.mean()), *np.percentile(values, [50, 95, 99]).tolist())


def columns(trace: Trace, tenant: str = "") -> tuple[list[int], list[int]]:
    kept = [r for r in trace.requests if not tenant or r.tenant == tenant]
    return [r.prompt_tokens for r in kept], [r.output_tokens for r in kept]


def readme_row(name: str, trace: Trace) -> str:
    """The line of workloads/README.md on a trace."""
    rate = (len(trace.requests) - 1) / (trace.requests[-1].arrival_ns / 1e9)
    cells = [f"`{name}.jsonl`", f"{len(trace.requests)}", f"{RATES[name]:g} / {rate:.2f}"]
    paper = TABLE_1.get(name, ((), ()))
    for mine, table in zip(columns(trace), paper, strict=True):
        cells.append(" / ".join(f"{value:.0f}" for value in statistics(mine)))
        cells.append(" / ".join(f"{value}" for value in table) or "not printed")
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_trace_is_what_its_spec_makes(name: str, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    write_trace(make_trace(load_spec(FOLDER / f"{name}.toml")), again)
    assert again.read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_readme_tells_what_is_in_the_shipped_trace(name: str) -> None:
    row = readme_row(name, load_trace(FOLDER / f"{name}.jsonl"))
    assert row in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "tenant"),
    [("ldc", ""), ("arxiv", ""), ("sharegpt", ""), ("mixed", "ldc"), ("mixed", "sharegpt")],
)
def test_lengths_follow_table_1(name: str, tenant: str) -> None:
    trace = load_trace(FOLDER / f"{name}.jsonl")
    for mine, table in zip(columns(trace, tenant), TABLE_1[tenant or name], strict=True):
        # Stratified: the mean is the law's; a tail of 240 to 600 values is off by the distance of
        # neighbours, which is largest beyond P95.
        for got, want, tolerance in zip(
            statistics(mine), table, (0.01, 0.01, 0.02, 0.04), strict=True
        ):
            assert got == pytest.approx(want, rel=tolerance, abs=1)


def test_mixed_is_sixty_percent_sharegpt_with_independent_lengths() -> None:
    trace = load_trace(FOLDER / "mixed.jsonl")
    assert sum(r.tenant == "sharegpt" for r in trace.requests) == 360
    for name in ("ldc", "arxiv", "sharegpt"):
        prompts, outputs = columns(load_trace(FOLDER / f"{name}.jsonl"))
        # Four standard errors of an independent sample of 600.
        assert abs(np.corrcoef(prompts, outputs)[0, 1]) < 4 / np.sqrt(600)


@pytest.mark.parametrize("name", NAMES)
def test_arrivals_are_poisson_of_the_stated_rate(name: str) -> None:
    trace = load_trace(FOLDER / f"{name}.jsonl")
    gaps = np.diff([r.arrival_ns for r in trace.requests]) / 1e9
    assert gaps.mean() * RATES[name] == pytest.approx(1, abs=4 / np.sqrt(len(gaps)))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.15)


def test_large_sample_has_rate_mean_and_quantiles() -> None:
    times = Poisson(rate=50.0).draw(50_000, stream(1, "arrivals"))
    assert times[0] == 0
    assert times == sorted(times)
    assert len(times) / (times[-1] / 1e9) == pytest.approx(50, rel=0.02)
    law = load_spec(FOLDER / "sharegpt.toml").classes[0].output
    lengths = law.lengths(stream(1, "x").random(200_000))
    assert np.mean(lengths) == pytest.approx(97, rel=0.01)
    assert np.percentile(lengths, [0, 50, 95, 99, 100]) == pytest.approx(
        [10, 37, 383, 474, 500], rel=0.02, abs=1
    )


@pytest.mark.parametrize("mean", [3.0, 20.0, 50.5, 70.0])
def test_exponent_meets_any_mean_the_quantiles_allow(mean: float) -> None:
    law = Quantiles(quantiles=((0, 1), (1, 100)), mean=mean)
    grid = (np.arange(100_000) + 0.5) / 100_000
    assert np.mean(law.lengths(grid)) == pytest.approx(mean, abs=0.05)


def test_quantile_law_ends_are_reached_and_never_left() -> None:
    law = Quantiles(quantiles=((0, 7), (0.5, 7), (1, 9)))
    assert law.lengths(np.array([0.0, 0.25, 1.0])) == [7, 7, 9]


def test_streams_are_independent_of_each_other(tmp_path: Path) -> None:
    """Another arrival rate changes no length; another seed changes everything."""
    one = load_spec(_spec(tmp_path, MINIMAL))
    two = load_spec(_spec(tmp_path, MINIMAL.replace("rate = 1.0", "rate = 9.0")))
    three = load_spec(_spec(tmp_path, MINIMAL.replace('name = "w"', 'name = "w"\nseed = 1')))
    assert columns(make_trace(one)) == columns(make_trace(two))
    assert columns(make_trace(one)) != columns(make_trace(three))
    arrivals = [[r.arrival_ns for r in make_trace(spec).requests] for spec in (one, two)]
    assert arrivals[0] != arrivals[1]


def test_independent_sampling_lets_class_counts_vary(tmp_path: Path) -> None:
    second = MINIMAL[MINIMAL.index("[[classes]]") :].replace('"a"', '"b"')
    text = MINIMAL.replace("= 5", "= 1000") + second
    counts = {
        sum(r.tenant == "a" for r in make_trace(load_spec(_spec(tmp_path, text, seed))).requests)
        for seed in range(5)
    }
    assert len(counts) > 1
    assert all(400 < count < 600 for count in counts)


def test_a_spec_for_one_request(tmp_path: Path) -> None:
    trace = make_trace(load_spec(_spec(tmp_path, MINIMAL.replace("= 5", "= 1"))))
    assert [r.arrival_ns for r in trace.requests] == [0]


BROKEN = [
    ("num_requests = 5", "num_request = 5", "workload.num_request", "Did you mean 'num_requests'?"),
    ("num_requests = 5", "num_requests = 0", "workload.num_requests", ">= 1"),
    ("num_requests = 5", 'num_requests = "5"', "workload.num_requests", "Expected `int`"),
    ("num_requests = 5", 'num_requests = 5\nsampling = "x"', "workload.sampling", "Invalid"),
    ('process = "poisson"', 'process = "poison"', "arrivals.process", "Did you mean 'poisson'?"),
    ('process = "poisson"', "", "arrivals.process", "missing"),
    ("rate = 1.0", "", "arrivals.rate", "missing"),
    ("rate = 1.0", "rate = -1", "arrivals.rate", "> 0"),
    ("rate = 1.0", "rate = nan", "arrivals.rate", ""),
    ("[1, 9]] }\noutput", "[0.9, 9]] }\noutput", "classes[0].input", "share 1"),
    ("[1, 9]] }\noutput", "[1, 0]] }\noutput", "classes[0].input.quantiles", ">= 1"),
    ("[[0, 1], [1, 9]] }\noutput", "[[0, 5], [1, 2]] }\noutput", "classes[0].input", "not fall"),
    ("[1, 9]] }\noutput", "[1, 9]], mean = 50 }\noutput", "classes[0].input", "cannot be"),
    ("[1, 9]] }\noutput", '[1, 9]], law = "no" }\noutput', "classes[0].input.law", "no law"),
    ("[1, 9]] }\noutput", "[1, 9]], median = 3 }\noutput", "classes[0].input.median", "unknown"),
    ('name = "a"', 'name = "a"\nweight = 0', "classes[0].weight", "> 0"),
    ('name = "a"', 'name = "a"\nshare = 1', "classes[0].share", "unknown key"),
    ("output = {", "outputs = {", "classes[0].outputs", "Did you mean 'output'?"),
    ("[[classes]]", "[[kinds]]", "kinds", "unknown key"),
    ("[[classes]]", "[classes]", "classes", "[[classes]] tables"),
    ("[arrivals]", "[[arrivals]]", "arrivals", "must be a table"),
    ("rate = 1.0", "rate = ", ":7", "not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "where", "what"), BROKEN)
def test_broken_spec_names_file_and_key(
    old: str, new: str, where: str, what: str, tmp_path: Path
) -> None:
    assert old in MINIMAL
    path = _spec(tmp_path, MINIMAL.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        load_spec(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert where in text
    assert what in text
    assert "\n" not in text


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"classes\[1\]\.name.*two classes"):
        load_spec(_spec(tmp_path, MINIMAL + MINIMAL[MINIMAL.index("[[classes]]") :]))


def test_writing_fails_without_leaving_anything(tmp_path: Path) -> None:
    trace = load_trace(FOLDER / "ldc.jsonl")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        write_trace(trace, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def _spec(folder: Path, text: str, seed: int | None = None) -> Path:
    path = folder / "spec.toml"
    if seed is not None:
        text = text.replace('name = "w"', f'name = "w"\nseed = {seed}')
    path.write_text(text, encoding="utf-8")
    return path
