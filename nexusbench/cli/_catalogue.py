"""The entries of ``nexusbench list``: read from the plug-ins themselves, broken ones included."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import msgspec
from rich.text import Text

from nexusbench.cli._console import results_console, say
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.core.errors import NexusbenchError
from nexusbench.core.faults import fault_of
from nexusbench.core.registry import Registry


class PluginOption(msgspec.Struct, frozen=True):
    """An option of a plug-in: its type and default as text."""

    name: str
    type: str
    default: str


class CatalogueEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a list: ``facts`` are short details, ``error`` says why it cannot be used."""

    name: str
    about: str = ""
    source: str = ""
    facts: list[str] = []
    options: list[PluginOption] = []
    error: str = ""


def show_family(family: str, *, as_json: bool) -> None:
    """Print one family."""
    entries = _FAMILIES[family]()
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "list",
            "family": family,
            "entries": msgspec.to_builtins(entries),
        }
        print(json.dumps(document, indent=2))
        return
    console = results_console()
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        name = f"{entry.name:<{width}}"
        if entry.error:
            say(console, f"{name}  BROKEN: {entry.error}", "red", width + 2)
            continue
        say(console, f"{name}  {entry.about}".rstrip(), "bold", width + 2)
        for fact in entry.facts:
            say(console, f"{'':<{width}}  {fact}", indent=width + 4)
        settings = [f":{option.name}={option.default}" for option in entry.options]
        longest = max(map(len, settings), default=0)
        for option, setting in zip(entry.options, settings, strict=True):
            line = f"{'':<{width}}  {setting:<{longest}}  {option.type}"
            console.print(Text(line), soft_wrap=True)
        if entry.source:
            # An address must stay on one line: it starts further left where it would not fit.
            word = max(map(len, entry.source.split()))
            indent = max(0, min(width + 4, console.width - word))
            say(console, f"{'':<{width}}  source: {entry.source}", "dim", indent)


