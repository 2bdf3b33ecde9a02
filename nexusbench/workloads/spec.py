"""Workload specs: a TOML file that makes a trace, the same one on every machine.

    [workload]                        name, num_requests, seed, sampling, hash_block
    [arrivals]                        process = "poisson", and the keys of that process
    [[classes]]                       name (the tenant), weight
    [classes.input] [classes.output]  law = "quantiles" unless said otherwise, and its keys
    [classes.lengths]                 or both from the rows of a table: file
    [prefixes]                        trees of shared prompt beginnings
    [sessions]                        turns, think_time, max_context
    [timeouts] [cancellations]        share, after
    [tenants]                         count, zipf

docs/workloads.md describes every key; ``nexusbench trace make`` writes the trace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from nexusbench.core.documents import parse_toml
from nexusbench.core.errors import InputError
from nexusbench.core.registry import and_keys, did_you_mean
from nexusbench.workloads.arrivals import PROCESSES, ArrivalProcess
from nexusbench.workloads.forest import Count, Exponent, Prefixes, Share
from nexusbench.workloads.lengths import LAWS, LengthLaw, LengthTable, load_table
from nexusbench.workloads.source import read_source, shown

__all__ = [
    "ClassSpec",
    "GivingUp",
    "Sessions",
    "Tenants",
    "WorkloadSpec",
    "WorkloadTable",
    "load_spec",
]

StructT = TypeVar("StructT", bound=msgspec.Struct)
Name = Annotated[str, msgspec.Meta(min_length=1)]

_MOST_LETTERS = 200
_MOST_SECONDS = 1e9  # 32 years: what is drawn around it stays below the 146 of a trace
_MOST_PREFIX = 2**31 - 1
_MOST_BLOCKS = 1_000_000


class WorkloadTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[workload]`` table.

    ``sampling``: ``independent`` draws each request by itself; ``stratified`` gives every class its
    exact share of the requests and takes one length from each of as many equal slices of its law,
    in random order. Then a few hundred requests already have the law's mean and tail.
    ``hash_block`` is the prompt tokens per hash id, where prefixes or sessions make any.
    """

    name: Name
    num_requests: Annotated[int, msgspec.Meta(ge=1, le=5_000_000)]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    sampling: Literal["independent", "stratified"] = "independent"
    hash_block: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 16


class ClassShare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of request; ``name`` becomes its tenant, ``weight`` is relative to the others."""

    name: Name
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e9)] = 1.0


class ClassSpec(ClassShare, frozen=True, kw_only=True):
    """A ``[[classes]]`` table: a kind of request and its lengths in tokens, by laws or a table."""

    input: LengthLaw | None = None
    output: LengthLaw | None = None
    table: LengthTable | None = None


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    """The ``[sessions]`` table: ``turns`` per session, ``think_time`` (ms) before each later turn.

    A session has no further turn once prompt and output would exceed ``max_context`` tokens.
    """

    turns: LengthLaw
    think_time: LengthLaw | None = None
    max_context: int = 2**31 - 1


class GivingUp(msgspec.Struct, frozen=True, kw_only=True):
    """``[timeouts]`` or ``[cancellations]``: ``share`` of the requests are given up ``after`` so
    many ms.
    """

    after: LengthLaw
    share: float = 1.0


class Tenants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[tenants]`` table: ``count`` tenants with weights 1/rank^``zipf``, whatever the
    class.
    """

    count: Count
    zipf: Exponent = 0.0


