"""What a spec can ask for beyond lengths and Poisson arrivals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nexusbench.core.errors import InputError
from nexusbench.workloads.arrivals import PROCESSES, Closed, Constant, Diurnal, Gamma, _gamma
from nexusbench.workloads.base import MAX_TOKENS, Trace
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.lengths import Exponential, FixedLength, Lognormal
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.statistics import describe_trace, prefix_ceiling
from nexusbench.workloads.streams import stream
from nexusbench.workloads.trace import load_trace, prefix_ids, write_trace
from tests.examples import sample

HEAD = """
[workload]
name = "w"
num_requests = 400
seed = 3
[arrivals]
process = "poisson"
rate = 5.0
"""
CLASS = """
[[classes]]
name = "chat"
input = { law = "lognormal", median = 100, sigma = 0.8 }
output = { law = "exponential", mean = 40 }
"""
FOREST = """
[prefixes]
trees = 3
depth = 2
fanout = 2
tokens = 64
zipf = 1.0
share = 0.75
"""
SESSIONS = """
[sessions]
turns = { quantiles = [[0, 1], [1, 6]] }
think_time = { law = "fixed", value = 2000 }
"""
PATIENCE = """
[timeouts]
share = 0.5
after = { law = "fixed", value = 30000 }
[cancellations]
share = 0.1
after = { law = "exponential", mean = 5000 }
"""


def made(folder: Path, *parts: str) -> Trace:
    path = folder / "spec.toml"
    path.write_text("".join(parts))
    return make_trace(load_spec(path))


@pytest.mark.parametrize(("cv", "tolerance"), sample([(0.25, 0.02), (1.0, 0.03), (3.0, 0.1)], 3))
def test_gamma_has_its_rate_and_cv(cv: float, tolerance: float) -> None:
    gaps = np.diff(Gamma(rate=8.0, cv=cv).draw(40_000, stream(1, "a"))) / 1e9
    assert 1 / gaps.mean() == pytest.approx(8, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=tolerance)


def test_gamma_arrivals_of_cv_1_are_poisson() -> None:
    """Short gaps, too: their share is what accepting every draw changes most."""
    gaps = np.diff(Gamma(rate=1.0, cv=1.0).draw(4000, stream(1, "a"))) / 1e9
    for gap in (0.02, 0.1, 0.5, 1.0, 2.0):
        share = 1 - np.exp(-gap)
        tolerance = 4 * np.sqrt(share * (1 - share) / len(gaps))
        assert (gaps <= gap).mean() == pytest.approx(share, abs=tolerance), gap


@pytest.mark.parametrize("shape", [1.0, 4.0])
def test_nearly_every_gamma_draw_is_accepted(shape: float) -> None:
    """Marsaglia and Tsang 2000: more than 95 % for a shape of 1 or more."""
    rng, draws = stream(1, "a"), 0

    class Counted:
        def random(self, count: int) -> np.ndarray:
            nonlocal draws
            draws += 1
            return rng.random(count)

    for _ in range(1000):
        _gamma(shape, Counted())  # type: ignore[arg-type]
    assert 1000 < draws < 1000 / 0.93


def test_constant_does_not_drift() -> None:
    times = Constant(rate=3.0).draw(300_001, stream(1, "a"))
    assert times[-1] == 100_000 * 10**9
    assert set(np.diff(times).tolist()) == {333_333_000, 333_334_000}


def test_diurnal_follows_its_curve_and_begins_again() -> None:
    curve = Diurnal(rates=((0, 0), (100, 20), (150, 20), (200, 0)))
    times = np.array(curve.draw(50_000, stream(1, "a"))) / 1e9
    counts = np.histogram(times % 200, bins=[0, 50, 100, 150, 200])[0]
    # The area under each quarter: 250, 750, 1000, 500.
    assert counts / counts.sum() == pytest.approx([0.1, 0.3, 0.4, 0.2], abs=0.01)
    assert times[-1] / 200 == pytest.approx(50_000 / 2500, rel=0.02)
    assert all(after >= before for before, after in pairwise(times.tolist()))


def test_closed_loop_has_users_and_no_times(tmp_path: Path) -> None:
    spec = HEAD.replace('"poisson"\nrate = 5.0', '"closed"\nconcurrency = 7')
    trace = made(tmp_path, spec, CLASS)
    assert (trace.concurrency, {r.arrival_ns for r in trace.requests}) == (7, {0})
    assert "closed loop of 7 users" in trace.notes[0]
    assert Closed(concurrency=7).users == 7


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_begins_at_zero(name: str) -> None:
    examples = {
        "diurnal": {"rates": ((0, 1), (9, 2))},
        "gamma": {"rate": 2, "cv": 2},
        "closed": {"concurrency": 1},
    }
    process = PROCESSES[name](**examples.get(name, {"rate": 2}))
    assert process.draw(1, stream(0, "a")) == [0]
    assert process.draw(5, stream(0, "a"))[0] == 0


@pytest.mark.slow
def test_laws_have_their_moments() -> None:
    uniform = stream(1, "x").random(200_000)
    assert FixedLength(value=9).lengths(uniform[:3]) == [9, 9, 9]
    assert np.mean(Exponential(mean=300).lengths(uniform)) == pytest.approx(300, rel=0.01)
    by_median = np.array(Lognormal(median=200, sigma=1.0).lengths(uniform))
    assert np.median(by_median) == pytest.approx(200, rel=0.01)
    assert np.log(by_median).std() == pytest.approx(1, rel=0.01)
    by_mean = np.array(Lognormal(mean=1000, cv=0.5).lengths(uniform))
    assert by_mean.mean() == pytest.approx(1000, rel=0.01)
    assert by_mean.std() / by_mean.mean() == pytest.approx(0.5, rel=0.01)
    cut = Lognormal(median=200, sigma=2.0, least=50, most=400).lengths(
        np.array([0.0, 0.5, 1 - 1e-9])
    )
    assert cut == [50, 200, 400]


def test_length_table_is_drawn_row_by_row(tmp_path: Path) -> None:
    pairs = [(10 * i, i) for i in range(1, 51)]
    rows = "\n".join(f"x,{p},{o}" for p, o in pairs)
    (tmp_path / "t.csv").write_text(f"id,num_prefill_tokens,num_decode_tokens\n{rows}\n")
    table = '[[classes]]\nname = "t"\nlengths = { file = "t.csv" }\n'
    trace = made(tmp_path, HEAD, table)
    found = {(r.prompt_tokens, r.output_tokens) for r in trace.requests}
    assert found <= set(pairs)
    assert len(found) == 50
    stratified = HEAD.replace("seed = 3", 'seed = 3\nsampling = "stratified"')
    counts = np.bincount([r.output_tokens for r in made(tmp_path, stratified, table).requests])
    assert set(counts[1:].tolist()) == {8}


def test_prefix_forest_shares_whole_paths(tmp_path: Path) -> None:
    trace = made(tmp_path, HEAD, CLASS, FOREST)
    assert trace.hash_block == 16
    assert all(len(r.hash_ids) == -(-r.prompt_tokens // 16) for r in trace.requests)
    counts: dict[tuple[int, ...], int] = {}
    for r in trace.requests:
        counts[r.hash_ids[:4]] = counts.get(r.hash_ids[:4], 0) + 1
    trees = sorted((count for count in counts.values() if count > 1), reverse=True)
    assert len(trees) == 3
    assert sum(trees) == pytest.approx(300, abs=30)
    assert trees[0] / sum(trees) == pytest.approx(6 / 11, abs=0.08)  # 1, 1/2, 1/3
    paths = {r.hash_ids[:8] for r in trace.requests if counts[r.hash_ids[:4]] > 1}
    assert len(paths) == 6
    ceiling = prefix_ceiling(trace)
    assert ceiling is not None
    # 8 blocks of each shared prompt, but for the first on its path; nothing else is shared.
    blocks = sum(len(r.hash_ids) for r in trace.requests)
    assert ceiling.blocks == pytest.approx(100 * (8 * sum(trees) - 3 * 4 - 6 * 4) / blocks)
    prompts = sum(r.prompt_tokens for r in trace.requests)
    assert ceiling.tokens == pytest.approx(
        100 * 16 * (8 * sum(trees) - 3 * 4 - 6 * 4) / prompts, rel=1e-9
    )


def test_session_prompts_contain_what_went_before(tmp_path: Path) -> None:
    trace = made(tmp_path, HEAD, CLASS, FOREST, SESSIONS)
    chains = prefix_ids(trace, 16)
    sizes: dict[str, int] = {}
    for index, r in enumerate(trace.requests):
        sizes[r.session] = sizes.get(r.session, 0) + 1
        assert r.turn == sizes[r.session] - 1
        assert r.follows == (r.turn > 0)
        if r.follows:
            before = trace.requests[index - 1]
            context = before.prompt_tokens + before.output_tokens
            assert (r.think_ns, r.tenant) == (2_000_000_000, before.tenant)
            assert r.prompt_tokens > context
            whole = before.prompt_tokens // 16
            assert chains[index][:whole] == chains[index - 1][:whole]
    assert len(trace.requests) == 400
    assert max(sizes.values()) == 6
    facts = describe_trace(trace).sessions
    assert facts.sessions == len(sizes)
    assert facts.think_s_mean == 2.0


def test_max_context_ends_sessions(tmp_path: Path) -> None:
    trace = made(tmp_path, HEAD, CLASS, SESSIONS, "max_context = 600\n")
    assert all(r.prompt_tokens + r.output_tokens <= 600 for r in trace.requests if r.turn)
    lost = 400 - len(trace.requests)
    assert lost > 0
    assert trace.notes[1].startswith(f"{lost:,} later turns left out")


def test_a_share_of_1_is_all_prompts_and_more_is_refused(tmp_path: Path) -> None:
    whole = HEAD.replace("400", "20") + CLASS + FOREST.replace("0.75", "1.0")
    trace = made(tmp_path, whole)
    roots = {request.hash_ids[0] for request in trace.requests}
    assert len(roots) <= 3
    with pytest.raises(InputError, match=r"'prefixes\.share'.*<= 1\.0"):
        made(tmp_path, whole.replace("share = 1.0", "share = 1.1"))


def test_patience_is_a_share_of_the_requests(tmp_path: Path) -> None:
    trace = made(tmp_path, HEAD, CLASS, PATIENCE)
    assert sum(r.timeout_ns == 30_000_000_000 for r in trace.requests) == pytest.approx(200, abs=30)
    cancels = [r.cancel_after_ns for r in trace.requests if r.cancel_after_ns]
    assert len(cancels) == pytest.approx(40, abs=18)
    found = describe_trace(trace).patience
    assert found.timeout_s_mean == 30
    assert found.cancellations == len(cancels)


def test_tenants_have_zipf_shares(tmp_path: Path) -> None:
    trace = made(tmp_path, HEAD, CLASS, "[tenants]\ncount = 4\nzipf = 1.0\n")
    shares = describe_trace(trace).tenants
    assert list(shares) == ["tenant-0", "tenant-1", "tenant-2", "tenant-3"]
    assert shares["tenant-0"] / 400 == pytest.approx(12 / 25, abs=0.08)


def test_each_part_has_a_stream_of_its_own(tmp_path: Path) -> None:
    """Adding or changing one leaves the others as they are."""
    plain = made(tmp_path, HEAD, CLASS)
    full = made(tmp_path, HEAD, CLASS, FOREST, PATIENCE, "[tenants]\ncount = 2\n")
    for one, two in zip(plain.requests, full.requests, strict=True):
        assert one.arrival_ns == two.arrival_ns
        assert one.output_tokens == two.output_tokens
        assert two.prompt_tokens - one.prompt_tokens in (0, 128)
    alone = made(tmp_path, HEAD, CLASS, PATIENCE)
    assert [r.timeout_ns for r in alone.requests] == [r.timeout_ns for r in full.requests]


def test_everything_together_comes_back_from_its_file(tmp_path: Path) -> None:
    trace = made(tmp_path, HEAD, CLASS, FOREST, SESSIONS, PATIENCE)
    write_trace(trace, tmp_path / "t.jsonl")
    assert load_trace(tmp_path / "t.jsonl").requests == trace.requests
    again = made(tmp_path, HEAD, CLASS, FOREST, SESSIONS, PATIENCE)
    write_trace(again, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "t.jsonl").read_bytes()


FAULTS = {
    "unknown process": ("", HEAD.replace("poisson", "poison") + CLASS, "arrivals.process", "Did"),
    "gamma without cv": ("", HEAD.replace("poisson", "gamma") + CLASS, "arrivals.cv", "missing"),
    "curve of zeros": (
        "",
        HEAD.replace('"poisson"\nrate = 5.0', '"diurnal"\nrates = [[0, 0], [9, 0]]') + CLASS,
        "arrivals", "brings no request"),
    "curve not from zero": (
        "",
        HEAD.replace('"poisson"\nrate = 5.0', '"diurnal"\nrates = [[1, 1], [9, 1]]') + CLASS,
        "arrivals", "first at second 0"),
    "curve goes back": (
        "",
        HEAD.replace('"poisson"\nrate = 5.0', '"diurnal"\nrates = [[0, 1], [9, 1], [8, 1]]')
        + CLASS,
        "arrivals", "must grow"),
    "median and mean": (
        "", HEAD + CLASS.replace("sigma = 0.8", "mean = 9"), "classes[0].input", "and sigma"),
    "least above most": (
        "", HEAD + CLASS.replace("sigma = 0.8", "sigma = 1, least = 9, most = 3"),
        "classes[0].input", "above most"),
    "no lengths": ("", HEAD + '[[classes]]\nname = "a"\n', "classes[0].input", "missing"),
    "table and law": (
        "", HEAD + CLASS + 'lengths = { file = "t.csv" }\n', "classes[0].input", "unknown"),
    "node not whole blocks": (
        "", HEAD + CLASS + "[prefixes]\ntokens = 50\n", "prefixes.tokens", "multiple"),
    "share above 1": (
        "", HEAD + CLASS + PATIENCE.replace("0.5", "1.5"), "timeouts.share", "<= 1.0"),
    "sessions without turns": ("", HEAD + CLASS + "[sessions]\n", "sessions.turns", "missing"),
    "unknown key": ("", HEAD + CLASS + SESSIONS + "x = 1\n", "sessions.x", "unknown"),
    "timeouts are no table": ("timeouts = 3\n", HEAD + CLASS, "timeouts", "must be a table"),
    "empty file name": (
        "", HEAD + '[[classes]]\nname = "a"\nlengths = { file = "" }\n',
        "classes[0].lengths.file", "path"),
}  # fmt: skip


def test_a_context_that_is_not_given_is_bounded_by_what_a_trace_can_hold(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(HEAD + CLASS + SESSIONS)
    sessions = load_spec(tmp_path / "spec.toml").sessions
    assert sessions is not None
    assert sessions.max_context == MAX_TOKENS


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_specs_are_located(name: str, tmp_path: Path) -> None:
    before, text, field, says = FAULTS[name]
    with pytest.raises(InputError) as caught:
        made(tmp_path, before, text)
    assert f"field '{field}'" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("a,b\n1,2\n", 1, "missing column"),
        ("num_prefill_tokens,num_decode_tokens\n1,2\n3\n", 3, "1 columns instead of 2"),
        ("num_prefill_tokens,num_decode_tokens\n0,2\n", 2, "not '0'"),
        ("num_prefill_tokens,num_decode_tokens\n2,0\n", 2, "not '0'"),
        ("num_prefill_tokens,num_decode_tokens\n", None, "no rows"),
    ],
)
def test_faults_of_tables_are_located(
    content: str, line: int | None, says: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        made(tmp_path, HEAD, '[[classes]]\nname = "t"\nlengths = { file = "t.csv" }\n')
    assert caught.value.line == line