def _plugins(registry: Registry, facts: Callable[[Any], list[str]]) -> list[CatalogueEntry]:
    """The entries of a registry; a plug-in that does not load does not hide the others."""
    entries = []
    for name in registry.names():
        try:
            cls = registry.load(name)
            entry = CatalogueEntry(name, _first_line(cls), cls.source, facts(cls), _options(cls))
        except NexusbenchError as error:
            entry = CatalogueEntry(name, error=str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A user's plug-in may raise anything, also from its class attributes.
            entry = CatalogueEntry(name, error=fault_of(error))
        entries.append(entry)
    return entries


def _first_line(cls: type[Any]) -> str:
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    text = " ".join(paragraph.split()).replace("``", "")
    return text.removesuffix(":") + "." * text.endswith(":")  # of what followed, nothing is shown


def _options(cls: type[Any]) -> list[PluginOption]:
    options = getattr(cls, "Options", None)
    if options is None:
        return []
    return [
        PluginOption(field.encode_name, _type_name(field.type), _default(field))
        for field in msgspec.structs.fields(options)
    ]


def _type_name(declared: Any) -> str:
    if hasattr(declared, "__metadata__"):  # Annotated[int, bounds]
        declared = declared.__origin__
    words = getattr(declared, "__args__", ())
    if words and all(isinstance(word, str) for word in words):
        return "|".join(words)
    if words and type(None) in words:
        return " | ".join("None" if word is type(None) else _type_name(word) for word in words)
    return str(getattr(declared, "__name__", declared))


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not msgspec.NODEFAULT:
        return str(field.default)
    return "" if field.default_factory is msgspec.NODEFAULT else str(field.default_factory())


def _schedulers() -> list[CatalogueEntry]:
    from nexusbench.schedulers.base import schedulers

    def facts(cls: Any) -> list[str]:
        gpus = f" of {cls.num_gpus} GPUs" if cls.num_gpus > 1 else ""
        return [
            f"runs on {' and '.join(cls.partitions)}{gpus}, default partitioner "
            f"{cls.default_partitioner}"
        ]

    return _plugins(schedulers, facts)


def _partitioners() -> list[CatalogueEntry]:
    from nexusbench.partitioners.base import partitioners

    def facts(cls: Any) -> list[str]:
        served = " or ".join(" and ".join(partitions) for partitions in cls.serves)
        pair = " of 2 GPUs" if 1 not in cls.num_gpus else ""
        return [f"serves {served}{pair}" + ("; asks a cost model" if cls.needs_belief else "")]

    return _plugins(partitioners, facts)


def _cost_models() -> list[CatalogueEntry]:
    from nexusbench.costs.base import cost_models

    return _plugins(cost_models, lambda cls: [])


def _devices() -> list[CatalogueEntry]:
    from nexusbench.devices.base import devices

    return _plugins(devices, lambda cls: [] if cls.usable() else ["not usable on this machine"])


def _model_families() -> list[CatalogueEntry]:
    from nexusbench.models.families.base import check_declaration, families

    def facts(cls: Any) -> list[str]:
        check_declaration(cls)
        real = "simulated and computed" if cls.biases is not None else "simulated only"
        return [f"{cls.architecture}, {real}"]

    return _plugins(families, facts)


def _formats() -> list[CatalogueEntry]:
    from nexusbench.workloads.readers.base import readers

    return _plugins(readers, lambda cls: [cls.unit, f"starts with {cls.example}"])


def _counters() -> list[CatalogueEntry]:
    from nexusbench.counters.base import counters

    def facts(cls: Any) -> list[str]:
        alone = ["read in repetitions of its own"] if cls.intrusive else []
        return alone + [f"{m.name} [{m.unit}, {m.kind}] {m.meaning}" for m in cls.metrics]

    return _plugins(counters, facts)


def _metrics() -> list[CatalogueEntry]:
    from nexusbench.metrics.base import find_metrics

    better = {"lower": "lower is better", "higher": "higher is better", "none": "no better side"}
    found = find_metrics()
    entries = [
        CatalogueEntry(tag, f"{m.title} [{m.unit}], {better[m.direction]}", facts=[m.formula])
        for tag, m in found.metrics.items()
    ]
    entries += [CatalogueEntry(name, error=why) for name, why in found.broken.items()]
    return sorted(entries, key=lambda entry: entry.name)


def _gpus() -> list[CatalogueEntry]:
    from nexusbench.physics.gpus import gpu_names, legal_splits, load_gpu

    entries = []
    for name in gpu_names():
        gpu = load_gpu(name)
        facts = [
            f"{gpu.num_sms} SMs, {gpu.peak_tflops:g} TFLOP/s dense BF16, {gpu.hbm_gib:g} GiB at "
            f"{gpu.hbm_gbps:,.0f} GB/s, L2 {gpu.l2_mib:g} MiB",
            f"partitions from {gpu.sm_minimum} SMs in steps of {gpu.sm_multiple}: "
            f"{len(legal_splits(gpu)) - 1} splits; use --device sim:{name}",
            *gpu.warnings,
        ]
        source = " ".join(gpu.sources["num_sms"].split())
        source += f" Those of the other numbers are in nexusbench/data/gpus/{name}.toml"
        entries.append(CatalogueEntry(name, gpu.name, source, facts))
    return entries


def _engines() -> list[CatalogueEntry]:
    from nexusbench.physics.host import engine_names, engine_sources, load_engine

    entries = []
    for name in engine_names():
        host = load_engine(name)
        how = "hidden behind the GPU's" if host.asynchronous else "before the GPU's"
        facts = [
            f"a step: {host.step_us:g} us and {host.sequence_us:g} for each sequence, {how}, and "
            f"{host.gap_us:g} in any case; {host.prompt_layer_us:g} for each layer of one with "
            "prompt tokens",
            f"a request: {host.request_us:g} us and {host.prompt_token_us:g} for each token of its "
            f"prompt, one after the other, {host.reply_us:g} besides, and {host.stream_us:g} for "
            f"each request that is served; use --engine {name}",
        ]
        source = " ".join(engine_sources(name)["step_us"].split())
        source += f" Those of the other numbers are in nexusbench/data/engines/{name}.toml"
        entries.append(CatalogueEntry(name, host.about, source, facts))
    return entries


def _models() -> list[CatalogueEntry]:
    from nexusbench.core.kv_layout import kv_layout
    from nexusbench.models.config import describe_model, model_names

    entries = []
    for name in model_names():
        model = describe_model(name)
        about = (
            f"{model.num_parameters / 1e9:.2f} billion parameters, {model.weight_bytes / 1e9:.1f} "
            f"GB of weights ({model.dtypes.weights})"
        )
        layout = kv_layout(model)
        kept = f"{model.kv_bytes_per_token / 1024:,.4g} KiB per token"
        if len(layout.groups) > 1:
            kept = layout.label
        facts = [f"{model.num_layers} layers, context {model.max_model_len:,}, KV {kept}"]
        entries.append(CatalogueEntry(name, about, model.source, facts))
    return entries


def _slos() -> list[CatalogueEntry]:
    from nexusbench.metrics.slo import presets

    return [CatalogueEntry(name, one.slo, one.source) for name, one in presets().items()]


# What is found by listing a folder or by entry points, so that a user's own may be among it.
PLUGIN_FAMILIES: dict[str, Callable[[], list[CatalogueEntry]]] = {
    "schedulers": _schedulers,
    "partitioners": _partitioners,
    "cost-models": _cost_models,
    "devices": _devices,
    "metrics": _metrics,
    "model-families": _model_families,
    "formats": _formats,
    "counters": _counters,
}
_FAMILIES = {
    **PLUGIN_FAMILIES,
    "gpus": _gpus,
    "engines": _engines,
    "models": _models,
    "slos": _slos,
}
