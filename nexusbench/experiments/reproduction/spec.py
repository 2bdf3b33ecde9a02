"""Experiments of a paper as TOML files: a sweep, the systems in it, and what the paper claims.

    [experiment]      title, figures; requests (of a trace made from a workload spec), rows
    [base] [grid]     as in a sweep (docs/sweeps.md); the seeds of the grid are draws
    [systems.NAME]    fields of RunConfig that make the system; or best_of = [names], the best of
                      those at every point; fitted = true: with a belief fitted to a profile made
                      here; serve = "regret" or "oracle": decisions judged by the truth
    [throughput]      the bound that a rate must keep, and the system whose range is compared
    [variants.NAME]   another reading: fields, for which systems, or another throughput
    [[claim]]         what the paper says, and how to see whether it is so
    [quick]           values of base and grid for --quick, systems to drop

Raises InputError naming file, line and field for whatever cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.registry import and_keys, did_you_mean
from nexusbench.experiments.neutral import NEUTRAL
from nexusbench.experiments.ranges import Place
from nexusbench.experiments.reproduction.measure_names import (
    THROUGHPUT,
    check_measure,
    higher_is_better,
)
from nexusbench.experiments.sweep_spec import (
    ConfigFields,
    SpecReader,
    TomlTable,
    product,
    read_toml,
)

TABLES = ("experiment", "base", "grid", "systems", "throughput", "variants", "claim", "quick")
Serve = Literal["run", "regret", "oracle"]
_OF_VARIANTS = ("systems", "fitted", "all_rates")
StructT = TypeVar("StructT", bound=msgspec.Struct)


class Criterion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rate is kept while ``measure`` is below ``times`` its value for requests served one by one
    (at ``rate`` requests/s, by ``system``), or below ``at_most``, or ``at_least`` that much where
    more is better, and no queue grows: at most ``backlog`` of the run follows the last arrival
    (1: no matter), as many requests finish as one by one, and ``attainment`` percent of them keep
    the run's SLO, if it is above 0. Rates are found to ``precision``.

    Latencies are compared at the rates of the grid that ``steady`` keeps.
    """

    system: str
    steady: str
    measure: str = "normalised_latency.mean"
    times: float = 5.0
    at_most: float | None = None
    at_least: float | None = None
    backlog: float = 0.1
    attainment: float = 0.0
    rate: float = 0.02
    precision: float = 0.03


class System(msgspec.Struct, frozen=True, kw_only=True):
    """A way to serve, by name."""

    name: str
    fields: ConfigFields = {}
    best_of: tuple[str, ...] = ()
    by: str = "normalised_latency.mean"
    fitted: bool = False
    serve: Serve = "run"


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """Another reading of the experiment: ``systems`` (all, if none are named) get ``fields``."""

    name: str
    fields: ConfigFields = {}
    systems: tuple[str, ...] = ()
    fitted: bool = False
    throughput: Criterion | None = None
    all_rates: bool = False  # latencies at the rates that are not kept, too
    constant: str = ""  # made neutral on the simulated GPU
    place: Place | None = None  # or moved on its ranges


class PaperClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A statement of the paper. ``low`` and ``high`` are its number as a range, in times or in
    percent of change; ``compare`` says what of ``of`` and ``over`` it is about.

    ``across`` says how points (rates, sizes) make one number. ``neutral`` names constants of the
    simulated GPU that it might follow from; ``cannot`` says why a simulation cannot tell. With
    ``exceeds`` (pairs of systems) the claim is that a gain has its peak here: what is judged is how
    many times the gain of ``of`` over ``over`` is the largest gain of those pairs. ``built_in``
    names what of the simulator has the effect in it and cannot be made neutral. ``ranges``: whether
    it is judged over the ranges of the GPU's contested constants, too; None: if it names constants.
    """

    says: str
    paper: str
    of: str = ""
    over: str = ""
    measure: str = THROUGHPUT
    compare: Literal["times better", "change", "value"] = "times better"
    low: float | None = None
    high: float | None = None
    across: Literal["mean", "max", "min"] = "mean"
    exceeds: tuple[tuple[str, str], ...] = ()
    neutral: tuple[str, ...] = ()
    ranges: bool | None = None
    built_in: str = ""
    cannot: str = ""
    note: str = ""


class ExperimentTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[experiment]`` table."""

    title: str
    figures: tuple[str, ...]
    # Of a trace made from the workload spec that ``trace`` names; 0: as it is.
    requests: Annotated[int, msgspec.Meta(ge=0, le=10**6)] = 0
    rows: Literal["", "motivation"] = ""
    variant_draws: Annotated[int, msgspec.Meta(ge=1)] = 1  # that variants and neutral ones get
    range_draws: Annotated[int, msgspec.Meta(ge=0, le=100)] = 4  # of contested constants
    note: str = ""


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """One spec, decoded: its points are the combinations of the grid without the seeds."""

    name: str
    sha256: str
    about: ExperimentTable
    base: ConfigFields
    points: tuple[ConfigFields, ...]
    seeds: tuple[int, ...]
    systems: dict[str, System]
    throughput: Criterion | None
    variants: tuple[Variant, ...]
    claims: tuple[PaperClaim, ...]
    cut: tuple[str, ...] = ()  # what --quick left out


