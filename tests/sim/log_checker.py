"""What an event log must look like, worked out again from its rows and the requests offered.

Nothing of the engine is imported here, nor its auditor: the books are kept anew from the documented
meaning of each table. A run is ``check(tables, splits, facts, offers)``; it returns every breach as
a sentence, none for a good log. How the blocks of a pool are shared follows from the prefix keys;
what the log cannot tell (which free cached block was evicted) leaves an interval, not a guess.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

FINISHED, REJECTED, FAILED, CANCELLED = range(4)
RECOMPUTE, SWAP = range(2)
# Columns that nothing else in a log or a trace depends on: what a belief said, how long a launch
# would have taken alone, the words of a reason.
FREE = {"submitted": {"predicted"}, "step_done": {"solo"}, "ended": {"reason"},
        "repartitioned": {"reason"}}  # fmt: skip


@dataclass(frozen=True)
class Offer:
    """A request as the trace has it (times in ns; 0 = no timeout, no cancellation)."""

    arrival: int
    prompt: int
    output: int
    max_tokens: int
    ids: tuple[int, ...] = ()
    after: int = -1
    think: int = 0
    timeout: int = 0
    cancel: int = 0


@dataclass(frozen=True)
class Facts:
    """Where it ran: sizes of the pools (GPUs first, the host last if there is one), budgets, the
    pool of each partition, and what the policy promises.
    """

    pools: tuple[int, ...]
    host: bool
    block_size: int
    hash_block: int
    caching: bool
    seats: int
    budget: int
    longest: int
    homes: tuple[int, ...]
    num_sms: int
    legal: tuple[tuple[int, ...], ...]
    overlapping: tuple[tuple[int, ...], ...]
    expands: bool
    layerwise: bool = False  # prompts go through the model some layers at a time
    conserving: bool = True  # no partition idles on purpose
    names: tuple[str, ...] = ("all",)
    users: int = 0  # of a closed loop; 0: arrivals are the trace's
    reorders: bool = False  # decodes are not in order of joining
    mixes: bool = False  # chunks and decodes in one batch on a partition of either name
    # Bytes of a token's KV, and rates of a link between GPUs and to the host, bytes/ns, and its ns.
    link: tuple[float, float, float, float] = (0.0, 1.0, 1.0, 0.0)

    @property
    def gpus(self) -> int:
        return len(self.pools) - self.host


@dataclass(eq=False)
class Book:
    """What is known of a request at one point of the log."""

    offer: Offer
    status: str = "unseen"  # waiting, running, out (its blocks on the host), gone
    tokens: int = 0  # known ones: prompt and what was generated
    computed: int = 0
    blocks: int = 0
    shared: int = 0  # leading blocks that came from the cache when it was admitted
    pool: int = 0
    busy: object = None  # the step or copy that it is in
    ahead: tuple[int, int] | None = None  # pool and blocks that a copy will arrive in
    chunk: tuple[int, int] | None = None  # context and tokens of a chunk not known to be done
    preempted: int = 0
    noted: bool = False  # kv_blocked in this wait
    made: int = 0
    joined: int = 0  # when it began to decode, as a rank
    ended: int | None = None  # when


@dataclass(eq=False)
class Step:
    """A launch: who decodes, the chunks, its rows of step_done."""

    partition: int
    decodes: list[int]
    chunks: list[tuple[int, int, int]]
    repeats: int
    flying: bool = False
    seen: int = 0
    row: dict[str, int] = field(default_factory=dict)


def rows(table):
    """A table's columns as dicts."""
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def check(tables, splits, facts, offers):
    """Every breach in a log, as sentences. ``tables`` are columns by table, ``splits`` the split
    table (SMs of each partition).
    """
    checker = _Checker({name: rows(table) for name, table in tables.items()}, splits, facts, offers)
    try:
        checker.run()
    except Exception as error:
        checker.tell(f"cannot be read further: {type(error).__name__} {error}")
    return checker.problems


class _Broken(Exception):
    """The rows do not fit together at all."""


