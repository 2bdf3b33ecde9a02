"""Vidur's dense tables: medians (ms) of a layer's operators by tokens and tensor parallelism."""

from __future__ import annotations

from pathlib import Path

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.fidelity.measured_csv import Cells, csv_rows, number_in
from nexusbench.experiments.fidelity.samples import KernelSample, KernelSamples
from nexusbench.physics.gemm import Gemm

_OPERATORS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
COLUMNS = (
    "n_embd", "n_expanded_embd", "num_tensor_parallel_workers", "num_tokens", "n_head",
    "n_kv_head", *(f"{name}_ms" for name in _OPERATORS),
)  # fmt: skip
MOST = 2**31
_HINT = "Give a dense table of Vidur, or another format named in --help"
HEAD_DIM = 128  # of the Llama models that the tables were taken with
# Their constants were fitted on every second token count of their tables.
FITTED_GPUS = ("A100", "A40")


def read(path: Path, gpu: GpuSpec) -> KernelSamples:
    """The four matrix products of a layer. Raises InputError naming file, line and field."""
    rows = list(csv_rows(path, COLUMNS, _HINT))
    if not rows:
        raise InputError("holds no rows", file=path, hint=_HINT)
    gemm, samples = Gemm(gpu), []
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    counts = sorted({_int(path, line, row, "num_tokens") for line, row in rows})
    fitted = set(counts[::2]) if any(name in gpu.name for name in FITTED_GPUS) else set()
    for line, row in rows:
        hidden, wide = _int(path, line, row, "n_embd"), _int(path, line, row, "n_expanded_embd")
        degree, tokens = (
            _int(path, line, row, "num_tensor_parallel_workers"),
            _int(path, line, row, "num_tokens"),
        )
        q = _int(path, line, row, "n_head") * HEAD_DIM
        kv = _int(path, line, row, "n_kv_head") * HEAD_DIM
        products = {
            "attn_pre_proj": (hidden, (q + 2 * kv) // degree),
            "attn_post_proj": (q // degree, hidden),
            "mlp_up_proj": (hidden, 2 * wide // degree),
            "mlp_down_proj": (wide // degree, hidden),
        }
        if not all(min(shape) for shape in products.values()):
            problem = f"{degree} is more than the operators can be divided by"
            field = "num_tensor_parallel_workers"
            raise InputError(problem, file=path, line=line, field=field, hint=_HINT)
        for name, (inputs, outputs) in products.items():
            made = gemm.time(tokens, inputs, outputs, 2.0, 2.0, gpu.num_sms, bandwidth)
            measured = 1e3 * _float(path, line, row, f"{name}_ms")
            samples.append(
                KernelSample(
                    f"gemm tp{degree}",
                    measured,
                    made.time / 1e3,
                    tokens in fitted,
                    (name,),
                    tokens,
                    f"gemm {inputs} {outputs}",
                )
            )
    return KernelSamples(
        samples, notes=["element-wise operators were taken unfused and are not scored"]
    )


def _int(path: Path, line: int, row: Cells, field: str) -> int:
    value = number_in(row, field, path, line, _HINT)
    if value == round(value) and 1 <= value <= MOST:
        return round(value)
    problem = f"is {row[field]}, not a count of 1 to {MOST:,}"
    raise InputError(problem, file=path, line=line, field=field, hint=_HINT)


def _float(path: Path, line: int, row: Cells, field: str) -> float:
    value = number_in(row, field, path, line, _HINT)
    if value > 0:
        return value
    problem = f"is {row[field]}, not above 0"
    raise InputError(problem, file=path, line=line, field=field, hint=_HINT)
