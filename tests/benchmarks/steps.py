"""Time of one call of Physics.load by model and kind of batch, over that of a dense model:
python -m tests.benchmarks.steps.
"""

from __future__ import annotations

import time

from nexusbench.core.batch import BatchShape
from nexusbench.models.config import describe_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics

CALLS, ROUNDS, GPUS = 2000, 7, 4
DENSE, MODELS = "llama-3.1-70b", ("qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v3")
SHAPES = {
    "decode": [BatchShape(64, 64 * 4000 + i) for i in range(CALLS)],
    "prefill": [BatchShape(0, 0, ((2048, i % 16 * 2048),)) for i in range(CALLS)],
    "mixed": [BatchShape(32, 32 * 4000 + i, ((2016, i % 16 * 2048),)) for i in range(CALLS)],
}


def seconds(physics: Physics, shapes: list[BatchShape]) -> float:
    """Of all calls, the best of some rounds after one that fills what is kept."""
    sms, best = physics.gpu.num_sms, float("inf")
    for _ in range(ROUNDS + 1):
        begin = time.process_time()
        for shape in shapes:
            physics.load(shape, sms)
        best = min(best, time.process_time() - begin)
    return best


def main() -> None:
    """Microseconds a call of the dense model, and how many times as long others take."""
    gpu = load_gpu("h200")
    dense = Physics(gpu, describe_model(DENSE), GPUS)
    for kind, shapes in SHAPES.items():
        usual = seconds(dense, shapes)
        print(f"{kind}: {DENSE} {1e6 * usual / CALLS:.1f} us a call")
        for name in MODELS:
            found = seconds(Physics(gpu, describe_model(name), GPUS), shapes)
            print(f"    {name} {found / usual:.2f} times that")


if __name__ == "__main__":
    main()