def load_experiment(path: Path, *, quick: bool = False) -> Experiment:
    """Read one spec."""
    text, document, sha256 = read_toml(path)
    reader = SpecReader(path, text, TABLES)
    reader.check_tables(document)
    table = document.get("experiment")
    if not isinstance(table, dict):
        raise reader.fault("is missing or no table", "experiment", hint="Write [experiment]")
    about = _convert(reader, table, "experiment", ExperimentTable)
    base = {key: values[0] for key, values in reader.table(document, "base", lists=False).items()}
    grid = reader.table(document, "grid")
    changes = document.get("quick", {})
    if not isinstance(changes, dict):
        raise reader.fault("must be a table", "quick", hint="Write [quick]")
    changes = dict(changes)
    drop = changes.pop("drop", [])
    if not isinstance(drop, list) or not all(isinstance(name, str) for name in drop):
        raise reader.fault("must be a list of systems", "quick", "drop")
    dropped = tuple(drop)
    asked = reader.values(changes, "quick", 0, True)
    cut: list[str] = []
    for key, values in asked.items() if quick else ():
        cut.append(f"{key} {', '.join(map(str, values))}")
        if key in grid:
            grid[key] = values
        else:
            base[key] = values[0]
    systems = _systems(reader, document)
    for name in dropped:
        _known(reader, name, systems, "quick", "drop")
    if quick and dropped:
        cut.append(f"without {', '.join(dropped)}")
        systems = _without(systems, dropped)
    seeds = msgspec.convert(grid.pop("seed", [0]), tuple[int, ...])
    reader.check_size(grid, {"seed": list(seeds)})
    reader.config({**base, **{key: values[0] for key, values in grid.items()}})
    claims = _claims(reader, document, systems, dropped if quick else ())
    throughput = _throughput(reader, document, "throughput", systems)
    if throughput is None and any(c.measure == THROUGHPUT for c in claims if not c.cannot):
        raise reader.fault("is missing", "throughput", hint="Claims about throughput need it")
    return Experiment(
        name=path.stem, sha256=sha256, about=about, base=base, seeds=seeds,
        points=tuple(product({}, grid)), systems=systems, throughput=throughput,
        variants=_variants(reader, document, systems), claims=claims, cut=tuple(cut),
    )  # fmt: skip


def _convert(
    reader: SpecReader, table: TomlTable, name: str, kind: type[StructT], nth: int = 0
) -> StructT:
    known = list(kind.__struct_fields__)
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    missing = [key for key in required if key not in table]
    if unknown := [key for key in table if key not in known]:
        problem = "unknown key" + and_keys(unknown[1:], missing)
        raise reader.fault(problem, name, unknown[0], did_you_mean(unknown[0], known), nth)
    for key, value in table.items():
        field = next(f for f in msgspec.structs.fields(kind) if f.name == key)
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            raise reader.fault(str(error).split(" - at")[0], name, key, nth=nth) from None
    if missing:
        problem = f"missing required field `{missing[0]}`" + and_keys(missing=missing[1:])
        raise reader.fault(problem, name, hint="Add it" if not missing[1:] else "Add them", nth=nth)
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise reader.fault(str(error).split(" - at")[0], name, hint="Add it", nth=nth) from None


