"""The options of all commands: those derived from the fields of a config, and others that several
commands share.

A command takes one parameter for all options of a config, ``config: Annotated[RunConfig,
Fields(RunConfig, "device", "model")]``, and is decorated with :func:`asking`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import typer

from nexusbench.core import config as panels
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.options import beyond, declared
from nexusbench.core.parallel_options import SEVERAL
from nexusbench.core.registry import did_you_mean

SLO, COMPARED, SEARCH, SWEEP = "SLO", "What is compared", "Search", "Sweep"
_OUTPUT, _MEASURE, _WHAT = panels.OUTPUT, panels.MEASURE, panels.WHAT
# The panels of a command's help, from top to bottom.
_PANELS = (
    SLO, _WHAT, SEVERAL, panels.ENDPOINT, COMPARED, panels.MEMORY, panels.PREFIX, panels.LIMITS,
    panels.TOKENS, panels.TRAFFIC, SEARCH, SWEEP, _MEASURE, _OUTPUT,
)  # fmt: skip
# ``ttft:p99<2000`` and its spellings, as metrics/slo.py reads them.
STATISTIC_BOUND = re.compile(r"[a-z0-9_]+:[a-z][a-z0-9.]*(<=|<|:|=)[0-9.eE+-]+")
_REQUIRED = inspect.Parameter.empty


def one_of(*words: str) -> Callable[[str | None], str | None]:
    """A Typer callback that accepts None and the given words."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in words:
            raise typer.BadParameter(f"'{value}' is unknown. {did_you_mean(value, list(words))}")
        return value

    return check


def within(bounds: msgspec.Meta) -> Callable[[float | None], float | None]:
    """A Typer callback that accepts None and numbers within bounds."""

    def check(value: float | None) -> float | None:
        hint = None if value is None else beyond(bounds, value)
        if hint is not None:
            # An integer of 400 digits cannot be formatted as a float.
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            raise typer.BadParameter(f"{shown} is out of bounds. {hint}.")
        return value

    return check


positive = within(msgspec.Meta(gt=0))


def folder(text: object) -> Path:
    """A Typer parser of a path that refuses the empty text, which would be the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("it is empty. Write . for the current folder.")
    return Path(str(text))


# -- options of a config ---------------------------------------------------------------------------


def option(name: str, config: type[msgspec.Struct] = RunConfig, **changed: Any) -> Any:
    """The Typer option (or argument) of a config's field; ``changed`` replaces arguments of
    Typer's.
    """
    field = declared(config)[name]
    made: dict[str, Any] = {"help": field.option.help, "metavar": field.option.metavar}
    if field.option.positional:
        return typer.Argument(**{"show_default": False, **made, **changed})
    made |= {"rich_help_panel": field.option.panel, "show_default": field.option.unset or True}
    if field.words:
        made["callback"] = one_of(*field.words)
    if field.bounds is not None:
        made["callback"] = within(field.bounds)
        made["min"] = field.bounds.ge if field.kind is int else None  # shown beside the metavar
    names = field.option.names or (field.flag,)
    if field.default is True:
        names = (f"{field.flag}/--no-{field.flag.removeprefix('--')}",)
    return typer.Option(*names, **{**made, **changed})


class Fields:
    """Marks a parameter of a command as a config that is made of options: of the named fields, in
    the order of the help, or of all. A name that is a parameter of the command itself stands for
    that parameter, and the config keeps its default.
    """

    def __init__(self, config: type[RunConfig | EndpointConfig], *names: str) -> None:
        self.config, self.names = config, names or tuple(declared(config))

    def parameter(self, name: str) -> inspect.Parameter:
        """The parameter of a command for one field."""
        field = declared(self.config)[name]
        kind = Path if field.option.positional else field.kind
        default = _REQUIRED if field.option.positional else field.default
        annotation = Annotated[kind | None if default is None else kind, option(name, self.config)]  # type: ignore[valid-type]
        return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)

    def made(self, given: Mapping[str, object]) -> RunConfig | EndpointConfig | None:
        """The config from the values of the options; None if a required field was not given.
        Without a trace among the options its trace is the empty text.
        """
        fields = declared(self.config)
        values = {name: given[name] for name in self.names if name in given}
        if any(value is None and fields[name].required for name, value in values.items()):
            return None
        values["trace"] = str(values.get("trace", ""))
        return msgspec.convert(values, self.config)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` as Typer calls it: each parameter marked by Fields is replaced by its options."""
    hints = get_type_hints(command, include_extras=True)
    own = {
        name: parameter.replace(annotation=hints[name], kind=_KEYWORD)
        for name, parameter in inspect.signature(command).parameters.items()
    }
    configs = {name: mark for name in own if isinstance(mark := _mark(own[name]), Fields)}
    asked: dict[str, inspect.Parameter] = {}
    for name, parameter in own.items():
        if name not in configs:
            asked.setdefault(name, parameter)
            continue
        for field in configs[name].names:
            asked.setdefault(field, own.get(field) or configs[name].parameter(field))

    def called(**given: Any) -> None:
        options = {name: value for name, value in given.items() if name not in own}
        made = {name: fields.made(options) for name, fields in configs.items()}
        command(**made, **{name: value for name, value in given.items() if name in own})

    ordered = sorted(asked.values(), key=_place)
    called.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in ordered}
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    return called


