"""From a batch to tokens: plan, forward pass, sampling. Shared by the devices that compute."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from nexusbench.core.batch import Batch, StepOutput
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.request import Request
from nexusbench.devices._prompts import Prompts
from nexusbench.kernels.attention.base import PreparedAttention
from nexusbench.kernels.paged import LayerKV, PagedKV
from nexusbench.kernels.planner import AttentionPlan, BlockTables, plan_attention
from nexusbench.models.decoder import Decoder
from nexusbench.models.sampling import Sampling, sample
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
    sampling: Sampling = field(default_factory=Sampling)
    halfway: dict[int, torch.Tensor] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    again: bool = False  # launches may be repeated (Serving.again)


class StepRunner:
    """Runs the launches of one partition, one at a time.

    It reads requests that are in flight, which nobody changes meanwhile (I11), and appends to their
    tokens.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._attention = served.decoder.new_attention(served.kv)
        self._tables = BlockTables()
        self._ended: deque[int] = deque()  # requests to drop from the tables

    def run(self, step: int, batch: Batch, report: Report) -> None:
        """Compute ``batch`` and report each repetition when its tokens are known.

        Raises Stopped if the device closes meanwhile.
        """
        # The engine's threads speak here only through this queue: tables have no lock.
        while self._ended:
            self._tables.forget(self._ended.popleft())
        # Once a repetition is reported the engine counts its tokens, so places are taken now.
        contexts = [r.num_tokens - 1 for r in batch.decodes]
        contexts += [chunk.context for chunk in batch.chunks]
        for turn in range(batch.repeat):
            if turn:
                contexts = [context + 1 for context in contexts]
            tokens = self._once(batch, contexts)
            report(StepOutput(step, 0, -1, turn + 1 == batch.repeat, tokens))

    def forget(self, request: Request) -> None:
        """``request`` has ended; any thread may say so."""
        self._ended.append(request.index)

    def _once(self, batch: Batch, contexts: Sequence[int]) -> list[int]:
        """One forward pass; the tokens of decodes, then of chunks that end what is known."""
        served, num_decodes = self._served, len(batch.decodes)
        if served.stop.is_set():
            raise Stopped
        requests = [*batch.decodes, *(chunk.request for chunk in batch.chunks)]
        counts = [1] * num_decodes + [chunk.num_tokens for chunk in batch.chunks]
        rows = self._tables.rows([r.index for r in requests], [r.blocks for r in requests])
        size = served.kv.block_size
        plan = plan_attention(
            counts,
            contexts,
            self._tables.table,
            size,
            rows=rows,
            padded_tokens=self._attention.padded_tokens,
        )
        ends = [context + count for context, count in zip(contexts, counts, strict=True)]
        known = [served.prompts.known(r) for r in requests]
        tokens = [k[a:b] for k, a, b in zip(known, contexts, ends, strict=True)]
        makers = list(range(num_decodes))
        for index in range(num_decodes, len(requests)):
            if ends[index] == requests[index].num_tokens:
                makers.append(index)
        vocab = served.decoder.config.spec.vocab_size
        step = make_step(plan, tokens, self._attention, vocab, makers)
        step.attention = _Stoppable(step.attention, served.stop)
        result = self._forward(step, plan, batch, requests)
        if result is None or not makers:
            return []
        drawn = sample(
            result,
            served.sampling,
            [requests[index].index for index in makers],
            [ends[index] for index in makers],
        )
        for index, token in zip(makers, drawn, strict=True):
            if served.again:
                del known[index][ends[index] :]
            if len(known[index]) != ends[index]:
                name = requests[index].id
                raise InvariantBreach("I4", f"request '{name}' has {len(known[index])} tokens")
            known[index].append(token)
        return drawn

    def _forward(
        self, step: Step, plan: AttentionPlan, batch: Batch, requests: Sequence[Request]
    ) -> torch.Tensor | None:
        """The wanted logits; None after layers that are not the last, whose hidden states wait."""
        served, layers = self._served, batch.layers
        forward = served.decoder.forward
        if layers is None:
            return forward(step, served.kv)
        order = [requests[index].index for index in plan.order.tolist()]
        hidden = None
        if layers[0] > 0:
            hidden = torch.cat([served.halfway.pop(index) for index in order])
        result = forward(step, served.kv, layers, hidden)
        if layers[1] == served.decoder.config.spec.num_layers:
            return result
        starts = plan.query_starts.tolist()
        for place, index in enumerate(order):
            served.halfway[index] = result[starts[place] : starts[place + 1]]
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
