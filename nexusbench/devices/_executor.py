"""From a batch to tokens: plan, forward pass, sampling. Shared by the devices that compute."""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from nexusbench.core.batch import Batch, StepOutput
from nexusbench.core.errors import InvariantBreach, NexusbenchError
from nexusbench.core.request import Request
from nexusbench.devices._prompts import Prompts
from nexusbench.kernels.attention.base import AttentionBackend, PreparedAttention
from nexusbench.kernels.paged import LayerKV, PagedKV
from nexusbench.kernels.planner import AttentionPlan, BlockTables, plan_attention
from nexusbench.models.decoder import Decoder
from nexusbench.models.sampling import TokenSampling, broken_rows, sample, whence
from nexusbench.models.step import Step, make_step

Report = Callable[[StepOutput], None]


class Stopped(Exception):
    """The device is closing: a step was given up between two layers."""


@dataclass(slots=True)
class Served:
    """What all partitions share: weights, KV memory, the known tokens, how tokens are drawn.

    ``halfway`` holds hidden states [tokens, hidden_size] of prompts computed layer by layer, by
    request, from one launch to the next. ``stop`` ends every step at its next layer.
    """

    decoder: Decoder
    kv: PagedKV
    prompts: Prompts
    sampling: TokenSampling = field(default_factory=TokenSampling)
    halfway: dict[int, torch.Tensor] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    again: bool = False  # launches may be repeated (Serving.again)


@dataclass(slots=True)
class PlannedStep:
    """One forward pass on paper: numbers of the host, nothing of it is computed.

    ``requests`` are the decodes, then the chunks; ``tokens`` what each computes, ``ends`` how many
    of its tokens are then in the cache, ``known`` all tokens known of it. ``makers`` are the places
    in ``requests`` of those that get a token, in the order of the tokens.
    """

    plan: AttentionPlan
    requests: list[Request]
    tokens: list[Sequence[int]]
    ends: list[int]
    known: list[array[int]]
    makers: list[int]

    @property
    def drawn_for(self) -> tuple[list[int], list[int]]:
        """Request and place of every token to draw, as sampling wants them."""
        return [self.requests[i].index for i in self.makers], [self.ends[i] for i in self.makers]


class StepPlanner:
    """Plans the launches of one thread and keeps their tokens.

    It reads requests that are in flight, which nothing changes meanwhile (I11), and appends to
    their tokens.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._tables = BlockTables()
        self._ended: deque[int] = deque()  # requests to drop from the tables

    def plan(self, batch: Batch, contexts: Sequence[int], padded_tokens: int) -> PlannedStep:
        """The step that computes ``batch``, whose items have ``contexts`` tokens in the cache.

        A token that is still being computed (by the repetition before) is planned as 0.
        """
        # The engine's threads speak here only through this queue: tables have no lock.
        while self._ended:
            self._tables.forget(self._ended.popleft())
        served, num_decodes = self._served, len(batch.decodes)
        requests = [*batch.decodes, *(chunk.request for chunk in batch.chunks)]
        counts = [1] * num_decodes + [chunk.num_tokens for chunk in batch.chunks]
        rows = self._tables.rows([r.index for r in requests], [r.blocks for r in requests])
        plan = plan_attention(
            counts, contexts, self._tables.table, served.kv.block_size,
            rows=rows, padded_tokens=padded_tokens,
        )  # fmt: skip
        ends = [context + count for context, count in zip(contexts, counts, strict=True)]
        known = [served.prompts.known(r) for r in requests]
        tokens: list[Sequence[int]] = [
            k[a:b] or [0] for k, a, b in zip(known, contexts, ends, strict=True)
        ]
        makers = list(range(num_decodes))
        for index in range(num_decodes, len(requests)):
            if ends[index] == requests[index].num_tokens:
                makers.append(index)
        return PlannedStep(plan, requests, tokens, ends, known, makers)

    def load(self, planned: PlannedStep, attention: AttentionBackend) -> Step:
        """The planned step on the device."""
        vocab = self._served.decoder.config.spec.vocab_size
        return make_step(planned.plan, planned.tokens, attention, vocab, planned.makers)

    def resume(self, planned: PlannedStep) -> torch.Tensor:
        """Hidden states of the layers before, in the step's order."""
        halfway, requests = self._served.halfway, planned.requests
        order = planned.plan.order.tolist()
        return torch.cat([halfway.pop(requests[index].index) for index in order])

    def put_off(self, planned: PlannedStep, hidden: torch.Tensor) -> None:
        """Keep hidden states for the launch of the next layers."""
        starts = planned.plan.query_starts.tolist()
        for place, index in enumerate(planned.plan.order.tolist()):
            part = hidden[starts[place] : starts[place + 1]]
            self._served.halfway[planned.requests[index].index] = part

    def finish(self, planned: PlannedStep, drawn: Sequence[int]) -> None:
        """Append each maker's token to what is known of its request."""
        for index, token in zip(planned.makers, drawn, strict=True):
            known, end = planned.known[index], planned.ends[index]
            if self._served.again:
                del known[end:]
            if len(known) != end:
                name = planned.requests[index].id
                raise InvariantBreach("I4", f"request '{name}' has {len(known)} tokens")
            known.append(token)

    def forget(self, request: Request) -> None:
        """``request`` has ended; any thread may say so."""
        self._ended.append(request.index)