def _mark(parameter: inspect.Parameter) -> Any:
    """The first annotation of a parameter's type; None without one."""
    return next(iter(getattr(parameter.annotation, "__metadata__", ())), None)


def _place(parameter: inspect.Parameter) -> int:
    """The rank of an option's panel in the help; 0 is the first panel, -1 stands for no panel."""
    panel = getattr(_mark(parameter), "rich_help_panel", None)
    return _PANELS.index(panel) if panel in _PANELS else -1


# -- options whose value on the command line is of another type than the field's -------------------

TracePath = Annotated[Path, option("trace")]
Schedulers = Annotated[list[str], option("scheduler")]
Partitioners = Annotated[list[str] | None, option("partitioner")]
Goodput = Annotated[list[str] | None, option("goodput")]
Price = Annotated[float | None, option("price_per_hour")]
Watts = Annotated[float | None, option("watts")]

# -- options of no config --------------------------------------------------------------------------

By = Annotated[
    list[str] | None,
    typer.Option(
        "--by", metavar="prompt-length|tenant", rich_help_panel=_MEASURE,
        help="A further table that shows which requests pay: by prompt length, or by tenant.",
    ),
]  # fmt: skip
Seeds = Annotated[
    int,
    typer.Option(
        min=1, max=1000, metavar="N", rich_help_panel=_MEASURE,
        help="Run N seeds each: 95 % intervals, paired differences to the first scheduler.",
    ),
]  # fmt: skip
Results = Annotated[
    Path,
    typer.Option(
        parser=folder, metavar="DIR", rich_help_panel=_OUTPUT, help="Where runs are kept."
    ),
]
Timeline = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", rich_help_panel=_OUTPUT, show_default=False,
        help="Also write a Chrome/Perfetto trace of all runs.",
    ),
]  # fmt: skip
NoSave = Annotated[bool, typer.Option("--no-save", rich_help_panel=_OUTPUT, help="Keep no run.")]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="One JSON document on stdout.")
]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", rich_help_panel=_OUTPUT, help="Nothing while it runs.")
]
Formulas = Annotated[
    bool, typer.Option("--formulas", rich_help_panel=_OUTPUT, help="Print every formula shown.")
]
Cache = Annotated[
    Path,
    typer.Option(
        parser=folder, metavar="DIR", rich_help_panel=_OUTPUT,
        help="Results by the hash of all that decides them: what is there is not run again.",
    ),
]  # fmt: skip
Fresh = Annotated[
    bool,
    typer.Option("--fresh", rich_help_panel=_OUTPUT, help="Run again what is in --cache too."),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", min=1, metavar="N", show_default="all cores",
        help="Processes on this machine.",
    ),
]  # fmt: skip

# -- options of capacity and advise ----------------------------------------------------------------

# The fields of RunConfig that both offer.
SERVED = (
    "cost_model", "profile", "force_profile", "dtype", "quantization", "kv_cache_dtype",
    "kernel_table", "engine", "tensor_parallel_size", "gpu_memory_utilization", "kv_blocks",
    "swap_space", "max_num_seqs", "max_model_len", "limit", "burstiness", "seed",
)  # fmt: skip
Bounds = Annotated[
    list[str] | None,
    typer.Option(
        "--goodput", metavar="BOUND ...", rich_help_panel=SLO,
        help="KEY:STATISTIC<MS of a run, as in 'ttft:p99<2000,tbt:p99<100' (quote it, or write "
        "ttft:p99:2000), or KEY:MS of each request. Keys ttft, tbt, tpot, e2e, queueing; "
        "statistics mean, p50 to p99.9, max.",
    ),
]  # fmt: skip
SloName = Annotated[
    str | None,
    typer.Option(
        "--slo", metavar="NAME", rich_help_panel=SLO,
        help="An SLO by name, from nexusbench list slos.",
    ),
]  # fmt: skip
Attainment = Annotated[
    float | None,
    typer.Option(
        callback=positive, metavar="PERCENT", rich_help_panel=SLO,
        show_default="90 for KEY:MS",
        help="Take every bound for each request, to be kept by so many of those offered.",
    ),
]  # fmt: skip
Shape = Annotated[
    float,
    option(
        "burstiness", rich_help_panel=SEARCH,
        help="Arrivals are drawn with gamma gaps of this shape: 1 is Poisson, less is burstier.",
    ),
]  # fmt: skip
Draws = Annotated[
    int,
    typer.Option(
        min=1, max=100, metavar="N", rich_help_panel=SEARCH, help="Draws of the arrivals."
    ),
]
SearchJobs = Annotated[
    int | None,
    typer.Option(
        "-j", "--jobs", min=1, metavar="N", rich_help_panel=SEARCH, show_default="all cores",
        help="Processes on this machine; one where a real device is used.",
    ),
]  # fmt: skip
OverRanges = Annotated[
    int,
    typer.Option(
        "--over-ranges", min=0, max=100, metavar="N", rich_help_panel=SEARCH, show_default="off",
        help="Say whether the answer holds over the ranges of the GPU's contested constants: each "
        "at its ends, and N draws of all of them.",
    ),
]  # fmt: skip
