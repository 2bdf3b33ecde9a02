"""An option is declared once, on its field: bounds, words and flags follow from there."""

from __future__ import annotations

import msgspec
import pytest
import typer

from nexusbench.cli.main import app
from nexusbench.core.config import EndpointConfig, RunConfig, check_config, fields_of
from nexusbench.core.errors import InputError
from nexusbench.core.options import beyond, convert_config, declared

CONFIGS = (RunConfig, EndpointConfig)
FIELDS = [(config, name) for config in CONFIGS for name in config.__struct_fields__]
# Typed on the command line as lists of texts.
AS_TEXTS = {"scheduler", "partitioner", "goodput"}


@pytest.fixture(scope="module")
def flags():
    """The options of serve-trace by parameter."""
    command = typer.main.get_command(app).commands["serve-trace"]
    return {parameter.name: parameter for parameter in command.params}


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_every_field_is_an_option_with_its_default(config, name, flags):
    field = declared(config)[name]
    flag = flags[name]
    assert field.option.help
    assert field.option.positional or field.flag in flag.opts
    if name not in AS_TEXTS and not field.required and (config, name) != (EndpointConfig, "model"):
        assert flag.default == field.default


@pytest.mark.parametrize("name", [n for n, f in declared(RunConfig).items() if f.bounds])
def test_both_ends_of_a_bound_are_served_and_what_is_beyond_is_not(name):
    bounds, kind = declared(RunConfig)[name].bounds, declared(RunConfig)[name].kind
    least = bounds.ge if bounds.ge is not None else bounds.gt
    served = [bounds.le] + ([least] if bounds.ge is not None else [])
    for value in served:
        assert getattr(convert_config({"trace": "t", name: kind(value)}, RunConfig), name) == value
        assert beyond(bounds, value) is None
    refused = [least - 1, bounds.le * 2] + ([least] if bounds.ge is None else [])
    for value in map(kind, refused):
        assert beyond(bounds, value)
        with pytest.raises(InputError) as caught:
            check_config(RunConfig(**{"trace": "t", name: value}))
        assert caught.value.field == name
        assert caught.value.hint == beyond(bounds, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_beyond_any_bounds(value):
    assert beyond(msgspec.Meta(gt=0), value) == "It must be finite, above 0"
    assert "from 1e-06 to 1e+12" in beyond(msgspec.Meta(ge=1e-6, le=1e12), value)


def test_a_value_of_another_type_is_no_matter_of_bounds():
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int \| null`, got `str`"):
        convert_config({"trace": "t", "kv_blocks": "8"}, RunConfig)
    with pytest.raises(InputError, match=r"'too_long'.*Invalid enum value 'truncate'"):
        check_config(RunConfig(trace="t", too_long="truncate"))


def test_parts_of_a_run():
    load, served = set(fields_of("load")), set(fields_of("serving"))
    assert {"request_rate", "limit", "max_tokens", "too_long", "warmup_s"} <= load
    assert {"prefix_caching", "tensor_parallel_size", "graphs"} <= served
    assert not load & served
    assert fields_of("aside")[-1] == "timeout_s"  # of EndpointConfig alone
