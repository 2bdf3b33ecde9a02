"""AIConfigurator's own estimate of a measured point, where ``aiconfigurator_core`` is installed.

Its ``run_agg`` is asked as its users ask it: ``ctx_tokens`` of a mixed step is one prompt, the
database is the newest of the system and backend, the degrees are those of the replay. Models are
described by local files only: nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from nexusbench.experiments.fidelity.deployment import deployment_of
from nexusbench.experiments.fidelity.serving_runs import ServingResult
from nexusbench.experiments.fidelity.serving_table import ServingPoint

PACKAGE = "aiconfigurator_core"


class PeerEstimate(msgspec.Struct, frozen=True):
    """Its TTFT and TPOT in ms."""

    ttft_ms: float
    tpot_ms: float


def estimates(results: Sequence[ServingResult]) -> list[PeerEstimate | None]:
    """One for each point that was replayed, None where it has none. All None where the package is
    not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return [None] * len(results)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # it logs a line for each table that it does not find
    try:
        with tempfile.TemporaryDirectory() as folder:
            estimate = _estimator(Path(folder))
            return [
                None if r.run is None or r.config is None else estimate(r.point, r.config.model)
                for r in results
            ]
    finally:
        logging.disable(level)


def _estimator(folder: Path) -> Callable[[ServingPoint, str], PeerEstimate | None]:
    known: dict[tuple[object, ...], PeerEstimate | None] = {}
    bases: dict[tuple[str, str], Any] = {}
    made: dict[tuple[object, ...], Any] = {}

    def estimate(point: ServingPoint, model: str) -> PeerEstimate | None:
        shape = (
            point.model, model, point.system, point.backend, point.gemm_quant, point.moe_quant,
            point.tp, point.pp, point.dp, point.moe_tp, point.moe_ep,
        )  # fmt: skip
        key = (*shape, point.isl, point.osl, point.users)
        if key not in known:
            try:
                known[key] = _ask(point, model, shape, bases, made, folder)
            except Exception:
                # Whatever another program raises: it has no estimate, and is counted without.
                known[key] = None
        return known[key]

    return estimate


def _ask(
    point: ServingPoint,
    model: str,
    shape: tuple[object, ...],
    bases: dict[tuple[str, str], Any],
    made: dict[tuple[object, ...], Any],
    folder: Path,
) -> PeerEstimate | None:
    from aiconfigurator_core.sdk import common, config
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.models import get_model
    from aiconfigurator_core.sdk.perf_database import get_database, get_latest_database_version

    base, spread = (point.system, point.backend), deployment_of(point)
    if base not in bases:
        version = get_latest_database_version(*base)
        bases[base] = None if version is None else get_database(*base, version)
    if bases[base] is None:
        return None
    if shape not in made:
        described = _description(point.model, model, common.DefaultHFModels, folder)
        gpus = spread.tensor * spread.data
        asked = config.ModelConfig(
            tp_size=spread.tensor, pp_size=spread.pipeline, attention_dp_size=spread.data,
            moe_tp_size=1 if spread.experts else gpus, moe_ep_size=gpus if spread.experts else 1,
            gemm_quant_mode=common.GEMMQuantMode[point.gemm_quant or "bfloat16"],
            moe_quant_mode=common.MoEQuantMode[point.moe_quant or "bfloat16"],
        )  # fmt: skip
        # A backend of its own for each: its cache does not look at the model.
        made[shape] = get_model(described, asked, point.backend), get_backend(point.backend)
    its_model, backend = made[shape]
    each = max(1, spread.requests // spread.data)
    run = config.RuntimeConfig(batch_size=each, isl=point.isl, osl=point.osl)
    summary = backend.run_agg(its_model, bases[base], run, ctx_tokens=point.isl)
    found = summary.get_result_dict()
    ttft, tpot = float(found["ttft"]), float(found["tpot"])
    if not (math.isfinite(ttft) and math.isfinite(tpot) and ttft > 0 and tpot > 0):
        return None
    return PeerEstimate(ttft, tpot)


def _description(name: str, model: str, known: Collection[str], folder: Path) -> str:
    """What its ``get_model`` reads without a download: a name that it ships, or a folder."""
    if name in known:
        return name
    path = Path(model)
    if path.name == "config.json" and path.is_file():
        return str(path.parent)
    from nexusbench.models.document import open_config

    own = folder / model.replace("/", "--")
    own.mkdir(exist_ok=True)
    text = json.dumps(open_config(model).data)
    (own / "config.json").write_text(text, encoding="utf-8")
    return str(own)
