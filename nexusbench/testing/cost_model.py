"""check_cost_model: the contract of a belief, unfitted and fitted to a small simulated sweep."""

from __future__ import annotations

import math
from itertools import pairwise, product

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.registry import parse_options, split_spec
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.costs.base import CostModel, Target, cost_models
from nexusbench.physics.gpus import legal_splits
from nexusbench.physics.launches import Physics
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.testing._errors import ConformanceError, named
from nexusbench.testing._harness import tiny_gpu, tiny_model

SHAPES = (
    BatchShape(1, 40),
    BatchShape(8, 900),
    BatchShape(64, 30_000),
    BatchShape(0, 0, ((16, 0),)),
    BatchShape(0, 0, ((512, 300),)),
    BatchShape(0, 0, ((100, 0), (7, 800))),
    BatchShape(8, 900, ((64, 128),)),
)
CHUNKS, PRIORS = (16, 32, 64, 128, 256, 512), (0, 64, 256, 448)
BATCHES, CONTEXTS = (1, 4, 16, 64), (32, 128, 512, 960)


def check_cost_model(cost_model: str) -> None:
    """Ask a cost model about many launches, as its defaults make it and fitted to a sweep.

    ``cost_model`` is a name with options (``nexus:kv=false``). Checked are: predictions are finite
    and above 0; equal questions have equal answers (I6); :meth:`predict_splits` agrees with
    :meth:`predict` to the bit; a model that declares itself ``monotone`` is so alone; a neighbour
    never speeds a launch up; twice the layers take longer; parameters survive JSON. Raises
    ConformanceError; UsageError if there is no such model, or if it refuses the points.
    """
    name, given = split_spec(cost_model)
    cls: type[CostModel] = cost_models.load(name)
    options = parse_options(cls.Options, given, f"cost model '{name}'")
    gpu, model = tiny_gpu(num_sms=48, sm_minimum=4, sm_multiple=4), tiny_model()
    if cls.works_unfitted:
        with named("unfitted"):
            _check(cls(options, gpu=gpu, model=model), gpu)
    if cls.fit.__func__ is CostModel.fit.__func__:  # type: ignore[attr-defined]
        return
    with named("fitted"):
        parameters = cls.fit(sweep(gpu, model), Target(gpu, model), options)
        text = msgspec.json.encode(parameters)
        again = msgspec.json.decode(text, type=cls.Parameters)
        made = cls(options, gpu=gpu, model=model, parameters=parameters)
        read = cls(options, gpu=gpu, model=model, parameters=again)
        _check(made, gpu)
        for shape in SHAPES:
            if made.predict(shape, gpu.num_sms) != read.predict(shape, gpu.num_sms):
                raise ConformanceError("I6", "parameters do not survive being written and read")


def sweep(gpu: GpuSpec, model: ModelSpec) -> list[Point]:
    """Points of a small sweep, straight from the physics: both phases alone, mixed, and pairs."""
    physics = Physics(gpu, model)
    splits = legal_splits(gpu)
    counts = sorted({split.sms[0] for split in splits})
    points = []
    prefills = [
        BatchShape(0, 0, ((chunk, prior),))
        for chunk, prior in product(CHUNKS, PRIORS)
        if chunk + prior <= model.max_model_len
    ]
    decodes = [BatchShape(batch, batch * ctx) for batch, ctx in product(BATCHES, CONTEXTS)]
    for shape, sms in product((*prefills, *decodes), counts):
        points.append(_alone(physics, "prefill" if shape.chunks else "decode", shape, sms))
    for batch, chunk in product((4, 64), (64, 256)):
        mixed = BatchShape(batch, batch * 128, ((chunk, 0),))
        points.append(_alone(physics, "mixed", mixed, gpu.num_sms))
    for prefill, decode, split in product(prefills[::3], decodes[::3], splits):
        points.append(_beside(physics, prefill, split.sms[0], decode, split.sms[1]))
        points.append(_beside(physics, decode, split.sms[1], prefill, split.sms[0]))
    return points


def _alone(physics: Physics, kind: str, shape: BatchShape, sms: int) -> Point:
    load = physics.load(shape, sms)
    operators = {"dense": load.dense.time, "attention": load.attention.time}
    setting = PointSetting(kind, shape, sms)  # type: ignore[arg-type]
    return Point(setting, load.solo, 0.0, (load.solo,), operators_ns=operators)


def _beside(
    physics: Physics, shape: BatchShape, sms: int, neighbour: BatchShape, others: int
) -> Point:
    load = physics.load(shape, sms)
    ns = load.solo * physics.slowdown(load, physics.load(neighbour, others))
    setting = PointSetting("pair", shape, sms, neighbour, others)
    operators = {"dense": load.dense.time, "attention": load.attention.time}
    return Point(setting, ns, 0.0, (ns,), operators_ns=operators, alone_ns=load.solo)


def _check(model: CostModel, gpu: GpuSpec) -> None:
    counts = [split.sms[0] for split in legal_splits(gpu) if not split.overlapping]
    others = [gpu.num_sms - sms for sms in counts]
    decode, prefill = SHAPES[1], SHAPES[4]
    for shape in SHAPES:
        alone = [_predict(model, shape, sms) for sms in counts]
        if alone != model.predict_splits(shape, counts):
            raise ConformanceError("I6", "predict_splits disagrees with predict")
        if model.monotone and any(b > a for a, b in pairwise(alone)):
            raise ConformanceError("contract", f"says it is monotone, but {shape} takes {alone}")
        neighbour = decode if shape.chunks else prefill
        beside = [
            _predict(model, shape, sms, (neighbour, other))
            for sms, other in zip(counts, others, strict=True)
        ]
        if beside != model.predict_splits(shape, counts, neighbour, others):
            raise ConformanceError("I6", "predict_splits disagrees with predict, with a neighbour")
        for sms, single, shared in zip(counts, alone, beside, strict=True):
            if shared < single:
                problem = f"a neighbour speeds {shape} on {sms} SMs up: {single} to {shared} ns"
                raise ConformanceError("contract", problem)
        twice = _predict(model, msgspec.structs.replace(shape, repeat=2), counts[-1])
        if not shape.chunks and twice <= alone[-1]:
            raise ConformanceError("contract", f"two passes of {shape} take no longer than one")


def _predict(
    model: CostModel, shape: BatchShape, sms: int, neighbour: tuple[BatchShape, int] | None = None
) -> float:
    """A prediction that is a time, twice the same."""
    first, second = (model.predict(shape, sms, neighbour) for _ in range(2))
    if first != second:
        raise ConformanceError("I6", f"{shape} on {sms} SMs: {first}, then {second} ns")
    if not (math.isfinite(first) and first > 0):
        raise ConformanceError("contract", f"{shape} on {sms} SMs is predicted to take {first} ns")
    return first
