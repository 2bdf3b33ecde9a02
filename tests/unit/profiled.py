"""Points as a sweep of the simulated GPU gives them, straight from its physics (no clock, no
noise): a grid to fit on, off-grid shapes to judge by.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import product

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.costs.base import Target
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import legal_splits, load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.profiles.points import Point, PointSetting

CHUNKS = (64, 256, 512, 1024, 2048, 4096, 8192)
PRIORS = (0, 2048, 8192, 24576)
BATCHES = (1, 4, 16, 32, 64, 128, 256)
CONTEXTS = (128, 1024, 4096, 16384)
PAIR_PREFILLS = ((512, 0), (2048, 0), (8192, 0), (512, 8192), (2048, 8192), (8192, 8192))
PAIR_DECODES = ((8, 512), (64, 512), (200, 512), (8, 4096), (64, 4096), (200, 4096))
KV_SHARE = 0.5  # of the GPU's memory: more decodes than fit it cannot be measured


def target(gpu: str, model: str) -> Target:
    """The pair by their shipped names."""
    return Target(load_gpu(gpu), load_model(model))


def sm_counts(gpu: GpuSpec, count: int = 9) -> list[int]:
    """Legal prefill shares, spread with more of them where there are few SMs; the whole last."""
    legal = [split.sms[0] for split in legal_splits(gpu) if not split.overlapping]
    wanted = [(i / (count - 1)) ** 1.5 * (legal[-1] - legal[0]) + legal[0] for i in range(count)]
    nearest = {min(legal, key=lambda sms: abs(sms - x)) for x in wanted}
    return [*sorted(nearest), gpu.num_sms]


def measured(
    physics: Physics,
    kind: str,
    shape: BatchShape,
    sms: int,
    beside: tuple[BatchShape, int] | None = None,
    *,
    held_out: bool = False,
) -> Point:
    """One point, as exact as the simulator knows it."""
    load = physics.load(shape, sms)
    operators = {"dense": load.dense.time, "attention": load.attention.time}
    if beside is None:
        setting = PointSetting(kind, shape, sms, held_out=held_out)
        return Point(setting, load.solo, 0.0, (load.solo,), operators_ns=operators)
    setting = PointSetting(kind, shape, sms, *beside, held_out=held_out)
    ns = load.solo * physics.slowdown(load, physics.load(*beside))
    return Point(setting, ns, 0.0, (ns,), operators_ns=operators, alone_ns=load.solo)


def pair(
    physics: Physics, prefill: BatchShape, decode: BatchShape, sms: tuple[int, int], held_out: bool
) -> list[Point]:
    """Both sides of one pair."""
    return [
        measured(physics, "pair", prefill, sms[0], (decode, sms[1]), held_out=held_out),
        measured(physics, "pair", decode, sms[1], (prefill, sms[0]), held_out=held_out),
    ]


def grid(physics: Physics, gpu: GpuSpec, model: ModelSpec) -> list[Point]:
    """What is fitted."""
    counts, points = sm_counts(gpu), []
    fits = KV_SHARE * gpu.hbm_gib * 2**30 / model.kv_bytes_per_token
    for chunk, prior, sms in product(CHUNKS, PRIORS, counts):
        if chunk + prior <= model.max_model_len:
            shape = BatchShape(0, 0, ((chunk, prior),))
            points.append(measured(physics, "prefill", shape, sms))
    for batch, context, sms in product(BATCHES, CONTEXTS, counts):
        if batch * context <= fits:
            points.append(measured(physics, "decode", BatchShape(batch, batch * context), sms))
    for chunk, batch, context in product((256, 2048), (16, 128), (512, 4096)):
        shape = BatchShape(batch, batch * context, ((chunk, 0),))
        points.append(measured(physics, "mixed", shape, gpu.num_sms))
    splits = legal_splits(gpu)
    chosen = [splits[round(i * (len(splits) - 2) / 6)] for i in range(7)]
    for (chunk, prior), (batch, context), split in product(
        PAIR_PREFILLS, PAIR_DECODES, [*chosen, splits[-1]]
    ):
        decode = BatchShape(batch, batch * context)
        points += pair(physics, BatchShape(0, 0, ((chunk, prior),)), decode, split.sms, False)
    return points


def _prefill(draw: random.Random) -> BatchShape:
    """One to four chunks of odd sizes, 64 to 8,192 tokens in all."""
    total = round(64 * 128 ** draw.random())
    count = draw.choice((1, 1, 2, 4)) if total >= 128 else 1
    priors = [draw.choice((0, draw.randrange(16_000))) for _ in range(count)]
    return BatchShape(0, 0, tuple((total // count, prior) for prior in priors))


def _decode(draw: random.Random, fits: float) -> BatchShape:
    batch = round(256 ** draw.random())
    context = round(128 * 100 ** draw.random())
    return BatchShape(batch, int(min(batch * context, fits)))


def held_out(physics: Physics, gpu: GpuSpec, model: ModelSpec, seed: int = 7) -> list[Point]:
    """What fits are judged by: shapes and SM counts beside the grid."""
    draw, points = random.Random(seed), []
    fits = KV_SHARE * gpu.hbm_gib * 2**30 / model.kv_bytes_per_token
    splits = legal_splits(gpu)[:-1]
    for _ in range(40):
        prefill, decode = _prefill(draw), _decode(draw, fits)
        for split in draw.sample(splits, 4):
            for side, shape in zip(split.sms, (prefill, decode), strict=True):
                kind = "prefill" if shape.chunks else "decode"
                points.append(measured(physics, kind, shape, side, held_out=True))
            points += pair(physics, prefill, decode, split.sms, True)
        mixed = BatchShape(decode.num_decodes, decode.decode_context, prefill.chunks)
        points.append(measured(physics, "mixed", mixed, gpu.num_sms, held_out=True))
    return points


@cache
def profiled(gpu: str, model: str) -> tuple[Target, list[Point]]:
    """Target and points of a simulated GPU, the held-out ones included."""
    made = target(gpu, model)
    physics = Physics(made.gpu, made.model)
    points = grid(physics, made.gpu, made.model)
    return made, points + held_out(physics, made.gpu, made.model)
