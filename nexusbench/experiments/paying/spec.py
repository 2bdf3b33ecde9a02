"""Map specs: which systems are compared on which GPUs, traffic, loads and SLOs, as one TOML file.

    [map]              GPUs, model, loads, seeds; which systems are compared by name
    [systems.NAME]     kind, and the fields of RunConfig that make the system
    [[traffic]]        name, trace (a workload spec or a trace), burstiness, slos (presets)
    [grid]             made-up traffic over prompt and output lengths
    [sensitivity]      constants of the simulated GPU that are made neutral
    [ranges]           contested constants at the ends of their ranges, and drawn from them
    [quick.TABLE]      what replaces values of a table for --quick

docs/when-it-pays.md shows the result of workloads/when-it-pays/map.toml.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from nexusbench.core.config import RunConfig, check_config
from nexusbench.core.documents import parse_toml
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.registry import and_keys, did_you_mean, parse_options, split_spec
from nexusbench.experiments.neutral import NEUTRAL
from nexusbench.experiments.sweep_spec import MOST_CELLS, ConfigFields
from nexusbench.metrics.slo import parse_slo, preset
from nexusbench.models.config import load_model
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import Scheduler, schedulers
from nexusbench.serving.resolve import find_device
from nexusbench.workloads.source import read_source

Kind = Literal["whole", "streams", "split"]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Draws = Annotated[int, msgspec.Meta(ge=2, le=100)]  # one draw has no interval
Loads = Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]
Names = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
# Options through which a policy is told the SLO.
_SLO_OPTIONS = frozenset(("ttft_ms", "tbt_ms"))
_TABLES = ("map", "systems", "traffic", "grid", "sensitivity", "ranges", "quick")
_QUICK = ("map", "grid", "sensitivity", "ranges")


class MapTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[map]`` table. ``loads`` are percent of what ``reference`` can finish."""

    title: str
    gpus: Names
    model: str
    loads: Loads
    seeds: Draws
    reference: str
    ordered: str
    policy: str
    span_s: Positive = 60.0
    requests: tuple[Tokens, Tokens] = (300, 1500)


class MapSystem(msgspec.Struct, frozen=True, kw_only=True):
    """A way to serve; ``told_slo`` if its policy plans for one."""

    name: str
    kind: Kind
    fields: ConfigFields
    told_slo: bool = False


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Traffic from a file, or made up (``prompt`` and ``output`` mean tokens); ``slos`` by name;
    ``systems`` are those that serve it, none for all of the map's.
    """

    name: str
    slos: dict[str, str]
    loads: Loads
    seeds: int
    burstiness: float = 1.0
    trace: str = ""
    prompt: int = 0
    output: int = 0
    cv: float = 0.0
    systems: tuple[str, ...] = ()


class Sensitivity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[sensitivity]`` table."""

    constants: tuple[str, ...] = ()
    loads: tuple[Positive, ...] = ()
    seeds: Draws = 2


class MapRanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[ranges]`` table: each contested constant at its ``ends``, with the first ``seeds``
    draws of the arrivals (0: all of the map's), and ``draws`` of all of them from a Latin hypercube
    of ``seed``, one with each draw of the arrivals. ``loads`` and ``systems``: none is all of the
    map's.
    """

    ends: bool = True
    draws: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    loads: tuple[Positive, ...] = ()
    seeds: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    systems: tuple[str, ...] = ()
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


class MapSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A whole spec, checked; ``cut`` says what --quick left out."""

    name: str
    sha256: str
    about: MapTable
    systems: tuple[MapSystem, ...]
    traffic: tuple[Traffic, ...]
    sensitivity: Sensitivity
    ranges: MapRanges | None = None
    cut: tuple[str, ...] = ()


class _TrafficTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    trace: str
    slos: Names
    burstiness: Positive = 1.0


class _Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prompts: tuple[Tokens, ...]
    outputs: tuple[Tokens, ...]
    loads: Loads
    seeds: Draws
    slos: Names
    cv: Positive = 0.7
    systems: tuple[str, ...] = ()


def load_map(path: Path, *, quick: bool = False) -> MapSpec:
    """Read a spec. Raises InputError that names the file and the field."""
    source = read_source(path)
    document = parse_toml(source.text.decode(), path)
    return _MapReader(path).spec(document, source.sha256, quick=quick)


class _MapReader:
    """Decodes tables and says where a fault stands."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _fault(self, problem: str, field: str, hint: str = "Correct the value") -> InputError:
        return InputError(problem, file=self._path, field=field, hint=hint)

    def _keys(self, table: Any, kind: type[msgspec.Struct], field: str) -> None:
        """Refuse unknown and missing keys of a table, all of them at once."""
        if not isinstance(table, dict):
            return
        fields = msgspec.structs.fields(kind)
        known = [f.name for f in fields]
        unknown = [key for key in table if key not in known]
        missing = [f.name for f in fields if f.required and f.name not in table]
        if unknown:
            problem = "unknown key" + and_keys(unknown[1:], missing)
            raise self._fault(problem, f"{field}.{unknown[0]}", did_you_mean(unknown[0], known))
        if missing:
            problem = "is missing" + and_keys(missing=missing[1:])
            raise self._fault(problem, f"{field}.{missing[0]}", "Add it")

    def _convert(self, table: Any, kind: Any, field: str) -> Any:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            self._keys(table, kind, field)
        try:
            return msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            problem, _, path = str(error).partition(" - at `$")
            raise self._fault(problem, f"{field}{path.rstrip('`')}") from None

    def spec(self, document: dict[str, object], sha256: str, *, quick: bool) -> MapSpec:
        for key in document:
            if key not in _TABLES:
                raise self._fault("unknown table", key, did_you_mean(key, list(_TABLES)))
        cut = self._shorten(document) if quick else ()
        about = self._convert(document.get("map", {}), MapTable, "map")
        systems = self._systems(document.get("systems", {}))
        names = [system.name for system in systems]
        for role in ("reference", "ordered", "policy"):
            name = getattr(about, role)
            if name not in names:
                raise self._fault(f"no system '{name}'", f"map.{role}", did_you_mean(name, names))
        for name in about.gpus:
            self._checked("map.gpus", lambda name=name: _check_gpu(name))
        self._checked("map.model", lambda: load_model(about.model))
        written = document.get("traffic", [])
        for number, table in enumerate(written if isinstance(written, list) else []):
            self._keys(table, _TrafficTable, f"traffic[{number}]")
        tables = self._convert(written, list[_TrafficTable], "traffic")
        traffic = [self._traffic(table, about) for table in tables]
        if "grid" in document:
            grid = self._convert(document["grid"], _Grid, "grid")
            if len(grid.prompts) * len(grid.outputs) > MOST_CELLS:
                raise self._fault(f"is of more than {MOST_CELLS:,} cells", "grid")
            self._check_systems(grid.systems, "grid", about, systems)
            traffic += self._made_up(grid)
        if not traffic:
            raise self._fault("is missing", "traffic", "Give it [[traffic]] or a [grid]")
        counts = Counter(t.name for t in traffic)
        doubled = next((name for name, count in counts.items() if count > 1), None)
        if doubled:
            raise self._fault(f"two are called '{doubled}'", "traffic", "Rename one")
        sensitivity = self._convert(document.get("sensitivity", {}), Sensitivity, "sensitivity")
        for constant in sensitivity.constants:
            if constant not in NEUTRAL:
                hint = did_you_mean(constant, list(NEUTRAL))
                raise self._fault(f"no constant '{constant}'", "sensitivity.constants", hint)
        if not set(sensitivity.loads) <= set(about.loads):
            raise self._fault("has loads that the map lacks", "sensitivity.loads")
        ranges = None
        if "ranges" in document:
            ranges = self._ranges(document["ranges"], about)
            self._check_systems(ranges.systems, "ranges", about, systems)
        return MapSpec(
            name=self._path.stem, sha256=sha256, about=about, systems=systems,
            traffic=tuple(traffic), sensitivity=sensitivity, ranges=ranges, cut=cut,
        )  # fmt: skip

    def _check_systems(
        self, chosen: tuple[str, ...], table: str, about: MapTable, systems: tuple[MapSystem, ...]
    ) -> None:
        """A choice of systems has those that comparisons name, and each kind that it has."""
        field, kinds = f"{table}.systems", {system.name: system.kind for system in systems}
        for name in chosen:
            if name not in kinds:
                raise self._fault(f"no system '{name}'", field, did_you_mean(name, list(kinds)))
        if not chosen:
            return
        for role in ("reference", "ordered", "policy"):
            if getattr(about, role) not in chosen:
                problem = f"lacks '{getattr(about, role)}', the map's {role}"
                raise self._fault(problem, field, "Add it")
        left = set(kinds.values()) - {kinds[name] for name in chosen}
        if left:
            hint = f"Add one of the kind '{min(left)}'"
            raise self._fault("leaves a comparison without a side", field, hint)

    def _ranges(self, table: object, about: MapTable) -> MapRanges:
        """What is left open is that of the map."""
        asked: MapRanges = self._convert(table, MapRanges, "ranges")
        if not asked.ends and not asked.draws:
            raise self._fault("asks for nothing", "ranges", "Give it draws, or ends = true")
        for key, value in (("draws", asked.draws), ("seeds", asked.seeds)):
            if value == 1:
                raise self._fault("is 1, which has no interval", f"ranges.{key}", "Give 2 or more")
        if asked.seeds > about.seeds:
            problem = f"{asked.seeds} are more than the map's {about.seeds}"
            raise self._fault(problem, "ranges.seeds")
        if not set(asked.loads) <= set(about.loads):
            raise self._fault("has loads that the map lacks", "ranges.loads")
        if not any(find_device(name).describe().ranges for name in about.gpus):
            hint = "Add [ranges] to the file of one, or leave the table out"
            raise self._fault("none of the map's GPUs has ranges", "ranges", hint)
        return msgspec.structs.replace(
            asked, loads=asked.loads or about.loads, seeds=asked.seeds or about.seeds
        )

    def _shorten(self, document: dict[str, object]) -> tuple[str, ...]:
        """Put the values of ``[quick.TABLE]`` into their tables."""
        cut = []
        quick = document.get("quick", {})
        if not isinstance(quick, dict):
            raise self._fault("must be tables", "quick", "Write [quick.TABLE]")
        for name, table in quick.items():
            if name not in _QUICK or not isinstance(table, dict):
                hint = f"Write {', '.join(f'[quick.{known}]' for known in _QUICK)}"
                raise self._fault("is no table that --quick changes", f"quick.{name}", hint)
            changed = document.setdefault(name, {})
            if not isinstance(changed, dict):
                raise self._fault("must be a table", name, f"Write [{name}]")
            for key, value in table.items():
                changed[key] = value
                text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                cut.append(f"{name}.{key} = {text}")
        return tuple(cut)

    def _systems(self, tables: Any) -> tuple[MapSystem, ...]:
        if not isinstance(tables, dict) or not tables:
            raise self._fault("must be tables", "systems", "Write [systems.NAME] for each")
        return tuple(self._system(name, table) for name, table in tables.items())

    def _system(self, name: str, table: Any) -> MapSystem:
        where = f"systems.{name}"
        if not isinstance(table, dict):
            raise self._fault("must be a table", where, f"Write [{where}]")
        fields = {key: value for key, value in table.items() if key != "kind"}
        kind = self._convert(table.get("kind"), Kind, f"{where}.kind")
        known = ["kind", *RunConfig.__struct_fields__]
        if unknown := [key for key in fields if key not in known]:
            problem = "unknown key" + and_keys(unknown[1:])
            raise self._fault(problem, f"{where}.{unknown[0]}", did_you_mean(unknown[0], known))
        config = self._convert({"trace": "x", **fields}, RunConfig, where)
        told = self._checked(where, lambda: _told_slo(check_config(config)))
        return MapSystem(name=name, kind=kind, fields=fields, told_slo=told)

    def _traffic(self, table: _TrafficTable, about: MapTable) -> Traffic:
        path = self._path.parent / table.trace
        if not path.is_file():
            raise self._fault(f"no such file: {path}", "traffic.trace")
        return Traffic(
            name=table.name, trace=str(path), burstiness=table.burstiness, loads=about.loads,
            seeds=about.seeds, slos=self._slos(table.slos, "traffic.slos"),
        )  # fmt: skip

    def _made_up(self, grid: _Grid) -> list[Traffic]:
        slos = self._slos(grid.slos, "grid.slos")
        return [
            Traffic(
                name=f"p{prompt}-o{output}", prompt=prompt, output=output, cv=grid.cv, slos=slos,
                loads=grid.loads, seeds=grid.seeds, systems=grid.systems,
            )
            for output in grid.outputs
            for prompt in grid.prompts
        ]  # fmt: skip

    def _slos(self, names: tuple[str, ...], where: str) -> dict[str, str]:
        """Presets by name, or bounds as --goodput takes them."""

        def text(name: str) -> str:
            found = name if ":" in name else preset(name).slo
            parse_slo([found])
            return found

        return {name: self._checked(where, lambda name=name: text(name)) for name in names}

    def _checked(self, where: str, check: Any) -> Any:
        """What ``check`` returns; what it complains of, located."""
        try:
            return check()
        except UsageError as error:
            problem = error.problem if isinstance(error, InputError) else str(error)
            hint = (error.hint if isinstance(error, InputError) else None) or "Correct the value"
            raise self._fault(problem.rstrip("."), where, hint) from None


def _check_gpu(name: str) -> None:
    if name.partition(":")[0] != "sim":
        raise UsageError(f"'{name}' is not simulated; a map has sim:GPU only")
    find_device(name).describe()


def _told_slo(config: RunConfig) -> bool:
    """Whether scheduler or partitioner has an option for a bound of the SLO; checks both."""
    scheduler: Scheduler = schedulers.create(config.scheduler)
    name, options = split_spec(config.partitioner or scheduler.default_partitioner)
    kind = partitioners.load(name).Options
    parse_options(kind, options, f"partitioner '{name}'")
    options_of = {*kind.__struct_fields__, *type(scheduler).Options.__struct_fields__}
    return bool(_SLO_OPTIONS & options_of)
