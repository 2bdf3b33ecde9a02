"""A ``--kernel-table`` folder (LLMServingSim's format), scored operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from nexusbench.core.batch import BatchShape, spread_of
from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.core.work import model_work
from nexusbench.experiments.fidelity.measured_csv import csv_rows, number_in
from nexusbench.experiments.fidelity.partitions.halves import may_be_fitted
from nexusbench.experiments.fidelity.samples import KernelSample, KernelSamples
from nexusbench.physics.experts import HEIGHTS, Experts, ExpertShape, Routing
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.launches import Physics
from nexusbench.physics.measured import AttentionStretch, shape_of
from nexusbench.physics.precisions import expert_constants
from nexusbench.physics.table_folder import named_degree
from nexusbench.physics.tables import ATTENTION_AXES, KernelTable, load_table
from nexusbench.physics.time_grids import Point, TimeCurve

FITTED_GPU = "RTX 4090"
MOE_COLUMNS = ("tokens", "activated_experts", "time_us")
SKEW_COLUMNS = ("n", "nb", "pc", "kp", "kvs", "kv_big", "t_skew_us")
SKEW_ITERATIONS = 3  # times in it are sums of so many
_HINT = "Give a folder of LLMServingSim as its authors ship it"
PRODUCTS = {
    "qkv_proj": "qkv", "o_proj": "attn_out", "gate_up_proj": "gate_up", "down_proj": "down",
}  # fmt: skip


def read(folder: Path, gpu: GpuSpec, model: ModelSpec) -> KernelSamples:
    """Every operator of the table, of the degree of tensor parallelism that the folder's name ends
    with; of a mixture of experts its experts alone. Raises InputError as ``load_table`` does.
    """
    for name in ("moe.csv", "moe.csv.gz"):
        if (folder / name).exists():
            return _experts(folder / name, gpu, model)
    degree = named_degree(folder)
    table = load_table(folder, gpu, model, degree)
    physics = Physics(gpu, model, degree)
    fitted = FITTED_GPU in gpu.name
    samples = list(_dense(table, physics, fitted))
    for point, measured in table.attention.items():
        made = _attention_us(physics, point)
        name, octaves = _name(point), [value.bit_length() for value in point]
        own = fitted and _half(point)
        samples.append(KernelSample(name, measured, made, own, shape=f"{name} {octaves}"))
    for name in ("skew.csv", "skew.csv.gz"):
        if (folder / name).exists():
            samples += _unequal(folder / name, physics, fitted)
    return KernelSamples(samples, _held_out_grids(table, physics))


def _experts(file: Path, gpu: GpuSpec, model: ModelSpec) -> KernelSamples:
    """Experts of one layer, 16 bit, whole on this GPU: tokens that are sent to some of them."""
    if model.moe is None:
        hint = "Give it by --model: a folder with its config.json"
        raise InputError(
            f"is of a mixture of experts, which {model.name} is not", file=file, hint=hint
        )
    moe = model.moe
    shape = ExpertShape(model.hidden_size, moe.intermediate_size)
    experts = Experts(gpu, expert_constants(gpu, "bf16"), shape)
    bandwidth = gpu.hbm_gbps * gpu.sim.bandwidth_efficiency
    samples = []
    for line, row in csv_rows(file, MOE_COLUMNS, _HINT):
        numbers = {name: number_in(row, name, file, line, _HINT) for name in MOE_COLUMNS}
        for name, most in (("tokens", 2**20), ("activated_experts", moe.num_experts)):
            if not (numbers[name] == round(numbers[name]) and 1 <= numbers[name] <= most):
                problem = f"is {row[name]}, not a count of 1 to {most:,}"
                raise InputError(problem, file=file, line=line, field=name, hint=_HINT)
        if numbers["time_us"] <= 0:
            problem = f"is {row['time_us']}, not above 0"
            raise InputError(problem, file=file, line=line, field="time_us", hint=_HINT)
        tokens, touched = round(numbers["tokens"]), round(numbers["activated_experts"])
        rows = float(tokens * moe.experts_per_token)
        tiles = tuple(touched * -(-rows / touched // high) for high in HEIGHTS)
        sent = Routing(float(tokens), rows, float(moe.num_experts), float(touched), rows, tiles)
        made = experts.time(sent, gpu.num_sms, bandwidth, copies=1).time / 1e3
        samples.append(
            KernelSample(
                "experts", numbers["time_us"], made, False, (touched,), tokens,
                f"experts {touched}",
            )
        )  # fmt: skip
    note = "of a mixture of experts only the experts are scored (moe.csv)"
    return KernelSamples(samples, notes=[note])


def _unequal(file: Path, physics: Physics, fitted: bool) -> Iterator[KernelSample]:
    """One layer's attention of ``n`` decodes, ``nb`` of them over ``kv_big`` tokens and the others
    over ``kvs``, beside a chunk of ``pc`` tokens after ``kp`` (0: alone).
    """
    for line, row in csv_rows(file, SKEW_COLUMNS, _HINT):
        numbers = {name: number_in(row, name, file, line, _HINT) for name in SKEW_COLUMNS}
        n, long, chunk, before, short, longest = (round(numbers[name]) for name in SKEW_COLUMNS[:6])
        for name in SKEW_COLUMNS[:6]:
            if numbers[name] != round(numbers[name]) or not 0 <= numbers[name] <= 2**24:
                problem = f"is {row[name]}, not a count of at most {2**24:,}"
                raise InputError(problem, file=file, line=line, field=name, hint=_HINT)
        if not (0 < long < n and short < longest):
            problem = f"has {long} of {n} sequences at {longest}, the others at {short} tokens"
            raise InputError(problem, file=file, line=line, field="nb", hint=_HINT)
        if numbers["t_skew_us"] <= 0:
            problem = f"is {row['t_skew_us']}, not above 0"
            raise InputError(problem, file=file, line=line, field="t_skew_us", hint=_HINT)
        contexts = [longest] * long + [short] * (n - long)
        shape = BatchShape(
            n, sum(contexts), ((chunk, before),) if chunk else (), unequal=spread_of(contexts)
        )
        name = "unequal " + ("mixed" if chunk else "decode")
        lengths = f"skew {n} {long} {short} {longest}"
        yield KernelSample(
            name, numbers["t_skew_us"] / SKEW_ITERATIONS, _layer_us(physics, shape),
            fitted and may_be_fitted(lengths), shape=lengths,
        )  # fmt: skip


def _dense(table: KernelTable, physics: Physics, fitted: bool) -> Iterator[KernelSample]:
    """Matrix products and element-wise kernels, over tokens or sequences."""
    gpu, degree = physics.gpu, physics.tensor_parallel
    work = model_work(physics.model, degree)
    sms, bandwidth, gemm = gpu.num_sms, physics.bandwidth_all, Gemm(gpu)
    shapes = {linear.name: (linear.inputs, linear.outputs) for linear in work.linears}
    shapes["lm_head"] = work.head.inputs, work.head.outputs
    hidden, wide = work.hidden_size, physics.model.intermediate_size // degree
    rotated = 2 * sum(each.rotated for each, _ in work.mixing)
    values = {"layernorm": 4 * hidden, "rotary_emb": rotated, "act_fn": 3 * wide}

    def product(name: str) -> Callable[[int], float]:
        inputs, outputs = shapes[name]
        return lambda rows: gemm.time(rows, inputs, outputs, 2.0, 2.0, sms, bandwidth).time

    def streamed(row_bytes: float) -> Callable[[int], float]:
        return lambda rows: physics.streamed(rows * row_bytes, sms).time

    sizes = {name: f"gemm {shapes[shape]}" for name, shape in PRODUCTS.items()}
    sizes["lm_head"] = f"gemm {shapes['lm_head']}"
    curves: list[tuple[str, str, TimeCurve, Callable[[int], float]]] = [
        ("gemm", name, table.dense[name], product(shape))
        for name, shape in PRODUCTS.items()
        if name in table.dense
    ]
    curves.append(("gemm", "lm_head", table.sequence["lm_head"], product("lm_head")))
    for name, each in values.items():
        if name not in table.dense:
            continue
        curves.append(("element-wise", name, table.dense[name], streamed(each * 2.0)))
    for operator, name, curve, predict in curves:
        # Fitted on the even ranks of all counts that the products were measured at.
        counts = sorted({*table.dense["qkv_proj"].xs, *table.sequence["lm_head"].xs})
        even = set(counts[::2])
        for count, measured in zip(curve.xs, curve.ys, strict=True):
            half = fitted and operator == "gemm" and count in even
            yield KernelSample(
                operator,
                measured,
                predict(count) / 1e3,
                half,
                (name,),
                count,
                sizes.get(name, name),
            )


def _attention_us(physics: Physics, point: Point) -> float:
    """Microseconds of one layer's attention."""
    return _layer_us(physics, shape_of(point))


