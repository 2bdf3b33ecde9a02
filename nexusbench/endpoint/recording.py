"""From exchanges to the event log, in the order of time, and what was noticed on the way."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable
from statistics import fmean

import msgspec

from nexusbench.core.events import OUTCOMES, EventLog, EventTable
from nexusbench.core.units import NS_PER_MS, counted
from nexusbench.endpoint.counting import COUNTING, Counted
from nexusbench.endpoint.exchange import NOT_YET, Exchange
from nexusbench.endpoint.held import Held, Steps, UnderWay, deliveries

FINISHED = OUTCOMES.index("finished")
_RECENT = 256
# Reasons may quote what a server said; beyond so many kinds only their beginnings are kept.
_MOST_REASONS = 50


class Tally(msgspec.Struct):
    """What a server did with prompts and lengths, over the requests it answered.

    ``prompt_*``: of those whose prompt the server counted. ``several``: deliveries that carried
    several tokens. ``at_once``: finished answers that were read in one delivery, so that the times
    of their tokens are unknown; ``in_bursts``: those in deliveries of two chunks and more on
    average; ``untold``: those without a finish reason. ``odd``: answers with counts that were not
    believed. ``reasoned``: those in which the model's reasoning was sent; ``hidden``: those that
    say that it did not.
    """

    answered: int = 0
    finished: int = 0
    prompts_counted: int = 0
    prompts_exact: int = 0
    prompt_tokens_asked: int = 0
    prompt_tokens_counted: int = 0
    prompt_worst: int = 0
    cached_counted: int = 0
    cached_tokens: int = 0
    cached_refused: int = 0
    odd: int = 0
    short: int = 0
    long: int = 0
    deliveries: int = 0
    several: int = 0
    at_once: int = 0
    in_bursts: int = 0
    untold: int = 0
    reasoned: int = 0
    hidden: int = 0
    hidden_tokens: int = 0


class ReplayRecording:
    """Takes exchanges that have ended, from any thread; writes them to ``log`` when told to."""

    def __init__(self) -> None:
        self.log = EventLog()
        self.tally = Tally()
        self.num_ended = self.num_tokens = 0
        self._ended: deque[Exchange] = deque()
        self._held = Held()
        self._under_way: dict[int, UnderWay] = {}  # by index of the request
        self._taken: set[int] = set()  # requests that were taken in
        self._num_steps = 0
        self._counting: Counter[str] = Counter()
        self._ttft: deque[int] = deque(maxlen=_RECENT)
        self._gaps: deque[int] = deque(maxlen=_RECENT)
        self._kinds: set[str] = set()

    def add(self, exchange: Exchange) -> None:
        """An exchange has ended."""
        self._ended.append(exchange)

    def gather(self) -> None:
        """Take in what has ended since the last call. For one thread alone, as all that follows."""
        while self._ended:
            self._take(self._ended.popleft())

    def _take(self, exchange: Exchange) -> None:
        request, found = exchange.request, exchange.answer.tokens(exchange.request.max_tokens)
        steps = deliveries(found.steps, exchange.sent_ns)
        times, tokens = array("q", [t for t, _ in steps]), array("q", [n for _, n in steps])
        self._held.take(exchange, times, tokens, self._cached(exchange))
        self._under_way.pop(request.index, None)
        self._taken.add(request.index)
        if exchange.outcome != NOT_YET:
            code = self.log.code(self._reason(exchange.reason))
            self._held.ends.add(exchange.end_ns, request.index, exchange.outcome, code)
            self.num_ended += 1
        self.num_tokens += sum(tokens for _, tokens in steps)
        if steps:
            self._ttft.append(steps[0][0] - request.arrival_ns)
            self._gaps.extend(b[0] - a[0] for a, b in zip(steps[-9:], steps[-8:], strict=False))
        self._count(exchange, steps, found)

    def _cached(self, exchange: Exchange) -> int:
        """Prompt tokens that the server found cached; -1 where it does not say, or cannot have."""
        usage, asked = exchange.answer.usage, exchange.request.num_prompt_tokens
        if usage.cached > max(usage.prompt, asked if usage.prompt < 0 else 0):
            return NOT_YET
        return min(usage.cached, asked)  # a template's tokens are none of the prompt's

    def _count(self, exchange: Exchange, steps: Steps, found: Counted) -> None:
        tally, answer, usage = self.tally, exchange.answer, exchange.answer.usage
        asked = exchange.request.num_prompt_tokens
        if steps:
            tally.answered += 1
            tally.deliveries += len(steps)
            tally.several += sum(tokens > 1 for _, tokens in steps)
            tally.reasoned += answer.reasoned > 0
            self._counting[found.how] += 1
        if usage.prompt >= 0:
            tally.prompts_counted += 1
            tally.prompts_exact += usage.prompt == asked
            tally.prompt_tokens_asked += asked
            tally.prompt_tokens_counted += usage.prompt
            tally.prompt_worst = max(tally.prompt_worst, abs(usage.prompt - asked))
        cached = self._cached(exchange)
        if cached >= 0:
            tally.cached_counted += 1
            tally.cached_tokens += cached
        tally.cached_refused += cached < 0 <= usage.cached
        tally.odd += bool(usage.odd)
        tally.hidden += found.hidden > 0
        tally.hidden_tokens += found.hidden
        if exchange.outcome == FINISHED:
            made, bound = sum(tokens for _, tokens in steps), exchange.request.max_tokens
            tally.finished += 1
            tally.short += made < bound
            tally.long += made > bound
            # One token of one delivery may be all that was counted of it.
            several = made > 1 or (bound > 1 and exchange.reason != "stop")
            tally.at_once += several and len(steps) == 1
            chunks = sum(delivery.chunks for delivery in answer.deliveries)
            tally.in_bursts += 1 < len(steps) <= chunks // 2
            tally.untold += not answer.stopped

    def _reason(self, reason: str) -> str:
        if reason not in self._kinds and len(self._kinds) >= _MOST_REASONS:
            reason = reason.partition(":")[0]
        self._kinds.add(reason)
        return reason

    def write(self, before: int | None = None) -> None:
        """Write rows to the log: all, or those of earlier than ``before`` alone. As long as nothing
        that is still under way began earlier, the log stays in the order of time.
        """
        self._num_steps = self._held.write(self.log.tables, self._num_steps, before)

    def tail(self, under_way: Iterable[Exchange]) -> dict[str, EventTable]:
        """What is known and not written yet, of what is under way too; it stays unwritten."""
        rest = self._held.copy()
        for exchange in under_way:
            if exchange.request.index not in self._taken:
                seen = self._under_way.setdefault(exchange.request.index, UnderWay())
                seen.take(exchange.answer)
                rest.take(exchange, seen.times, seen.tokens, NOT_YET)
        tables = {name: EventTable(name) for name in self.log.tables}
        rest.write(tables, self._num_steps)
        return tables

    def summary(self) -> dict[str, object]:
        """The tally for the manifest, with answers by how their tokens were counted, and what must
        be known of these numbers.
        """
        counting = {COUNTING[kind]: count for kind, count in sorted(self._counting.items())}
        found: dict[str, object] = msgspec.to_builtins(self.tally)
        return {**found, "counting": counting, "warnings": self.warnings()}

    def warnings(self) -> list[str]:
        """What of the answers limits what their latencies mean; one sentence each."""
        tally, refused = self.tally, self._counting["refused"]
        lines = (
            (
                tally.at_once,
                f"{tally.at_once:,} of {counted(tally.finished, 'finished answer')} came in one "
                "delivery, as through a proxy that holds streams back: they have no TBT and no "
                "TPOT, and keep no bound on these; their TTFT is when all of it came",
            ),
            (
                tally.in_bursts,
                f"{tally.in_bursts:,} of {counted(tally.finished, 'finished answer')} came in "
                "deliveries of several chunks, as through a proxy that holds streams back: TBT is "
                "from one delivery to the next, and TPOT leaves out what came with the first",
            ),
            (
                tally.untold,
                f"{tally.untold:,} of {counted(tally.finished, 'finished answer')} gave no finish "
                "reason: whether they are whole is not known",
            ),
            (
                refused,
                f"the usage of {counted(refused, 'answer')} cannot be a count of its tokens: each "
                "chunk is taken for one",
            ),
            (
                tally.odd,
                f"{counted(tally.odd, 'answer')} counted with what is no number of tokens: left "
                "out",
            ),
            (
                tally.cached_refused,
                f"{counted(tally.cached_refused, 'answer')} claimed more cached tokens than the "
                "prompt has: left out",
            ),
            (
                tally.hidden,
                f"{counted(tally.hidden, 'answer')} hid {tally.hidden_tokens:,} tokens of "
                "reasoning: these are no output here, and TTFT is to the first token that came",
            ),
            (
                tally.reasoned,
                f"{counted(tally.reasoned, 'answer')} began with the model's reasoning: its tokens "
                "are output, and TTFT is to the first of them",
            ),
        )
        return [text for count, text in lines if count]

    @property
    def ttft_ms(self) -> float | None:
        """Mean of the latest first tokens."""
        return fmean(self._ttft) / NS_PER_MS if self._ttft else None

    @property
    def tbt_ms(self) -> float | None:
        """Mean of the latest gaps."""
        return fmean(self._gaps) / NS_PER_MS if self._gaps else None
