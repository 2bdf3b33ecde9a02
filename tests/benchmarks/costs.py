"""How fast and how well cost models predict: ``python -m tests.benchmarks.costs [SPEC...]``.

Every registered model is fitted to points of two simulated GPUs, made in memory. Printed are the
seconds of a fit, the microseconds of one ``predict`` of a decode beside a prefill, and those of one
candidate split when all splits of the GPU are predicted at once; shapes change from call to call,
as they do while serving. Then the mean errors (%) at held-out points, by phase and thirds of the
SMs, alone and beside a neighbour. SPEC are models with options, such as ``linear:guard=mean``.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.registry import parse_options, split_spec
from nexusbench.costs.base import CostModel, cost_models
from nexusbench.physics.gpus import legal_splits
from nexusbench.profiling.fitting import build, fit_model, split_points
from tests.unit.profiled import profiled

TARGETS = (("l20", "qwen2.5-3b"), ("h200", "llama-3.1-8b"))
CALLS, ROUNDS = 400, 5


def microseconds(call: Callable[[int], object]) -> float:
    """Of one call, the best of a few rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for step in range(CALLS):
            call(step)
        best = min(best, (time.perf_counter_ns() - start) / CALLS / 1e3)
    return best


def shapes(step: int) -> tuple[BatchShape, BatchShape]:
    """(prefill, decode) at that step of a run: contexts grow, chunks move on."""
    decode = BatchShape(48, 48 * 900 + 48 * step)
    return BatchShape(0, 0, ((1500 + step % 7, 3000 + step),)), decode


def speeds(model: CostModel, gpu: str) -> dict[str, float]:
    """Microseconds by what is asked."""
    splits = [split.sms for split in legal_splits(model_gpu[gpu]) if not split.overlapping]
    prefill_sms, decode_sms = [s[0] for s in splits], [s[1] for s in splits]
    own, other = splits[len(splits) // 2][::-1]

    def alone(step: int) -> object:
        return model.predict(shapes(step)[1], own)

    def beside(step: int) -> object:
        prefill, decode = shapes(step)
        return model.predict(decode, own, (prefill, other))

    def prefill_beside(step: int) -> object:
        prefill, decode = shapes(step)
        return model.predict(prefill, other, (decode, own))

    def candidates(step: int) -> object:
        prefill, decode = shapes(step)
        return model.predict_splits(decode, decode_sms, prefill, prefill_sms)

    making = microseconds(shapes)
    return {
        "alone": microseconds(alone) - making,
        "decode": microseconds(beside) - making,
        "prefill": microseconds(prefill_beside) - making,
        "split": (microseconds(candidates) - making) / len(splits),
    }


model_gpu = {gpu: profiled(gpu, model)[0].gpu for gpu, model in TARGETS}


def speed(spec: str) -> None:
    """Print a line per GPU, and one of the model that was not fitted, if it works so."""
    name, given = split_spec(spec)
    cls: type[CostModel] = cost_models.load(name)
    options = parse_options(cls.Options, given, name)
    for gpu, model in TARGETS:
        target, points = profiled(gpu, model)
        for fitted in (split_points(points)[0], None):
            if fitted is None and not cls.works_unfitted:
                continue
            start = time.perf_counter_ns()
            parameters = None if fitted is None else cls.fit(fitted, target, options)
            seconds = (time.perf_counter_ns() - start) / 1e9 if fitted else 0.0
            found = speeds(build(cls, options, parameters, target), gpu)
            row = "".join(f"{value:9.2f}" for value in (seconds, *found.values()))
            print(f"{spec + ('' if fitted else ' (bare)'):<24}{gpu:<5}{row}")


def errors(spec: str) -> None:
    """Print a line per GPU and phase."""
    for gpu, model in TARGETS:
        target, points = profiled(gpu, model)
        scores = fit_model(spec, points, target, stopwatch=time.perf_counter_ns).scores
        found = {(s.phase, s.corunning, s.sms): f"{s.mape:9.1f}" for s in scores}
        for phase in ("all", "prefill", "decode", "mixed"):
            row = "".join(
                found.get((phase, beside, sms), f"{'-':>9}")
                for beside in (False, True)
                for sms in ("all", "few", "half", "most")
            )
            print(f"{spec:<24}{gpu:<5}{phase:<8}{row}")


def main() -> None:
    """Print both tables."""
    specs = sys.argv[1:] or cost_models.names()
    print(f"Python {platform.python_version()}, us unless said")
    columns = ("fit s", "alone", "decode", "prefill", "split")
    print(f"{'model':<24}{'gpu':<5}" + "".join(f"{column:>9}" for column in columns))
    for spec in specs:
        try:
            speed(spec)
        except (NotImplementedError, UsageError) as error:
            print(f"{spec:<24} not fitted: {error}")
    heads = [f"{side}{sms}" for side in ("", "co ") for sms in ("all", "few", "half", "most")]
    print(f"\n{'mean error, %':<24}{'gpu':<5}{'phase':<8}" + "".join(f"{x:>9}" for x in heads))
    for spec in specs:
        errors(spec)


if __name__ == "__main__":
    main()
