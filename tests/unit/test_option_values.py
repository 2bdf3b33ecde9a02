"""Every numeric option of every plug-in, at the values at which arithmetic breaks: refused by its
name, or served to the end.
"""

from __future__ import annotations

import math
from types import NoneType

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError
from nexusbench.core.registry import check_options, parse_options
from nexusbench.costs.base import cost_models
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import offer, serve, tiny_gpu, tiny_model
from nexusbench.testing._harness import Setting
from tests.examples import sample

HOSTILE = (
    "0", "-1", "1e-6", "1e12", str(10**12), "1e-300", "-1e-300", "1e308", "-1e308", str(2**63),
    str(2**64), "inf", "-inf", "nan",
)  # fmt: skip
# Two streams, chunks, and memory that is short, so that most options have a say.
REQUESTS = [offer(i, 6 * i, 20 + 37 * (i % 3), 1 + 5 * (i % 4)) for i in range(8)]
SETTING = Setting(kv_blocks=34)


def numbers(kind):
    """Names of the fields of an Options struct that take a number."""
    for field in msgspec.structs.fields(kind):
        types = getattr(field.type, "__args__", None) or (field.type,)
        bare = {getattr(t, "__origin__", t) for t in types} - {NoneType}
        if bare & {int, float}:
            yield field.name


def options(registry):
    """(plug-in, option) of all numeric options of a family."""
    return [
        (name, key) for name in registry.names() for key in numbers(registry.load(name).Options)
    ]


def refused(call, option):
    """Whether ``call`` refuses by the option's name; else it ran to its end."""
    named = None
    try:
        call()
    except InputError as error:
        named = (error.field, option in str(error))
    assert named in (None, (option, True))
    return named is not None


@pytest.mark.parametrize(("name", "key"), sample(options(schedulers), 4))
def test_options_of_schedulers(name, key):
    for value in HOSTILE:
        spec = f"{name}:{key}={value}"
        if key in ("gamma", "ageing_s"):
            spec += f",order={'spf' if key == 'gamma' else 'hit-rate'}"
        if not refused(lambda spec=spec: serve(REQUESTS, spec, setting=SETTING), key):
            assert math.isfinite(float(value))


@pytest.mark.parametrize(("name", "key"), sample(options(partitioners), 4))
def test_options_of_partitioners(name, key):
    cls = partitioners.load(name)
    scheduler = "adrenaline" if 1 not in cls.num_gpus else "nexus"
    for value in HOSTILE:
        spec = f"{name}:{key}={value}"
        if not refused(lambda spec=spec: serve(REQUESTS, scheduler, spec, setting=SETTING), key):
            assert math.isfinite(float(value))


@pytest.mark.parametrize(("name", "key"), options(cost_models))
def test_options_of_cost_models(name, key):
    cls = cost_models.load(name)
    for value in HOSTILE:

        def ask(value=value):
            made = parse_options(cls.Options, {key: value}, f"cost model '{name}'")
            belief = cls(made, gpu=tiny_gpu(), model=tiny_model())
            for sms in (2, 16):
                time = belief.predict(BatchShape(3, 90, ((40, 8),)), sms, (BatchShape(1, 9), 2))
                assert 0 < time < 1e12

        refused(ask, key)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e308, 1e-300, "7"])
def test_options_made_in_python_have_the_same_bounds(value):
    kind = partitioners.load("semi-pd").Options
    with pytest.raises(InputError, match="field 'step_size': partitioner 'semi-pd' cannot use"):
        partitioners.load("semi-pd")(kind(step_size=value))
    kind = schedulers.load("sarathi").Options
    with pytest.raises(InputError, match="field 'chunk': scheduler 'sarathi' cannot use 0"):
        schedulers.load("sarathi")(kind(chunk=0))


def test_what_a_number_may_be():
    class Mine(msgspec.Struct, frozen=True):
        steps: int = 4
        share: float | None = None

    for text, why in (
        ("1e-7", "Give 0, or a magnitude from 1e-06 to 1e+12"),
        ("-1e13", "Give 0, or a magnitude"),
        ("nan", "Give a finite number"),
        ("x", "Expected `float | null`"),
    ):
        with pytest.raises(InputError, match=r"^field 'share': mine cannot use") as caught:
            parse_options(Mine, {"share": text}, "mine")
        assert why in str(caught.value)
    assert parse_options(Mine, {"share": "1e-6", "steps": str(10**12)}, "mine").steps == 10**12
    check_options(Mine(10**12, -1e12), "mine")
    with pytest.raises(InputError, match="field 'steps'"):
        check_options(Mine(10**12 + 1), "mine")
