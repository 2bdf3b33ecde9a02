"""check_metric, check_cost_model, check_gpu, check_model_family and check_trace_format pass what is
shipped, and fail what is wrong with the right name.
"""

from __future__ import annotations

from importlib.resources import files

import msgspec
import numpy as np
import pytest

from nexusbench.core.errors import InputError, UsageError
from nexusbench.costs.base import cost_models
from nexusbench.costs.roofline import Roofline
from nexusbench.metrics.base import Distribution, Metric, Scalar, TablePlace, load_metrics
from nexusbench.models.families.base import ModelFamily, families
from nexusbench.physics.gpus import gpu_names
from nexusbench.testing import (
    ConformanceError,
    check_cost_model,
    check_gpu,
    check_metric,
    check_model_family,
    check_trace_format,
)
from nexusbench.workloads.readers.base import Parsed, Reader, readers
from nexusbench.workloads.readers.native import Native
from tests.examples import sample, slow

TAGS = sorted(load_metrics())


@pytest.mark.parametrize("tag", ["ttft", "goodput", *slow(*sorted({*TAGS} - {"ttft", "goodput"}))])
def test_shipped_metrics(tag):
    check_metric(tag)


@pytest.mark.parametrize("name", cost_models.names())
@pytest.mark.slow
def test_shipped_cost_models(name):
    check_cost_model(name)


@pytest.mark.parametrize("name", gpu_names())
def test_shipped_gpus(name):
    check_gpu(name)


@pytest.mark.parametrize("name", sample(families.names(), 7))
def test_shipped_model_families(name):
    check_model_family(name)


@pytest.mark.parametrize("name", sample(readers.names(), 5))
@pytest.mark.slow
def test_shipped_trace_formats(name):
    check_trace_format(name)


class Waits(Distribution):
    """Queueing times; the bad ones are this with one thing wrong."""

    tag, unit, direction, title, formula = "waits", "ns", "lower", "waits", "s_i - a_i"

    def values(self, run):
        return (run.first_admitted - run.arrival)[run.answered].astype(float)


class NotFinite(Waits):
    def values(self, run):
        return np.append(super().values(run), np.inf)


class Mean(Scalar):
    tag, unit, direction, title, formula = "mean", "ns", "lower", "mean", "mean"

    def value(self, run):
        return float(np.mean(Waits().values(run)))  # of nothing where no request was answered


class Remembers(Waits):
    calls = 0

    def values(self, run):
        self.calls += 1
        return super().values(run) + self.calls


class Sorts(Waits):
    def values(self, run):
        run.tables["ended"]["time"][::-1].sort()
        return super().values(run)


class Neither(Metric):
    tag, unit, direction, title, formula = "neither", "ns", "lower", "neither", "none"


class NoReason(Waits):
    def reason(self, run):
        return ""


class NoSection(Waits):
    place = TablePlace("nowhere", 1)


class NoStatistic(Waits):
    place = TablePlace("latency", 1, statistics=("value",))


class TwoLines(Waits):
    place = TablePlace("latency", 1, title="two\nlines")


class NoPlace(Waits):
    place = {"family": "latency", "order": 1}


class Refuses(Waits):
    counts_refused = "no"


@pytest.mark.parametrize(
    ("metric", "invariant", "says"),
    [
        (NoSection, "contract", "no usable 'place': Invalid enum value 'nowhere'"),
        (NoStatistic, "contract", "a distribution has no statistic 'value'"),
        (TwoLines, "contract", "as one line of text"),
        (NoPlace, "contract", "'place' as a TablePlace"),
        (Refuses, "contract", "'counts_refused' as True or False"),
        (NotFinite, "contract", "gives inf"),
        (Remembers, "I6", "has two values"),
        (Sorts, "I11", "changes the events"),
        (NoReason, "contract", "give one line"),
        (Neither, "contract", "neither Distribution nor Scalar"),
    ],
)
def test_bad_metrics(metric, invariant, says):
    with pytest.raises(ConformanceError, match=says) as caught:
        check_metric(metric)
    assert caught.value.invariant == invariant


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_a_metric_of_nothing_is_not_a_number():
    with pytest.raises(ConformanceError, match="gives nan"):
        check_metric(Mean)


class Rises(Roofline):
    """More SMs take longer."""

    def predict(self, shape, sms, neighbour=None):
        return super().predict(shape, sms, neighbour) * sms * sms

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        return [self.predict(shape, own) for own in sms]


