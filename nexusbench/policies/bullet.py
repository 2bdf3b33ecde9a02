"""What Bullet's scheduler and partitioner share: SLOs, how far decoding requests keep theirs, and
predicted times of prompts (arXiv 2504.19516, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.request import RequestView
from nexusbench.core.state import EngineState, Limits
from nexusbench.core.units import NS_PER_MS
from nexusbench.costs.base import CostModel

NORM_TTFT_MS, TPOT_MS = 3.0, 150.0  # Bullet's evaluation, ShareGPT
MOST_FORGOTTEN = 1024  # first tokens kept of requests that do not run any more
LOOK_AHEAD = 32  # prompts of the queue that are considered
TOKENS, CONTEXT = 32, 512  # prompts are rounded to these, so that a belief can cache predictions
FEW, MANY = 1024, 2048  # tokens between which prefill is taken to be bound by compute

FOREVER = 1e18  # ns: 30 years

# Prompts in their order, and the ns that each still takes.
Pending = Iterable[tuple[RequestView, float]]


class BulletSlo(msgspec.Struct, frozen=True):
    """Bounds in ns: of TTFT (per prompt token if ``per_token``) and of TPOT."""

    ttft: float
    per_token: bool
    tpot: float

    def ttft_of(self, request: RequestView) -> float:
        """Nanoseconds from its arrival within which a request must have its first token."""
        return self.ttft * request.num_prompt_tokens if self.per_token else self.ttft


class SloOptions(Protocol):
    """The options that set an SLO; None where the user did not."""

    @property
    def norm_ttft_ms(self) -> float | None: ...
    @property
    def ttft_ms(self) -> float | None: ...
    @property
    def tbt_ms(self) -> float | None: ...


def expected(options: SloOptions, limits: Limits) -> BulletSlo:
    """From the options, else from --goodput, else the paper's values."""
    tpot = options.tbt_ms or limits.tbt_ms or TPOT_MS
    norm, ttft = options.norm_ttft_ms, options.ttft_ms or limits.ttft_ms
    if norm is not None or ttft is None:
        return BulletSlo((norm or NORM_TTFT_MS) * NS_PER_MS, True, tpot * NS_PER_MS)
    return BulletSlo(ttft * NS_PER_MS, False, tpot * NS_PER_MS)


