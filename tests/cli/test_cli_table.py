"""The table and the verdict: marks, units, directions, seeds, narrow terminals."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nexusbench.cli._policies import pair_policies, split_policies
from nexusbench.cli._screen import show_columns
from nexusbench.cli._seeds import paired_differences, seeds_lines
from nexusbench.comparison.alike import different_loads, find_warnings, label_apart
from nexusbench.comparison.answers import answers
from nexusbench.comparison.headline import find_claims, headline
from nexusbench.comparison.rows import TableRow, decimals, make_rows
from nexusbench.comparison.verdict import prices, verdict
from nexusbench.comparison.view import Column, RunView, by_label
from nexusbench.core.errors import UsageError
from nexusbench.core.events import EventLog
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import describe, summarise
from nexusbench.report.tiles import make_tiles

FACTS = {
    "simulated": True, "num_sms": 8, "kv_blocks": 10, "block_size": 16, "partitions": ("all",),
}  # fmt: skip
NOTHING: dict[str, Any] = {
    name: []
    for name in ("request", "id", "tenant", "arrival", "prompt_tokens", "output_tokens")
} | {"max_tokens": []}  # fmt: skip


def view(label: str, status: str = "complete", seed: int = 0, **values: Any) -> RunView:
    """A run whose metrics are given: a list for a distribution, a number for a scalar."""
    summary = summarise(RunEvents.from_log(EventLog(), NOTHING, FACTS))
    for tag, value in values.items():
        if isinstance(value, list):
            summary["metrics"][tag].update(describe(np.array(value, dtype=float)))
        else:
            summary["metrics"][tag]["value"] = value
    resolved = {"gpu": {"sim": {"jitter": 0.02}}, "decision_us": {"mean": 5.0}}
    return RunView(label, status, True, {"seed": seed}, resolved, summary)


def rows_of(*views: RunView) -> dict[tuple[str, str], TableRow]:
    """Rows by title (of the metric) and statistic."""
    rows, title = {}, ""
    for row in make_rows(by_label(views)):
        title = row.title.strip() or title
        rows[title, row.name] = row
    return rows


def marks(row: TableRow) -> list[bool]:
    return [cell.best for cell in row.cells]


def test_best_follows_the_direction_and_ties_share_it() -> None:
    rows = rows_of(
        view("a", ttft=[10.0], output_throughput=50.0, preemptions=0, kv_use_mean=1.0),
        view("b", ttft=[20.0], output_throughput=70.0, preemptions=0, kv_use_mean=2.0),
        view("c", ttft=[10.0], output_throughput=70.0, preemptions=0, kv_use_mean=3.0),
    )
    assert marks(rows["TTFT, ms", "mean"]) == [True, False, True]
    assert marks(rows["output throughput", "tok/s"]) == [False, True, True]
    # Where all are equal nothing is best, and KV use has no better side.
    assert marks(rows["preemptions", ""]) == [False, False, False]
    assert marks(rows["KV use, mean", "%"]) == [False, False, False]


def test_values_that_read_the_same_share_the_mark() -> None:
    rows = rows_of(view("a", ttft=[100.01]), view("b", ttft=[100.02]), view("c", ttft=[300.0]))
    assert marks(rows["TTFT, ms", "mean"]) == [True, True, False]


def test_a_partial_run_is_never_best() -> None:
    rows = rows_of(
        view("a", "killed or still running", ttft=[1.0]), view("b", ttft=[20.0]),
        view("c", ttft=[30.0]),
    )  # fmt: skip
    assert marks(rows["TTFT, ms", "mean"]) == [False, True, False]


def test_one_run_is_not_best_of_anything() -> None:
    assert marks(rows_of(view("a", ttft=[1.0]))["TTFT, ms", "mean"]) == [False]


def test_weak_percentiles_are_marked() -> None:
    rows = rows_of(view("a", ttft=[float(n) for n in range(300)]))
    assert rows["TTFT, ms", "p99"].cells[0].marked.endswith("~")
    assert not rows["TTFT, ms", "p95"].cells[0].weak


def test_parts_of_ttft_share_its_unit() -> None:
    rows = rows_of(view("a", ttft=[2500.0], ttft_queueing=[2400.0], ttft_service=[100.0]))
    assert rows["TTFT, s", "mean"].cells[0].text == "2.50"
    assert rows["service, s", "mean"].cells[0].text == "0.100"


def test_no_value_is_a_dash_and_no_row_where_nobody_has_one() -> None:
    rows = rows_of(view("a", ttft=[10.0]), view("b"))
    assert [cell.text for cell in rows["TTFT, ms", "mean"].cells] == ["10", "-"]
    assert ("goodput", "req/s") not in rows
    assert ("rejected", "") not in rows


@pytest.mark.parametrize(
    ("values", "places"),
    [([1.0, 2000.0], 0), ([0.0], 0), ([45.25, 1272.9], 1), ([0.82, 16.1], 2), ([1.645, 1.8], 2),
     ([0.0691, 0.012], 3), ([1234.5, 2000.5], 0), ([], 0)],
)  # fmt: skip
def test_decimals(values: list[float], places: int) -> None:
    assert decimals(values) == places


def test_verdict_names_winner_and_factors() -> None:
    columns = by_label(
        [
            view("a", ttft=[1000.0], tbt=[50.0], output_throughput=100.0),
            view("b", ttft=[2300.0], tbt=[50.2], output_throughput=120.0),
        ]
    )
    text = " ".join(verdict(columns))
    assert "a has the lowest mean TTFT (1.00 s: 2.3x lower than b)" in text
    assert "P99 TBT is the same for all within 1 %" in text
    assert "b has the highest output throughput (120.0 tok/s: 20.0 % higher than a)" in text
    assert verdict(columns[:1]) == []


def test_why_names_the_first_rival_that_is_not_level() -> None:
    parts = {"ttft_queueing": [60.0], "ttft_service": [40.0]}
    near = [view("a", ttft=[100.0], **parts), view("b", ttft=[100.5], **parts)]
    assert "Why:" not in " ".join(verdict(by_label(near)))
    text = " ".join(verdict(by_label([*near, view("c", ttft=[200.0], **parts)])))
    assert "Why: mean TTFT is a 60.0 ms in the queue + 40.0 ms in service; c 60.0 ms" in text


def test_the_price_of_the_best_mean_ttft() -> None:
    dear = [view("a", ttft=[100.0], tbt=[90.0]), view("b", ttft=[200.0], tbt=[30.0])]
    assert verdict(by_label(dear))[-1] == (
        "The price: a's p99 TBT is 90.0 ms, 3.0x that of b; b's p95 TTFT is 200.0 ms, 2.0x that of "
        "a, its p99 TTFT is 200.0 ms, 2.0x that of a."
    )
    fair = [view("a", ttft=[100.0], tbt=[30.2]), view("b", ttft=[200.0], tbt=[30.0])]
    assert "The price" not in " ".join(verdict(by_label(fair)))


@pytest.mark.parametrize(
    ("words", "tag"),
    [
        ("p95 TTFT", "ttft"), ("p99 TTFT", "ttft"), ("p99 end to end", "e2e"), ("p99 TBT", "tbt"),
        ("mean TTFT of the longest prompts", "ttft_long_prompts"),
    ],
)  # fmt: skip
def test_every_tail_that_is_worse_by_more_than_its_noise_is_a_price(words: str, tag: str) -> None:
    """A long tail under a low mean: nine of ten are fast, one is slow."""
    slow = [10.0] * 90 + [130.0] * 10
    views = [view("a", ttft=[10.0] * 100), view("b", ttft=[100.0] * 100)]
    for one, values in zip(views, (slow, [100.0] * 100), strict=True):
        one.summary["metrics"][tag].update(describe(np.array(values)))
        if tag == "ttft_long_prompts":
            one.summary["metrics"][tag]["mean"] = 130.0 if one.label == "a" else 100.0
    columns = by_label(views)
    assert f"{words} is 130.0 ms, 30 % above that of b" in " ".join(verdict(columns))
    (price,) = [price for price in prices(columns) if price.words == words]
    assert (price.value, price.best, price.best_value) == (130.0, "b", 100.0)
    # The same, where parts of the run differ by as much: no price to count on.
    name = price.statistic
    for one, factor in zip(views, (1, -1), strict=True):
        one.summary["left_out"][tag] = {name: [100.0 + factor * 20 * (n % 2) for n in range(10)]}
    assert words not in " ".join(verdict(columns))


def test_a_lead_within_the_noise_of_one_run_is_no_win() -> None:
    views = [view("a", ttft=[100.0]), view("b", ttft=[110.0])]
    columns = by_label(views)
    assert "a has the lowest mean TTFT" in verdict(columns)[0]
    assert not find_claims(columns)[0].open
    # In half of its parts a is ahead, in the others b.
    for one, sign in zip(views, (1, -1), strict=True):
        one.summary["left_out"]["ttft"] = {"mean": [105.0 + sign * 9 * (-1) ** n for n in range(8)]}
    assert verdict(columns)[0].startswith("Mean TTFT is the same for all within the noise of one")
    assert find_claims(columns)[0].open
    # What the trace does to both is no noise of the difference, however much it is.
    for one in views:
        one.summary["left_out"]["ttft"] = {"mean": [100.0 * (n + 1) for n in range(8)]}
    assert "a has the lowest mean TTFT" in verdict(columns)[0]


def test_whatever_leads_has_its_price() -> None:
    """The mean TTFT is level for both; one has the better TBT, and pays with a tail."""
    views = [view("a", ttft=[100.0] * 99 + [120.0]), view("b", ttft=[100.0] * 99 + [120.0])]
    for one, tail, gap in zip(views, (900.0, 120.0), (10.0, 40.0), strict=True):
        one.summary["metrics"]["ttft"]["p99"] = tail
        one.summary["metrics"]["tbt"].update(describe(np.array([gap])))
    assert "Mean TTFT is the same for all" in verdict(by_label(views))[0]
    assert "The price: a's p99 TTFT is 900.0 ms, 7.5x that of b." in verdict(by_label(views))
    assert [(price.winner, price.words) for price in prices(by_label(views))] == [("a", "p99 TTFT")]


def test_requests_that_were_turned_away_give_no_lead_in_latency() -> None:
    fast: dict[str, Any] = {"ttft": [1.0], "tbt": [1.0], "e2e": [5.0]}
    slow: dict[str, Any] = {"ttft": [2.0], "tbt": [2.0], "e2e": [9.0]}
    views = [view("a", offered=10, finished=9, output_throughput=5.0, **fast)]
    views.append(view("b", offered=10, finished=10, output_throughput=9.0, **slow))
    columns = by_label(views)
    text = " ".join(verdict(columns))
    assert "a 9 of 10, b 10 of 10" in text
    assert "a cannot lead in them" in text
    assert "lowest" not in text
    assert [claim.words for claim in find_claims(columns)] == ["output throughput"]
    rows = rows_of(*views)
    assert marks(rows["TTFT, ms", "mean"]) == [False, False]
    assert marks(rows["output throughput", "tok/s"]) == [False, True]
    # A third that finished all may be compared with the second.
    third = view("c", offered=20, finished=20, ttft=[4.0], tbt=[4.0], output_throughput=1.0)
    assert "b has the lowest mean TTFT (2.0 ms: 2.0x lower than c)" in " ".join(
        verdict(by_label([*views, third]))
    )


def test_nor_in_throughput() -> None:
    """What answers half of a burst has done sooner; but a lead in spite of that is one."""
    views = [view("a", offered=10, finished=5, output_throughput=9.0, ttft=[9.0])]
    views.append(view("b", offered=10, finished=10, output_throughput=5.0, ttft=[2.0]))
    columns = by_label(views)
    text = " ".join(verdict(columns))
    assert "throughput (" not in text
    assert "b has the lowest mean TTFT (2.0 ms: 4.5x lower than a)" in text
    assert "b has the lowest mean TTFT" in headline(columns).claim
    rows = rows_of(*views)
    assert marks(rows["output throughput", "tok/s"]) == [False, False]
    assert marks(rows["TTFT, ms", "mean"]) == [False, True]
    # Within the noise of the leader it is no co-leader.
    near = view("c", offered=10, finished=5, output_throughput=1.0, ttft=[2.01])
    assert "c" not in find_claims(by_label([*views, near]))[0].winners
    # Nothing to lead in: none is called level with what turned half away.
    views[0].summary["metrics"]["ttft"]["mean"] = 1.0
    assert headline(by_label(views)).claim.startswith("None has a lead.")
    assert "5 of 10" in headline(by_label(views)).claim


def test_no_tile_of_a_page_marks_who_turned_requests_away() -> None:
    views = [view("a", offered=10, finished=9, ttft=[1.0], output_throughput=9.0)]
    views += [view("b", offered=10, finished=10, ttft=[2.0], output_throughput=5.0)]
    views += [view("c", offered=10, finished=10, ttft=[4.0], output_throughput=1.0)]
    # One that lost some is no winner for being level with the winner either.
    views += [view("d", offered=10, finished=9, ttft=[2.01], output_throughput=1.0)]
    entries: list[Any] = [SimpleNamespace(column=column, tone=0) for column in by_label(views)]
    best = {tile.title: [bar.best for bar in tile.bars] for tile in make_tiles(entries)}
    assert best["Mean TTFT"] == [False, True, False, False]
    assert best["Output throughput"] == [False, True, False, False]


def test_long_requests_turned_away_for_short_ones_give_no_lead_either() -> None:
    """As many finished, but not the same ones: of the tokens that were offered fewer."""
    views = [view("a", offered=10, finished=9, finished_work=60.0, ttft=[1.0])]
    views.append(view("b", offered=10, finished=9, finished_work=95.0, ttft=[2.0]))
    assert "a cannot lead in them" in verdict(by_label(views))[-1]


def test_over_seeds_who_turned_requests_away_is_not_better() -> None:
    def better(finished: int) -> tuple[object, object]:
        views = [view("a", seed=s, offered=9, finished=9, ttft=[9.0 + s], output_throughput=5.0)
                 for s in range(3)]  # fmt: skip
        views += [
            view("b", seed=s, offered=9, finished=finished, ttft=[1.0 + s], output_throughput=9.0)
            for s in range(3)
        ]
        found = paired_differences(by_label(views))["b"]
        return found["ttft"]["mean"]["better"], found["output_throughput"]["value"]["better"]

    assert better(9) == ("b", "b")
    assert better(8) == (None, None)


def test_verdict_over_seeds_needs_intervals_apart() -> None:
    near = [view("a", seed=s, ttft=[100.0 + 30 * s]) for s in range(3)]
    near += [view("b", seed=s, ttft=[110.0 + 30 * s]) for s in range(3)]
    assert "same for all within 1 % or the spread over seeds" in verdict(by_label(near))[0]
    far = near[:3] + [view("b", seed=s, ttft=[900.0 + s]) for s in range(3)]
    assert "a has the lowest mean TTFT" in verdict(by_label(far))[0]


def test_seeds_say_what_they_vary() -> None:
    views = [view("a", seed=s, ttft=[1.0]) for s in range(2)]
    assert "step-time noise" in seeds_lines(by_label(views))[0]
    for one in views:
        one.resolved = {"gpu": {"sim": {"jitter": 0.0}}}
    assert "every seed gives the same run" in seeds_lines(by_label(views))[0]


def test_narrow_terminals_get_several_tables() -> None:
    columns = [Column(f"scheduler-{n}", [view(f"scheduler-{n}", ttft=[n + 1.0])]) for n in range(9)]
    stream = io.StringIO()
    show_columns(Console(file=stream, width=90), columns)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 90
    assert sum("scheduler-0" in line for line in lines if "has the" not in line) == 1
    assert all(any(f"scheduler-{n}" in line for line in lines) for n in range(9))
    assert "\x1b" not in stream.getvalue()


def test_columns_move_together_before_the_table_is_cut() -> None:
    """Three schedulers beside each other in 80 columns: the first thing that anybody runs."""
    names = ("nexus-first", "vllm-second", "sglang-third")
    columns = [Column(name, [view(name, ttft=[1.0], tbt=[2.0])]) for name in names]
    widths = []
    for width in (100, 70):
        stream = io.StringIO()
        show_columns(Console(file=stream, width=width), columns)
        heads = [line for line in stream.getvalue().splitlines() if "  nexus-first" in line]
        assert [all(name in line for name in names) for line in heads] == [True]
        widths.append(len(heads[0]))
    assert widths[0] > 70 >= widths[1]


def test_differences_over_seeds_fold_too() -> None:
    views = [
        view(f"scheduler-{n}", seed=seed, ttft=[900.0 * (n + 1) + seed])
        for n in range(4) for seed in range(3)
    ]  # fmt: skip
    stream = io.StringIO()
    show_columns(Console(file=stream, width=90), by_label(views))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 90
    rows = [line for line in lines if line.startswith(" TTFT mean")]
    assert len(rows) == 3
    # One unit for all, as in a table that is not folded.
    assert all(row.split()[2] == "s" for row in rows)


def test_differences_that_are_negligible_have_no_better_side() -> None:
    def better(factor: float) -> object:
        views = [view("a", seed=seed, ttft=[1000.0 + seed]) for seed in range(3)]
        views += [view("b", seed=seed, ttft=[factor * 1000.0 + seed]) for seed in range(3)]
        return paired_differences(by_label(views))["b"]["ttft"]["mean"]["better"]

    assert better(1.004) is None
    assert better(1.02) == "a"


def test_warnings_group_runs_by_value() -> None:
    views = [view(f"run {n}") for n in range(9)]
    for n, one in enumerate(views):
        one.resolved["device"] = "sim:h200" if n == 8 else "sim:l20"
        one.resolved["limits"] = {"max_num_seqs": 8 if n else 4, "max_model_len": 99}
        one.status = "interrupted" if n < 2 else "complete"
    assert find_warnings(views) == [
        "the runs differ in device: sim:l20 ('run 0', 'run 1', 'run 2' and 5 more); "
        "sim:h200 ('run 8')",
        "the runs differ in limits: max_num_seqs:4 ('run 0'); "
        "max_num_seqs:8 ('run 1', 'run 2', 'run 3' and 5 more)",
        "interrupted: 'run 0', 'run 1'; numbers are of the part that was kept, never called best",
    ]


def test_no_color_leaves_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    columns = by_label([view("a", ttft=[10.0]), view("b", ttft=[20.0])])
    show_columns(Console(file=stream, width=100, force_terminal=True), columns)
    assert "10*" in stream.getvalue()
    assert "\x1b[32m" not in stream.getvalue()
    assert "\x1b[1;32m" not in stream.getvalue()


def test_labels_tell_apart() -> None:
    same = [view("nexus"), view("nexus")]
    label_apart(same)
    assert [one.label for one in same] == ["nexus", "nexus #2"]
    seeds = [view("nexus", seed=1), view("nexus", seed=2)]
    label_apart(seeds)
    assert [one.label for one in seeds] == ["nexus, seed 1", "nexus, seed 2"]


def test_the_seed_of_a_run_is_told_in_a_comparison() -> None:
    views = [view("vllm", seed=1), view("nexus", seed=2)]
    label_apart(views, seeds=True)
    assert [one.label for one in views] == ["vllm, seed 1", "nexus, seed 2"]
    # It is another load where it draws the arrivals.
    assert different_loads(by_label(views)) == []
    for one in views:
        one.config["burstiness"] = 1.0
    assert different_loads(by_label(views)) == ["seed"]
    assert headline(by_label(views)).claim.startswith("Over different loads (seed): ")


def test_over_different_loads_a_verdict_says_so_first() -> None:
    views = [view("a", ttft=[10.0]), view("b", ttft=[20.0])]
    for field, values in (("limit", (9, None)), ("request_rate", (1.0, 2.0)), ("window", "ab")):
        for one, value in zip(views, values, strict=True):
            one.config[field] = value
        stream = io.StringIO()
        show_columns(Console(file=stream, width=500), by_label(views))
        assert f"Simulated, over different loads ({FLAGS[field]}): a has" in stream.getvalue()
        assert answers(by_label(views))["different_loads"] == [FLAGS[field]]
        for one in views:
            del one.config[field]
    for one, digest in zip(views, ("aa", "bb"), strict=True):
        one.resolved["trace"] = {"name": "t", "sha256": digest}
    assert different_loads(by_label(views)) == ["trace"]


FLAGS = {"limit": "limit", "request_rate": "rate", "window": "window"}


def labels(*configs: dict[str, Any], names: tuple[str, ...] = ("vllm", "vllm")) -> list[str]:
    views = [view(name) for name in names]
    for one, config in zip(views, configs, strict=True):
        one.config |= {key: value for key, value in config.items() if key != "sha256"}
        one.resolved |= {"trace": {"name": "t", "sha256": config.get("sha256", "aa" * 32)}}
    label_apart(views)
    return [one.label for one in views]


def test_columns_are_labelled_by_what_differs_in_the_load_or_in_any_flag() -> None:
    assert labels({"request_rate": 2.0}, {"request_rate": None}) == [
        "vllm, rate 2", "vllm, rate as recorded",
    ]  # fmt: skip
    assert labels({"prefix_caching": True}, {"prefix_caching": False}) == [
        "vllm, prefix-caching", "vllm, no prefix-caching",
    ]  # fmt: skip
    assert labels({"max_num_batched_tokens": 512}, {"max_num_batched_tokens": None}) == [
        "vllm, max-num-batched-tokens 512", "vllm, max-num-batched-tokens not given",
    ]  # fmt: skip
    both = labels({"limit": 9, "window": "0:5"}, {"limit": 8, "window": "0:6"})
    assert both == ["vllm, limit 9, window 0:5", "vllm, limit 8, window 0:6"]
    assert labels({"sha256": "ab" * 32}, {"sha256": "cd" * 32}) == [
        "vllm, t abababab", "vllm, t cdcdcdcd",
    ]  # fmt: skip


def test_other_schedulers_under_another_load_are_labelled_too() -> None:
    names = ("vllm", "nexus")
    assert labels({"request_rate": 2.0}, {"request_rate": 4.0}, names=names) == [
        "vllm, rate 2", "nexus, rate 4",
    ]  # fmt: skip
    # The scheduler is no flag that differs, nor is what only one kind of run can be told.
    assert labels({"partitioner": None}, {"partitioner": "nexus"}, names=names) == list(names)
    assert labels({"partitioner": None}, {"partitioner": "fixed:prefill=30"}, names=names) == [
        "vllm", "nexus, fixed:prefill=30",
    ]  # fmt: skip
    assert labels({"endpoint": "http://a"}, {"graphs": True}, names=names) == list(names)


def test_two_of_one_name_are_told_apart_by_what_is_in_them() -> None:
    views = [view("vllm"), view("vllm")]
    for one, layers, flops in zip(views, (24, 36), (1.0, 2.0), strict=True):
        one.resolved |= {
            "device": "sim:mine", "gpu": {"name": "mine", "sim": {"tflops": flops, "jitter": 0}},
            "model": {"name": "m", "layers": layers, "dtypes": {"kv": "bf16"}},
        }  # fmt: skip
    label_apart(views)
    assert [one.label for one in views] == [
        "vllm, tflops 1.0, layers 24", "vllm, tflops 2.0, layers 36",
    ]  # fmt: skip
    warnings = find_warnings(views)
    assert any("differ in GPU" in text for text in warnings)
    assert any("differ in model" in text for text in warnings)


@pytest.mark.parametrize(
    ("values", "specs"),
    [
        (["a,b,c"], ["a", "b", "c"]),
        (["a:x=1,y=2,b", "c"], ["a:x=1,y=2", "b", "c"]),
        (["a,x=1,b:y=2"], ["a:x=1", "b:y=2"]),
        (["vllm:,nexus:,x=1"], ["vllm", "nexus:x=1"]),
        (["a:p=b:c,d"], ["a:p=b:c", "d"]),
        ([" a , b "], ["a", "b"]),
    ],
)
def test_split_policies(values: list[str], specs: list[str]) -> None:
    assert split_policies(values, "--scheduler") == specs


@pytest.mark.parametrize("values", [[""], ["a,,b"], ["x=1,a"], ["a", "x=1"], [":x=1"]])
def test_split_policies_refuses(values: list[str]) -> None:
    with pytest.raises(UsageError, match="--scheduler"):
        split_policies(values, "--scheduler")


def test_pair_policies() -> None:
    assert pair_policies(["a", "b"], []) == [("a", None), ("b", None)]
    assert pair_policies(["a", "b"], ["p"]) == [("a", "p"), ("b", "p")]
    assert pair_policies(["a", "b"], ["p", "q"]) == [("a", "p"), ("b", "q")]
    with pytest.raises(UsageError, match="--partitioner"):
        pair_policies(["a"], ["p", "q"])