class _Checker:
    def __init__(self, tables, splits, facts, offers):
        self.t, self.splits, self.f = tables, splits, facts
        self.books = [Book(offer) for offer in offers]
        self.problems: list[str] = []
        self.steps: dict[int, Step] = {}
        self.published: list[set] = [set() for _ in facts.pools]
        self.split = None
        self.now = self.turn = 0
        self.free_link: dict[tuple[int, int], int] = {}

    def tell(self, problem):
        if len(self.problems) < 20:
            self.problems.append(f"at {self.now} ns: {problem}")

    def must(self, holds, problem):
        if not holds:
            self.tell(problem)

    # -- reading -----------------------------------------------------------------------------------

    def run(self):
        self._shape()
        self._steps()
        events = self._timeline()
        for now in sorted(events):
            self.now = now
            here = events[now]
            self._ends(here)
            self._arrivals(here)
            self._leavers(here)
            self._instant(here)
        self._last()

    def _shape(self):
        """Times that must not fall, ends that must be one, arrivals that must be the trace's."""
        sizes = {"request": len(self.books), "step": len(self.t["submitted"]),
                 "partition": len(self.f.names), "split": len(self.splits), "outcome": 4,
                 "source": len(self.f.pools), "target": len(self.f.pools)}  # fmt: skip
        for name, table in self.t.items():
            for row in table:
                for column, size in sizes.items():
                    if not 0 <= row.get(column, 0) < size:
                        raise _Broken(f"'{name}' has the {column} {row[column]}")
        orphans = {r["request"] for r in self.t["ended"] if self._orphan(r)}
        offered = [r for r in self.t["arrived"] if r["request"] not in orphans]
        order = [(r["time"], r["request"]) for r in offered]
        self.must(order == sorted(order), "arrivals of one moment are not in the trace's order")
        for name, column in (("admitted", "time"), ("kv_blocked", "time"), ("submitted", "time"),
                             ("step_done", "time"), ("repartitioned", "time"),
                             ("preempted", "time"), ("moved", "end"), ("ended", "time"),
                             ("arrived", "time")):  # fmt: skip
            last = 0
            for row in self.t[name]:
                if name == "arrived" and row["request"] in orphans:
                    continue
                self.must(row[column] >= last, f"times of '{name}' go backwards")
                last = row[column]
        for name in ("arrived", "ended"):
            if sorted(r["request"] for r in self.t[name]) != list(range(len(self.books))):
                raise _Broken(f"not every request has exactly one row in '{name}'")
        first = self.t["repartitioned"][0]
        self.must(first["time"] == 0 == first["split"], "no split to begin with")
        self.end_of = {row["request"]: row for row in self.t["ended"]}
        for row in self.t["arrived"]:
            offer = self.books[row["request"]].offer
            self.must(row["prompt_tokens"] == offer.prompt, "another prompt than offered")
            self.must(row["max_tokens"] == offer.max_tokens, "another bound than offered")
            if offer.after < 0 and self.f.users:
                free = {0} | {r["time"] for r in self.t["ended"]}
                self.must(row["time"] in free, "arrives when no user was free")
            elif offer.after < 0:
                self.must(row["time"] == offer.arrival, "another arrival than offered")
            elif row["request"] not in orphans:
                before = self.end_of[offer.after]
                self.must(before["outcome"] == FINISHED, "follows one that did not finish")
                self.must(row["time"] == before["time"] + offer.think, "another think time")

    def _orphan(self, row):
        offer = self.books[row["request"]].offer
        if offer.after < 0 or row["outcome"] != CANCELLED:
            return False
        before = [r for r in self.t["ended"] if r["request"] == offer.after]
        return bool(before) and before[0]["outcome"] != FINISHED

    def _steps(self):
        """Launches with their chunks and, from the tokens of their first end, their decodes."""
        done = defaultdict(int)
        for row in self.t["step_done"]:
            done[row["step"]] += 1
        for number, row in enumerate(self.t["submitted"]):
            self.must(row["step"] == number, "steps are not numbered in order")
            self.must(row["step"] not in self.steps, "a step is submitted twice")
            self.steps[row["step"]] = Step(row["partition"], [], [], done[row["step"]], row=row)
        last = -1
        for row in self.t["chunk"]:
            self.must(row["step"] >= last, "chunks are not in the order of their steps")
            last = row["step"]
            chunk = row["request"], row["tokens"], row["context"]
            self.steps[row["step"]].chunks.append(chunk)
        at, seen = 0, set()
        tokens = [row["request"] for row in self.t["token"]]
        for row in self.t["step_done"]:
            step = self.steps[row["step"]]
            row["made"] = tokens[at : at + row["tokens"]]
            at += row["tokens"]
            if row["step"] not in seen:
                seen.add(row["step"])
                step.decodes = row["made"][: step.row["decodes"]]
        self.must(at == len(tokens), f"{len(tokens)} tokens, but steps made {at}")
        for step in self.steps.values():
            row = step.row
            total = sum(n for _, n, _ in step.chunks)
            self.must(step.repeats > 0, f"step {row['step']} never ended")
            self.must(len(step.decodes) == row["decodes"], "decodes without tokens")
            self.must(len(step.chunks) == row["chunks"], "chunks submitted are not those logged")
            self.must(total == row["prefill_tokens"], "prompt tokens are not those of its chunks")
            members = step.decodes + [r for r, _, _ in step.chunks]
            self.must(len(set(members)) == len(members), "a request twice in one batch")
            size = len(step.decodes) + total
            self.must(0 < size <= self.f.budget, f"{size} tokens, the budget is {self.f.budget}")
            self.must(all(n > 0 for _, n, _ in step.chunks), "an empty chunk")
            self.must(step.repeats == 1 or not step.chunks, "prompts are computed again and again")
            name = self.f.names[step.partition]
            apart = self.f.gpus == 1 and not self.f.mixes
            self.must(name != "decode" or not step.chunks or not apart, "a prompt on 'decode'")
            self.must(name != "prefill" or not step.decodes or self.f.mixes, "decodes on 'prefill'")
            self.must(row["predicted"] >= -1, "a time below 0 was predicted")

    def _timeline(self):
        events = defaultdict(lambda: defaultdict(list))
        for name, column in (("step_done", "time"), ("arrived", "time"), ("ended", "time"),
                             ("preempted", "time"), ("admitted", "time"), ("submitted", "time"),
                             ("repartitioned", "time"), ("kv_blocked", "time")):  # fmt: skip
            for row in self.t[name]:
                events[row[column]][name].append(row)
        for row in self.t["moved"]:
            self.must(row["end"] > row["time"], "a copy ends before it begins")
            events[row["time"]]["begins"].append(row)
            events[row["end"]]["moved"].append(row)
        return events

    # -- what happens ------------------------------------------------------------------------------

    def _ends(self, here):
        for row in here["moved"]:
            self._moved(row, here)
        for row in here["step_done"]:
            self._done(row)

    def _done(self, row):
        step = self.steps[row["step"]]
        self.must(step.flying, f"step {row['step']} ends without having been launched")
        elapsed = row["time"] - step.row["time"]
        self.must(elapsed > 0, f"step {row['step']} ends before it begins")
        self.must(row["solo"] == -1 or row["solo"] > 0, "a launch that takes no time")
        step.seen += 1
        made = list(row["made"])
        alive = [r for r in step.decodes if self.books[r].ended is None]
        self.must(made[: len(alive)] == alive, f"step {row['step']} has others' tokens")
        for request in alive:
            book = self.books[request]
            book.computed, book.tokens = book.tokens, book.tokens + 1
            self._token(book, request, row["time"])
        complete = []
        for request, count, context in step.chunks:
            book = self.books[request]
            if context + count == book.tokens:
                complete.append(request)
            book.chunk = context, count
        first = made[len(alive) :]
        if self.f.layerwise:
            self.must(
                [r for r in complete if r in first] == first, "a token of an unfinished prompt"
            )
        else:
            self.must(complete == first, f"step {row['step']}: prompts are done without a token")
        for request, count, context in step.chunks:
            book = self.books[request]
            if request in first:
                book.computed = context + count
                book.tokens += 1
                book.chunk = None
                self._join(book)
                self._token(book, request, row["time"])
            elif not self.f.layerwise:
                book.computed, book.chunk = context + count, None
            self._publish(book, request, context + count, own=False)
        if step.seen == step.repeats:
            step.flying = False
            for request in step.decodes + [r for r, _, _ in step.chunks]:
                book = self.books[request]
                self.must(book.busy == step.row["step"], "ends a step it is not in")
                book.busy = None
                if book.ended is not None:
                    book.status = "gone"

    def _join(self, book):
        self.turn += 1
        book.joined = self.turn

    def _token(self, book, request, now):
        book.made += 1
        self.must(book.made <= book.offer.output, "more tokens than its output")
        if book.made == book.offer.output:
            end = self.end_of[request]
            self.must(end["time"] == now, "has all its tokens, but does not end")
            book.ended = now

    def _moved(self, row, here):
        book = self.books[row["request"]]
        self.must(book.busy == ("copy", row["time"]), "a copy ends that was not begun")
        source, target = row["source"], row["target"]
        host = len(self.f.pools) - 1 if self.f.host else -1
        if target == host:
            self._publish(book, row["request"], book.computed, own=True)
            book.status = "out"
        elif source == host:
            back = [r for r in here["admitted"] if r["request"] == row["request"]]
            self.must(
                len(back) == 1 and back[0]["cached_tokens"] == row["tokens"],
                "comes back from the host without being admitted",
            )
        if book.ahead is None:
            raise _Broken("a copy that goes nowhere")
        book.pool, book.blocks = book.ahead
        book.shared, book.busy, book.ahead = 0, None, None

    def _arrivals(self, here):
        for row in here["arrived"]:
            book, end = self.books[row["request"]], self.end_of[row["request"]]
            offer = book.offer
            length = offer.prompt + offer.output
            misfit = length > self.f.longest or self._blocks(length) > self.f.pools[0]
            orphan = self._orphan(end)
            self.must(misfit == (end["outcome"] == REJECTED) or orphan, "wrongly rejected, or not")
            if misfit or orphan:
                book.status, book.ended = "gone", end["time"]
                self.must(end["time"] >= row["time"], "ends before it arrives")
            else:
                book.status, book.tokens = "waiting", offer.prompt

    def _leavers(self, here):
        for row in here["ended"]:
            book = self.books[row["request"]]
            if row["outcome"] == FINISHED:
                self.must(book.ended == row["time"], "finished without all its tokens")
            elif row["outcome"] == CANCELLED and not self._orphan(row):
                offer = book.offer
                patience = min(filter(None, (offer.timeout, offer.cancel)), default=0)
                due = self._arrival(row["request"]) + patience
                late = row["time"] == due or (
                    row["time"] > due and here["step_done"] + here["moved"]
                )
                self.must(patience and late, "was cancelled though its client had not given up")
                if book.made < offer.output:
                    self.must(book.busy is None, "leaves what is in flight")
                    self.must(book.status in ("waiting", "running", "out"), "leaves twice")
                    book.ended = row["time"]
                if book.busy is None:
                    book.status = "gone"
            else:
                self.must(book.status == "gone", "ends in a way that does not exist here")

    def _arrival(self, request):
        return next(r["time"] for r in self.t["arrived"] if r["request"] == request)

    # -- one decision ------------------------------------------------------------------------------

    def _instant(self, here):
        decided = here["kv_blocked"] + here["preempted"] + here["begins"] + here["repartitioned"]
        self.must(not decided or self.now in self.times, "decided when nothing had happened")
        self.started = []
        for row in here["kv_blocked"]:
            book = self.books[row["request"]]
            self.must(not book.noted, "noted twice in one wait that blocks lack")
            book.noted = True
            known = book.status == "waiting" or row["time"] in (
                r["time"] for r in here["preempted"] if r["request"] == row["request"]
            )
            self.must(known, "blocks lack for one that does not wait")
        for row in here["preempted"]:
            self._preempted(row, here)
        for row in here["begins"]:
            self._begins(row, here)
        for row in here["repartitioned"]:
            sms = tuple(self.splits[row["split"]])
            self.must(sms in self.f.legal, f"the split {sms} is not legal")
            self.must(row["split"] != self.split, "a change to the same split")
            self.split = row["split"]
        admitted = {r["request"]: r for r in here["admitted"]}
        returned = {r["request"] for r in here["moved"] if r["source"] == len(self.f.pools) - 1}
        returned = returned if self.f.host else set()
        self.must(len(admitted) == len(here["admitted"]) or returned, "admitted twice at once")
        for row in here["submitted"]:
            self._launch(self.steps[row["step"]], admitted, returned, here)
        asked = [r["request"] for r in here["admitted"] if r["request"] not in returned]
        self.must(asked == self.started, "those admitted are not those that start")
        if here["submitted"]:
            self._counts(here)
        self._idle(here)

    def _preempted(self, row, here):
        book = self.books[row["request"]]
        self.must(book.status == "running", "preempts one that does not run")
        self.must(book.busy is None, "preempts what is in flight")
        book.preempted += 1
        if row["kind"] == SWAP:
            self.must(row["lost_tokens"] == 0, "a swap loses tokens")
            out = [r for r in here["begins"] if r["request"] == row["request"]]
            self.must(
                len(out) == 1 and self.f.host and out[0]["target"] == len(self.f.pools) - 1,
                "swapped out without a copy",
            )
            return
        if book.chunk is not None and row["lost_tokens"] == sum(book.chunk):
            book.computed = sum(book.chunk)  # layer-wise: the chunk was done, as shows only now
        self.must(row["lost_tokens"] == book.computed, "loses other than what it computed")
        self.must(row["kind"] == RECOMPUTE, "preempted in no known way")
        self._publish(book, row["request"], book.computed, own=True)
        book.status, book.computed, book.blocks, book.shared = "waiting", 0, 0, 0
        book.chunk, book.noted = None, False

    def _begins(self, row, here):
        book, host = (
            self.books[row["request"]],
            self.f.host and row["target"] == len(self.f.pools) - 1,
        )
        self.must(book.busy is None, "copies what is in flight")
        if book.chunk is not None:  # layer-wise: it was done, or it could not be copied
            book.computed, book.chunk = sum(book.chunk), None
        back = book.status == "out"
        self.must(back or book.status == "running", "copies one that holds nothing")
        self.must(
            row["source"] == book.pool and row["target"] != row["source"], "copied from elsewhere"
        )
        self.must(row["tokens"] == book.computed, "copies other than what it computed")
        if host:
            out = [r for r in here["preempted"] if r["request"] == row["request"]]
            self.must(len(out) == 1 and out[0]["kind"] == SWAP, "goes out unasked")
        wanted = book.computed if host else book.computed + 1
        book.ahead = row["target"], self._blocks(wanted)
        book.busy = "copy", row["time"]
        if back:
            book.status = "running"
            if book.computed + 1 == book.tokens:
                self._join(book)
        size, rate, to_host, fixed = self.f.link
        way = row["source"], row["target"]
        host = self.f.host and len(self.f.pools) - 1 in way
        begin = max(row["time"], self.free_link.get(way, 0))
        end = begin + int(row["tokens"] * size / (to_host if host else rate) + fixed) + 1
        self.must(row["end"] == end, "a copy takes another time than its bytes")
        self.free_link[way] = end

    def _launch(self, step, admitted, returned, here):
        row, now = step.row, step.row["time"]
        home = self.f.homes[step.partition]
        flying = [s for s in self.steps.values() if s.flying]
        self.must(all(s.partition != step.partition for s in flying), "its partition is busy")
        self._shares(step, flying, here)
        context = 0
        ranks = [self.books[r].joined for r in step.decodes]
        self.must(self.f.reorders or ranks == sorted(ranks), "decodes are not in order of joining")
        for request in step.decodes:
            book = self.books[request]
            self.must(book.status == "running", "decodes one that does not run")
            self.must(book.busy is None, "decodes what is in flight")
            self.must(book.tokens - book.computed == 1, "decodes what is no decode")
            self.must(
                book.pool == home or ("decode" in self.f.names and self.f.gpus > 1), "elsewhere"
            )
            context += book.computed
            book.busy = row["step"]
            book.blocks = max(book.blocks, self._blocks(book.computed + step.repeats))
        self.must(context == row["decode_context"], "another context than its decodes have")
        for request, count, before in step.chunks:
            book = self.books[request]
            self.must(book.busy is None, "computes what is in flight")
            if book.status == "waiting":
                if request not in admitted:
                    raise _Broken(f"request {request} starts without being admitted")
                self._admit(book, request, admitted.pop(request), home)
            elif book.chunk is not None:
                if before == sum(book.chunk):
                    book.computed, book.chunk = sum(book.chunk), None
                else:
                    self.must((before, count) == book.chunk, "a chunk changes between its layers")
            self.must(book.status == "running", "computes one that does not run")
            self.must(before == book.computed, f"continues at {before}, not at {book.computed}")
            self.must(before + count <= book.tokens, "computes more than there is")
            self.must(book.pool == home, "computes on another GPU than its blocks are on")
            book.busy = row["step"]
            book.blocks = max(book.blocks, self._blocks(before + count))
        step.flying = True
        self.must(now in self.times, "launched at a moment in which nothing happened")

    @property
    def times(self):
        """When something happened on which a policy may decide."""
        if not hasattr(self, "_times"):
            self._times = {0}
            for name, column in (("step_done", "time"), ("moved", "end"), ("ended", "time"),
                                 ("arrived", "time")):  # fmt: skip
                self._times |= {r[column] for r in self.t[name]}
            for row in self.t["arrived"]:  # a client that gives up lets the engine look again
                offer = self.books[row["request"]].offer
                self._times |= {row["time"] + n for n in (offer.timeout, offer.cancel) if n}
        return self._times

    def _admit(self, book, request, row, home):
        cached, size = row["cached_tokens"], self.f.block_size
        self.must(cached % size == 0, "found a part of a block")
        self.must(cached < book.tokens, "found all of it")
        self.must(self.f.caching or not cached, "found a prefix without a cache")
        keys = [self._key(book, request, i) for i in range(cached // size)]
        lack = [k for k in keys if k not in self.published[home]]
        self.must(not lack, "found a prefix that was never published there")
        self.started.append(request)
        book.status, book.pool, book.computed = "running", home, cached
        book.shared = book.blocks = cached // size
        book.noted = False

    def _shares(self, step, flying, here):
        """The SMs of a launch: its share of the split in force, or all if it is alone."""
        row = step.row
        self.must(row["split"] == self.split, "another split than the one in force")
        share = self.splits[row["split"]][step.partition]
        beside = [s for s in flying if s.partition != step.partition]
        with_it = [r for r in here["submitted"] if r["partition"] != step.partition]
        alone = self.f.expands and self.f.gpus == 1 and not beside and not with_it
        self.must(row["sms"] == (self.f.num_sms if alone else share), "SMs that the split forbids")
        self.must(0 < row["sms"] <= self.f.num_sms, "SMs that are not there")
        if with_it and not beside and self.f.gpus == 1:
            total = row["sms"] + sum(r["sms"] for r in with_it)
            over = tuple(self.splits[row["split"]]) in self.f.overlapping
            self.must(over or total <= self.f.num_sms, "two launches on the same SMs")

    # -- books -------------------------------------------------------------------------------------

    def _counts(self, here):
        """KV blocks, seats and queue of everyone, against what each launch logged."""
        self._capacity()
        if here["moved"] and (here["step_done"] or len(here["moved"]) > 1):
            return  # several decisions in one moment: which saw what is not in the log
        running = sum(b.status == "running" for b in self.books)
        waiting = sum(b.status == "waiting" for b in self.books)
        used = [self._used(p) for p in range(self.f.gpus)]
        low, high = sum(u[0] for u in used), sum(u[1] for u in used)
        for row in here["submitted"]:
            self.must(row["running"] == running, f"{row['running']} run, not {running}")
            self.must(row["waiting"] == waiting, f"{row['waiting']} wait, not {waiting}")
            fits = low <= row["kv_used"] <= high
            self.must(fits, f"{row['kv_used']} blocks in use, not {low} to {high}")
        self.must(running <= self.f.seats, f"{running} of {self.f.seats} seats")

    def _capacity(self):
        for pool, size in enumerate(self.f.pools):
            low = self._used(pool)[0]
            self.must(low <= size, f"{low} of {size} blocks of pool {pool} are held")

    def _used(self, pool):
        """The fewest and the most blocks of ``pool`` that requests hold."""
        own, found, theirs = 0, set(), set()
        for request, book in enumerate(self.books):
            if book.ahead is not None and book.ahead[0] == pool:
                own += book.ahead[1]
            if book.status in ("running", "out") and book.pool == pool and book.blocks:
                own += book.blocks - book.shared
                found |= {self._key(book, request, i) for i in range(book.shared)}
        for request, book in enumerate(self.books) if found else ():
            if book.status == "running" and book.pool == pool:
                theirs |= {
                    self._key(book, request, i) for i in range(book.shared, book.blocks)
                }  # fmt: skip
        return own + len(found - theirs), own + len(found)

    def _blocks(self, tokens):
        return -(-tokens // self.f.block_size)

    def _key(self, book, request, position):
        size, per = self.f.block_size, max(1, self.f.hash_block // self.f.block_size)
        if book.offer.ids and position < book.offer.prompt // size:
            return book.offer.ids[position // per], position % per
        return "own", request, position

    def _publish(self, book, request, computed, *, own):
        """What others (or it, once it is back) may find from now on."""
        size, offer = self.f.block_size, book.offer
        if not own and not offer.ids:
            return
        most = computed if own else min(computed, offer.prompt)
        keys = {self._key(book, request, i) for i in range(most // size)}
        self.published[book.pool] |= keys

    # -- idling ------------------------------------------------------------------------------------

    def _idle(self, here):
        """No moment in which nothing is in flight though a request is there; nor, for policies that
        promise it, an idle partition that has work which surely fits.
        """
        flying = {s.partition for s in self.steps.values() if s.flying}
        moving = any(b.busy is not None and b.ahead is not None for b in self.books)
        there = [b for b in self.books if b.status in ("waiting", "running", "out")]
        self.must(len(there) <= (self.f.users or len(there)), "more requests than users")
        if not flying and not moving:
            self.must(not there, "stands still though requests are there")
        decided = here["step_done"] or here["arrived"] or here["submitted"]
        if not self.f.conserving or here["preempted"] or not decided or here["moved"]:
            return
        for number, name in enumerate(self.f.names):
            if number in flying:
                continue
            home = self.f.homes[number]
            free = self.f.pools[home] - self._used(home)[1]
            ready = [
                b for b in there if b.status == "running" and b.busy is None and b.pool == home
            ]
            decodes = [b for b in ready if b.tokens - b.computed == 1 and b.chunk is None]
            if name != "prefill":
                self.must(not decodes or free < 1, f"'{name}' idles beside a decode")
            prompts = [b for b in ready if b not in decodes]
            out = [b for b in there if b.status == "out" or b.ahead is not None]
            queue = [b.tokens for b in there if b.status == "waiting"]
            running = sum(b.status == "running" for b in there)
            if name != "decode" and queue and not prompts and not out and running < self.f.seats:
                need = self._blocks(max(queue))
                self.must(need > free - running, f"'{name}' idles though all who wait would fit")

    def _last(self):
        for request, book in enumerate(self.books):
            self.must(book.status == "gone", f"request {request} is {book.status} at the end")
            self.must(book.busy is None, f"request {request} is in flight at the end")
            if self.end_of[request]["outcome"] == FINISHED:
                self.must(book.made == book.offer.output, f"request {request} lacks tokens")
        self.must(not any(s.flying for s in self.steps.values()), "a step never ends")
