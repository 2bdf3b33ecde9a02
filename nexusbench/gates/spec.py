"""Gate specs: a TOML file of what to run, so that a gate makes its runs itself.

baseline = "shipped.json"            beside the spec, unless --baseline or -o says otherwise
rules = ["ttft.p99:2%:1ms"]          instead of the defaults
seeds = [0]                          of every run
repeats = 1                          runs per seed, where times are measured
confirm = false                      as --confirm

[defaults]                           any setting of a run, for all
device = "sim:l20"

[[runs]]                             one table per trace; settings here win
trace = "../../workloads/mixed.jsonl"    relative to the spec
scheduler = ["vllm", "nexus"]        one, several, or "all" that are installed
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nexusbench.core.config import RunConfig, check_config
from nexusbench.core.documents import JsonObject, convert, located, parse_toml, read_text
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.options import convert_config, declared
from nexusbench.core.registry import and_keys, did_you_mean
from nexusbench.gates.rules import DEFAULT_RULES, Rule, parse_rules, run_measures
from nexusbench.schedulers.base import schedulers

ALL = "all"
MOST_RUNS = 100_000
Seed = Annotated[int, msgspec.Meta(ge=0)]
_FILES = (".toml", ".json")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The spec as it is written."""

    runs: Annotated[list[JsonObject], msgspec.Meta(min_length=1)]
    baseline: str | None = None
    rules: tuple[str, ...] = DEFAULT_RULES
    seeds: Annotated[tuple[Seed, ...], msgspec.Meta(min_length=1)] = (0,)
    repeats: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    confirm: bool = False
    defaults: JsonObject = {}


class GateSpec(msgspec.Struct, frozen=True):
    """A whole spec: ``configs`` in the order in which to run them, one per run."""

    path: Path
    configs: list[RunConfig]
    rules: list[Rule]
    baseline: Path | None
    confirm: bool


def load_spec(path: Path) -> GateSpec:
    """The spec in a TOML file. Raises InputError naming file and field."""
    document = parse_toml(read_text(path), path)
    unknown = [key for key in document if key not in _File.__struct_fields__]
    if unknown:
        hint = did_you_mean(unknown[0], list(_File.__struct_fields__))
        problem = "is no key of a gate spec" + and_keys(unknown[1:])
        raise InputError(problem, file=path, field=unknown[0], hint=hint)
    file = convert(document, _File, path)
    configs = [
        config
        for number, table in enumerate(file.runs)
        for config in _configs(path, f"runs[{number}]", {**file.defaults, **table})
    ]
    if len(configs) * len(file.seeds) * file.repeats > MOST_RUNS:
        problem = f"asks for more than {MOST_RUNS:,} runs"
        raise InputError(problem, file=path, field="runs", hint="Take fewer seeds or repeats")
    # Repeats and seeds go outermost, so that a drift of the machine affects all series alike.
    planned = [
        msgspec.structs.replace(config, seed=seed)
        for _ in range(file.repeats)
        for seed in file.seeds
        for config in configs
    ]
    return GateSpec(
        path=path,
        configs=planned,
        rules=_rules(path, file.rules),
        baseline=None if file.baseline is None else path.parent / file.baseline,
        confirm=file.confirm,
    )


def _rules(path: Path, texts: tuple[str, ...]) -> list[Rule]:
    try:
        return parse_rules(texts, run_measures())
    except UsageError as error:
        raise InputError(str(error), file=path, field="rules") from None


def _configs(path: Path, place: str, table: Mapping[str, Any]) -> list[RunConfig]:
    """One config per scheduler of a table."""
    known = [name for name in RunConfig.__struct_fields__ if name != "seed"]
    missing = [] if "trace" in table else ["trace"]
    if unknown := [key for key in table if key not in known]:
        key = unknown[0]
        hint = did_you_mean(key, known)
        if key == "seed":
            hint = "Write seeds = [...] above the tables"
        problem = "is no setting of a run" + and_keys(unknown[1:], missing)
        raise InputError(problem, file=path, field=f"{place}.{key}", hint=hint)
    if missing:
        raise InputError("is missing", file=path, field=f"{place}.trace")
    named = table.get("scheduler", RunConfig(trace="").scheduler)
    names = schedulers.names() if named == ALL else named if isinstance(named, list) else [named]
    if not names:
        raise InputError("is empty", file=path, field=f"{place}.scheduler")
    configs = []
    for name in names:
        fields = {**table, "scheduler": name}
        fields |= {
            key: _beside(path, key, value)
            for key, value in fields.items()
            if isinstance(value, str)
        }
        try:
            configs.append(check_config(convert_config(fields, RunConfig)))
        except msgspec.ValidationError as error:
            field, problem = located(error, place)
            raise InputError(problem, file=path, field=field) from None
        except InputError as error:
            raise InputError(
                error.problem, file=path, field=f"{place}.{error.field}", hint=error.hint
            ) from None
    return configs


def _beside(path: Path, key: str, text: str) -> str:
    """A setting that names a file, relative to the spec; GPUs and models by name stay as they
    are.
    """
    if declared(RunConfig)[key].option.file:
        return str(path.parent / text)
    kind, colon, argument = text.partition(":") if key == "device" else ("", "", text)
    if key in ("device", "model") and ("/" in argument or argument.endswith(_FILES)):
        return f"{kind}{colon}{path.parent / argument}"
    return text
