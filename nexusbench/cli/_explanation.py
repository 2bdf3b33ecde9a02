"""What ``explain`` shows: a bar of the parts of one request's time, facts, neighbours; or the
slowest requests.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nexusbench.cli._console import counted, print_folded, results_console, say
from nexusbench.cli._neighbours import Neighbours, neighbours_of
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.comparison.load import load_of_run, load_sentence
from nexusbench.core.printable import one_line, shell_words
from nexusbench.core.units import ms
from nexusbench.metrics.explain import CLIENT_PARTS, PARTS, Explanation, explain, find_request
from nexusbench.metrics.run_events import RunEvents
from nexusbench.results.reader import RunReader

_BAR = 48
# Letters beside colours, so that the bar is readable without colours.
_LETTERS = {
    "queue": ("q", "yellow"),
    "kv_wait": ("k", "red"),
    "requeue": ("r", "magenta"),
    "compute": ("c", "green"),
    "contention": ("x", "bright_red"),
    "kv_copy": ("m", "cyan"),
    "between_steps": (".", "dim"),
    "unsent": ("u", "red"),
    "first": ("f", "yellow"),
    "tokens": ("t", "green"),
    "end": (".", "dim"),
}


def explain_request(name: str, results: Path, request: str, *, as_json: bool) -> None:
    """Show one request. Raises UsageError if it is not in the run."""
    reader = RunReader(name, results)
    run = RunEvents.from_reader(reader)
    index = find_request(run, request)
    found = explain(run, index)
    near = neighbours_of(run, index)
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "explain",
            "run": str(reader.path),
            "status": reader.status,
            "load": msgspec.to_builtins(load_of_run(run)),
            **msgspec.to_builtins(found),
            "neighbours": msgspec.to_builtins(near),
        }
        print(json.dumps(document, indent=2))
        return
    console = results_console()
    _title(console, reader, f"request {found.id}")
    _show_load(console, run)
    _show_outcome(console, found)
    _show_parts(console, found)
    _show_facts(console, found, near)


def _title(console: Console, reader: RunReader, what: str) -> None:
    shown = badge(reader.manifest.simulated)
    console.print(Text.assemble((what, "bold"), f" of {reader.path.name}  ", shown), soft_wrap=True)
    if not reader.complete:
        say(console, f"WARNING: this run is {reader.status}; only what it kept is known", "red")


def _show_load(console: Console, run: RunEvents) -> None:
    """A warning where requests arrive faster than they leave: queueing then explains most waits."""
    if sentence := load_sentence(load_of_run(run)):
        say(console, f"WARNING: {sentence}.", "bold red")


def _show_outcome(console: Console, found: Explanation) -> None:
    text = found.outcome + (f" ({found.reason})" if found.reason else "")
    text += f", {ms(found.total_ns):,.1f} ms from arrival to "
    text += "the end of the log" if found.outcome == "unfinished" else "its end"
    if found.ttft_ns is not None:
        text += f", TTFT {ms(found.ttft_ns):,.1f} ms"
        if found.output_tokens > 1:
            gap = (found.total_ns - found.ttft_ns) / (found.output_tokens - 1)
            text += f", then {ms(gap):,.1f} ms per token"
    say(console, text)


def _show_parts(console: Console, found: Explanation) -> None:
    total = max(1, found.total_ns)
    bar = Text("  [")
    for part, start, end in _segments(found.parts, total):
        letter, style = _LETTERS[part]
        bar.append(letter * (end - start), style=style)
    bar.append("]")
    console.print(bar)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for part, time in found.parts.items():
        if time:
            letter, style = _LETTERS[part]
            name = Text.assemble((f"  {letter} ", style), part.replace("_", " "))
            meaning = Text((PARTS | CLIENT_PARTS)[part], style="dim")
            table.add_row(name, f"{ms(time):,.1f} ms", f"{100 * time / total:.1f} %", meaning)
    console.print(table)
    if not found.contention_known:
        say(console, "The device cannot know contention: it is part of compute.", "dim")


def _segments(parts: dict[str, int], total: int) -> list[tuple[str, int, int]]:
    """(part, first, last position) in the bar; rounded at the borders, so that they fill it."""
    segments, sofar, place = [], 0, 0
    for part, time in parts.items():
        sofar += time
        end = round(_BAR * sofar / total)
        segments.append((part, place, end))
        place = end
    return segments


def _show_facts(console: Console, found: Explanation, near: Neighbours) -> None:
    if found.observed == "client":
        _show_client_facts(console, found)
        return
    facts = [
        f"prompt {found.prompt_tokens:,} tokens, {found.cached_tokens:,} of them from the prefix "
        f"cache, computed in {counted(found.chunks, 'chunk')}; "
        f"output {counted(found.output_tokens, 'token')}",
        f"in {counted(found.steps, 'step')}"
        + (f", {found.mean_batch:,.1f} requests in each on average" if found.mean_batch else ""),
    ]
    if found.preemptions:
        facts.append(
            f"preempted {counted(found.preemptions, 'time')}, {found.lost_tokens:,} tokens lost"
        )
    facts.append(
        f"on arrival {near.waiting_at_arrival:,} were waiting; {near.admitted_before:,} were "
        f"admitted while it waited, {near.overtook:,} of which had come later"
    )
    if near.prefills:
        names = ", ".join(f"{prompt.id} ({prompt.tokens:,})" for prompt in near.prefills)
        until = "its first token" if found.ttft_ns is not None else "its end"
        facts.append(
            f"until {until} {near.prefill_tokens:,} prompt tokens of others were computed, "
            f"most of {names}"
        )
    if found.tenant:
        facts.append(f"tenant {found.tenant}")
    for fact in facts:
        say(console, f"  - {fact}", indent=4)


def _show_client_facts(console: Console, found: Explanation) -> None:
    facts = [
        f"prompt {found.prompt_tokens:,} tokens asked",
        f"output {counted(found.output_tokens, 'token')}",
        "measured by a client: what the server did inside is not known",
    ]
    for fact in facts + ([f"tenant {found.tenant}"] if found.tenant else []):
        say(console, f"  - {fact}", indent=4)


def list_slowest(name: str, results: Path, *, top: int, as_json: bool) -> None:
    """Print the requests with the longest TTFT; those without any token first."""
    reader = RunReader(name, results)
    run = RunEvents.from_reader(reader)
    chosen = _slowest(run, top)
    rows = [_slow_request(run, index) for index in chosen]
    if as_json:
        document = {
            "schema": JSON_SCHEMA,
            "command": "explain",
            "run": str(reader.path),
            "status": reader.status,
            "simulated": reader.manifest.simulated,
            "load": msgspec.to_builtins(load_of_run(run)),
            "slowest": msgspec.to_builtins(rows),
        }
        print(json.dumps(document, indent=2))
        return
    console = results_console()
    _title(console, reader, f"the {counted(len(rows), 'request')} with the longest TTFT")
    _show_load(console, run)
    if not rows:
        say(console, "No request arrived in what this run kept.")
        return
    _show_slowest(console, rows, client=run.facts.observed == "client")
    command = shell_words("nexusbench", "explain", reader.path, "--request", rows[0].id)
    console.print(f"next  {command}", soft_wrap=True)


def _slowest(run: RunEvents, top: int) -> list[int]:
    """Indices of requests, slowest first. A request without a token counts as infinitely late; a
    rejected one is left out.
    """
    refused = (run.ended >= 0) & (run.num_output_tokens == 0)
    times = np.where(run.first_token >= 0, run.first_token - run.arrival, np.iinfo(np.int64).max)
    order = np.argsort(-times, kind="stable")
    listed = order[(run.offered & ~refused)[order]]
    return [int(index) for index in listed[:top]]


class SlowRequest(msgspec.Struct, frozen=True):
    """The parts of one request's time to first token; None for a part that was never reached."""

    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float | None
    queueing_ms: float | None
    service_ms: float | None
    preemptions: int


