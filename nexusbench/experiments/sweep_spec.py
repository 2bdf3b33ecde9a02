"""Sweep specs: a TOML file that says which runs to make.

    [base]        fields of RunConfig that every run has
    [grid]        field = [values]: the cross product of all of them
    [[exclude]]   field = value or [values]: leave out the runs that match all of these
    [[include]]   field = value or [values]: further runs, on top of [base]

docs/sweeps.md describes it. Paths are relative to the spec's folder.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.core.config import RunConfig, check_config
from nexusbench.core.documents import parse_toml
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.options import convert_config, declared
from nexusbench.core.registry import and_keys, did_you_mean, parse_options, split_spec
from nexusbench.costs.base import cost_models
from nexusbench.metrics.run_events import check_slo
from nexusbench.metrics.slo import parse_slo
from nexusbench.models.config import load_model
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers
from nexusbench.serving.resolve import find_device
from nexusbench.workloads.source import read_source

_TABLES = ("base", "grid", "include", "exclude")
_FIELDS = RunConfig.__struct_fields__
_ALIASES = {"rate": "request_rate"}
# What a word in a list stands for: TOML has no null.
DEFAULT = "default"
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_DIGITS = 18
MOST_CELLS = 100_000

TomlTable = Mapping[str, object]  # as it was read
FieldValue = str | bool | int | float | dict[str, float] | None  # of RunConfig
ConfigFields = Mapping[str, FieldValue]  # some fields of RunConfig, decoded and checked
Values = dict[str, list[FieldValue]]  # field -> its values, decoded and checked


class Sweep(msgspec.Struct, frozen=True):
    """A sweep: its runs in order, which fields differ among them, and what was left out."""

    name: str
    configs: tuple[RunConfig, ...]
    axes: tuple[str, ...]
    sha256: str
    excluded: int = 0
    repeated: int = 0


def load_sweep(path: Path) -> Sweep:
    """Read a spec. Raises InputError that names file, line (where it can be found) and field."""
    text, document, sha256 = read_toml(path)
    reader = SpecReader(path, text)
    reader.check_tables(document)
    base = {key: values[0] for key, values in reader.table(document, "base", lists=False).items()}
    grid = reader.table(document, "grid")
    clash = next((key for key in grid if key in base), None)
    if clash is not None:
        raise reader.fault("is in [base] too", "grid", clash, "Keep one of them")
    include = reader.tables(document, "include")
    exclude = reader.tables(document, "exclude")
    reader.check_size(grid, *include)
    made = list(product(base, grid)) if grid or not include else []
    kept = [fields for fields in made if not any(_matches(fields, rule) for rule in exclude)]
    found = kept + [fields for more in include for fields in product(base, more)]
    configs = [reader.config(fields) for fields in found]
    unique = tuple({msgspec.json.encode(config): config for config in configs}.values())
    if not unique:
        raise InputError("no run is left", file=path, hint="Loosen [[exclude]]")
    return Sweep(
        path.stem, unique, axes_of(unique), sha256,
        len(made) - len(kept), len(configs) - len(unique),
    )  # fmt: skip


def read_toml(path: Path) -> tuple[str, TomlTable, str]:
    """Text, document and SHA-256 of a spec. Raises InputError that names file and line."""
    source = read_source(path)
    text = source.text.decode()
    document = parse_toml(text, path)
    return text, document, source.sha256


def product(base: ConfigFields, axes: Values) -> Iterator[ConfigFields]:
    """Every combination on top of ``base``; the last axis runs fastest."""
    for values in itertools.product(*axes.values()):
        yield {**base, **dict(zip(axes, values, strict=True))}


def config_of(fields: ConfigFields) -> RunConfig:
    """The run of these fields, defaults for the others."""
    return msgspec.structs.replace(RunConfig(trace=""), **fields)


def _matches(fields: ConfigFields, rule: Values) -> bool:
    return all(fields.get(key, _default(key)) in wanted for key, wanted in rule.items())


def axes_of(configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """The fields in which runs differ."""
    return tuple(
        field
        for field in _FIELDS
        if any(getattr(config, field) != getattr(configs[0], field) for config in configs)
    )


def _default(field: str) -> FieldValue:
    found = next(f for f in msgspec.structs.fields(RunConfig) if f.name == field)
    value: FieldValue = None
    if found.default is not msgspec.NODEFAULT:
        value = found.default
    elif found.default_factory is not msgspec.NODEFAULT:
        value = found.default_factory()
    return value


class SpecReader:
    """Decodes tables and says where a fault stands; ``known`` tables may be in the spec."""

    def __init__(self, path: Path, text: str, known: Sequence[str] = _TABLES) -> None:
        self.path, self._lines, self._known = path, text.splitlines(), known

    def fault(
        self, problem: str, table: str, key: str = "", hint: str = "Correct the value", nth: int = 0
    ) -> InputError:
        """The error about ``key`` of the ``nth`` table of that name."""
        field = ".".join(filter(None, (table, key)))
        return InputError(
            problem, file=self.path, line=self._line(table, key, nth), field=field, hint=hint
        )

    def _line(self, table: str, key: str, nth: int) -> int | None:
        """Where ``key`` of the ``nth`` table of that name is written; None if it cannot be told."""
        current, seen = "", -1
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[\[?\s*([\w.\"-]+)\s*\]", line)
            if header:
                current = header[1].strip('"')
                seen += current == table
            here = current == table and seen == nth
            if here and (header if not key else re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line)):
                return number
            if not current and table and not key and re.match(rf"\s*{re.escape(table)}\s*=", line):
                return number
        return None

    def check_tables(self, document: TomlTable) -> None:
        """Refuse tables that there are not, and an empty spec."""
        for key in document:
            if key not in self._known:
                hint = did_you_mean(key, list(self._known))
                if _ALIASES.get(key, key) in _FIELDS:
                    hint = "Put it into [base]"
                raise self.fault("unknown table", key, hint=hint)
        if not document:
            raise InputError("the spec is empty", file=self.path, hint="Give it a [grid]")

    def check_size(self, *axes: Values) -> None:
        """Refuse a sweep of more than MOST_CELLS runs."""
        many = sum(math.prod(map(len, values.values())) for values in axes)
        if many > MOST_CELLS:
            problem = f"makes {many:,} runs, more than {MOST_CELLS:,}"
            raise self.fault(problem, "grid", hint="Give it fewer values")

    def table(self, document: TomlTable, name: str, *, lists: bool = True) -> Values:
        """The fields of a table that may be left out."""
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise self.fault(f"must be a table, not {_kind(table)}", name, hint=f"Write [{name}]")
        return self.values(table, name, 0, lists)

    def tables(self, document: TomlTable, name: str) -> list[Values]:
        """The fields of every table of an array of tables."""
        found = document.get(name, [])
        if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
            raise self.fault("must be tables", name, hint=f"Write [[{name}]] above each")
        for nth, table in enumerate(found):
            if not table:
                raise self.fault("is empty", name, hint="Give it a field", nth=nth)
        return [self.values(table, name, nth, True) for nth, table in enumerate(found)]

    def values(self, table: TomlTable, name: str, nth: int, lists: bool) -> Values:
        """Fields of RunConfig, each checked by itself; ``nth`` of the tables called ``name``."""
        decoded: Values = {}
        known = [*_FIELDS, *_ALIASES]
        if unknown := [key for key in table if key not in known]:
            problem = "unknown key" + and_keys(unknown[1:])
            raise self.fault(problem, name, unknown[0], did_you_mean(unknown[0], known), nth)
        for key, value in table.items():
            field = _ALIASES.get(key, key)
            if field in decoded:
                raise self.fault("is given twice under two names", name, key, "Keep one", nth)
            if isinstance(value, list) and not lists:
                raise self.fault("is a list", name, key, "Put lists into [grid]", nth)
            if name == "grid" and not isinstance(value, list | str):
                raise self.fault("must be a list", name, key, f"Write {key} = [...]", nth)
            many = value if isinstance(value, list) else self._range(field, value)
            if not many:
                raise self.fault("is an empty list", name, key, "Give it a value or drop it", nth)
            decoded[field] = [self._value(field, v, (name, key, nth)) for v in many]
            if name == "grid" and isinstance(value, str) and len(many) == 1:
                raise self.fault("must be a list", name, key, f'Write {key} = ["{value}"]', nth)
        return decoded

    def _range(self, field: str, value: object) -> list[object]:
        """``0..4`` as five seeds; anything else as itself."""
        found = _RANGE.fullmatch(value) if field == "seed" and isinstance(value, str) else None
        # Twenty digits are no seed, and a longer range than any sweep is not counted out.
        if found is None or max(len(found[1]), len(found[2])) > _DIGITS:
            return [value]
        low, high = int(found[1]), int(found[2])
        return list(range(low, min(high, low + MOST_CELLS) + 1))

    def _value(self, field: str, value: object, place: tuple[str, str, int]) -> FieldValue:
        table, key, nth = place
        if value == DEFAULT and _default(field) is None and field != "trace":
            return None
        try:
            value = self._located(field, _goodput(value) if field == "goodput" else value)
            checked = convert_config({"trace": "", field: value}, RunConfig)
            # The trace's own field has no default to stand in for it.
            config = msgspec.structs.replace(checked, trace=value if field == "trace" else "x")
            check_config(config)
            _CHECKS.get(field, lambda text: None)(value)
        except msgspec.ValidationError as error:
            problem = f"{str(error).split(' - at')[0]}, got {value!r}"
            raise self.fault(problem, table, key, nth=nth) from None
        except UsageError as error:
            problem = error.problem if isinstance(error, InputError) else str(error)
            hint = error.hint if isinstance(error, InputError) and error.hint else ""
            raise self.fault(problem, table, key, hint, nth) from None
        decoded: FieldValue = getattr(checked, field)
        return decoded

    def _located(self, field: str, value: object) -> object:
        """Paths seen from where the spec lies."""
        if not isinstance(value, str) or not value:
            return value
        folder = self.path.parent
        if declared(RunConfig)[field].option.file:
            path = folder / value
            if not path.exists():
                raise InputError(
                    f"no such file: {path}", hint="Paths are relative to the spec's folder"
                )
            return str(path)
        kind, colon, rest = value.partition(":")
        if field == "device" and colon and rest.endswith(".toml"):
            return f"{kind}:{folder / rest}"
        return str(folder / value) if field == "model" and (folder / value).exists() else value

    def config(self, fields: ConfigFields) -> RunConfig:
        """One run. Raises InputError where the parts do not go together."""
        if "trace" not in fields:
            raise InputError("no trace is named", file=self.path, field="base.trace", hint="Add it")
        if fields.get("burstiness") is not None and fields.get("request_rate") is None:
            raise InputError(
                "redraws arrivals and needs a rate", file=self.path, field="burstiness",
                hint="Give request_rate to the same runs",
            )  # fmt: skip
        return config_of(fields)


def _kind(value: object) -> str:
    return "an array of tables" if isinstance(value, list) else type(value).__name__


def _goodput(value: object) -> object:
    """``"ttft:500,tbt:50"`` or a table as bounds in ms."""
    if isinstance(value, str):
        slo = parse_slo([value], flag="bounds")
        if slo.of_statistics:
            raise UsageError(f"'{slo.of_statistics[0]}' bounds a statistic; write KEY:MS here")
        return slo.per_request()
    if isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values()):
        return check_slo({key: float(bound) for key, bound in value.items()})
    return value


def _partitioner(text: str) -> None:
    name, options = split_spec(text)
    parse_options(partitioners.load(name).Options, options, f"partitioner '{name}'")


def _cost_model(text: str) -> None:
    name, options = split_spec(text)
    parse_options(cost_models.load(name).Options, options, f"cost model '{name}'")


def _device(text: str) -> None:
    if text != "auto":
        find_device(text).describe()


# Names are checked before anything runs: a typo would fail a whole column of cells.
_CHECKS: Mapping[str, Callable[[Any], object]] = {
    "scheduler": schedulers.create,
    "partitioner": _partitioner,
    "cost_model": _cost_model,
    "model": load_model,
    "device": _device,
}
