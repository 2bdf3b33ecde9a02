"""Workload specs: what is wrong, missing, unknown or out of bounds is one located error."""

from __future__ import annotations

from pathlib import Path

import pytest

from nexusbench.core.errors import InputError
from nexusbench.workloads import generate
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.source import read_source
from nexusbench.workloads.spec import load_spec
from nexusbench.workloads.trace import load_trace, write_trace
from tests.examples import sample

SPEC = """
[workload]
name = "w"
num_requests = 5
seed = 0
sampling = "independent"
hash_block = 16
[arrivals]
process = "gamma"
rate = 1.5
cv = 2.0
[[classes]]
name = "a"
weight = 1.0
input = { law = "lognormal", median = 90, sigma = 0.9, least = 1, most = 4000 }
output = { law = "fixed", value = 7 }
[[classes]]
name = "b"
input = { quantiles = [[0, 1], [1, 9]], mean = 4.0 }
output = { law = "exponential", mean = 9 }
[prefixes]
tokens = 32
trees = 2
depth = 2
fanout = 2
zipf = 1.0
share = 0.5
[sessions]
turns = { law = "fixed", value = 2 }
think_time = { law = "fixed", value = 9 }
max_context = 9000
[timeouts]
share = 0.5
after = { law = "fixed", value = 9 }
[cancellations]
share = 0.5
after = { law = "fixed", value = 9 }
[tenants]
count = 2
zipf = 1.0
"""

NUMBERS = [
    "num_requests = 5", "seed = 0", "hash_block = 16", "rate = 1.5", "cv = 2.0", "weight = 1.0",
    "median = 90", "sigma = 0.9", "least = 1", "most = 4000", "value = 7", "mean = 4.0",
    "mean = 9", "tokens = 32", "trees = 2", "depth = 2", "fanout = 2", "zipf = 1.0", "share = 0.5",
    "max_context = 9000", "count = 2",
]  # fmt: skip
# Legal in these places, whatever it is elsewhere.
FINE = {("seed = 0", "0"), ("sigma = 0.9", "0"), ("share = 0.5", "0"), ("zipf = 1.0", "0")}
HUGE = ("1e308", "9223372036854775808", "1" + "0" * 400, "1" + "0" * 5000)


def spec(folder: Path, text: str) -> Path:
    path = folder / "s.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> InputError:
    path = spec(folder, text)
    with pytest.raises(InputError) as caught:
        make_trace(load_spec(path))
    assert str(caught.value).startswith(f"{path}:")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return caught.value


def test_the_spec_itself_is_right(tmp_path: Path) -> None:
    trace = make_trace(load_spec(spec(tmp_path, SPEC)))
    assert len(trace.requests) == 5
    write_trace(trace, tmp_path / "t.jsonl")
    assert len(load_trace(tmp_path / "t.jsonl").requests) == 5


@pytest.mark.parametrize("given", sample(NUMBERS, 5))
@pytest.mark.parametrize(
    "value",
    ["0", "-1", "nan", "inf", "-inf", *HUGE, '"5"', "true", "[1]", "{ a = 1 }", "1979-05-27"],
)
def test_every_number_is_checked(given: str, value: str, tmp_path: Path) -> None:
    if (given, value) in FINE:
        return
    key = given.partition(" ")[0]
    error = refused(tmp_path, SPEC.replace(given, f"{key} = {value}", 1))
    if len(value) < 5000:  # TOML itself refuses that one
        assert error.field is not None
        place = error.field.split(".")
        assert key in place or place[-1] in ("input", "output", "arrivals")


