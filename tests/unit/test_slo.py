"""SLOs as text: the grammar, its mistakes, the presets."""

from __future__ import annotations

import pytest

from nexusbench.core.errors import UsageError
from nexusbench.metrics.slo import Bound, parse_slo, preset, presets


@pytest.mark.parametrize(
    "text", ["ttft:p99<2000", "ttft:p99<=2000", "ttft:p99:2000", "ttft:p99=2e3"]
)
def test_spellings_of_a_bound_on_a_statistic(text: str) -> None:
    assert parse_slo([text]).bounds == (Bound("ttft", "p99", 2000.0),)


def test_both_kinds_and_aliases() -> None:
    slo = parse_slo(["ttft:p99<2000,itl:100", "e2el:mean<9000"])
    assert [str(bound) for bound in slo.bounds] == ["ttft:p99<2000", "tbt:100", "e2e:mean<9000"]
    assert [b.key for b in slo.of_requests] == ["tbt"]
    assert slo.share == 90
    assert slo.per_request() == {"ttft": 2000, "tbt": 100, "e2e": 9000}


def test_attainment_makes_every_bound_one_on_requests() -> None:
    slo = parse_slo(["ttft:p99<2000,ttft:p50<500,tpot:100"], share=95)
    assert slo.bounds == (Bound("ttft", "", 500.0), Bound("tpot", "", 100.0))
    assert slo.share == 95


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ttft<2000", "Say whose"),
        ("ttft", "is no bound"),
        ("tft:p99<2000", "Did you mean 'ttft'?"),
        ("ttft:p98<2000", "no statistic 'p98'"),
        ("ttft:p99<", "no number of milliseconds"),
        ("ttft:p99<2s", "'2s' is no number of milliseconds"),
        ("ttft:p99<-1", "above 0"),
        ("ttft:nan", "above 0"),
        ("queueing:2000", "bound a statistic"),
        ("ttft:p99<1,ttft:p99<2", "bounded twice"),
        (" ", "holds no bound"),
    ],
)
def test_mistakes(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match="--goodput") as caught:
        parse_slo([text])
    assert sentence in str(caught.value)


def test_attainment_needs_bounds_that_requests_can_keep() -> None:
    with pytest.raises(UsageError, match="bounds the queue"):
        parse_slo(["queueing:p50<2000"], share=90)
    with pytest.raises(UsageError, match="impossible"):
        parse_slo(["ttft:1"], share=101)


def test_every_preset_is_an_slo_with_a_source() -> None:
    for one in presets().values():
        assert parse_slo([one.slo]).bounds
        assert one.source
    assert preset("llama3.1-8b-interactive").slo == "ttft:p99<500,tpot:p99<30"
    with pytest.raises(UsageError, match="Did you mean 'sarathi'"):
        preset("saraty")
