"""What a belief says of the requests at hand: when prompts get first tokens, and who goes first
(Bullet, arXiv 2504.19516, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from nexusbench.core.batch import BatchShape
from nexusbench.core.request import RequestView
from nexusbench.core.state import EngineState
from nexusbench.costs.base import CostModel
from nexusbench.policies.bullet_slo import BulletSlo

LOOK_AHEAD = 32  # prompts of a queue that are looked at
TOKENS, CONTEXT = 32, 512  # grain of the prompts asked about, so that a belief can keep its answers
FEW, MANY = 1024, 2048  # tokens between which prefill is taken to be bound by compute

FOREVER = 1e18  # ns: 30 years

# Prompts in their order, and the ns that each still takes.
Pending = Iterable[tuple[RequestView, float]]


class Prospects:
    """Times of prompts and decodes, in ns, on so many SMs.

    Prefix hits of a waiting prompt are not known before it is admitted: this is pessimistic.
    """

    def __init__(self, belief: CostModel) -> None:
        self._belief = belief
        self._saturating: dict[int, float] = {}

    def prompt(self, request: RequestView, sms: int, done: float = 0.0) -> float:
        """The rest of a prompt in one launch of its own, less ``done`` tokens' part of it."""
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
        """Prompts under way, with the tokens done of each, and the first of those who wait; asked
        for one by one.
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
        """A decode step of all these."""
        context = 0
        for r in decoding:
            context += r.num_computed_tokens
        return self._belief.predict(BatchShape(len(decoding), context), sms)

    def breaks_ttft(self, pending: Pending, now: int, slo: BulletSlo) -> bool:
        """Whether somebody misses the TTFT SLO if they go one after another."""
        end = float(now)
        for request, time in pending:
            end += time
            if _waits_for_first(request) and end - request.arrival_ns > slo.ttft_of(request):
                return True
        return False

    def next_prompt(
        self, waiting: Iterable[RequestView], begins: float, slo: BulletSlo, sms: int
    ) -> RequestView | None:
        """Of those who wait the one that takes least time, if it begins at ``begins`` (ns) and
        nobody whom it passes misses a TTFT by that. Who is late already is not passed.
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
        """Tokens of a prefill that compute for as long as the weights take to move: from here on
        its arithmetic intensity is over that of the SMs.
        """
        if sms not in self._saturating:
            one, few, many = [
                self._belief.predict(BatchShape(0, 0, ((n, 0),)), sms) for n in (1, FEW, MANY)
            ]
            self._saturating[sms] = one * (MANY - FEW) / max(1.0, many - few)
        return self._saturating[sms]


class PromptsAtHand:
    """What prefill has to do, by SMs. All prompts are taken to slow down on fewer SMs as
    ``prefill`` does, the launch under way or planned: that saves asking for each on each split.
    """

    def __init__(self, belief: CostModel, prefill: BatchShape, state: EngineState) -> None:
        self._belief, self._prefill, self._state = belief, prefill, state
        self._prospects = Prospects(belief)
        self._all_sms = state.device.num_sms
        self._alone = belief.predict(prefill, self._all_sms)

    def _slower(self, sms: int) -> float:
        return self._belief.predict(self._prefill, sms) / self._alone

    def _pending(self, most_waiting: int) -> Pending:
        """With their times on all SMs, less the layers that are done."""
        state = self._state
        layers = state.device.num_layers
        started = [(r, r.layers_tokens * r.layers_done / layers) for r in state.prefilling]
        waiting = islice(state.waiting, max(0, most_waiting))
        return self._prospects.pending(started, waiting, self._all_sms)

    def worst_ttft(self, slo: BulletSlo) -> Callable[[int], float]:
        """By SMs: the largest TTFT over its SLO, if they go one after another."""
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
        """By time (at most ``most`` ns) and SMs: whether those who have seats take as long."""
        seats, total = self._state.limits.max_num_seqs - self._state.num_running, 0.0
        for _, takes in self._pending(seats):
            total += takes
            if total >= most:
                return lambda time, sms: True
        total = max(total, self._alone)
        return lambda time, sms: time <= total * self._slower(sms)


def _waits_for_first(request: RequestView) -> bool:
    """Not one that is recomputed: it has had its first token, and has no TTFT to meet."""
    return request.num_tokens == request.num_prompt_tokens
