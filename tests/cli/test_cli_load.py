"""Where requests arrive faster than they leave, every screen, page and JSON says so first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Outcome, write_trace

from nexusbench.comparison.load import Load
from nexusbench.results.reader import list_runs

Call = Callable[..., Outcome]
FASTER = "Requests arrive faster than they leave"
# Forty requests in 20 ms, and a pool for few of them.
HEAVY = ("--rate", "2000", "--kv-blocks", "60")


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def heavy(runs_of: Callable[..., list[str]]) -> list[str]:
    runs_of("--scheduler", "vllm,sglang", *HEAVY)
    return kept()


def kept() -> list[str]:
    """Runs of vllm first, whichever second they began in."""
    return sorted(list_runs(Path("results")), key=lambda run: "sglang" in run)


@pytest.mark.slow
def test_serve_trace_and_compare(call: Call, trace: Path) -> None:
    shown = call("serve-trace", trace, "--scheduler", "vllm,sglang", *HEAVY).out
    compared = call("compare", *kept()).out
    for text in (shown, compared):
        # Before any latency is shown.
        assert text.index(FASTER) < text.index("TTFT, ")
        assert "Simulated, overloaded: " in text
        line = plain(text)
        assert f"WARNING: {FASTER} in all runs (offered 2,000 req/s; finished while they" in line
        assert "not ended at the last arrival: vllm 40, sglang 40 of 40" in line
        assert "Latency then measures the backlog" in line
    calm = call("serve-trace", trace, "--scheduler", "vllm,sglang", "--no-save").out
    assert FASTER not in calm
    assert "Simulated: " in calm


@pytest.mark.slow
def test_json_has_the_same_as_fields(call: Call, heavy: list[str], trace: Path) -> None:
    document = json.loads(call("compare", *heavy, "--json").out)
    assert document["overloaded"] == ["vllm", "sglang"]
    assert list(document).index("overloaded") < list(document).index("runs")
    load = document["runs"][0]["load"]
    assert load["overloaded"] is True
    assert load["offered_rate"] == pytest.approx(2000)
    assert load["finished_rate"] == 0
    assert (load["left_behind"], load["offered"], load["finished"]) == (40, 40, 40)
    words = {price["words"] for price in document["prices"]}
    text = " ".join(document["verdict"])
    assert all(f"{word} is" in text for word in words)
    calm = json.loads(call("serve-trace", trace, "--no-save", "--json").out)
    assert calm["overloaded"] == []
    assert calm["runs"][0]["load"]["overloaded"] is False


@pytest.mark.slow
def test_one_of_two_loads(call: Call, heavy: list[str], trace: Path) -> None:
    """The columns are named by what differs, and the warning names the one."""
    assert call("serve-trace", trace, "--scheduler", "vllm", "--rate", "2").code == 0
    light = next(run for run in list_runs(Path("results")) if run not in heavy)
    vllm = next(run for run in heavy if "vllm" in run)
    done = call("compare", vllm, light)
    text = plain(done.out)
    assert f"{FASTER} in some runs (vllm, kv-blocks 60, rate 2000: offered 2,000 req/s" in text
    assert "Simulated, partly overloaded, over different loads (rate):" in text
    found = json.loads(call("compare", vllm, light, "--json").out)
    labels = [run["label"] for run in found["runs"]]
    assert labels == ["vllm, kv-blocks 60, rate 2000", "vllm, kv-blocks not given, rate 2"]
    assert found["overloaded"] == labels[:1]


def test_explain(call: Call, heavy: list[str]) -> None:
    for flags in ((), ("--request", "39")):
        text = call("explain", heavy[0], *flags).out
        assert text.index(FASTER) < text.index("TTFT" if flags else "request  ")
        document = json.loads(call("explain", heavy[0], *flags, "--json").out)
        assert document["load"]["overloaded"] is True


@pytest.mark.slow
def test_report(call: Call, heavy: list[str]) -> None:
    pytest.importorskip("plotly")
    done = call("report", *heavy, "-o", "page.html")
    assert done.code == 0, done.err
    assert done.out.startswith(f"Simulated: {FASTER}")
    page = Path("page.html").read_text()
    assert page.index(FASTER) < page.index('class="headline"')


@pytest.mark.slow
def test_sweep(call: Call, trace: Path) -> None:
    Path("s.toml").write_text(
        f'[base]\ntrace = "{trace}"\ndevice = "sim:l20"\nkv_blocks = 60\n[grid]\n'
        "request_rate = [1, 2000]\n"
    )
    done = call("sweep", "s.toml", "--no-progress", "--jobs", "1")
    assert done.code == 0, done.err
    text = plain(done.out)
    assert "WARNING: requests arrive faster than they leave in 1 of 2 rows" in text
    assert "2000 (offered 2,000, finished 0)" in text
    assert done.out.index("faster") < done.out.index("TTFT mean")
    assert "finished, %" not in done.out
    rows = [line.split()[:3] for line in done.out.splitlines() if line.strip()[:1] in "12"]
    assert ["1", "1", "no"] in rows
    assert ["2000", "1", "yes"] in rows
    document = json.loads(call("sweep", "s.toml", "--no-progress", "--json").out)
    assert [cell["load"]["overloaded"] for cell in document["cells"]] == [False, True]
    assert document["overloaded"] == [1]


def test_a_sweep_tells_where_not_all_finished(call: Call, trace: Path) -> None:
    """The longest prompts exceed what a request may hold under one of two limits."""
    Path("s.toml").write_text(
        f'[base]\ntrace = "{trace}"\ndevice = "sim:l20"\n[grid]\nmax_model_len = [300, 4000]\n'
    )
    done = call("sweep", "s.toml", "--no-progress", "--jobs", "1")
    rows = [line.split() for line in done.out.splitlines() if line.strip()[:4] in ("300 ", "4000")]
    assert "finished, %" in done.out
    assert float(rows[0][2]) == 60
    assert float(rows[1][2]) == 100


def test_regret(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write_trace(tmp_path / "few.jsonl", 4)
    heavy = Load(True, 9.0, 3.0, 30, 60, 60)
    monkeypatch.setattr("nexusbench.cli._regretting.load_of", lambda summary: heavy)
    flags = ("regret", trace, "--device", "sim:l20", "--sample", "1", "--partitioner", "fixed")
    done = call(*flags, "--no-progress")
    assert done.code == 0, done.err
    assert "offered 9 req/s, finished 3 req/s while they arrived, 30 of 60" in plain(done.out)
    assert done.out.index(FASTER) < done.out.index("regret:")
    (row,) = json.loads(call(*flags, "--no-progress", "--json").out)["rows"]
    assert row["load"]["overloaded"] is True


ADVISED = (
    "--device", "sim:l20", "--model", "qwen2.5-3b", "--scheduler", "vllm,sglang", "--jobs", "1",
    "--no-progress",
)  # fmt: skip


@pytest.mark.slow
def test_advise(call: Call, trace: Path) -> None:
    flags = ("advise", trace, *ADVISED, "--goodput", "ttft:200,tbt:50", "--chunks", "2048")
    done = call(*flags, "--seeds", "2", "--rate", "2000")
    assert done.code == 0, done.err
    text = plain(done.out)
    assert f"WARNING: {FASTER} in all runs (" in text
    assert "vllm + whole, 2048 tokens 40" in text
    assert done.out.index(FASTER) < done.out.index("within, %")
    assert "Simulated, overloaded: use " in text
    assert done.out.count("2 of 2") >= 2
    document = json.loads(call(*flags, "--seeds", "2", "--rate", "2000", "--json").out)
    assert len(document["overloaded"]) == 2
    assert list(document).index("overloaded") < list(document).index("advice")
    assert all(one["overloaded"] for one in document["final"])
    assert document["final"][0]["scores"][0]["load"]["left_behind"] == 40
    calm = call(*flags, "--seeds", "2", "--rate", "1")
    assert FASTER not in calm.out
    assert "overloaded" not in calm.out


@pytest.mark.slow
def test_capacity(call: Call, trace: Path) -> None:
    """An SLO that a short trace cannot break: the rate that is named is of a backlog."""
    flags = ("capacity", trace, *ADVISED, "--seeds", "2", "--precision", "50", "--goodput")
    done = call(*flags, "ttft:p99<60000")
    assert done.code == 0, done.err
    text = plain(done.out)
    assert "WARNING: At the rates named below: requests arrive faster than they leave" in text
    assert "A longer trace would give a lower rate" in text
    assert done.out.index("faster") < done.out.index("worst seed")
    assert "Simulated, overloaded: " in text
    document = json.loads(call(*flags, "ttft:p99<60000", "--json").out)
    assert document["overloaded"] == ["vllm", "sglang"]
    first = document["capacities"][0]
    assert first["overloaded"] == 2
    assert first["found"][0]["load"]["overloaded"] is True
    calm = call(*flags, "ttft:max<60")
    assert calm.code == 0, calm.err
    assert "faster than they leave" not in calm.out


@pytest.mark.slow
def test_groups_of_which_fewer_finished_are_marked(call: Call, trace: Path) -> None:
    """All short prompts were served under both, of the long ones none under one."""
    for limit in ("4000", "300"):
        done = call("serve-trace", trace, "--scheduler", "vllm", "--max-model-len", limit)
        assert done.code == 0, done.err
    done = call("compare", *kept(), "--by", "prompt-length")
    rows = [line for line in done.out.splitlines() if line.startswith((" TTFT mean", "  "))]
    table = done.out[done.out.index("by prompt length") :]
    assert "! a smaller share of these requests finished than under another" in plain(table)
    assert any(row.count("!") == 1 for row in rows)
    shortest = next(line for line in table.splitlines() if line.startswith(" TTFT mean"))
    assert "!" not in shortest
    same = call("compare", kept()[0], kept()[0], "--by", "prompt-length").out
    assert "!" not in same[same.index("by prompt length") :]


@pytest.mark.slow
def test_groups_of_other_traces_are_all_shown(call: Call, trace: Path) -> None:
    for limit in ("40", "8"):
        done = call("serve-trace", trace, "--scheduler", "vllm", "--limit", limit)
        assert done.code == 0, done.err
    runs = kept()
    names = {
        row["group"]
        for run in json.loads(call("compare", *runs, "--by", "prompt-length", "--json").out)["runs"]
        for row in run["groups"]["prompt-length"]
    }
    shown = call("compare", *runs, "--by", "prompt-length").out
    assert all(name in shown for name in names)
