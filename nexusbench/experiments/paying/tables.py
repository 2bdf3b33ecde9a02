"""A survey as Markdown tables: what docs/when-it-pays.md and the terminal show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from nexusbench.experiments.paying.points import Survey
from nexusbench.experiments.paying.spec import Kind, MapSystem, Traffic
from nexusbench.experiments.paying.verdicts import (
    MARGINS,
    QUESTIONS,
    DrawsOfSystem,
    MapCell,
    MapVerdict,
    Metric,
    best,
    side,
    sides,
    verdict,
)
from nexusbench.serving.resolve import find_device

MARKS = {"pays": "**pays**", "costs": "**costs**", "no difference": "=", "open": "?"}
NOTHING = "-"
_MINUS = "\u2212"
_REACH = 90.0  # percent of requests


def signed(value: float, digits: int = 0) -> str:
    """A difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", _MINUS)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def question_title(survey: Survey, question: str) -> str:
    """A question in words."""
    about = survey.spec.about
    return {
        "policy": f"`{about.policy}` as published against `{about.reference}`",
        "ordered": f"`{about.policy}` as published against `{about.ordered}` (the same order)",
        "split": "the best split of SMs against the best one-batch-at-a-time",
        "confined": "the best split of SMs against two streams on all SMs",
    }[question]


def ready_traffic(survey: Survey) -> list[Traffic]:
    """Traffic that is not made up."""
    return [traffic for traffic in survey.spec.traffic if traffic.trace]


def cells_of(survey: Survey, traffic: Traffic) -> Iterator[MapCell]:
    """The cells of one traffic on all GPUs."""
    for gpu in survey.spec.about.gpus:
        for slo in traffic.slos:
            for load in traffic.loads:
                yield MapCell(
                    gpu=gpu, traffic=traffic.name, load=load, slo=slo, seeds=traffic.seeds
                )


def attained_text(found: MapVerdict | None) -> str:
    """``pays +12 (71 to 83)``: points, and percent of requests on both sides."""
    if found is None:
        return NOTHING
    both = f"{found.other:.0f} → {found.mine:.0f}"
    return f"{MARKS[found.outcome]} {signed(found.mean)} ({both})"


def counts(survey: Survey) -> str:
    """Per GPU and traffic, over loads and SLOs: the range of points, how many cells pay, how many
    cost.
    """
    rows = []
    for traffic in ready_traffic(survey):
        for gpu in survey.spec.about.gpus:
            cells = [cell for cell in cells_of(survey, traffic) if cell.gpu == gpu]
            texts = []
            for question in QUESTIONS:
                answers = (verdict(survey, cell, question) for cell in cells)
                texts.append(_spread([answer for answer in answers if answer is not None]))
            rows.append((traffic.name, gpu, *texts))
    return table(("traffic", "GPU", *(question_title(survey, q) for q in QUESTIONS)), rows)


def _spread(found: Sequence[MapVerdict]) -> str:
    if not found:
        return NOTHING
    means = [verdict.mean for verdict in found]
    number = Counter(verdict.outcome for verdict in found)
    said = [f"{number[o]} of {len(found)} {MARKS[o]}" for o in ("pays", "costs") if number[o]]
    return f"{signed(min(means))} to {signed(max(means))}; {', '.join(said) or 'none sure'}"


def attainment_map(survey: Survey, question: str) -> str:
    """Rows: GPU, traffic, SLO; columns: loads."""
    loads = survey.spec.about.loads
    rows = []
    for gpu in survey.spec.about.gpus:
        for traffic in ready_traffic(survey):
            for slo in traffic.slos:
                cells = [c for c in cells_of(survey, traffic) if (c.gpu, c.slo) == (gpu, slo)]
                texts = [attained_text(verdict(survey, cell, question)) for cell in cells]
                rows.append((gpu, traffic.name, slo, *texts))
    return table(("GPU", "traffic", "SLO", *(f"{load:g} %" for load in loads)), rows)


def reach(survey: Survey) -> str:
    """The highest load at which 90 % of the requests keep the SLO, by system: linear between
    the loads that were run.
    """
    about = survey.spec.about
    named = {system.name: system for system in survey.spec.systems}
    single = (about.reference, about.ordered, about.policy)
    kinds: tuple[Kind, ...] = ("whole", "streams", "split")
    rows = []
    for gpu in about.gpus:
        for traffic in ready_traffic(survey):
            for slo in traffic.slos:
                cells = [c for c in cells_of(survey, traffic) if (c.gpu, c.slo) == (gpu, slo)]
                found = [[side(survey, cell, named[name]) for cell in cells] for name in single]
                found += [[best(survey, cell, kind) for cell in cells] for kind in kinds]
                rows.append((gpu, traffic.name, slo, *(_reached(cells, line) for line in found)))
    header = ("GPU", "traffic", "SLO", *(f"`{name}`" for name in single))
    return table((*header, "best one-batch", "two streams", "best split"), rows)