@pytest.mark.parametrize(
    ("old", "new", "field", "says"),
    [
        ("num_requests = 5", "num_requests = 1_000_000_000_000", "workload.num_requests", "<="),
        ("num_requests = 5", "num_requests = 5\nnum = 3\nx = 1", "workload.num", "too: x"),
        ('name = "w"\nnum_requests = 5\n', "", "workload.name", "missing too: num_requests"),
        ('name = "w"', 'name = "a\\nb"', "workload.name", "printable"),
        ('name = "a"', 'name = "\\u001b[31m"', "classes[0].name", "printable"),
        ('name = "a"', f'name = "{"a" * 300}"', "classes[0].name", "printable"),
        ("rate = 1.5", "rate = 1e-300", "arrivals", "Raise the rate"),
        ("rate = 1.5", "rate = 5e-324", "arrivals", "Raise the rate"),
        ("rate = 1.5", "rate = 1e-9", "arrivals", "requests would take 4e+09 s"),
        ('"gamma"', '"a\\nb"', "arrivals.process", "a\\nb"),
        ('"gamma"', "[[[[1]]]]", "arrivals.process", "no process"),
        ("tokens = 32", "tokens = 2147483632", "prefixes.tokens", "hash ids a prompt"),
        ("tokens = 32", "tokens = 33", "prefixes.tokens", "no multiple"),
        ("[tenants]", '["ten\\nants"]', "ten\\nants", "unknown key"),
        ("[[0, 1], [1, 9]]", "[[0, 1], [nan, 3], [1, 9]]", "classes[1].input.quantiles", ""),
        ("[[0, 1], [1, 9]]", "[[0, nan], [1, 9]]", "classes[1].input.quantiles", ""),
        ("[[0, 1], [1, 9]]", "[]", "classes[1].input", "share 0"),
        ("[[0, 1], [1, 9]]", "[[0, 1, 2], [1, 9]]", "classes[1].input.quantiles", ""),
        ("{ law = \"fixed\", value = 7 }", "7", "classes[0].output", "must be a table"),
        ("[sessions]", "[[sessions]]", "sessions", "must be a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(old: str, new: str, field: str, says: str, tmp_path: Path) -> None:
    assert old in SPEC
    error = refused(tmp_path, SPEC.replace(old, new, 1))
    assert error.field is not None
    assert error.field.startswith(field)
    assert says in str(error)


def test_many_long_unknown_keys_still_make_a_short_message(tmp_path: Path) -> None:
    keys = "".join(f"{'k' * 300}{index} = 1\n" for index in range(20))
    error = refused(tmp_path, SPEC.replace("[tenants]\n", f"[tenants]\n{keys}"))
    assert "unknown key; unknown too: kkk" in str(error)


def test_a_whole_trace_has_bounds(tmp_path: Path) -> None:
    """Lengths that are legal each, and together more than a trace can hold."""
    large = SPEC.replace("value = 7", "value = 900_000_000").replace("= 9000", "= 2_147_483_647")
    large = large.replace(
        "median = 90, sigma = 0.9, least = 1, most = 4000", "median = 9, sigma = 0"
    )
    error = refused(tmp_path, large.replace("hash_block = 16", "hash_block = 1"))
    assert (error.field, "hash ids of 1 tokens" in str(error)) == ("workload.hash_block", True)
    long = SPEC.replace("law = \"lognormal\", median = 90, sigma = 0.9, least = 1, most = 4000",
                        "law = \"fixed\", value = 2147483647")  # fmt: skip
    error = refused(tmp_path, long.replace("share = 0.5", "share = 1", 1))
    assert error.field == "prefixes.tokens"


def test_what_is_drawn_has_bounds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = make_trace(load_spec(spec(tmp_path, SPEC))).requests
    # Each request has few enough, all of them together have not.
    monkeypatch.setattr(generate, "_MOST_HASHES", max(len(r.hash_ids) for r in requests))
    assert refused(tmp_path, SPEC).field == "workload.hash_block"
    monkeypatch.undo()
    monkeypatch.setattr(generate, "MAX_SPAN_NS", 1)
    assert refused(tmp_path, SPEC).field == "arrivals"


def test_curves_and_laws_of_any_number_of_points_are_refused(tmp_path: Path) -> None:
    pairs = ", ".join(f"[{i / 5000}, {i + 1}]" for i in range(5001))
    error = refused(tmp_path, SPEC.replace("[0, 1], [1, 9]", pairs))
    assert (error.field, "5,001 quantiles" in str(error)) == ("classes[1].input", True)
    rates = 'process = "diurnal"\nrates = [' + ", ".join(f"[{i}, 1]" for i in range(5000)) + "]"
    text = SPEC.replace('process = "gamma"\nrate = 1.5\ncv = 2.0', rates)
    error = refused(tmp_path, text)
    assert (error.field, "5,000 pairs" in str(error)) == ("arrivals", True)
    for curve in ("[[0, 0], [1, 0]]", "[[0, 1e-320], [1e-320, 0]]", "[[0, 1e-300], [1, 0]]"):
        rates = f'process = "diurnal"\nrates = {curve}'
        error = refused(tmp_path, SPEC.replace('process = "gamma"\nrate = 1.5\ncv = 2.0', rates))
        assert error.field == "arrivals"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = " + "[" * 9000, "nested too deeply"),
        (".".join("a" * 200_000) + " = 1", "more than 32 parts"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("[a]\n[a]", "not valid TOML"),
        ("a = 1\na = 2", "not valid TOML"),
        ("x = 2024-99-99", "not valid TOML"),
        ("", "is empty"),
        ("# nothing", "missing"),
        ("x = \x00", "NUL"),
    ],
)
def test_what_is_no_toml_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = spec(tmp_path, text)
    with pytest.raises(InputError, match=says):
        load_spec(path)


def test_the_bounds_of_reading_hold_for_specs_and_tables(tmp_path: Path) -> None:
    text = SPEC.replace(
        'input = { quantiles = [[0, 1], [1, 9]], mean = 4.0 }\n'
        'output = { law = "exponential", mean = 9 }',
        'lengths = { file = "/dev/zero" }',
    )  # fmt: skip
    with pytest.raises(InputError, match="/dev/zero: this is a pipe or a device"):
        load_spec(spec(tmp_path, text))
    with pytest.raises(InputError, match="pipe or a device"):
        read_source("/dev/zero")
