"""Errors of replayed closed-loop points, by model, system, engine, precision and parallelism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from nexusbench.experiments.fidelity.errors import Errors, errors
from nexusbench.experiments.fidelity.serving_peer import PeerEstimate
from nexusbench.experiments.fidelity.serving_runs import ServingResult

ALL = "all"


class ScoredPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A point that was replayed: measured, simulated and (where there is one) estimated ms."""

    line: int
    model: str
    system: str
    backend: str
    engine: str
    precision: str
    tp: int
    isl: int
    osl: int
    users: int
    ttft_ms: float
    tpot_ms: float
    simulated_ttft_ms: float
    simulated_tpot_ms: float
    preemptions: int
    peer_ttft_ms: float | None = None
    peer_tpot_ms: float | None = None


class ServingScore(msgspec.Struct, frozen=True, kw_only=True):
    """Errors in per cent of ``points`` points. ``nearer_than_aiconfigurator``: per cent of the
    ``compared`` ones whose TPOT is nearer to the measurement here; None of none.
    """

    model: str
    system: str
    backend: str
    engine: str
    precision: str
    tp: str
    points: int
    ttft_mape: float
    ttft_bias: float
    tpot_mape: float
    tpot_bias: float
    compared: int
    nearer_than_aiconfigurator: float | None
    ttft_nearer_than_aiconfigurator: float | None
    aiconfigurator_ttft_mape: float | None
    aiconfigurator_tpot_mape: float | None


class ServingValidation(msgspec.Struct, frozen=True, kw_only=True):
    """All that ``validate serving`` shows; ``refused`` counts points by reason."""

    scores: list[ServingScore]
    points: list[ScoredPoint]
    refused: dict[str, int]

    @property
    def reached(self) -> dict[str, float]:
        """What bounds may name: ``ttft`` and ``tpot`` (MAPE of all), ``tpot bias``, and ``MODEL
        ttft``, ``MODEL tpot``.
        """
        found: dict[str, float] = {}
        for score in self.scores:
            if score.model == ALL:
                found |= {"ttft": score.ttft_mape, "tpot": score.tpot_mape}
                found |= {"ttft bias": score.ttft_bias, "tpot bias": score.tpot_bias}
        for model in sorted({point.model for point in self.points}):
            whole = score_of([p for p in self.points if p.model == model], {})
            found |= {f"{model} ttft": whole.ttft_mape, f"{model} tpot": whole.tpot_mape}
        return found


def validate_points(
    results: Sequence[ServingResult], peers: Sequence[PeerEstimate | None], *, steady: bool
) -> ServingValidation:
    """Scores of everything that was replayed; the last is of all points."""
    points = [
        _scored(result, peer, steady=steady)
        for result, peer in zip(results, peers, strict=True)
        if result.run is not None
    ]
    groups: dict[tuple[str, ...], list[ScoredPoint]] = {}
    for point in points:
        key = (point.model, point.system, point.engine, point.precision, f"{point.tp:>6}")
        groups.setdefault(key, []).append(point)
    scores = [score_of(groups[key], _labels(groups[key][0])) for key in sorted(groups)]
    if points:
        scores.append(score_of(points, {}))
    reasons = Counter(result.refused for result in results if result.refused)
    return ServingValidation(scores=scores, points=points, refused=dict(reasons.most_common()))


def score_of(points: Sequence[ScoredPoint], labels: dict[str, str]) -> ServingScore:
    """The errors of some points, at least one; labels that are not given are ``all``."""
    named = dict.fromkeys(("model", "system", "backend", "engine", "precision", "tp"), ALL)
    ttft = _errors([p.simulated_ttft_ms for p in points], [p.ttft_ms for p in points])
    tpot = _errors([p.simulated_tpot_ms for p in points], [p.tpot_ms for p in points])
    both = [p for p in points if p.peer_tpot_ms is not None]
    peer_ttft = peer_tpot = nearer = ttft_nearer = None
    if both:
        peer_ttft = _errors([p.peer_ttft_ms or 0.0 for p in both], [p.ttft_ms for p in both]).mape
        peer_tpot = _errors([p.peer_tpot_ms or 0.0 for p in both], [p.tpot_ms for p in both]).mape
        nearer = _share(
            [
                abs(p.simulated_tpot_ms - p.tpot_ms) < abs((p.peer_tpot_ms or 0.0) - p.tpot_ms)
                for p in both
            ]
        )
        ttft_nearer = _share(
            [
                abs(p.simulated_ttft_ms - p.ttft_ms) < abs((p.peer_ttft_ms or 0.0) - p.ttft_ms)
                for p in both
            ]
        )
    return ServingScore(
        **{**named, **labels}, points=len(points), ttft_mape=ttft.mape, ttft_bias=ttft.bias,
        tpot_mape=tpot.mape, tpot_bias=tpot.bias, compared=len(both),
        nearer_than_aiconfigurator=nearer, ttft_nearer_than_aiconfigurator=ttft_nearer,
        aiconfigurator_ttft_mape=peer_ttft, aiconfigurator_tpot_mape=peer_tpot,
    )  # fmt: skip


def _labels(point: ScoredPoint) -> dict[str, str]:
    return {
        "model": point.model, "system": point.system, "backend": point.backend,
        "engine": point.engine, "precision": point.precision, "tp": str(point.tp),
    }  # fmt: skip


def _scored(result: ServingResult, peer: PeerEstimate | None, *, steady: bool) -> ScoredPoint:
    point, run, config = result.point, result.run, result.config
    assert run is not None
    assert config is not None
    return ScoredPoint(
        line=point.line, model=point.name, system=point.system, backend=point.backend,
        engine=config.engine or "", precision=point.precision or "bf16", tp=point.tp,
        isl=point.isl, osl=point.osl, users=point.users,
        ttft_ms=point.ttft_ms, tpot_ms=point.tpot_ms,
        simulated_ttft_ms=run.steady_ttft_ms if steady else run.ttft_ms,
        simulated_tpot_ms=run.steady_tpot_ms if steady else run.tpot_ms,
        preemptions=run.preemptions,
        peer_ttft_ms=None if peer is None else peer.ttft_ms,
        peer_tpot_ms=None if peer is None else peer.tpot_ms,
    )  # fmt: skip


def _errors(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    found = errors(np.asarray(predicted), np.asarray(measured))
    assert found is not None
    return found


def _share(held: Sequence[bool]) -> float:
    return 100.0 * sum(held) / len(held)
