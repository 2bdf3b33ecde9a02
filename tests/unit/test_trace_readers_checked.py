"""A reader that gives what no trace can hold is caught where it is read, by its name."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.errors import InputError, UsageError
from nexusbench.workloads.base import TraceRequest
from nexusbench.workloads.readers import base as detection
from nexusbench.workloads.readers.base import Parsed, Reader, readers
from nexusbench.workloads.trace import load_trace

LINE = '{"timestamp": 0, "input_length": 600, "output_length": 5}\n'
Give = Callable[[], Any]


class Plugged(Reader):
    """A plug-in that gives whatever a test says."""

    time_field = "when"
    unit = "times in ns"
    example = "PLUG"
    given: Give = staticmethod(lambda: Parsed([request()], [2]))
    sure: Any = 9

    def confidence(self, text: bytes) -> int:
        return self.sure if text.startswith(b"PLUG") else 0

    def read(self, source: Any) -> Parsed:
        return type(self).given()


class Registry:
    """The readers that there are, and the one of this file."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def names(self) -> list[str]:
        return sorted([*readers.names(), "plugged"])

    def load(self, name: str) -> Any:
        return self.made if name == "plugged" else readers.load(name)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(detection, "readers", Registry(Plugged))
    (tmp_path / "t.plug").write_text("PLUG\n1\n2\n")
    return tmp_path / "t.plug"


def request(**fields: Any) -> TraceRequest:
    return TraceRequest(
        **{"id": "0", "arrival_ns": 5, "prompt_tokens": 20, "output_tokens": 2} | fields
    )


def test_what_is_right_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [
        request(hash_ids=(1, 2), session="a", tenant="b", token_ids=array("i", range(20))),
        request(id="1", arrival_ns=5, session="a", turn=1, follows=True, think_ns=7),
        request(id="2", arrival_ns=9, timeout_ns=5, cancel_after_ns=6),
    ]
    monkeypatch.setattr(Plugged, "given", lambda: Parsed(turns, [2, 2, 3], 16, ["a note"]))
    trace = load_trace(path)
    assert (trace.format, trace.hash_block, trace.requests) == ("plugged", 16, turns)
    assert "a note" in trace.notes


ODD: dict[str, tuple[Give, str]] = {
    "nothing": (lambda: None, "a NoneType, not a Parsed"),
    "a list": (lambda: [request()], "a list, not a Parsed"),
    "no end": (lambda: Parsed((request() for _ in itertools.count()), [2]), "a generator as requ"),
    "a map": (lambda: Parsed(map(str, itertools.count()), []), "a map as requests, not a list"),
    "lines without end": (lambda: Parsed([request()], itertools.count(1)), "a count as lines"),
    "too few lines": (lambda: Parsed([request()], []), "0 lines for 1 requests"),
    "line 0": (lambda: Parsed([request()], [0]), "a line that is no whole number"),
    "a note": (lambda: Parsed([request()], [2], 16, [3]), "a note that is no text"),
    "hash block": (lambda: Parsed([request()], [2], 0), "hash_block 0"),
    "hash block nan": (lambda: Parsed([request()], [2], float("nan")), "hash_block nan"),
    "users": (lambda: Parsed([request()], [2], 16, [], -1), "concurrency -1"),
    "a dict": (lambda: Parsed([{"id": 1}], [2]), "a dict, not a TraceRequest"),
    "closed": (lambda: Parsed([request()], [2], 16, [], 3), "though its file is a closed loop"),
}
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"id": 3}, "id 3, which is no text"),
    ({"id": ""}, "an empty id"),
    ({"tenant": None}, "tenant None, which is no text"),
    ({"session": 4}, "session 4, which is no text"),
    ({"line": -1}, "line -1"),
    ({"line": "7"}, "line '7'"),
    ({"arrival_ns": -1}, "arrival_ns -1"),
    ({"arrival_ns": 1.5}, "arrival_ns 1.5"),
    ({"arrival_ns": float("nan")}, "arrival_ns nan"),
    ({"arrival_ns": 10**40}, "arrival_ns 1000"),
    ({"arrival_ns": True}, "arrival_ns True"),
    ({"prompt_tokens": 0}, "prompt_tokens 0"),
    ({"prompt_tokens": -5}, "prompt_tokens -5"),
    ({"prompt_tokens": "20"}, "prompt_tokens '20'"),
    ({"prompt_tokens": 2**31}, "prompt_tokens 2147483648"),
    ({"output_tokens": 0}, "output_tokens 0"),
    ({"output_tokens": 2.0}, "output_tokens 2.0"),
    ({"output_tokens": None}, "output_tokens None"),
    ({"think_ns": -1}, "think_ns -1"),
    ({"timeout_ns": -1}, "timeout_ns -1"),
    ({"cancel_after_ns": 0.5}, "cancel_after_ns 0.5"),
    ({"turn": -1}, "turn -1"),
    ({"follows": True}, "follows, though no turn"),
    ({"follows": True, "session": "a"}, "follows, though no turn"),
    ({"hash_ids": [1, 2]}, "no tuple of whole numbers"),
    ({"hash_ids": (1, "2")}, "no tuple of whole numbers"),
    ({"hash_ids": (1, 2, 3)}, "3 hash ids, not one for each 16"),
    ({"hash_ids": (1, -2)}, "no number of 64 bits"),
    ({"hash_ids": (1, 2**64)}, "no number of 64 bits"),
    ({"token_ids": [1] * 20}, "no array"),
    ({"token_ids": array("i", [1])}, "no array of one id for each"),
    ({"token_ids": array("i", [-1] * 20)}, "no array"),
]


