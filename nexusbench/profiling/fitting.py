"""From measured points to a fitted cost model with an honest error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from nexusbench.core.errors import UsageError
from nexusbench.core.registry import parse_options, split_spec
from nexusbench.costs.base import CostModel, CostModelOptions, Target, cost_models
from nexusbench.profiles.points import Point
from nexusbench.profiles.profile import FitScore, FittedCost

if TYPE_CHECKING:
    from collections.abc import Mapping

FloatArray = npt.NDArray[np.float64]
# Upper ends of the thirds of the SMs that scores are told for.
SM_RANGES = (("few", 1 / 3), ("half", 2 / 3), ("most", 1.0))


def fit_model(
    spec: str, points: Sequence[Point], target: Target, *, stopwatch: Callable[[], int]
) -> FittedCost:
    """Fit ``name[:key=value,...]`` on the points that are not held out, score it on those that are.

    ``stopwatch`` reads ns. Raises UsageError if the points do not determine the model.
    """
    name, given = split_spec(spec)
    cls: type[CostModel] = cost_models.load(name)
    options: CostModelOptions = parse_options(cls.Options, given, f"cost model '{name}'")
    fitted, held_out = split_points(points)
    if not fitted:
        raise UsageError("there are no points to fit a cost model to; run the sweep first")
    start = stopwatch()
    parameters = cls.fit(fitted, target, options)
    seconds = (stopwatch() - start) / 1e9
    model = build(cls, options, parameters, target)
    return FittedCost(
        cost_model=name,
        options=msgspec.to_builtins(options),
        parameters=msgspec.to_builtins(parameters),
        scores=tuple(score(model, held_out, target.gpu.num_sms)),
        num_fitted=len(fitted),
        num_held_out=len(held_out),
        seconds=round(seconds, 3),
    )


def build(
    cls: type[CostModel], options: CostModelOptions, parameters: object, target: Target
) -> CostModel:
    """The model with those parameters."""
    return cls(
        options,
        gpu=target.gpu,
        model=target.model,
        tensor_parallel=target.tensor_parallel,
        parameters=parameters,  # type: ignore[arg-type]
    )


def split_points(points: Iterable[Point]) -> tuple[list[Point], list[Point]]:
    """(points to fit, points to judge by). A shape that is held out anywhere is fitted nowhere.

    Launches that share all SMs are no points of a belief: its pairs are a prefill beside decodes.
    """
    points = [p for p in points if p.setting.kind != "streams"]
    judged = {(p.setting.shape, p.setting.contexts) for p in points if p.setting.held_out}
    fitted = [p for p in points if (p.setting.shape, p.setting.contexts) not in judged]
    fitted = [
        p for p in fitted if p.setting.neighbour is None or (p.setting.neighbour, ()) not in judged
    ]
    return fitted, [p for p in points if p.setting.held_out]


def predicted(model: CostModel, points: Iterable[Point]) -> FloatArray:
    """The model's ns for each point."""
    times = []
    for point in points:
        setting = point.setting
        beside = None
        if setting.neighbour is not None:
            beside = (setting.neighbour, setting.neighbour_sms)
        times.append(model.predict(setting.shape, setting.sms, beside))
    return np.array(times, dtype=np.float64)


def score(model: CostModel, points: Sequence[Point], num_sms: int) -> list[FitScore]:
    """Errors by phase, alone and co-running, over all SMs and by thirds of them."""
    measured = np.array([point.ns for point in points], dtype=np.float64)
    error = 100.0 * (predicted(model, points) - measured) / measured
    scores = []
    groups: Mapping[tuple[str, bool, str], list[int]] = _groups(points, num_sms)
    for (phase, corunning, sms), members in groups.items():
        chosen = error[members]
        scores.append(
            FitScore(
                phase, corunning, sms, len(chosen),
                mape=round(float(np.abs(chosen).mean()), 3),
                p95=round(float(np.percentile(np.abs(chosen), 95)), 3),
                bias=round(float(chosen.mean()), 3),
            )
        )  # fmt: skip
    return scores


def _groups(points: Sequence[Point], num_sms: int) -> dict[tuple[str, bool, str], list[int]]:
    """Positions of the points of each scored group, phases together under ``all`` too."""
    groups: dict[tuple[str, bool, str], list[int]] = {}
    for position, point in enumerate(points):
        setting = point.setting
        share = setting.sms / num_sms
        part = next(name for name, end in SM_RANGES if share <= end)
        for phase in ("all", setting.phase):
            for sms in ("all", part):
                key = (phase, setting.neighbour is not None, sms)
                groups.setdefault(key, []).append(position)
    order = {name: rank for rank, name in enumerate(("all", "prefill", "decode", "mixed"))}
    ranges = {name: rank for rank, name in enumerate(("all", "few", "half", "most"))}
    return dict(sorted(groups.items(), key=lambda g: (g[0][1], order[g[0][0]], ranges[g[0][2]])))
