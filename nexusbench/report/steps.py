"""The excerpt of the step timeline: the launches of some seconds, by partition."""

from __future__ import annotations

from nexusbench.core.parts import unit_of
from nexusbench.core.units import NS_PER_MS
from nexusbench.report.escape import plot_text
from nexusbench.report.figures import Figure, PlotlyObject, axis
from nexusbench.report.gather import LoadSection, PageColumn
from nexusbench.report.sampling import nice_length
from nexusbench.report.series import KINDS, Launched

# Bars in the busiest row; more cannot be told apart.
_MOST_BARS = 60
_ROW, _FRAME = 44, 90  # px


def excerpt_ms(setting: LoadSection) -> float:
    """How long the excerpt is: until the busiest row of any run is full, rounded down."""
    shortest: list[float] = []
    for entry in setting.entries:
        found = entry.series.launches
        for code in set(found.partition if found else ()):
            assert found is not None
            ends = [
                start + length
                for start, length, own in zip(
                    found.start, found.length, found.partition, strict=True
                )
                if own == code
            ]
            shortest.append(ends[min(_MOST_BARS, len(ends)) - 1])
    return nice_length(min(shortest) * NS_PER_MS) / NS_PER_MS if shortest else 0.0


def excerpt(setting: LoadSection) -> Figure | None:
    """Bars of launches: a row per run and partition; colours say what was computed."""
    length = excerpt_ms(setting)
    traces: list[PlotlyObject] = []
    rows: list[str] = []
    for entry in setting.entries:
        found = entry.series.launches
        if found is None:
            continue
        names = [_row_name(setting, entry, code) for code in range(len(entry.series.partitions))]
        shown = [row for row, start in enumerate(found.start) if start < length]
        rows += [names[code] for code in sorted({found.partition[row] for row in shown})]
        for kind, name in enumerate(KINDS):
            chosen = [row for row in shown if found.kind[row] == kind]
            if chosen:
                traces.append(_bars(found, chosen, names, entry.tone, name, unit_of(entry.device)))
    if not traces:
        return None
    layout = {
        "xaxis": axis("ms", range=[0, length]),
        "yaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": rows[::-1],
            "automargin": True, "fixedrange": True, "ticklabelstandoff": 6,
        },
        "barmode": "overlay",
        "bargap": 0.35,
        "hovermode": "closest",
    }  # fmt: skip
    return Figure(traces, layout, _FRAME + _ROW * len(rows))


def _row_name(setting: LoadSection, entry: PageColumn, code: int) -> str:
    label = plot_text(entry.column.label, 28 if len(setting.entries) > 1 else 40)
    partition = plot_text(entry.series.partitions[code], 16)
    return f"{label}<br>{partition}"


def _bars(
    found: Launched, chosen: list[int], names: list[str], tone: int, kind: str, unit: str
) -> PlotlyObject:
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "y": [names[found.partition[row]] for row in chosen],
        "base": [found.start[row] for row in chosen],
        "x": [found.length[row] for row in chosen],
        "text": [_text(found, row, kind, unit) for row in chosen],
        "textposition": "none",
        "hovertemplate": "%{text}",
        "marker": {"color": f"@{kind}", "line": {"color": "@page", "width": 0.5}},
        "meta": {"tone": tone},
    }


def _text(found: Launched, row: int, kind: str, unit: str) -> str:
    decodes, tokens = found.decodes[row], found.tokens[row]
    prompt = tokens - decodes
    parts = [f"{prompt:,} prompt tokens"] if prompt else []
    parts += [f"{decodes:,} decodes"] if decodes else []
    actual, predicted = found.actual[row], found.predicted[row]
    text = f"{kind}: {', '.join(parts)}<br>on {found.sms[row]} {unit}, {actual:.4g} ms"
    if predicted is not None and actual:
        text += f"<br>predicted {predicted:.4g} ms ({100 * (predicted / actual - 1):+.0f} %)"
    return text