def _reached(cells: Sequence[MapCell], found: Sequence[DrawsOfSystem | None]) -> str:
    before: tuple[float, float] | None = None
    for cell, one in zip(cells, found, strict=True):
        if one is None:
            return NOTHING
        kept = one.attained(cell.slo)
        if kept < _REACH:
            if before is None:
                return f"< {cell.load:g}"
            load, better = before
            return f"{load + (cell.load - load) * (better - _REACH) / (better - kept):.0f}"
        before = (cell.load, kept)
    return f"≥ {cells[-1].load:g}" if cells else NOTHING


def latencies(survey: Survey, question: str) -> str:
    """Changes of TTFT mean, TTFT p95 and TBT p99 in percent; bold where the interval excludes 0 and
    leaves the margin.
    """
    metrics: tuple[Metric, ...] = ("ttft_mean", "ttft_p95", "tbt_p99")
    rows = []
    for gpu in survey.spec.about.gpus:
        for traffic in ready_traffic(survey):
            slo = list(traffic.slos)[-1]
            cells = [c for c in cells_of(survey, traffic) if (c.gpu, c.slo) == (gpu, slo)]
            texts = [
                " / ".join(_percent(verdict(survey, cell, question, metric)) for metric in metrics)
                for cell in cells
            ]
            rows.append((gpu, traffic.name, *texts))
    loads = survey.spec.about.loads
    return table(("GPU", "traffic", *(f"{load:g} %" for load in loads)), rows)


def _percent(found: MapVerdict | None) -> str:
    if found is None:
        return NOTHING
    text = signed(found.mean)
    return f"**{text}**" if found.outcome in ("pays", "costs") else text


def picked(survey: Survey) -> str:
    """The best split, and the best system that runs one batch at a time."""
    rows = []
    for gpu in survey.spec.about.gpus:
        for traffic in ready_traffic(survey):
            for slo in traffic.slos:
                cells = [c for c in cells_of(survey, traffic) if (c.gpu, c.slo) == (gpu, slo)]
                texts = []
                for cell in cells:
                    found = sides(survey, cell, "split")
                    names = NOTHING if found is None else f"{found[0].name} / {found[1].name}"
                    texts.append(names)
                rows.append((gpu, traffic.name, slo, *texts))
    loads = survey.spec.about.loads
    return table(("GPU", "traffic", "SLO", *(f"{load:g} %" for load in loads)), rows)


def every_system(survey: Survey) -> str:
    """Every system's percentage of requests that keep the SLO, mean over loads and SLOs; rows:
    systems, columns: traffic and GPU; the best of a column is bold.
    """
    columns = [
        (traffic, gpu) for traffic in ready_traffic(survey) for gpu in survey.spec.about.gpus
    ]
    shares = {
        system.name: [_share(survey, system, traffic, gpu) for traffic, gpu in columns]
        for system in survey.spec.systems
    }
    tops = [
        max((share for share in column if share is not None), default=None)
        for column in zip(*shares.values(), strict=True)
    ]
    rows = []
    for system in survey.spec.systems:
        texts = [
            NOTHING if share is None else f"**{share:.1f}**" if share == top else f"{share:.1f}"
            for share, top in zip(shares[system.name], tops, strict=True)
        ]
        rows.append((f"`{system.name}`", system.kind, *texts))
    header = (f"{traffic.name}, {gpu.removeprefix('sim:')}" for traffic, gpu in columns)
    return table(("system", "kind", *header), rows)


def _share(survey: Survey, system: MapSystem, traffic: Traffic, gpu: str) -> float | None:
    cells = [cell for cell in cells_of(survey, traffic) if cell.gpu == gpu]
    found = [side(survey, cell, system) for cell in cells]
    kept = [
        one.attained(cell.slo) for cell, one in zip(cells, found, strict=True) if one is not None
    ]
    # A mean over fewer cells than the others have would compare other traffic.
    return math.fsum(kept) / len(kept) if kept and len(kept) == len(cells) else None


