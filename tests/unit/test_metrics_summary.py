"""Summaries: statistics, weak tails, intervals over seeds, and JSON without NaN."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from nexusbench.core.errors import NexusbenchError
from nexusbench.core.events import SCHEMA, RunFacts
from nexusbench.metrics.base import Distribution, Scalar, load_metrics
from nexusbench.metrics.run_events import RunEvents
from nexusbench.metrics.summary import (
    DistributionEntry,
    Interval,
    ScalarEntry,
    Summary,
    describe,
    interval,
    over_seeds,
    paired,
    summarise,
    t_quantile,
    usable_summary,
)
from tests.unit.summaries import scalar, summary_of

FACTS = RunFacts(
    simulated=True,
    num_sms=10,
    kv_blocks=10,
    block_size=16,
    partitions=("all",),
    splits=((10,),),
    slo={"ttft": 50.0},
)


def served(count: int = 50, scale: int = 1) -> RunEvents:
    """Requests i = 0..: arrive at i s, one step each, one token after (1 + i) * scale ms."""
    index = np.arange(count)
    arrival = index * 10**9
    done = arrival + (1 + index) * scale * 10**6
    none = np.zeros(count, dtype=np.int64)
    tables: dict[str, dict[str, Any]] = {
        table: dict.fromkeys(columns, none) for table, columns in SCHEMA.items()
    }
    for table in ("kv_blocked", "chunk", "repartitioned", "preempted"):
        tables[table] = dict.fromkeys(SCHEMA[table], none[:0])
    tables["arrived"] |= {"request": index, "time": arrival}
    tables["admitted"] |= {"request": index, "time": arrival}
    tables["submitted"] |= {"step": index, "time": arrival, "predicted": none - 1}
    tables["step_done"] |= {"step": index, "time": done, "tokens": none + 1, "solo": none - 1}
    tables["token"] = {"request": index}
    tables["ended"] |= {"request": index, "time": done}
    columns = ("request", "arrival", "prompt_tokens", "output_tokens", "max_tokens")
    requests: dict[str, Any] = dict.fromkeys(columns, none + 1)
    requests |= {"request": index, "arrival": arrival, "id": [f"r{i}" for i in index]}
    return RunEvents(tables, requests | {"tenant": [""] * count}, FACTS)


def test_a_summary_is_complete_and_deterministic() -> None:
    summary = summarise(served())
    assert summary == summarise(served())
    assert list(summary.metrics) == list(load_metrics()) == list(summary.formulas)
    ttft = summary.metrics["ttft"]
    assert ttft.mean == pytest.approx(25.5)
    assert ttft.p50 == pytest.approx(25.5)
    assert ttft.p95 == pytest.approx(1 + 0.95 * 49)
    assert (ttft.min, ttft.max, ttft.n) == (1, 50, 50)
    assert (ttft.unit, ttft.direction) == ("ms", "lower")
    assert summary.metrics["attainment"].value == 100
    assert summary.split_shares == {"10": 100}
    assert summary.simulated is True
    assert summary.window_s == (0, 49.05)


def test_json_has_null_with_a_reason_and_never_nan() -> None:
    summary = summarise(served(1))
    data = msgspec.json.encode(summary)
    assert msgspec.json.decode(data, type=Summary) == summary
    for entry in summary.metrics.values():
        if isinstance(entry, ScalarEntry) and entry.value is None:
            assert entry.reason
        if isinstance(entry, DistributionEntry) and not entry.n:
            assert entry.mean is None
            assert entry.reason
        numbers = [v for v in msgspec.structs.astuple(entry) if isinstance(v, float)]
        assert all(math.isfinite(number) for number in numbers)
    assert summary.metrics["tbt"].n == 0
    assert summary.metrics["contention"].value is None


@pytest.mark.parametrize(
    ("n", "weak"),
    [
        (19, ["p50", "p95", "p99"]),
        (20, ["p95", "p99"]),
        (199, ["p95", "p99"]),
        (200, ["p99"]),
        (999, ["p99"]),
        (1000, []),
    ],
)
def test_weak_tails(n: int, weak: list[str]) -> None:
    assert describe(np.arange(n, dtype=np.float64)).weak == weak


class Broken(Scalar):
    tag, unit, direction, title, formula = "broken", "s", "lower", "broken", "0 / 0"

    def value(self, run: RunEvents) -> float:
        return float("nan")


class BrokenTail(Distribution):
    tag, unit, direction, title, formula = "tail", "s", "lower", "broken", "0 / 0"

    def values(self, run: RunEvents) -> np.ndarray:
        return np.array([1.0, np.inf])


def raising(error: BaseException | None = None, given: object = None) -> Scalar:
    """A metric that raises ``error``, or gives ``given``."""

    class Raising(Scalar):
        tag, unit, direction, title, formula = "raising", "s", "lower", "raising", "1 / 0"

        def value(self, run: RunEvents) -> float:
            if error is not None:
                raise error
            return given  # type: ignore[return-value]

    return Raising()


def spread(given: object) -> Distribution:
    """A metric whose values are ``given``."""

    class Spread(Distribution):
        tag, unit, direction, title, formula = "spread", "s", "lower", "spread", "1 / 0"

        def values(self, run: RunEvents) -> np.ndarray:
            return given  # type: ignore[return-value]

    return Spread()


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (Broken(), "'broken' gave nan"),
        (BrokenTail(), "'tail' gave inf"),
        (raising(ZeroDivisionError("division by zero")), r"test_.*py:\d+: ZeroDivisionError: div"),
        (raising(SystemExit(0)), "ends the process"),
        (raising(GeneratorExit()), "GeneratorExit"),
        (raising(given="12"), "'raising' gave str, not a number"),
        (raising(given=[1.0]), "'raising' gave list, not a number"),
        (raising(given=1j), "gave complex, not a number"),
        (spread(np.zeros((2, 2))), "2-dimensional"),
        (spread(["a"]), "must be a list of numbers"),
        (spread(None), "0-dimensional"),
    ],
)
def test_a_metric_that_fails_is_named_and_no_other_is_lost(
    metric: Scalar | Distribution, why: str
) -> None:
    run, good = served(2), load_metrics()["finished"]
    summary = summarise(run, {metric.tag: metric, "finished": good})
    assert summary.metrics["finished"].value == 2
    assert list(summary.failed) == [metric.tag]
    assert re.search(why, summary.failed[metric.tag])
    entry = summary.metrics[metric.tag]
    assert entry.reason == f"failed: {summary.failed[metric.tag]}"
    assert all(entry.get(name) is None for name in ("value", "mean", "p50", "max"))
    assert usable_summary(msgspec.json.decode(msgspec.json.encode(summary))) is None  # lacks others


def test_ctrl_c_in_a_metric_is_the_users() -> None:
    with pytest.raises(KeyboardInterrupt):
        summarise(served(2), {"raising": raising(KeyboardInterrupt())})


def test_a_number_of_numpy_is_a_number() -> None:
    summary = summarise(served(2), {"raising": raising(given=np.float32(0.5))})
    assert msgspec.json.encode(summary.metrics["raising"].value) == b"0.5"


def test_a_stored_summary_is_used_only_if_it_is_whole() -> None:
    """Whatever is taken out of it or has another type: it is computed again, never half shown."""
    stored = msgspec.json.decode(msgspec.json.encode(summarise(served(2))))
    assert msgspec.json.decode(msgspec.json.encode(usable_summary(stored))) == stored
    optional = {"reason"}
    for path in paths(stored):
        value = copy.deepcopy(stored)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        if path[-1] not in optional and path[:-1] not in (("split_shares",), ("slo",)):
            assert usable_summary(value) is None, path
        inner[path[-1]] = [{"x": 1}]
        assert usable_summary(value) is None, path


def paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (4, 2.7764), (30, 2.0423), (31, 2.0395), (60, 2.0003), (1000, 1.9623)],
)
def test_student_t(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=1e-4)


def test_interval_by_hand() -> None:
    got = interval([1.0, 2.0, 3.0])
    # s = 1, t(2) = 4.3027.
    assert (got.mean, got.n) == (2, 3)
    assert got.low == pytest.approx(2 - 4.3027 / math.sqrt(3))
    assert got.high == pytest.approx(2 + 4.3027 / math.sqrt(3))
    assert interval([5.0]) == Interval(5, None, None, 1)


def entry(value: float | None, direction: str) -> Summary:
    return summary_of(x=scalar(value, direction))


def test_paired_differences_beat_the_noise_between_seeds() -> None:
    slow = [entry(value, "lower") for value in (100.0, 200.0, 300.0)]
    fast = [entry(value, "lower") for value in (89.0, 190.0, 291.0)]
    got = paired(slow, fast)["x"]["value"]
    assert (got.mean, got.n, got.better) == (-10, 3, "b")
    assert got.low == pytest.approx(-10 - 4.3027 / math.sqrt(3))
    assert paired(fast, slow)["x"]["value"].better == "a"
    for one in (*slow, *fast):
        one.metrics["x"] = msgspec.structs.replace(one.metrics["x"], direction="higher")
    assert paired(slow, fast)["x"]["value"].better == "a"
    assert paired(fast, slow)["x"]["value"].better == "b"


def test_paired_without_a_verdict() -> None:
    noisy = paired([entry(v, "lower") for v in (1.0, 2.0)], [entry(v, "lower") for v in (2.0, 1.0)])
    assert noisy["x"]["value"].better is None
    single = paired([entry(1.0, "lower")], [entry(2.0, "lower")])["x"]["value"]
    assert (single.mean, single.low, single.better) == (1, None, None)
    neither = paired([entry(1.0, "none")] * 2, [entry(2.0, "none")] * 2)["x"]["value"]
    assert neither.better is None
    with pytest.raises(NexusbenchError, match="same seeds"):
        paired([entry(1.0, "lower")], [])


def test_seeds_without_a_value_do_not_count() -> None:
    some = [entry(1.0, "lower"), entry(None, "lower"), entry(3.0, "lower")]
    full = [entry(2.0, "lower")] * 3
    assert over_seeds(some)["x"]["value"].n == 2
    got = paired(some, full)["x"]["value"]
    assert (got.n, got.mean) == (2, 0)
    assert paired([entry(None, "lower")], [entry(1.0, "lower")]) == {}


def test_whole_summaries_pair_by_statistic() -> None:
    got = paired([summarise(served(20)), summarise(served(30))],
                 [summarise(served(20, 2)), summarise(served(30, 2))])  # fmt: skip
    assert list(got["ttft"]) == ["mean", "p50", "p95", "p99", "min", "max"]
    assert got["ttft"]["min"].mean == pytest.approx(1)
    assert got["ttft"]["max"].mean == pytest.approx(25)
    assert "tbt" not in got