def _named(reader: SpecReader, document: TomlTable, name: str) -> dict[str, dict[str, object]]:
    """``[name.X]`` tables."""
    tables = document.get(name, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise reader.fault("must be tables", name, hint=f"Write [{name}.NAME]")
    return {key: dict(table) for key, table in tables.items()}


def _systems(reader: SpecReader, document: TomlTable) -> dict[str, System]:
    systems: dict[str, System] = {}
    special = ("best_of", "by", "fitted", "serve")
    for name, table in _named(reader, document, "systems").items():
        where = f"systems.{name}"
        own = {key: table.pop(key) for key in special if key in table}
        fields = {key: v[0] for key, v in reader.values(table, where, 0, False).items()}
        made = _convert(reader, {"name": name, **own}, where, System)
        if bool(fields) == bool(made.best_of):
            raise reader.fault("needs fields or best_of", where, hint="Give one of them")
        systems[name] = msgspec.structs.replace(made, fields=fields)
        check_measure(reader, made.by, where, "by", 0)
    for system in systems.values():
        for member in system.best_of:
            _known(reader, member, systems, f"systems.{system.name}", "best_of")
            if systems[member].best_of:
                raise reader.fault(
                    f"'{member}' is itself the best of several", f"systems.{system.name}",
                    "best_of", "Name its members",
                )  # fmt: skip
    return systems


def _without(systems: Mapping[str, System], dropped: tuple[str, ...]) -> dict[str, System]:
    """Those that are kept; the best of several is that of the members that are left."""
    kept: dict[str, System] = {}
    for name, system in systems.items():
        members = tuple(member for member in system.best_of if member not in dropped)
        if name not in dropped and (members or not system.best_of):
            kept[name] = msgspec.structs.replace(system, best_of=members)
    return kept


def _variants(
    reader: SpecReader, document: TomlTable, systems: Mapping[str, System]
) -> tuple[Variant, ...]:
    variants: list[Variant] = []
    for name, table in _named(reader, document, "variants").items():
        where = f"variants.{name}"
        own: dict[str, object] = {k: table.pop(k) for k in _OF_VARIANTS if k in table}
        throughput = _throughput(reader, table, "throughput", systems, where)
        table.pop("throughput", None)
        fields = {key: v[0] for key, v in reader.values(table, where, 0, False).items()}
        made = _convert(reader, {"name": name, **own}, where, Variant)
        if not (fields or made.fitted or made.all_rates or throughput):
            raise reader.fault("changes nothing", where, hint="Give it a field or drop it")
        kept = tuple(system for system in made.systems if system in systems)
        if made.systems and not kept:
            _known(reader, made.systems[0], systems, where, "systems")
        variants.append(
            msgspec.structs.replace(made, fields=fields, throughput=throughput, systems=kept)
        )
    return tuple(variants)


def _throughput(
    reader: SpecReader,
    document: TomlTable,
    name: str,
    systems: Mapping[str, System],
    where: str = "",
) -> Criterion | None:
    if name not in document:
        return None
    place = where or name
    table = document[name]
    if not isinstance(table, dict):
        raise reader.fault("must be a table", place, hint=f"Write [{place}]")
    found = _convert(reader, table, place, Criterion)
    for key in ("system", "steady"):
        _known(reader, getattr(found, key), systems, place, key)
    check_measure(reader, found.measure, place, "measure", 0)
    if higher_is_better(found.measure) != (found.at_least is not None):
        hint = "It goes with a measure of which more is better, and such a measure needs it"
        raise reader.fault("does not fit the measure", place, "at_least", hint)
    if min(found.precision, found.rate, found.backlog) <= 0 or found.times <= 1:
        hint = "times > 1, and rate, precision and backlog > 0"
        raise reader.fault("is impossible", place, hint=hint)
    return found


def _claims(
    reader: SpecReader,
    document: TomlTable,
    systems: Mapping[str, System],
    dropped: tuple[str, ...],
) -> tuple[PaperClaim, ...]:
    tables = document.get("claim", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise reader.fault("must be tables", "claim", hint="Write [[claim]] above each")
    claims: list[PaperClaim] = []
    for nth, table in enumerate(tables):
        claim = _convert(reader, table, "claim", PaperClaim, nth)
        if {claim.of, claim.over} & set(dropped):
            continue
        if claim.exceeds:
            kept = tuple(pair for pair in claim.exceeds if not set(pair) & set(dropped))
            if not kept:
                continue  # nothing is left to exceed
            claim = msgspec.structs.replace(claim, exceeds=kept)
        claims.append(claim)
        if not claim.cannot:
            _check_claim(reader, claim, systems, nth)
    return tuple(claims)


def _check_claim(
    reader: SpecReader, claim: PaperClaim, systems: Mapping[str, System], nth: int
) -> None:
    for key in ("of", "over") if claim.compare != "value" else ("of",):
        _known(reader, getattr(claim, key), systems, "claim", key, nth)
    for name in (name for pair in claim.exceeds for name in pair):
        _known(reader, name, systems, "claim", "exceeds", nth)
    if claim.exceeds and claim.compare != "times better":
        raise reader.fault("is about gains", "claim", "exceeds", 'Use "times better"', nth)
    check_measure(reader, claim.measure, "claim", "measure", nth)
    if claim.low is None and claim.high is None:
        raise reader.fault(
            "has neither low nor high", "claim", hint="Give the paper's number", nth=nth
        )
    if claim.low is not None and claim.high is not None and claim.low > claim.high:
        raise reader.fault("low exceeds high", "claim", "low", nth=nth)
    for constant in claim.neutral:
        if constant not in NEUTRAL:
            hint = did_you_mean(constant, list(NEUTRAL))
            raise reader.fault(f"no constant '{constant}'", "claim", "neutral", hint, nth)


def _known(
    reader: SpecReader, name: str, systems: Mapping[str, System], table: str, key: str, nth: int = 0
) -> None:
    if name not in systems:
        hint = did_you_mean(name, list(systems))
        raise reader.fault(f"no system called '{name}'", table, key, hint, nth)


def find_experiments(folder: Path, *, quick: bool = False) -> list[Experiment]:
    """All specs of a folder in order of their names. Raises InputError if there is none."""
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise InputError(
            "no experiments here", file=folder,
            hint="Run in a checkout of nexusbench, or name the folder with --specs",
        )  # fmt: skip
    return [load_experiment(path, quick=quick) for path in paths]