def contexts_of(batch: Batch) -> list[int]:
    """Tokens in the cache of each decode, then of each chunk, as the launch begins."""
    return [r.num_tokens - 1 for r in batch.decodes] + [chunk.context for chunk in batch.chunks]


class StepRunner:
    """Runs the launches of one partition to their ends, one at a time, in the calling thread."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._attention = served.decoder.new_attention(served.kv)
        self._planner = StepPlanner(served)
        self.forget = self._planner.forget

    def run(self, step: int, batch: Batch, report: Report) -> None:
        """Compute ``batch`` and report each repetition when its tokens are known.

        Raises Stopped if the device closes meanwhile.
        """
        # Once a repetition is reported the engine counts its tokens, so places are taken now.
        contexts = contexts_of(batch)
        for turn in range(batch.repeat):
            if turn:
                contexts = [context + 1 for context in contexts]
            tokens = self._once(batch, contexts)
            report(StepOutput(step, 0, -1, turn + 1 == batch.repeat, tokens))

    def _once(self, batch: Batch, contexts: Sequence[int]) -> list[int]:
        """One forward pass; the tokens of decodes, then of chunks that end what is known."""
        served, planner = self._served, self._planner
        if served.stop.is_set():
            raise Stopped
        planned = planner.plan(batch, contexts, self._attention.padded_tokens)
        step = planner.load(planned, self._attention)
        step.attention = _Stoppable(step.attention, served.stop)
        result = self._forward(step, planned, batch)
        if result is None or not planned.makers:
            return []
        self._check(result, planned)
        drawn = sample(result, served.sampling, *planned.drawn_for)
        planner.finish(planned, drawn)
        return drawn

    def _check(self, logits: torch.Tensor, planned: PlannedStep) -> None:
        """Raise NexusbenchError for logits that are NaN or infinite, naming the first request."""
        broken = broken_rows(logits)
        if not broken:
            return
        place = planned.makers[broken[0]]
        request = planned.requests[place]
        others = f", and of {len(broken) - 1} more" if len(broken) > 1 else ""
        raise NexusbenchError(
            f"the logits of token {planned.ends[place]} of request '{request.id}'{others} are NaN "
            f"or infinite; {whence(self._served.kv, request.blocks)}. The weights are damaged, or "
            "overflow in this data type: try --dtype float32, and nexusbench check-model"
        )

    def _forward(self, step: Step, planned: PlannedStep, batch: Batch) -> torch.Tensor | None:
        """The wanted logits; None after layers that are not the last, whose hidden states wait."""
        served, layers = self._served, batch.layers
        forward = served.decoder.forward
        if layers is None:
            return forward(step, served.kv)
        hidden = self._planner.resume(planned) if layers[0] > 0 else None
        result = forward(step, served.kv, layers, hidden)
        if layers[1] == served.decoder.config.spec.num_layers:
            return result
        self._planner.put_off(planned, result)
        return None


class _Stoppable(PreparedAttention):
    """Attention that looks up once a layer: a long step need not be waited for. Decodes that run
    through all layers in one native call are looked at between two steps only.
    """

    def __init__(self, attention: PreparedAttention, stop: threading.Event) -> None:
        self._attention, self._stop = attention, stop

    def run(self, qkv: torch.Tensor, layer: LayerKV) -> torch.Tensor:
        if self._stop.is_set():
            raise Stopped
        return self._attention.run(qkv, layer)