def grid(survey: Survey, question: str) -> str:
    """Made-up traffic: rows GPU, output, SLO; columns prompt lengths."""
    made_up = [traffic for traffic in survey.spec.traffic if not traffic.trace]
    if not made_up:
        return "No made-up traffic.\n"
    prompts = sorted({traffic.prompt for traffic in made_up})
    rows = []
    for gpu in survey.spec.about.gpus:
        for output in sorted({traffic.output for traffic in made_up}):
            here = {t.prompt: t for t in made_up if t.output == output}
            for slo in made_up[0].slos:
                for load in made_up[0].loads:
                    texts = []
                    for prompt in prompts:
                        t = here[prompt]
                        cell = MapCell(
                            gpu=gpu, traffic=t.name, load=load, slo=slo, seeds=t.seeds
                        )  # fmt: skip
                        texts.append(attained_text(verdict(survey, cell, question)))
                    rows.append((gpu, f"{output}", slo, f"{load:g} %", *texts))
    header = ("GPU", "output", "SLO", "load", *(f"prompt {prompt:,}" for prompt in prompts))
    return table(header, rows)


def hanging(
    survey: Survey, cell: MapCell, question: str
) -> tuple[MapVerdict | None, dict[str, MapVerdict]]:
    """The verdict over the draws that constants were tried with, and by constant the verdict
    without it.
    """
    seeds = survey.spec.sensitivity.seeds

    def found(constant: str) -> MapVerdict | None:
        place = MapCell(
            gpu=cell.gpu, traffic=cell.traffic, load=cell.load, slo=cell.slo, seeds=seeds,
            constant=constant,
        )  # fmt: skip
        return verdict(survey, place, question)

    without = {name: found(name) for name in survey.spec.sensitivity.constants}
    return found(""), {name: v for name, v in without.items() if v is not None}


def hangs_on(base: MapVerdict, without: dict[str, MapVerdict]) -> list[str]:
    """Constants without which the verdict is another one, with what it is then.

    The difference must have moved by more than the margin too, and a sure one towards 0 or beyond:
    one that only becomes larger and less sure has not been lost.
    """
    moved = []
    for name, other in without.items():
        shift = abs(other.mean - base.mean)
        if base.outcome in ("pays", "costs"):
            shift = base.mean - other.mean if base.mean > 0 else other.mean - base.mean
        if other.outcome != base.outcome and shift > MARGINS["attained"]:
            moved.append(f"{name}: {MARKS[other.outcome]} {signed(other.mean)}")
    return moved


def constants(survey: Survey, question: str) -> str:
    """Each verdict at the loads tried, and what it hangs on."""
    rows = []
    for traffic in ready_traffic(survey):
        for cell in cells_of(survey, traffic):
            if cell.load not in survey.spec.sensitivity.loads:
                continue
            base, without = hanging(survey, cell, question)
            if base is None or not without:
                continue
            moved = hangs_on(base, without)
            usual = "open" if base.outcome == "open" else "holds"
            text = "; ".join(moved) or f"{usual} without each of them"
            means = [other.mean for other in without.values()]
            spread = f"{signed(min(means))} to {signed(max(means))}"
            rows.append((
                cell.gpu, cell.traffic, cell.slo, f"{cell.load:g} %",
                f"{MARKS[base.outcome]} {signed(base.mean)}", spread, text,
            ))  # fmt: skip
    rows.sort(key=lambda row: survey.spec.about.gpus.index(row[0]))
    header = ("GPU", "traffic", "SLO", "load", "verdict", "without one of them", "hangs on")
    return table(header, rows)


def hardware(survey: Survey) -> str:
    """The GPUs and what the reference finishes on them, requests per second; below, what is to be
    said of their constants.
    """
    rows, said = [], []
    for gpu in survey.spec.about.gpus:
        spec = find_device(gpu).describe()
        said += [f"{gpu}: {text}." for text in spec.warnings]
        rates = [f"{survey.capacity[gpu, traffic.name]:.3g}" for traffic in ready_traffic(survey)]
        rows.append((
            gpu, f"{spec.peak_tflops:.0f}", f"{spec.hbm_gbps:,.0f}",
            f"{spec.hbm_gbps / spec.peak_tflops:.1f}", *rates,
        ))  # fmt: skip
    header = ("GPU", "TFLOP/s", "GB/s", "GB/s per TFLOP/s")
    made = table((*header, *(f"{traffic.name}, req/s" for traffic in ready_traffic(survey))), rows)
    return "\n".join([made, *said])


def systems(survey: Survey) -> str:
    """The systems compared, and how each is configured."""
    rows = []
    for system in survey.spec.systems:
        fields = ", ".join(f"`{key} = {value}`" for key, value in system.fields.items())
        told = "yes" if system.told_slo else ""
        rows.append((f"`{system.name}`", system.kind, fields, told))
    return table(("system", "kind", "how", "told the SLO"), rows)
