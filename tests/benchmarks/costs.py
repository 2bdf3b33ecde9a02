"""How fast cost models fit and predict: ``python -m tests.benchmarks.costs``.

Every registered model is fitted to points of two simulated GPUs, made in memory. Printed are the
seconds of a fit, the microseconds of one ``predict`` of a decode beside a prefill, and those of one
candidate split when all splits of the GPU are predicted at once. Shapes change from call to call,
as they do while serving.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.costs._fit import build, split_points
from nexusbench.costs.base import CostModel, cost_models
from nexusbench.devices._gpus import legal_splits
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


def main() -> None:
    """Print a line per model and GPU."""
    print(f"Python {platform.python_version()}, us unless said")
    print(f"{'model':<12}{'gpu':<7}{'fit s':>8}{'alone':>8}{'decode':>8}{'prefill':>8}{'split':>8}")
    for name in cost_models.names():
        cls: type[CostModel] = cost_models.load(name)
        for gpu, model in TARGETS:
            target, points = profiled(gpu, model)
            kinds = [("fitted", split_points(points)[0]), ("", None)]
            for label, fitted in kinds:
                if fitted is None and not cls.works_unfitted:
                    continue
                start = time.perf_counter_ns()
                try:
                    parameters = fitted and cls.fit(fitted, target, cls.Options())
                except (NotImplementedError, UsageError) as error:
                    print(f"{name:<12}{gpu:<7} not fitted: {error}")
                    continue
                seconds = (time.perf_counter_ns() - start) / 1e9 if label else 0.0
                found = speeds(build(cls, cls.Options(), parameters, target), gpu)
                row = "".join(f"{value:8.2f}" for value in (seconds, *found.values()))
                print(f"{name + ('' if label else ' (bare)'):<15}{gpu:<4}{row}")


if __name__ == "__main__":
    main()
