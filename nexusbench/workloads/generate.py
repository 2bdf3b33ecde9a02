"""From a workload spec to a trace: the same one on every machine."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.core.errors import InputError
from nexusbench.core.units import NS_PER_MS
from nexusbench.workloads.base import MAX_TOKENS, Trace, TraceRequest
from nexusbench.workloads.checks import MAX_SPAN_NS
from nexusbench.workloads.forest import BlockNames, Forest, zipf_edges
from nexusbench.workloads.spec import GivingUp, WorkloadSpec, WorkloadTable
from nexusbench.workloads.streams import stream
from nexusbench.workloads.trace import span_text

if TYPE_CHECKING:
    import numpy as np

    from nexusbench.workloads.lengths import Floats

__all__ = ["make_trace"]

_MOST_HASHES = 20_000_000


class _Draws(msgspec.Struct):
    """Values drawn for each request (``inputs`` to ``cancels``) and each session (the others)."""

    inputs: list[int]
    outputs: list[int]
    thinks: list[int]  # ms
    timeouts: list[int]  # ms, 0 for none
    cancels: list[int]
    sizes: list[int]  # turns
    arrivals: list[int]
    tenants: list[str]


def make_trace(spec: WorkloadSpec) -> Trace:
    """The trace of a spec.

    Choice of class, arrivals, each class's input and output lengths, turns, think times, prefixes,
    tenants, timeouts and cancellations have random streams of their own, so changing one leaves the
    others as they are.
    """
    plan = spec.workload
    draws = _draw(spec)
    names = BlockNames()
    forest = None if spec.prefixes is None else Forest(spec.prefixes, plan.hash_block, names)
    paths = stream(plan.seed, "prefixes")
    requests: list[TraceRequest] = []
    begin = 0
    hashes = 0
    for number, turns in enumerate(draws.sizes):
        shared = [] if forest is None else forest.draw(paths)
        made = _session(spec, draws, range(begin, begin + turns), number, shared, names)
        hashes += sum(len(request.hash_ids) for request in made)
        _check_hashes(spec, hashes)
        requests += made
        begin += turns
    for index, request in enumerate(requests):
        request.id = str(index)
    if draws.arrivals[-1] > MAX_SPAN_NS:
        raise InputError(
            "the last request would arrive more than 146 years after the first", file=spec.path,
            field="arrivals", hint="Raise the rate, or make the gaps more even",
        )  # fmt: skip
    span = span_text(draws.arrivals[-1])
    if spec.arrivals.users:
        span = f"closed loop of {spec.arrivals.users:,} users"
    notes = [f"generated, {len(requests):,} requests, {span}, seed {plan.seed}"]
    if len(requests) < plan.num_requests:
        lost = plan.num_requests - len(requests)
        notes.append(f"{lost:,} later turns left out: their sessions had reached max_context")
    return Trace(
        plan.name,
        requests,
        hash_block=plan.hash_block if spec.hashed else 512,
        format="spec",
        sha256=spec.sha256,
        notes=notes,
        concurrency=spec.arrivals.users,
    )


def _session(
    spec: WorkloadSpec,
    draws: _Draws,
    places: range,
    number: int,
    shared: list[int],
    names: BlockNames,
) -> list[TraceRequest]:
    """The turns of one session, or one lone request; each prompt goes on where the last turn ended.

    Whole blocks keep their names from turn to turn; a prompt's last, begun block has another
    content in each turn, and so a name of its own.
    """
    block = spec.workload.hash_block
    context = len(shared) * block
    blocks = list(shared)
    requests: list[TraceRequest] = []
    for turn, place in enumerate(places):
        prompt, output = context + draws.inputs[place], draws.outputs[place]
        if prompt > MAX_TOKENS and not turn:
            raise InputError(
                f"a prefix and an input of {prompt:,} tokens are more than a prompt can have, "
                f"{MAX_TOKENS:,}", file=spec.path, field="prefixes.tokens", hint="Make it smaller",
            )  # fmt: skip
        if turn and spec.sessions is not None and prompt + output > spec.sessions.max_context:
            break
        ids: tuple[int, ...] = ()
        if spec.hashed:
            whole, rest = divmod(prompt, block)
            _check_hashes(spec, whole)
            blocks.extend(names.fresh(whole - len(blocks)))
            ids = (*blocks, *names.fresh(1 if rest else 0))
        requests.append(
            TraceRequest(
                id="",
                arrival_ns=draws.arrivals[number],
                prompt_tokens=prompt,
                output_tokens=output,
                hash_ids=ids,
                tenant=draws.tenants[number],
                session="" if spec.sessions is None else f"s{number}",
                turn=turn,
                follows=turn > 0,
                think_ns=draws.thinks[place] * NS_PER_MS if turn else 0,
                timeout_ns=draws.timeouts[place] * NS_PER_MS,
                cancel_after_ns=draws.cancels[place] * NS_PER_MS,
            )
        )
        context = prompt + output
    return requests


def _check_hashes(spec: WorkloadSpec, count: int) -> None:
    """Raise InputError for more hash ids than a trace can be read with."""
    if count > _MOST_HASHES:
        raise InputError(
            f"the requests have more than {_MOST_HASHES:,} hash ids of "
            f"{spec.workload.hash_block} tokens", file=spec.path, field="workload.hash_block",
            hint="Make it larger, or num_requests smaller",
        )  # fmt: skip


def _draw(spec: WorkloadSpec) -> _Draws:
    plan, n = spec.workload, spec.workload.num_requests
    sizes = _sizes(spec)
    chosen = _choose(spec, len(sizes))
    of_request = [kind for kind, turns in zip(chosen, sizes, strict=True) for _ in range(turns)]
    inputs, outputs = _lengths(spec, of_request)
    thinks = [0] * n
    if spec.sessions is not None and spec.sessions.think_time is not None:
        thinks = spec.sessions.think_time.lengths(stream(plan.seed, "think-times").random(n))
    return _Draws(
        inputs=inputs,
        outputs=outputs,
        thinks=thinks,
        timeouts=_patience(spec.timeouts, plan, "timeouts"),
        cancels=_patience(spec.cancellations, plan, "cancellations"),
        sizes=sizes,
        arrivals=spec.arrivals.draw(len(sizes), stream(plan.seed, "arrivals")),
        tenants=_tenants(spec, chosen),
    )


def _sizes(spec: WorkloadSpec) -> list[int]:
    """Turns of each session: as many sessions as make up the requests, the last one cut."""
    n = spec.workload.num_requests
    if spec.sessions is None:
        return [1] * n
    sizes: list[int] = []
    left = n
    for turns in spec.sessions.turns.lengths(stream(spec.workload.seed, "turns").random(n)):
        sizes.append(min(turns, left))
        left -= sizes[-1]
        if not left:
            break
    return sizes


def _choose(spec: WorkloadSpec, count: int) -> list[int]:
    """The class of each session, by position in the spec."""
    import numpy as np

    plan = spec.workload
    rng = stream(plan.seed, "classes")
    edges = np.cumsum([kind.weight for kind in spec.classes])
    # A number belongs to the class whose cumulative weight it falls under. Stratified, the numbers
    # are the same for every seed up to their order, so a class count is off by one at most.
    uniform = rng.random(count)
    if plan.sampling == "stratified":
        uniform = (_order(count, rng) + 0.5) / count
    chosen: list[int] = np.searchsorted(edges / edges[-1], uniform, side="right").tolist()
    return chosen


def _lengths(spec: WorkloadSpec, of_request: list[int]) -> tuple[list[int], list[int]]:
    """Input and output tokens of each request, given its class."""
    plan, n = spec.workload, len(of_request)
    inputs, outputs = [0] * n, [0] * n
    places_of: list[list[int]] = [[] for _ in spec.classes]
    for index, position in enumerate(of_request):
        places_of[position].append(index)
    for kind, places in zip(spec.classes, places_of, strict=True):
        if kind.table is not None:
            uniform = _uniform(plan, len(places), stream(plan.seed, kind.name, "rows"))
            rows = (uniform * len(kind.table.rows)).astype(int).tolist()
            for place, row in zip(places, rows, strict=True):
                inputs[place], outputs[place] = kind.table.rows[row]
            continue
        for name, law, lengths in (
            ("input", kind.input, inputs),
            ("output", kind.output, outputs),
        ):
            assert law is not None  # a class has a table, or both laws
            uniform = _uniform(plan, len(places), stream(plan.seed, kind.name, name))
            for place, length in zip(places, law.lengths(uniform), strict=True):
                lengths[place] = length
    return inputs, outputs


def _patience(spec: GivingUp | None, plan: WorkloadTable, purpose: str) -> list[int]:
    """Milliseconds after which each request's client gives up, 0 for never."""
    n = plan.num_requests
    if spec is None:
        return [0] * n
    rng = stream(plan.seed, purpose)
    given = rng.random(n).tolist()
    times = spec.after.lengths(rng.random(n))
    return [time if chance < spec.share else 0 for chance, time in zip(given, times, strict=True)]


def _tenants(spec: WorkloadSpec, chosen: list[int]) -> list[str]:
    """The tenant of each session: its class, unless there is a ``[tenants]`` table."""
    if spec.tenants is None:
        return [spec.classes[kind].name for kind in chosen]
    edges = zipf_edges(spec.tenants.count, spec.tenants.zipf)
    numbers = stream(spec.workload.seed, "tenants").random(len(chosen)).tolist()
    return [f"tenant-{bisect_right(edges, number)}" for number in numbers]


def _uniform(plan: WorkloadTable, n: int, rng: np.random.Generator) -> Floats:
    """``n`` uniform numbers in [0, 1), independent or one from each of ``n`` equal slices."""
    import numpy as np

    inside = rng.random(n)
    if plan.sampling == "independent":
        return inside
    # Rounding can turn the largest into 1, which would be no share.
    values: Floats = np.minimum((_order(n, rng) + inside) / n, np.nextafter(1.0, 0.0))
    return values


def _order(n: int, rng: np.random.Generator) -> Any:
    """A random order of 0..n-1, from plain uniforms (the same for every version of numpy)."""
    import numpy as np

    return np.argsort(rng.random(n), kind="stable")