class Pace:
    """Time per output token of decoding requests: ns since the first token, over the tokens since.
    It grows while decode pauses.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def completed(self, batch: Batch, now: int) -> None:
        """A step has ended at ``now``: prompts that it finished have their first tokens."""
        for chunk in batch.chunks:
            r = chunk.request
            if r.num_tokens == r.num_prompt_tokens + 1 == r.num_computed_tokens + 1:
                self._first.setdefault(r.index, now)

    def late(self, decoding: Sequence[RequestView], at: float, tpot: float) -> bool:
        """Whether the P90 of the times per output token is over ``tpot`` if each request gets its
        next token at ``at`` (ns).
        """
        allowed = len(decoding) // 10
        for r in decoding:
            since = at - self._first.get(r.index, at)
            if since > tpot * (r.num_tokens - r.num_prompt_tokens):
                allowed -= 1
        return allowed < 0

    def forget(self, running: Sequence[RequestView]) -> None:
        """Drop what is kept of requests that do not run, once that is most of it."""
        if len(self._first) > MOST_FORGOTTEN + 4 * len(running):
            kept = {r.index for r in running}
            self._first = {i: at for i, at in self._first.items() if i in kept}


class Prospects:
    """Predicted ns of prompts and decodes on a number of SMs.

    Prefix hits of a waiting prompt are not counted, so these times are upper estimates.
    """

    def __init__(self, belief: CostModel) -> None:
        self._belief = belief
        self._saturating: dict[int, float] = {}

    def prompt(self, request: RequestView, sms: int, done: float = 0.0) -> float:
        """The rest of a prompt in a launch of its own, less the share of ``done`` of its tokens."""
        left = max(1, request.num_tokens - request.num_computed_tokens)
        rounded = -(-left // TOKENS) * TOKENS
        before = request.num_computed_tokens // CONTEXT * CONTEXT
        time = self._belief.predict(BatchShape(0, 0, ((rounded, before),)), sms)
        return time * (1.0 - done / left)

    def pending(
        self,
        started: Iterable[tuple[RequestView, float]],
        waiting: Iterable[RequestView],
        sms: int,
    ) -> Pending:
        """Prompts under way (given with the tokens done of each), then the first waiting ones, each
        with its time; a time is predicted when it is asked for.
        """
        for r, done in started:
            yield r, self.prompt(r, sms, done)
        for r in islice(waiting, LOOK_AHEAD):
            yield r, self.prompt(r, sms)

    def step(
        self, batch: Sequence[tuple[RequestView, int]], layers: tuple[int, int], sms: int
    ) -> float:
        """Some layers of a batch of prompts, given with the tokens to compute of each."""
        chunks = tuple([(tokens, r.num_computed_tokens) for r, tokens in batch])
        return self._belief.predict(BatchShape(0, 0, chunks, layers), sms)

    def decode(self, decoding: Sequence[RequestView], sms: int) -> float:
        """One decode step of all these requests."""
        context = 0
        for r in decoding:
            context += r.num_computed_tokens
        return self._belief.predict(BatchShape(len(decoding), context), sms)

    def breaks_ttft(self, pending: Pending, now: int, slo: BulletSlo) -> bool:
        """Whether a prompt misses the TTFT SLO if they are computed one after another."""
        end = float(now)
        for request, time in pending:
            end += time
            if _waits_for_first(request) and end - request.arrival_ns > slo.ttft_of(request):
                return True
        return False

    def next_prompt(
        self, waiting: Iterable[RequestView], begins: float, slo: BulletSlo, sms: int
    ) -> RequestView | None:
        """The waiting prompt that takes least time, of those that can begin at ``begins`` (ns)
        without making one that they overtake miss its TTFT. A late one is not overtaken.
        """
        chosen, end = None, begins
        shortest = slack = FOREVER
        for r in islice(waiting, LOOK_AHEAD):
            time = self.prompt(r, sms)
            if time < shortest and time <= slack:
                chosen, shortest = r, time
            end += time
            if _waits_for_first(r):
                slack = min(slack, r.arrival_ns + slo.ttft_of(r) - end)
            if slack < 0.0:
                break
        return chosen

    def saturating_tokens(self, sms: int) -> float:
        """Tokens from which on a prefill is bound by compute: their arithmetic takes as long as
        reading the weights.
        """
        if sms not in self._saturating:
            one, few, many = [
                self._belief.predict(BatchShape(0, 0, ((n, 0),)), sms) for n in (1, FEW, MANY)
            ]
            self._saturating[sms] = one * (MANY - FEW) / max(1.0, many - few)
        return self._saturating[sms]


class PromptsAtHand:
    """Times of all prompts at hand as functions of prefill's SMs. On fewer SMs each is taken to
    slow down as ``prefill`` does, the launch under way or planned: one prediction for each split
    instead of one for each prompt and split.
    """

    def __init__(self, belief: CostModel, prefill: BatchShape, state: EngineState) -> None:
        self._belief, self._prefill, self._state = belief, prefill, state
        self._prospects = Prospects(belief)
        self._all_sms = state.device.num_sms
        self._alone = belief.predict(prefill, self._all_sms)

    def _slower(self, sms: int) -> float:
        return self._belief.predict(self._prefill, sms) / self._alone

    def _pending(self, most_waiting: int) -> Pending:
        """Prompts with their times on all SMs, less the layers that are done."""
        state = self._state
        layers = state.device.num_layers
        started = [(r, r.layers_tokens * r.layers_done / layers) for r in state.prefilling]
        waiting = islice(state.waiting, max(0, most_waiting))
        return self._prospects.pending(started, waiting, self._all_sms)

    def worst_ttft(self, slo: BulletSlo) -> Callable[[int], float]:
        """By SMs: the largest ratio of TTFT to SLO, prompts computed one after another."""
        pending, now = list(self._pending(LOOK_AHEAD)), float(self._state.now)

        def ratio(sms: int) -> float:
            worst, end, slower = 0.0, now, self._slower(sms)
            for request, time in pending:
                end += time * slower
                if _waits_for_first(request):
                    worst = max(worst, (end - request.arrival_ns) / slo.ttft_of(request))
            return worst

        return ratio

    def outlasts(self, most: float) -> Callable[[float, int], bool]:
        """By time (at most ``most`` ns) and SMs: whether the prompts with seats take as long."""
        seats, total = self._state.limits.max_num_seqs - self._state.num_running, 0.0
        for _, takes in self._pending(seats):
            total += takes
            if total >= most:
                return lambda time, sms: True
        total = max(total, self._alone)
        return lambda time, sms: time <= total * self._slower(sms)


def _waits_for_first(request: RequestView) -> bool:
    """False for a request that is recomputed: it has had its first token, no TTFT is left."""
    return request.num_tokens == request.num_prompt_tokens