class _MaxContext(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_context: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 2**31 - 1


class _Given(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    share: Share = 1.0


class WorkloadSpec(msgspec.Struct, frozen=True):
    """A whole spec; ``sha256`` is that of its file."""

    workload: WorkloadTable
    arrivals: ArrivalProcess
    classes: tuple[ClassSpec, ...]
    sha256: str = ""
    prefixes: Prefixes | None = None
    sessions: Sessions | None = None
    timeouts: GivingUp | None = None
    cancellations: GivingUp | None = None
    tenants: Tenants | None = None
    path: Path | None = None

    @property
    def tables(self) -> list[Path]:
        """The files that its lengths come from."""
        return [kind.table.path for kind in self.classes if kind.table is not None]

    @property
    def hashed(self) -> bool:
        """Whether its requests have hash ids."""
        return self.prefixes is not None or self.sessions is not None


def load_spec(path: str | os.PathLike[str]) -> WorkloadSpec:
    """Read a TOML spec. Raises InputError that names the file and the key (or the line)."""
    source = read_source(path)
    document = parse_toml(source.text.decode(), source.path)
    return _spec(document, _Place(source.path, source.sha256))


class _Place(msgspec.Struct, frozen=True):
    """Where a table stands, for error messages."""

    path: Path
    sha256: str
    key: str = ""

    def at(self, key: str) -> _Place:
        return _Place(self.path, self.sha256, f"{self.key}.{key}" if self.key else key)

    def fault(self, problem: str, key: str = "", hint: str = "Correct the value") -> InputError:
        field = ".".join(filter(None, (self.key, key)))
        return InputError(
            shown(problem, 400), file=self.path, field=shown(field, 200) or None, hint=hint
        )


def _spec(document: Mapping[str, Any], place: _Place) -> WorkloadSpec:
    required = ("workload", "arrivals", "classes")
    optional = ("prefixes", "sessions", "timeouts", "cancellations", "tenants")
    _check_keys(document, (*required, *optional), required, place)
    classes = document["classes"]
    if not isinstance(classes, list) or not classes:
        raise place.fault("must be one or more [[classes]] tables", "classes")
    kinds = tuple(_class(table, place.at(f"classes[{i}]")) for i, table in enumerate(classes))
    names = [kind.name for kind in kinds]
    for index, name in enumerate(names):
        _check_name(name, place.at(f"classes[{index}]"))
    for index, name in enumerate(names):
        if name in names[:index]:
            raise place.fault(
                f"two classes are called '{name}'", f"classes[{index}].name", "Rename one"
            )
    workload = _convert(document["workload"], WorkloadTable, place.at("workload"))
    _check_name(workload.name, place.at("workload"))
    prefixes = sessions = tenants = None
    if "prefixes" in document:
        prefixes = _convert(document["prefixes"], Prefixes, place.at("prefixes"))
        _check_prefixes(prefixes, workload.hash_block, place.at("prefixes"))
    if "sessions" in document:
        sessions = _conversations(document["sessions"], place.at("sessions"))
    timeouts, cancellations = (
        _giving_up(document[name], place.at(name)) if name in document else None
        for name in ("timeouts", "cancellations")
    )
    if "tenants" in document:
        tenants = _convert(document["tenants"], Tenants, place.at("tenants"))
    arrivals = _named(document["arrivals"], PROCESSES, "process", None, place.at("arrivals"))
    seconds = arrivals.span_s(workload.num_requests)
    if not seconds <= _MOST_SECONDS:
        raise place.fault(
            f"{workload.num_requests:,} requests would take {seconds:.3g} s, and at most "
            f"{_MOST_SECONDS:.3g} s are made", "arrivals", "Raise the rate",
        )  # fmt: skip
    return WorkloadSpec(
        workload, arrivals, kinds, place.sha256, prefixes, sessions, timeouts, cancellations,
        tenants, place.path,
    )  # fmt: skip


def _conversations(table: Any, place: _Place) -> Sessions:
    laws, rest = _laws(table, ("turns",), ("think_time",), place)
    longest = _convert(rest, _MaxContext, place).max_context
    return Sessions(turns=laws["turns"], think_time=laws.get("think_time"), max_context=longest)


def _giving_up(table: Any, place: _Place) -> GivingUp:
    laws, rest = _laws(table, ("after",), (), place)
    return GivingUp(after=laws["after"], share=_convert(rest, _Given, place).share)


def _check_name(name: str, place: _Place) -> None:
    """A name becomes a tenant or a title: one line of text. Raises InputError."""
    if not name.isprintable() or len(name) > _MOST_LETTERS:
        raise place.fault(
            f"'{shown(name)}' must be at most {_MOST_LETTERS} printable characters", "name"
        )


def _check_prefixes(prefixes: Prefixes, hash_block: int, place: _Place) -> None:
    """Whole blocks, and paths that a prompt can hold. Raises InputError."""
    if prefixes.tokens % hash_block:
        raise place.fault(
            f"{prefixes.tokens} tokens are no multiple of the hash block of {hash_block}",
            "tokens", "Change it, or workload.hash_block",
        )  # fmt: skip
    longest = prefixes.tokens * prefixes.depth
    if longest >= _MOST_PREFIX or longest // hash_block > _MOST_BLOCKS:
        raise place.fault(
            f"{prefixes.depth} levels of {prefixes.tokens:,} tokens are {longest:,} tokens and "
            f"{longest // hash_block:,} hash ids a prompt, over {_MOST_PREFIX:,} or "
            f"{_MOST_BLOCKS:,}", "tokens", "Make it smaller, or workload.hash_block larger",
        )  # fmt: skip


def _class(table: Any, place: _Place) -> ClassSpec:
    if isinstance(table, dict) and "lengths" in table:
        _check_keys(table, ("name", "lengths", "weight"), ("name",), place)
        _check_keys(table["lengths"], ("file",), ("file",), place.at("lengths"))
        file = table["lengths"]["file"]
        if not isinstance(file, str) or not file:
            raise place.fault("must be the path of a CSV file", "lengths.file")
        seen = load_table(place.path.parent / file)
        rest = {key: value for key, value in table.items() if key != "lengths"}
        share = _convert(rest, ClassShare, place)
        return ClassSpec(name=share.name, weight=share.weight, table=seen)
    _check_keys(table, ("name", "input", "output", "lengths", "weight"), ("name",), place)
    laws, rest = _laws(table, ("input", "output"), (), place)
    share = _convert(rest, ClassShare, place)
    return ClassSpec(
        name=share.name, weight=share.weight, input=laws["input"], output=laws["output"]
    )


def _laws(
    table: Any, required: Sequence[str], optional: Sequence[str], place: _Place
) -> tuple[dict[str, LengthLaw], dict[str, object]]:
    """The laws among the keys of ``table``, and its other keys."""
    if not isinstance(table, dict):
        raise place.fault("must be a table")
    for key in required:
        if key not in table:
            raise place.fault("missing", key, "Add it")
    laws = {
        key: _named(table[key], LAWS, "law", "quantiles", place.at(key))
        for key in (*required, *optional)
        if key in table
    }
    return laws, {key: value for key, value in table.items() if key not in laws}


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
        raise place.fault(
            f"no {key} is called '{shown(str(name))}'", key,
            did_you_mean(str(name)[:_MOST_LETTERS], list(kinds)),
        )  # fmt: skip
    rest = {other: value for other, value in table.items() if other != key}
    return _convert(rest, kinds[name], place)


def _convert(table: Any, kind: type[StructT], place: _Place) -> StructT:
    fields = msgspec.structs.fields(kind)
    required = [field.encode_name for field in fields if field.required]
    _check_keys(table, [field.encode_name for field in fields], required, place)
    try:
        return msgspec.convert(table, kind)
    except OverflowError:
        raise place.fault("has a number beyond what a float can hold") from None
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise place.fault(problem, path.rstrip("`").lstrip(".")) from None


def _check_keys(table: Any, known: Sequence[str], required: Sequence[str], place: _Place) -> None:
    if not isinstance(table, dict):
        raise place.fault("must be a table")
    unknown = [key for key in table if key not in known]
    missing = [key for key in required if key not in table]
    if unknown:
        problem = "unknown key" + and_keys(unknown[1:], missing)
        raise place.fault(problem, unknown[0], did_you_mean(unknown[0], list(known)))
    if missing:
        hint = "Add them" if missing[1:] else "Add it"
        raise place.fault("missing" + and_keys(missing=missing[1:]), missing[0], hint)
