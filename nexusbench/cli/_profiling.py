"""The ``profile`` commands behind their flags: open, measure, show."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexusbench.assembly import open_device
from nexusbench.cli._console import counted
from nexusbench.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.models.config import load_model
from nexusbench.profiling._desk import Work
from nexusbench.profiling.effort import DEFAULT, FULL, QUICK
from nexusbench.profiling.grammar import parse_batch
from nexusbench.profiling.profile import Subject, make_profile

JSON_SCHEMA = 1


def open_subject(params: Mapping[str, Any]) -> Subject:
    """The device and model of the flags. Raises UsageError naming what is wrong."""
    names = set(RunConfig.__struct_fields__) & set(params)
    config = RunConfig(trace="", **{name: params[name] for name in names})
    model = load_model(config.model)
    length = config.max_model_len or model.max_model_len
    if length > model.max_model_len:
        raise UsageError(f"--max-model-len {length}: {model.name} has {model.max_model_len}")
    device, limits = open_device(config, model, length, profiling=True)
    return Subject(device, model, limits, config.block_size)


def run_profile(params: Mapping[str, Any]) -> None:
    """``nexusbench profile``."""
    if params["quick"] and params["full"]:
        raise UsageError("--quick and --full contradict each other; choose one")
    effort = QUICK if params["quick"] else FULL if params["full"] else DEFAULT
    batches = [(text, Work(*parse_batch(text))) for text in params["batch"] or []]
    subject = open_subject(params)
    try:
        name = f"{subject.device.spec.name.replace(':', '-')}-{subject.model.name}".lower()
        folder = params["output"] or Path("results/profiles") / name
        profile, outcome = make_profile(
            subject, folder, effort, seed=params["seed"], batches=batches, fresh=params["fresh"]
        )
    finally:
        subject.device.close()
    print(f"{counted(outcome.measured, 'point')} measured, {outcome.kept:,} kept", file=sys.stderr)
    print(json.dumps({"fits": [f.cost_model for f in profile.fits], "folder": str(folder)}))
