"""From exchanges to the event log, in the order of time, and what was noticed on the way."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from statistics import fmean

import msgspec

from nexusbench.core.events import OUTCOMES, EventLog
from nexusbench.core.units import NS_PER_MS
from nexusbench.endpoint.exchange import NOT_YET, Exchange
from nexusbench.endpoint.stream import COUNTING

FINISHED = OUTCOMES.index("finished")
_RECENT = 256
# Reasons may quote what a server said; beyond so many kinds only their beginnings are kept.
_MOST_REASONS = 50


class Tally(msgspec.Struct):
    """What a server did with prompts and lengths, over the requests it answered.

    ``prompt_*``: of those whose prompt the server counted. ``several``: deliveries that carried
    several tokens.
    """

    answered: int = 0
    prompts_counted: int = 0
    prompts_exact: int = 0
    prompt_tokens_asked: int = 0
    prompt_tokens_counted: int = 0
    prompt_worst: int = 0
    cached_counted: int = 0
    cached_tokens: int = 0
    short: int = 0
    long: int = 0
    deliveries: int = 0
    several: int = 0


class Recording:
    """Takes exchanges that have ended, from any thread; writes them to ``log`` when told to."""

    def __init__(self) -> None:
        self.log = EventLog()
        self.tally = Tally()
        self.num_ended = self.num_tokens = 0
        self._ended: deque[Exchange] = deque()
        # Rows not written yet, each beginning with its time.
        self._arrived: list[tuple[int, ...]] = []
        self._sent: list[tuple[int, ...]] = []
        self._steps: list[tuple[int, ...]] = []
        self._ends: list[tuple[int, ...]] = []
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
        request, answer = exchange.request, exchange.answer
        index = request.index
        steps, counting = answer.tokens()
        prompt, bound = request.num_prompt_tokens, request.max_tokens
        self._arrived.append((request.arrival_ns, index, prompt, bound))
        if exchange.sent_ns != NOT_YET:
            self._sent.append((exchange.sent_ns, index, answer.cached_tokens))
        self._steps += [(time, index, tokens) for time, tokens in steps]
        if exchange.outcome != NOT_YET:
            code = self.log.code(self._reason(exchange.reason))
            self._ends.append((exchange.end_ns, index, exchange.outcome, code))
            self.num_ended += 1
        made = sum(tokens for _, tokens in steps)
        self.num_tokens += made
        if steps:
            self._ttft.append(steps[0][0] - request.arrival_ns)
            self._gaps.extend(b[0] - a[0] for a, b in zip(steps[-9:], steps[-8:], strict=False))
        self._count(exchange, steps, made, counting)

    def _count(
        self, exchange: Exchange, steps: Sequence[tuple[int, int]], made: int, counting: str
    ) -> None:
        tally, answer = self.tally, exchange.answer
        asked = exchange.request.num_prompt_tokens
        if steps:
            tally.answered += 1
            tally.deliveries += len(steps)
            tally.several += sum(tokens > 1 for _, tokens in steps)
            self._counting[counting] += 1
        if answer.prompt_tokens >= 0:
            tally.prompts_counted += 1
            tally.prompts_exact += answer.prompt_tokens == asked
            tally.prompt_tokens_asked += asked
            tally.prompt_tokens_counted += answer.prompt_tokens
            tally.prompt_worst = max(tally.prompt_worst, abs(answer.prompt_tokens - asked))
        if answer.cached_tokens >= 0:
            tally.cached_counted += 1
            tally.cached_tokens += answer.cached_tokens
        if exchange.outcome == FINISHED:
            tally.short += made < exchange.request.max_tokens
            tally.long += made > exchange.request.max_tokens

    def _reason(self, reason: str) -> str:
        if reason not in self._kinds and len(self._kinds) >= _MOST_REASONS:
            reason = reason.partition(":")[0]
        self._kinds.add(reason)
        return reason

    def write(self, before: int | None = None) -> None:
        """Write rows to the log: all, or those of earlier than ``before`` alone. As long as nothing
        that is still under way began earlier, the log stays in the order of time.
        """
        tables = self.log.tables
        for time, index, prompt, bound in _cut(self._arrived, before):
            tables["arrived"].row(index, time, prompt, bound)
        for time, index, cached in _cut(self._sent, before):
            tables["admitted"].row(index, time, cached)
        made = tables["token"].columns["request"]
        for time, index, tokens in _cut(self._steps, before):
            tables["step_done"].row(self._num_steps, time, -1, tokens)
            made.extend([index] * tokens)
            self._num_steps += 1
        for time, index, outcome, code in _cut(self._ends, before):
            tables["ended"].row(index, time, outcome, code)

    def summary(self) -> dict[str, object]:
        """The tally for the manifest, with answers by how their tokens were counted."""
        counting = {COUNTING[kind]: count for kind, count in sorted(self._counting.items())}
        found: dict[str, object] = msgspec.to_builtins(self.tally)
        return {**found, "counting": counting}

    @property
    def ttft_ms(self) -> float | None:
        """Mean of the latest first tokens."""
        return fmean(self._ttft) / NS_PER_MS if self._ttft else None

    @property
    def tbt_ms(self) -> float | None:
        """Mean of the latest gaps."""
        return fmean(self._gaps) / NS_PER_MS if self._gaps else None


def _cut(rows: list[tuple[int, ...]], before: int | None) -> list[tuple[int, ...]]:
    """Take the rows of earlier than ``before`` (all for None) out of ``rows``, sorted."""
    rows.sort()
    place = len(rows) if before is None else bisect_left(rows, (before,))
    taken = rows[:place]
    del rows[:place]
    return taken
