"""Workload specs: a TOML file that makes a trace, the same one on every machine.

    [workload]                        name, num_requests, seed, sampling
    [arrivals]                        process = "poisson", and the keys of that process
    [[classes]]                       name (the tenant), weight
    [classes.input] [classes.output]  law = "quantiles" unless said otherwise, and its keys

``python -m nexusbench.workloads.spec SPEC.toml -o FILE.jsonl`` writes the trace.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec

from nexusbench.core.errors import InputError, NexusbenchError
from nexusbench.core.registry import did_you_mean
from nexusbench.workloads.arrivals import PROCESSES, ArrivalProcess
from nexusbench.workloads.base import Trace, TraceRequest
from nexusbench.workloads.lengths import LAWS, LengthLaw
from nexusbench.workloads.source import read_source
from nexusbench.workloads.streams import stream
from nexusbench.workloads.trace import span_text, write_trace

if TYPE_CHECKING:
    import numpy as np

    from nexusbench.workloads.lengths import Floats

__all__ = ["ClassSpec", "Workload", "WorkloadSpec", "load_spec", "make_trace"]

StructT = TypeVar("StructT", bound=msgspec.Struct)
Name = Annotated[str, msgspec.Meta(min_length=1)]


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[workload]`` table.

    ``sampling``: ``independent`` draws each request by itself; ``stratified`` gives every class its
    exact share of the requests and takes one length from each of as many equal slices of its law,
    in random order. Then a few hundred requests already have the law's mean and tail.
    """

    name: Name
    num_requests: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    sampling: Literal["independent", "stratified"] = "independent"


class ClassShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of request; ``name`` becomes its tenant, ``weight`` is relative to the others."""

    name: Name
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 1.0


class ClassSpec(ClassShare, frozen=True, kw_only=True):
    """A ``[[classes]]`` table: a kind of request and its lengths in tokens."""

    input: LengthLaw
    output: LengthLaw


class WorkloadSpec(msgspec.Struct, frozen=True):
    """A whole spec; ``sha256`` is that of its file."""

    workload: Workload
    arrivals: ArrivalProcess
    classes: tuple[ClassSpec, ...]
    sha256: str = ""


def load_spec(path: str | os.PathLike[str]) -> WorkloadSpec:
    """Read a TOML spec. Raises InputError that names the file and the key (or the line)."""
    source = read_source(path)
    try:
        document = tomllib.loads(source.text.decode())
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        raise InputError(
            f"not valid TOML: {error}",
            file=source.path,
            line=int(place[1]) if place else None,
            hint="Correct the line",
        ) from None
    return _spec(document, _Place(source.path, source.sha256))


def make_trace(spec: WorkloadSpec) -> Trace:
    """The trace of a spec.

    Choice of class, arrivals, and each class's input and output lengths have random streams of
    their own, so changing one leaves the others as they are.
    """
    plan, n = spec.workload, spec.workload.num_requests
    chosen = _choose(spec)
    arrivals = spec.arrivals.draw(n, stream(plan.seed, "arrivals"))
    prompts, outputs = [0] * n, [0] * n
    for position, kind in enumerate(spec.classes):
        places = [index for index in range(n) if chosen[index] == position]
        for name, law, lengths in (
            ("input", kind.input, prompts),
            ("output", kind.output, outputs),
        ):
            uniform = _uniform(plan, len(places), stream(plan.seed, kind.name, name))
            for place, length in zip(places, law.lengths(uniform), strict=True):
                lengths[place] = length
    requests = [
        TraceRequest(str(i), arrivals[i], prompts[i], outputs[i], (), spec.classes[chosen[i]].name)
        for i in range(n)
    ]
    note = f"generated, {n:,} requests, {span_text(arrivals[-1])}, seed {plan.seed}"
    return Trace(plan.name, requests, format="spec", sha256=spec.sha256, notes=[note])


def _choose(spec: WorkloadSpec) -> list[int]:
    """The class of each request, by position in the spec."""
    import numpy as np

    plan = spec.workload
    rng = stream(plan.seed, "classes")
    edges = np.cumsum([kind.weight for kind in spec.classes])
    # A number belongs to the class whose cumulative weight it falls under. Stratified, the numbers
    # are the same for every seed up to their order, so a class count is off by one at most.
    uniform = rng.random(plan.num_requests)
    if plan.sampling == "stratified":
        uniform = (_order(plan.num_requests, rng) + 0.5) / plan.num_requests
    chosen: list[int] = np.searchsorted(edges / edges[-1], uniform, side="right").tolist()
    return chosen


def _uniform(plan: Workload, n: int, rng: np.random.Generator) -> Floats:
    """``n`` uniform numbers in [0, 1), independent or one from each of ``n`` equal slices."""
    inside = rng.random(n)
    if plan.sampling == "independent":
        return inside
    values: Floats = (_order(n, rng) + inside) / n
    return values


def _order(n: int, rng: np.random.Generator) -> Any:
    """A random order of 0..n-1, from plain uniforms (the same for every version of numpy)."""
    import numpy as np

    return np.argsort(rng.random(n), kind="stable")


class _Place(msgspec.Struct, frozen=True):
    """Where a table stands, for error messages."""

    path: Path
    sha256: str
    key: str = ""

    def at(self, key: str) -> _Place:
        return _Place(self.path, self.sha256, f"{self.key}.{key}" if self.key else key)

    def fault(self, problem: str, key: str = "", hint: str = "Correct the value") -> InputError:
        field = ".".join(filter(None, (self.key, key)))
        return InputError(problem, file=self.path, field=field or None, hint=hint)


def _spec(document: dict[str, Any], place: _Place) -> WorkloadSpec:
    tables = ("workload", "arrivals", "classes")
    _check_keys(document, tables, tables, place)
    classes = document["classes"]
    if not isinstance(classes, list) or not classes:
        raise place.fault("must be one or more [[classes]] tables", "classes")
    kinds = tuple(_class(table, place.at(f"classes[{i}]")) for i, table in enumerate(classes))
    names = [kind.name for kind in kinds]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise place.fault(
                f"two classes are called '{name}'", f"classes[{index}].name", "Rename one"
            )
    return WorkloadSpec(
        _convert(document["workload"], Workload, place.at("workload")),
        _named(document["arrivals"], PROCESSES, "process", None, place.at("arrivals")),
        kinds,
        place.sha256,
    )


def _class(table: Any, place: _Place) -> ClassSpec:
    _check_keys(table, ("name", "input", "output", "weight"), ("name", "input", "output"), place)
    laws = {
        side: _named(table[side], LAWS, "law", "quantiles", place.at(side))
        for side in ("input", "output")
    }
    rest = {key: value for key, value in table.items() if key not in laws}
    share = _convert(rest, ClassShare, place)
    return ClassSpec(name=share.name, weight=share.weight, **laws)


def _named(
    table: Any, kinds: Mapping[str, type[StructT]], key: str, default: str | None, place: _Place
) -> StructT:
    """The struct that ``table[key]`` names, made of the other keys."""
    if not isinstance(table, dict):
        raise place.fault("must be a table")
    name = table.get(key, default)
    if name is None:
        raise place.fault("missing", key, f"Known: {', '.join(kinds)}")
    if not isinstance(name, str) or name not in kinds:
        raise place.fault(f"no {key} is called '{name}'", key, did_you_mean(str(name), list(kinds)))
    rest = {other: value for other, value in table.items() if other != key}
    return _convert(rest, kinds[name], place)


def _convert(table: Any, kind: type[StructT], place: _Place) -> StructT:
    fields = msgspec.structs.fields(kind)
    required = [field.encode_name for field in fields if field.required]
    _check_keys(table, [field.encode_name for field in fields], required, place)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise place.fault(problem, path.rstrip("`").lstrip(".")) from None


def _check_keys(table: Any, known: Sequence[str], required: Sequence[str], place: _Place) -> None:
    if not isinstance(table, dict):
        raise place.fault("must be a table")
    for key in table:
        if key not in known:
            raise place.fault("unknown key", key, did_you_mean(key, list(known)))
    for key in required:
        if key not in table:
            raise place.fault("missing", key, "Add it")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace of a spec; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nexusbench.workloads.spec", description=__doc__
    )
    parser.add_argument("spec", type=Path, help="the TOML spec")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSONL trace to write")
    arguments = parser.parse_args(argv)
    try:
        trace = make_trace(load_spec(arguments.spec))
        write_trace(trace, arguments.output)
    except NexusbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{arguments.output}: {trace.notes[0]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