def _layer_us(physics: Physics, shape: BatchShape) -> float:
    made = physics.attention(shape, physics.gpu.num_sms)
    return made.time / physics.model.num_layers / 1e3


def _name(point: Point) -> str:
    chunk, _, count, _ = point
    return "attention " + ("mixed" if chunk and count else "prefill" if chunk else "decode")


def _half(point: Point) -> bool:
    """Whether a row is in the half that the RTX 4090's constants were fitted on."""
    logs = [value.bit_length() - 1 for value in point]  # -1 for zero
    return sum(w * log for w, log in zip((3, 5, 7, 11), logs, strict=True)) % 2 == 0


def _held_out_grids(table: KernelTable, physics: Physics) -> list[tuple[str, float, float]]:
    """Every second value between the ends of each axis in turn left out of the grid, and predicted
    by the physics stretched as measured at the rest.
    """
    layers, sms = physics.model.num_layers, physics.gpu.num_sms
    held_out = []
    for axis in range(len(ATTENTION_AXES)):
        values = sorted({point[axis] for point in table.attention} - {0})
        dropped = set(values[1:-1:2])
        rest = {p: us for p, us in table.attention.items() if p[axis] not in dropped}
        thinner = KernelTable(table.dense, table.sequence, rest)
        stretch = AttentionStretch(thinner, physics.attention, layers, sms)
        for point, measured in table.attention.items():
            if point[axis] in dropped:
                made = _attention_us(physics, point) * stretch(shape_of(point))
                held_out.append((_name(point), made, measured))
    return held_out
