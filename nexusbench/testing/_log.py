"""What an event log says, checked without the engine's own books, and cut at a time for twins."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

from nexusbench.core.events import OUTCOMES, EventLog
from nexusbench.core.units import ms
from nexusbench.engine.engine import Engine
from nexusbench.testing._errors import ConformanceError

# The least and the most share of its tokens that a request can have got, by outcome.
_TOKENS = {"finished": (1, 1), "rejected": (0, 0), "failed": (0, 1), "cancelled": (0, 1)}
History = dict[str, list[tuple[int, ...]]]


def check_log(engine: Engine) -> None:
    """I1, I2, I4 and I5 once more, from the log alone. Raises ConformanceError."""
    log = engine.log
    outcome = _ends(engine)
    tokens = Counter(log.tables["token"].columns["request"])
    for r in engine.requests:
        length = r.stop_len - r.num_prompt_tokens
        least, most = _TOKENS[OUTCOMES[outcome[r.index]]]
        if not least * length <= tokens[r.index] <= most * length:
            problem = f"'{r.id}' got {tokens[r.index]} tokens of {length}"
            raise ConformanceError("I4", problem)
    for table, column in (("submitted", "time"), ("step_done", "time")):
        times = log.tables[table].columns[column]
        if any(after < before for before, after in pairwise(times)):
            raise ConformanceError("I2", f"times of '{table}' go backwards")
    _check_launches(engine)


def _ends(engine: Engine) -> dict[int, int]:
    """Outcome of each request. Raises ConformanceError (I1) if one has not exactly one."""
    ended = engine.log.tables["ended"].columns
    counts = Counter(ended["request"])
    for r in engine.requests:
        if counts[r.index] != 1:
            raise ConformanceError("I1", f"'{r.id}' ended {counts[r.index]} times, not once")
    return dict(zip(ended["request"], ended["outcome"], strict=True))


def _check_launches(engine: Engine) -> None:
    """I5: depth, and each launch on the SMs of the split in force, or on all of them if alone."""
    spec, columns = engine.device.spec, engine.log.tables["submitted"].columns
    done = engine.log.tables["step_done"].columns
    ends = dict(zip(done["step"], done["time"], strict=True))  # the last repetition's
    flying: dict[int, list[int]] = {}
    expands = engine.partitioner.options.idle == "expand" and spec.num_gpus == 1
    rows = zip(
        *(columns[name] for name in ("step", "time", "partition", "sms", "split")), strict=True
    )
    launches = list(rows)
    for position, (step, time, partition, sms, split) in enumerate(launches):
        for steps in flying.values():
            steps[:] = [other for other in steps if ends[other] > time]
        own = flying.setdefault(partition, [])
        if len(own) >= spec.depth:
            raise ConformanceError("I5", f"step {step} exceeds the depth of partition {partition}")
        beside = any(steps for key, steps in flying.items() if key != partition)
        together = any(
            other[1] == time and other[2] != partition for other in launches[position + 1 :][:2]
        )
        share = engine.splits[split].sms[partition]
        allowed = spec.num_sms if expands and not beside and not together else share
        if sms != allowed:
            problem = f"step {step} got {sms} SMs where the split in force allows {allowed}"
            raise ConformanceError("I5", problem)
        own.append(step)


def end_of(engine: Engine, index: int) -> int:
    """When request ``index`` ended, in ns."""
    ended = engine.log.tables["ended"].columns
    return ended["time"][list(ended["request"]).index(index)]


def history(log: EventLog, until: int) -> History:
    """Every row of what happened strictly before ``until`` (ns), per table."""
    facts: History = {}
    steps: set[int] = set()
    for name, table in log.tables.items():
        columns = table.columns
        rows = list(zip(*columns.values(), strict=True))
        if "time" in columns:
            place = list(columns).index("time")
            rows = [row for row in rows if row[place] < until]
        facts[name] = rows
    steps.update(row[0] for row in facts["submitted"])
    facts["chunk"] = [row for row in facts["chunk"] if row[0] in steps]
    made = sum(row[3] for row in facts["step_done"])
    facts["token"] = facts["token"][:made]
    return facts


def first_difference(one: EventLog, two: EventLog, until: int) -> str | None:
    """The earliest event before ``until`` in which two logs differ, in words, or None."""
    left, right = history(one, until), history(two, until)
    found: list[tuple[float, str]] = []
    for name in left:
        for a, b in zip(left[name], right[name], strict=False):
            if a != b:
                found.append((_time(one, name, a), f"'{name}' {a} against {b}"))
                break
        else:
            if len(left[name]) != len(right[name]):
                rest = max(left[name], right[name], key=len)
                row = rest[min(len(left[name]), len(right[name]))]
                found.append((_time(one, name, row), f"'{name}' {row} in one run only"))
    if not found:
        return None
    time, words = min(found)
    return words if time == math.inf else f"at {ms(time):.3f} ms {words}"


def _time(log: EventLog, name: str, row: tuple[int, ...]) -> float:
    columns = list(log.tables[name].columns)
    return row[columns.index("time")] if "time" in columns else math.inf
