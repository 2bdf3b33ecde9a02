"""A simulated GPU with one constant of its physics made neutral: what follows from it, and what
stays without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from nexusbench.core.specs import CURVES, GpuSpec, SimConstants

Constant = float | tuple[tuple[float, float], ...]  # a number or a curve
# What a constant is when it decides nothing; curves can do so in two ways.
NEUTRAL: Mapping[str, Mapping[str, Constant]] = {
    "bandwidth_curve flat": dict.fromkeys(CURVES, ((0.0, 0.0), (0.02, 1.0), (1.0, 1.0))),
    "bandwidth_curve straight": dict.fromkeys(CURVES, ((0.0, 0.0), (1.0, 1.0))),
    "dense_wave_share": {"dense_wave_share": 0.0},
    "attention_interference": {"attention_interference": 0.0},
    "dense_interference": {"dense_interference": 0.0},
    "stream_interference": {"stream_interference": 0.0},
    # Launches that claim the same SMs overlap as far as their demands allow.
    "turn_taking": {"turn_taking": 0.0},
    "step_overhead_us": {"step_overhead_us": 0.0},
    # A link that is never waited for.
    "link_gbps": {"link_gbps": 1e6, "link_latency_us": 0.0},
}
_SIMULATOR = frozenset(SimConstants.__struct_fields__)


def neutral_gpu(gpu: GpuSpec, constant: str) -> GpuSpec:
    """``gpu`` with ``constant`` (a key of NEUTRAL) deciding nothing; without ranges, which need not
    hold what is neutral.
    """
    changes = NEUTRAL[constant]
    simulator = {key: value for key, value in changes.items() if key in _SIMULATOR}
    rest = {key: value for key, value in changes.items() if key not in _SIMULATOR}
    return msgspec.structs.replace(
        gpu, sim=msgspec.structs.replace(gpu.sim, **simulator), ranges={}, **rest
    )  # fmt: skip


def gpu_file(gpu: GpuSpec) -> str:
    """``gpu`` as the TOML file that ``--device sim:FILE.toml`` takes, without sources."""
    fields = msgspec.to_builtins(gpu)
    fields.pop("sources")
    if not fields["ranges"]:
        del fields["ranges"]
    return "\n".join(_table("", fields)) + "\n"


def _table(name: str, fields: dict[str, object]) -> list[str]:
    """The lines of a table and of those in it, which come last; what is None is left out."""
    inner = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = ["", f"[{name}]"] if name else []
    for key, value in fields.items():
        if key not in inner and value is not None:
            lines.append(f"{key} = {_value(value)}")
    for key, value in inner.items():
        lines += _table(f"{name}.{key}".lstrip("."), value)
    return lines


def _value(value: object) -> str:
    """Numbers, texts and lists of them are written in TOML as in JSON."""
    return json.dumps(value)