class Helped(Rises):
    """A neighbour speeds it up."""

    def predict(self, shape, sms, neighbour=None):
        return Roofline.predict(self, shape, sms) * (0.5 if neighbour else 1.0)

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        beside = [None] * len(sms)
        if neighbour is not None:
            beside = [(neighbour, other) for other in neighbour_sms]
        return [self.predict(shape, own, b) for own, b in zip(sms, beside, strict=True)]


class OtherSplits(Roofline):
    """Arrays that round differently."""

    def predict_splits(self, shape, sms, neighbour=None, neighbour_sms=()):
        return [1.0000001 * ns for ns in super().predict_splits(shape, sms)]


class Zero(Helped):
    def predict(self, shape, sms, neighbour=None):
        return 0.0


@pytest.mark.parametrize(
    ("model", "invariant", "says"),
    [
        (Rises, "contract", "says it is monotone"),
        (Helped, "contract", "speeds"),
        (OtherSplits, "I6", "predict_splits disagrees"),
        (Zero, "contract", "predicted to take 0.0 ns"),
    ],
)
def test_bad_cost_models(monkeypatch, model, invariant, says):
    monkeypatch.setattr(type(cost_models), "load", lambda self, name: model)
    with pytest.raises(ConformanceError, match=says) as caught:
        check_cost_model("bad")
    assert caught.value.invariant == invariant


L20 = (files("nexusbench.data") / "gpus" / "l20.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_sms = 92", "num_sms = 6", "make no two partitions"),
        ('hbm_gbps = "384 bit', 'l2_gbps = "384 bit', "does not name: hbm_gbps"),
        ("hbm_gib = 44.988", "hbm_gib = 4.0", "does not fit"),
    ],
)
def test_bad_gpus(tmp_path, old, new, says):
    assert old in L20
    text = L20.replace(old, new, 1)
    if "l2_gbps =" in new:
        text = "\n".join(line for line in text.split("\n") if not line.startswith('l2_gbps = "'))
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConformanceError, match=says):
        check_gpu(str(file))


class Greedy(Native):
    """Claims every file."""

    def confidence(self, text):
        return 9


class Crashes(Native):
    def read(self, source):
        if b"x" in source.text:
            raise KeyError("x")
        return super().read(source)


class Anonymous(Native):
    def read(self, source):
        try:
            return super().read(source)
        except InputError:
            raise UsageError("something is wrong") from None


class Empty(Native):
    def read(self, source):
        return Parsed([], [])


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        (Greedy, "claims the sample of"),
        (Crashes, "KeyError"),
        (Anonymous, "is no InputError"),
        (Empty, "no requests"),
    ],
)
def test_bad_trace_formats(monkeypatch, reader, says):
    load = type(readers).load
    monkeypatch.setattr(
        type(readers), "load", lambda self, n: reader if n == "native" else load(self, n)
    )
    assert issubclass(reader, Reader)
    with pytest.raises((ConformanceError, InputError), match=says):
        check_trace_format("native")


class Plain(ModelFamily):
    """What is right; the bad ones are this with one thing wrong."""

    architecture = "PlainForCausalLM"


class Nameless(ModelFamily):
    """Which architecture it is, it does not say."""


class NoBiases(Plain):
    biases = True


class Careless(Plain):
    """Reads another decoder's config as its own."""

    def refuse_unlike(self, config):
        pass


class Unlocated(Plain):
    def refuse_unlike(self, config):
        if config.data.get("text_config"):
            raise InputError("is another")
        super().refuse_unlike(config)


class Guesses(Plain):
    """Has one vocabulary whatever the config says."""

    def describe(self, config):
        return msgspec.structs.replace(super().describe(config), vocab_size=1000)


class Trusting(Plain):
    def describe(self, config):
        return msgspec.structs.replace(super().describe(config), num_layers=config.data["layers"])


class OddHeads(Plain):
    def describe(self, config):
        return msgspec.structs.replace(super().describe(config), num_kv_heads=3)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        (Nameless, "must declare 'architecture'"),
        (NoBiases, "'biases' as Biases"),
        (Careless, "another decoder"),
        (Unlocated, "names no file and field"),
        (Guesses, "vocab_size follows from no key"),
        (Trusting, "KeyError"),
        (OddHeads, "do not divide"),
    ],
)
def test_bad_model_families(family, says):
    with pytest.raises(ConformanceError, match=says):
        check_model_family(family)


def test_a_model_family_in_order():
    check_model_family(Plain)


@pytest.mark.parametrize(
    "check",
    [check_metric, check_cost_model, check_gpu, check_model_family, check_trace_format],
)
def test_unknown_names(check):
    with pytest.raises(UsageError, match="nope"):
        check("nope")
