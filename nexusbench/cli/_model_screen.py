"""What ``nexusbench model show`` prints."""

from __future__ import annotations

import json

import msgspec
from msgspec import UNSET
from rich.console import Console
from rich.table import Table

from nexusbench.cli._console import print_whole, results_console, say
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.core.documents import JsonObject
from nexusbench.core.kv_layout import kv_layout
from nexusbench.core.layers import LayerGroup
from nexusbench.core.specs import ModelSpec
from nexusbench.core.units import GIB, bytes_text
from nexusbench.models.config import caveats, describe_model, missing_quantisation

_NO_VECTORS = "Norms and biases, less than 0.1 %, are left out of the parameters."


def show_model(name: str, *, as_json: bool) -> None:
    """Print the description of one model. Raises InputError for one that cannot be described."""
    model = describe_model(name)
    if as_json:
        print(json.dumps(_document(model), indent=2))
        return
    console = results_console()
    say(console, f"{model.name}: {model.num_layers} layers of {_kinds(model)}", "bold")
    _show_sizes(console, model)
    print_whole(console, _table(model))
    for note in _notes(model):
        say(console, note, indent=2)
    for note in _approximated(model):
        say(console, f"Simulated devices: {note}", indent=2)
    if model.source:
        say(console, f"source: {model.source}", "dim", 2)


def _kinds(model: ModelSpec) -> str:
    count = len(model.groups)
    return "one kind" if count == 1 else f"{count} kinds"


def _document(model: ModelSpec) -> JsonObject:
    types = model.dtypes
    return {
        "schema": JSON_SCHEMA, "command": "model show", "name": model.name,
        "source": model.source, "layers": model.num_layers, "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size, "tied_embeddings": model.tie_word_embeddings,
        "context": model.max_model_len, "parameters": model.num_parameters,
        "active_parameters": model.active_parameters, "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "index_bytes_per_token": model.index_bytes_per_token,
        "window_bytes_per_sequence": model.window_bytes_per_sequence,
        "state_bytes_per_sequence": model.state_bytes_per_sequence,
        "kv_groups": msgspec.to_builtins(kv_layout(model).groups),
        "dtypes": {
            "weights": types.weights, "embeddings": types.embeddings, "head": model.head_dtype,
            "kv": types.kv, "activations": types.activations,
        },
        "groups": [_group(model, group) for group in model.groups],
        "order": list(_order(model)), "left_out": _notes(model),
        "approximated": _approximated(model),
    }  # fmt: skip


def _order(model: ModelSpec) -> tuple[int, ...]:
    return (0,) * model.num_layers if model.stack is UNSET else model.stack.order


def _group(model: ModelSpec, group: LayerGroup) -> JsonObject:
    mixer, mlp = group.mixer, group.mlp
    made: JsonObject = {
        "layers": group.count,
        "attention": None if mixer is None else msgspec.to_builtins(mixer),
        "feed_forward": None if mlp is None else msgspec.to_builtins(mlp),
        "dtypes": msgspec.to_builtins(group.dtypes),
        "parameters": group.parameters(model.hidden_size),
        "active_parameters": group.active_parameters(model.hidden_size),
        "projections": msgspec.to_builtins(group.projections(model.hidden_size)),
    }
    return made


def _notes(model: ModelSpec) -> list[str]:
    """What the description leaves out, and where it is not what the name says."""
    promised = missing_quantisation(model)
    left_out = [_NO_VECTORS] if model.stack is UNSET else model.stack.said
    return [*([promised[0].upper() + promised[1:]] if promised else []), *left_out]


def _approximated(model: ModelSpec) -> list[str]:
    """What its times on simulated devices are not, beside what ``_notes`` has."""
    promised = missing_quantisation(model)
    return [text for text in caveats(model) if text != promised]


def _show_sizes(console: Console, model: ModelSpec) -> None:
    """Parameters, weights, what a sequence keeps."""
    active = ""
    if model.active_parameters != model.num_parameters:
        active = f", {model.active_parameters / 1e9:,.2f} of them used by a token"
    say(console, f"parameters  {model.num_parameters / 1e9:,.2f} billion{active}", indent=12)
    types = model.dtypes
    weights = f"weights     {model.weight_bytes / GIB:,.1f} GiB, mostly {types.weights}; "
    weights += f"embeddings {types.embeddings}, head {model.head_dtype}"
    say(console, weights + (" (tied)" if model.tie_word_embeddings else ""), indent=12)
    say(console, f"context     {model.max_model_len:,} tokens", indent=12)
    kept = f"KV cache    {bytes_text(model.kv_bytes_per_token)} per token in {types.kv}"
    if model.index_bytes_per_token:
        kept += f", and {bytes_text(model.index_bytes_per_token)} of index keys"
    if model.window_bytes_per_sequence:
        kept += f"; {bytes_text(model.window_bytes_per_sequence)} per sequence in full windows"
    if model.state_bytes_per_sequence:
        kept += f"; {bytes_text(model.state_bytes_per_sequence)} per sequence in states"
    say(console, kept, indent=12)
    layout = kv_layout(model)
    if len(layout.groups) > 1:
        text = f"KV groups   {layout.label}; {bytes_text(layout.bytes_of(model.max_model_len))} of "
        say(console, text + f"a sequence of {model.max_model_len:,} tokens", indent=12)


def _table(model: ModelSpec) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("layers", "attention", "feed-forward", "weights"):
        table.add_column(name, justify="right" if name == "layers" else "left")
    for group in model.groups:
        table.add_row(
            str(group.count),
            "none" if group.mixer is None else group.mixer.label,
            "none" if group.mlp is None else group.mlp.label,
            _types(group, model.hidden_size),
        )
    return table


def _types(group: LayerGroup, hidden: int) -> str:
    """The data type of each tensor class that the group has, fewest words."""
    by_type: dict[str, list[str]] = {}
    for part in dict.fromkeys(one.part for one in group.projections(hidden)):
        by_type.setdefault(getattr(group.dtypes, part), []).append(part)
    if len(by_type) == 1 and not group.dtypes.apart:
        return next(iter(by_type))
    told = [f"{dtype}: {', '.join(parts)}" for dtype, parts in by_type.items()]
    told += [f"{dtype}: {name}" for name, dtype in group.dtypes.apart]
    return "; ".join(told)
