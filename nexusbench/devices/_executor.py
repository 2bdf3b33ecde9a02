"""From a batch to tokens: plan, forward pass, sampling. Shared by the devices that compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nexusbench.core.batch import Batch, StepOutput
from nexusbench.core.request import Request
from nexusbench.devices._prompts import Prompts
from nexusbench.kernels.attention.sdpa import SdpaAttention
from nexusbench.kernels.paged import PagedKV
from nexusbench.kernels.planner import BlockTables, plan_attention
from nexusbench.models.decoder import Decoder
from nexusbench.models.sampling import Sampling, sample
from nexusbench.models.step import make_step

Report = Callable[[StepOutput], None]


class StepRunner:
    """Runs the launches of one partition, one at a time; weights, KV and prompts are shared.

    It reads requests that are in flight, which nobody changes meanwhile (I11), and appends to their
    tokens.
    """

    def __init__(
        self, decoder: Decoder, kv: PagedKV, prompts: Prompts, sampling: Sampling | None = None
    ) -> None:
        self._decoder, self._kv, self._prompts = decoder, kv, prompts
        self._sampling = sampling if sampling is not None else Sampling()
        self._attention = SdpaAttention(kv)
        self._tables = BlockTables()
        self._hidden: torch.Tensor | None = None  # between the pieces of a layer-wise prefill

    def run(self, step: int, batch: Batch, report: Report) -> None:
        """Compute ``batch`` and report each repetition when its tokens are known."""
        for turn in range(batch.repeat):
            tokens = self._once(batch, turn)
            report(StepOutput(step, 0, -1, turn + 1 == batch.repeat, tokens))

    def forget(self, request: Request) -> None:
        """``request`` has ended."""
        self._tables.forget(request.index)

    def _once(self, batch: Batch, turn: int) -> list[int]:
        """One forward pass; the tokens of decodes, then of chunks that end what is known."""
        known = self._prompts.known
        requests = [*batch.decodes, *(chunk.request for chunk in batch.chunks)]
        contexts = [r.num_tokens - 1 + turn for r in batch.decodes]
        contexts += [chunk.context for chunk in batch.chunks]
        counts = [1] * len(batch.decodes) + [chunk.num_tokens for chunk in batch.chunks]
        computed = [
            known(r)[context : context + count]
            for r, context, count in zip(requests, contexts, counts, strict=True)
        ]
        rows = self._tables.rows([r.index for r in requests], [r.blocks for r in requests])
        plan = plan_attention(counts, contexts, self._tables.table, self._kv.block_size, rows=rows)
        layers, whole = batch.layers, self._decoder.config.spec.num_layers
        unfinished = layers is not None and layers[1] < whole
        makers = [
            index
            for index, (r, context, count) in enumerate(
                zip(requests, contexts, counts, strict=True)
            )
            if index < len(batch.decodes) or context + count == r.num_tokens
        ]
        made = make_step(
            plan, computed, self._attention, self._decoder.config.spec.vocab_size, makers
        )
        carried = self._hidden if layers is not None and layers[0] > 0 else None
        result = self._decoder.forward(made, self._kv, layers, carried)
        self._hidden = result if unfinished else None
        if unfinished or not makers:
            return []
        producers = [requests[index] for index in makers]
        positions = [contexts[index] + counts[index] for index in makers]
        tokens = sample(result, self._sampling, [r.index for r in producers], positions)
        for request, token, position in zip(producers, tokens, positions, strict=True):
            mine = known(request)
            # A request that is recomputed after a preemption makes no token that it has already.
            if len(mine) == position:
                mine.append(token)
        return tokens
