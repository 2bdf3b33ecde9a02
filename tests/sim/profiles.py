"""A small finished profile, straight from the simulated physics: no sweep, no noise."""

from __future__ import annotations

import hashlib
from functools import cache

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.costs.base import Target
from nexusbench.devices.base import DeviceOptions
from nexusbench.devices.sim import Sim
from nexusbench.models.config import load_model
from nexusbench.profiles.points import Point, PointSetting
from nexusbench.profiles.profile import POINTS_FILE, SCHEMA, Profile, write_profile
from nexusbench.profiling.fingerprint import fingerprint_of
from nexusbench.profiling.fitting import fit_model

PREFILLS = [BatchShape(0, 0, ((n, c),)) for n in (64, 512, 2048) for c in (0, 4096, 16384)]
DECODES = [BatchShape(b, b * c) for b in (1, 16, 64, 256) for c in (128, 1024, 4096)]
SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
HELD_OUT = (BatchShape(0, 0, ((300, 0), (700, 900))), BatchShape(40, 90_000))


def open_sim(gpu="l20", model="qwen2.5-3b"):
    return Sim.open(gpu, load_model(model), DeviceOptions(256, 2048))


def simulated_points(device):
    """Alone on some SMs and on all, and beside each other on some splits."""
    physics, every = device.physics, device.gpu.num_sms
    splits = [split for split in device.spec.splits if not split.overlapping]
    chosen = [min(splits, key=lambda s: abs(s.sms[0] - f * every)).sms for f in SHARES]
    points = []
    for kind, shapes in (("prefill", PREFILLS), ("decode", DECODES)):
        for shape in (*shapes, HELD_OUT[kind == "decode"]):
            for sms in sorted({n for pair in chosen for n in pair} | {every}):
                time = physics.load(shape, sms).solo
                setting = PointSetting(kind, shape, sms, held_out=shape in HELD_OUT)
                points.append(Point(setting, time, 0.001, (time,)))
    for prefill, decode in [(p, d) for p in PREFILLS[4::2] for d in DECODES[4::3]] + [HELD_OUT]:
        for p, d in chosen:
            sides = ((prefill, p, decode, d), (decode, d, prefill, p))
            for shape, sms, other, rest in sides:
                mine, theirs = physics.load(shape, sms), physics.load(other, rest)
                time = mine.solo * physics.slowdown(mine, theirs)
                setting = PointSetting("pair", shape, sms, other, rest, held_out=shape in HELD_OUT)
                points.append(Point(setting, time, 0.001, (time,), alone_ns=mine.solo))
    return points


@cache
def _measured(gpu, model, fits):
    """A finished profile and its points as a file."""
    device = open_sim(gpu, model)
    points = simulated_points(device)
    data = b"".join(msgspec.json.encode(point) + b"\n" for point in points)
    target = Target(device.gpu, device.model)
    profile = Profile(
        schema=SCHEMA,
        nexusbench="test",
        created="2026-01-01T00:00:00+00:00",
        fingerprint=fingerprint_of(device, device.model),
        gpu=device.gpu,
        model=device.model,
        splits=tuple(split.sms for split in device.spec.splits if not split.overlapping),
        effort="test",
        seed=0,
        points_sha256=hashlib.sha256(data).hexdigest(),
        num_points=len(points),
        fits=tuple(fit_model(spec, points, target, stopwatch=lambda: 0) for spec in fits),
    )
    return profile, data


def make_profile(folder, gpu="l20", model="qwen2.5-3b", fits=("nexus",)):
    """Write a finished profile of ``sim:gpu`` into ``folder`` and return it."""
    profile, data = _measured(gpu, model, fits)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POINTS_FILE).write_bytes(data)
    write_profile(folder, profile)
    return profile
