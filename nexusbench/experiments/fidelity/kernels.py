"""Score the physics, and kernel tables with whole counts held out, on measured operator times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np

from nexusbench.core.errors import InputError
from nexusbench.core.specs import GpuSpec, ModelSpec
from nexusbench.experiments.fidelity import aiconfigurator, llmservingsim, vidur
from nexusbench.experiments.fidelity.errors import Errors, errors
from nexusbench.experiments.fidelity.samples import KernelSample, KernelSamples
from nexusbench.physics.time_grids import TimeCurve


class OperatorScore(msgspec.Struct, frozen=True):
    """The errors of one operator: the physics where it was not fitted, and where it was; the table
    where a whole count was held out of it.
    """

    operator: str
    physics: Errors | None
    fitted: Errors | None
    table: Errors | None


def score_kernels(gpu: GpuSpec, gpu_name: str, model: ModelSpec, table: str) -> list[OperatorScore]:
    """Scores of every operator in ``table``, then of all of ``gemm`` and all of ``attention``.

    ``table`` is a folder in LLMServingSim's format, one of Vidur's dense CSV files, a folder of
    aiconfigurator's parquet files, or the word ``aiconfigurator`` for the installed package.
    """
    return summarise(read_samples(gpu, gpu_name, model, table))


def read_samples(
    gpu: GpuSpec, gpu_name: str, model: ModelSpec, table: str, thin: int = 1, family: str = ""
) -> KernelSamples:
    """The measured operators of ``table``; of aiconfigurator's every ``thin``-th row, and only of
    ``family`` if it is given. Raises InputError for what is no table.
    """
    if table == "aiconfigurator":
        folder = aiconfigurator.installed(gpu_name)
        return aiconfigurator.read(folder, gpu, gpu_name, thin, family)
    path = Path(table)
    if path.is_file():
        return vidur.read(path, gpu)
    if (path / "meta.yaml").exists():
        return llmservingsim.read(path, gpu, model)
    if path.is_dir():
        return aiconfigurator.read(path, gpu, gpu_name, thin, family)
    raise InputError("does not exist", file=table, hint="Give a table, or 'aiconfigurator'")


def summarise(samples: KernelSamples) -> list[OperatorScore]:
    """One score per operator and one per group, the first word of its name."""
    groups: dict[str, Callable[[str], bool]] = {}
    for operator in dict.fromkeys(sample.operator for sample in samples.samples):
        groups[operator] = operator.__eq__
    words = [operator.split(" ")[0] for operator in groups]
    for word in ("gemm", "attention", "window"):
        if words.count(word) > 1 and word not in groups:
            groups[word] = lambda operator, word=word: operator.split(" ")[0] == word  # type: ignore[misc]
    held_out = held_out_curves(samples.samples) + samples.held_out
    scores = []
    for name, belongs in groups.items():
        own = [s for s in samples.samples if belongs(s.operator)]
        scores.append(
            OperatorScore(
                name,
                _errors((s.physics_us, s.measured_us) for s in own if not s.fitted),
                _errors((s.physics_us, s.measured_us) for s in own if s.fitted),
                _errors((p, m) for operator, p, m in held_out if belongs(operator)),
            )
        )
    return scores


def _errors(pairs: Iterable[tuple[float, float]]) -> Errors | None:
    array = np.array(list(pairs)).reshape(-1, 2)
    return errors(array[:, 0], array[:, 1])


def held_out_curves(samples: list[KernelSample]) -> list[tuple[str, float, float]]:
    """(operator, interpolated, measured) of every second count between the ends of each curve."""
    curves: dict[tuple[object, ...], dict[int, float]] = defaultdict(dict)
    for sample in samples:
        if sample.curve is not None:
            curves[sample.operator, *sample.curve][sample.count] = sample.measured_us
    held_out = []
    for (operator, *_), points in curves.items():
        counts = sorted(points)
        dropped = counts[1:-1:2]
        kept = [(count, points[count]) for count in counts if count not in set(dropped)]
        if len(kept) > 1:
            curve = TimeCurve(kept)
            held_out += [(str(operator), curve(count), points[count]) for count in dropped]
    return held_out
