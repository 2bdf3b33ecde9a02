"""One forward pass's input: a flattened batch of tokens on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from nexusbench.core.errors import InputError
from nexusbench.kernels.attention.base import (
    AttentionBackend,
    PagedDecodes,
    PreparedAttention,
)
from nexusbench.kernels.planner import AttentionPlan, Ints


@dataclass(slots=True)
class Step:
    """T tokens of some sequences, flattened.

    ``token_ids``, ``positions`` (in their request) and ``slots`` (in the KV cache) are [T];
    ``logit_rows`` [R] are the rows whose logits are wanted, None for all. ``longest`` is the
    largest position. With ``paged`` whole layers may run in one native call.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    attention: PreparedAttention
    logit_rows: torch.Tensor | None
    longest: int
    paged: PagedDecodes | None = None


def make_step(
    plan: AttentionPlan,
    tokens: Sequence[Sequence[int]],
    backend: AttentionBackend,
    vocab_size: int,
    wanted: Sequence[int] | None = None,
) -> Step:
    """The step of ``plan`` with each sequence's ``tokens`` to compute, in the caller's order.

    ``wanted`` are the sequences whose last token's logits are wanted, in the order of the logits'
    rows; None for all sequences. Valid until the backend prepares another step. Raises InputError
    for a token out of the vocabulary.
    """
    device = backend.device
    order = plan.order.tolist()
    ids = np.fromiter(
        chain.from_iterable(map(tokens.__getitem__, order)), np.int64, count=plan.num_tokens
    )
    check_tokens(ids, vocab_size)
    rows = plan.last_rows if wanted is None else plan.last_rows[list(wanted)]
    every = len(rows) == plan.num_tokens and bool((rows[1:] > rows[:-1]).all())
    attention = backend.prepare(plan)
    return Step(
        token_ids=_on(device, ids),
        positions=_on(device, plan.positions),
        slots=_on(device, plan.slots),
        attention=attention,
        logit_rows=None if every else _on(device, rows),
        longest=int(plan.lengths.max()) - 1,
        paged=attention.paged,
    )


def _on(device: torch.device, values: Ints) -> torch.Tensor:
    """The values on the device; to a GPU from pinned memory, so that the host need not wait."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def check_tokens(ids: Ints | Sequence[int], vocab_size: int, file: object = None) -> None:
    """Raise InputError if one of ``ids`` is not in ``[0, vocab_size)``."""
    found = np.asarray(ids)
    if found.size and (found.min() < 0 or found.max() >= vocab_size):
        at = int(np.flatnonzero((found < 0) | (found >= vocab_size))[0])
        raise InputError(
            f"token {found[at]} at place {at} is not in the vocabulary of {vocab_size:,}",
            file=file,
            field=None if file is None else "token_ids",
            hint="The trace was made with another tokenizer; give the model it belongs to",
        )