@pytest.mark.parametrize("name", ODD)
def test_a_reader_that_gives_no_trace_is_named(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give, says = ODD[name]
    monkeypatch.setattr(Plugged, "given", staticmethod(give))
    refused(path, says)


@pytest.mark.parametrize(("fields", "says"), FIELDS)
def test_a_reader_that_gives_an_impossible_request_is_named(
    fields: dict[str, Any], says: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = request(id="1", arrival_ns=4)
    parsed = Parsed([good, request(**fields)], [2, 3], 16)
    monkeypatch.setattr(Plugged, "given", staticmethod(lambda: parsed))
    assert refused(path, says).line == 3


def refused(path: Path, says: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_trace(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    assert "the reader of format 'plugged' gives" in text
    assert says in text
    assert text.isprintable()
    return caught.value


@pytest.mark.parametrize(
    ("requests", "field", "says"),
    [
        ([request(), request(id="1", arrival_ns=4)], "when", "time goes back from"),
        ([request(), request(arrival_ns=6)], "id", "is the id of line 2 too"),
        ([request(), request(id="1", arrival_ns=2**63)], "when", "146 years"),
        ([request(), request(id="1", tenant="\ud800")], "tenant", "U+D800"),
        ([], None, "no requests"),
    ],
)
def test_order_and_identity_are_checked_for_every_reader(
    requests: list[TraceRequest],
    field: str | None,
    says: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed = Parsed(requests, [2, 3][: len(requests)])
    monkeypatch.setattr(Plugged, "given", staticmethod(lambda: parsed))
    with pytest.raises(InputError) as caught:
        load_trace(path)
    assert says in str(caught.value)
    assert (caught.value.field, caught.value.line) == (field, 3 if requests else None)


@pytest.mark.parametrize("error", [ZeroDivisionError("so"), SystemExit(3), KeyError("x\ny")])
def test_a_reader_that_breaks_down_is_named(
    error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Parsed:
        raise error

    monkeypatch.setattr(Plugged, "given", staticmethod(fail))
    with pytest.raises(InputError, match="the reader of format 'plugged' broke down") as caught:
        load_trace(path)
    assert type(error).__name__ in str(caught.value)
    assert Path(__file__).name in str(caught.value)
    assert str(caught.value).isprintable()


def test_our_own_reader_s_faults_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nexusbench.workloads.readers.native import Native

    monkeypatch.setattr(Native, "read", lambda *_: 1 / 0)
    (tmp_path / "t").write_text(LINE)
    with pytest.raises(ZeroDivisionError):
        load_trace(tmp_path / "t")


def broken(error: BaseException) -> Any:
    def fail() -> Any:
        raise error

    return fail


@pytest.mark.parametrize("sure", [-1, 1.5, "9", None, float("nan"), 10**40, True])
def test_a_reader_of_odd_confidence_is_left_out_and_told(
    sure: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plugged, "sure", sure)
    with pytest.raises(InputError, match="trace format 'plugged' cannot be used: confidence is"):
        load_trace(path)


@pytest.mark.parametrize(
    "made",
    [
        broken(RuntimeError("x")),
        broken(SystemExit(1)),
        int,
        type("Silent", (Plugged,), {"unit": None}),
    ],
)
def test_a_broken_plug_in_keeps_no_other_reader_from_its_files(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "readers", Registry(made))
    (tmp_path / "t").write_text(LINE)
    trace = load_trace(tmp_path / "t")
    assert trace.format == "native"
    assert any("trace format 'plugged' cannot be used" in note for note in trace.notes)
    with pytest.raises(UsageError, match="trace format 'plugged' cannot be used"):
        load_trace(tmp_path / "t", "plugged")


def test_a_clock_that_breaks_down_leaves_nanoseconds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plugged, "clock", lambda *_: 1 / 0, raising=False)
    assert "first arrival, 5 ns in the file, is time 0" in load_trace(path).notes