def _slow_request(run: RunEvents, index: int) -> SlowRequest:
    arrival, admitted = int(run.arrival[index]), int(run.first_admitted[index])
    first = int(run.first_token[index])
    return SlowRequest(
        id=str(run.requests["id"][index]),
        arrival_s=arrival / 1e9,
        prompt_tokens=int(run.requests["prompt_tokens"][index]),
        output_tokens=int(run.num_output_tokens[index]),
        ttft_ms=ms(first - arrival) if first >= 0 else None,
        queueing_ms=ms(admitted - arrival) if admitted >= 0 else None,
        service_ms=ms(first - admitted) if first >= 0 and admitted >= 0 else None,
        preemptions=int((run.tables["preempted"]["request"] == index).sum()),
    )


def _show_slowest(console: Console, rows: list[SlowRequest], *, client: bool) -> None:
    heads = {
        "arrival_s": "arrival, s",
        "prompt_tokens": "prompt",
        "output_tokens": "output",
        "ttft_ms": "TTFT, ms",
        "queueing_ms": "queueing, ms",
        "service_ms": "service, ms",
        "preemptions": "preempted",
    }
    if client:
        heads |= {"queueing_ms": "send lag, ms", "service_ms": "answer, ms"}
        del heads["preemptions"]
    keys = list(heads)

    def render(block: slice) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for head in ("request", *(heads[key] for key in keys[block])):
            table.add_column(head, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(one_line(row.id), *(_cell(getattr(row, key)) for key in keys[block]))
        return table

    print_folded(console, len(keys), render)


def _cell(value: object) -> str:
    if value is None:
        return "never"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)
