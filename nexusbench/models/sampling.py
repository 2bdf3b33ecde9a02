"""From logits to tokens: greedy, or drawn by (seed, request, position) alone; logits that are
NaN or infinite, from which no token may be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from nexusbench.core.errors import UsageError
from nexusbench.kernels import fused
from nexusbench.kernels.native import bindings
from nexusbench.kernels.paged import PagedKV

# Most of the mass of a peaked distribution lies in so many tokens; sorting a vocabulary is slow.
_HEAD = 1024


class TokenSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tokens are drawn: ``temperature`` 0 is greedy; ``top_p`` keeps the most likely tokens.

    ``top_p`` is nucleus sampling (arXiv 1904.09751): the smallest set of likeliest tokens that have
    at least that probability together.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature {self.temperature} is not between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p} is not in (0, 1]")


def sample(
    logits: torch.Tensor, sampling: TokenSampling, requests: Sequence[int], positions: Sequence[int]
) -> list[int]:
    """One token per row of ``logits`` [R, vocab].

    ``requests`` are the rows' request indices, ``positions`` the place of the token that is drawn.
    Its random number depends on (seed, request, position) and nothing else, so neither batch mates
    nor a preemption change it.
    """
    with torch.inference_mode():
        if sampling.temperature == 0 or len(logits) == 0:
            return greedy(logits)
    return draw(logits, sampling, requests, positions).tolist()


def draw(
    logits: torch.Tensor, sampling: TokenSampling, requests: Sequence[int], positions: Sequence[int]
) -> torch.Tensor:
    """:func:`sample` as a tensor [R] on the logits' device; on a GPU without waiting for it."""
    with torch.inference_mode():
        if sampling.temperature == 0:
            return logits.argmax(dim=-1)
        # In double precision, so that the sum of 100,000 probabilities is 1 to the last draw.
        chances = torch.softmax(logits.double() / sampling.temperature, dim=-1)
        draws = torch.from_numpy(uniform(sampling.seed, requests, positions)).to(logits.device)
        if sampling.top_p < 1:
            return _nucleus(chances, sampling.top_p, draws)
        return _pick(chances, draws)


def greedy(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each row; the first of equals."""
    # torch's argmax on a CPU is not vectorised: 10 ms for 256 rows of 32,000, numpy's takes 1.
    if logits.device.type == "cpu":
        if bindings.functions() is not None and logits.dtype == torch.float32:
            threads = min(len(logits), torch.get_num_threads())
            return fused.argmax(logits.contiguous(), threads=threads).tolist()
        return logits.numpy().argmax(axis=-1).tolist()  # type: ignore[no-any-return]
    return logits.argmax(dim=-1).tolist()


def _nucleus(chances: torch.Tensor, top_p: float, draws: torch.Tensor) -> torch.Tensor:
    """Draw from the likeliest tokens of each row."""
    found, tokens = torch.topk(chances, min(_HEAD, chances.shape[1]), dim=-1)
    # On a GPU everything is sorted: to check on the host whether the head is enough would make the
    # host wait for the device.
    if chances.is_cuda or bool((found.sum(dim=-1) < top_p).any()):
        found, tokens = torch.sort(chances, dim=-1, descending=True, stable=True)
    before = found.cumsum(dim=-1) - found
    kept = found.masked_fill(before >= top_p, 0.0)
    picked = _pick(kept, draws).unsqueeze(1)
    return tokens.gather(1, picked).squeeze(1)


def _pick(chances: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The first column whose cumulated chance exceeds ``draws`` times the row's sum."""
    cumulated = chances.cumsum(dim=-1)
    goal = draws.unsqueeze(1) * cumulated[:, -1:]
    picked = torch.searchsorted(cumulated, goal, right=True).squeeze(1)
    return picked.clamp_(max=chances.shape[1] - 1)


def uniform(
    seed: int, requests: Sequence[int], positions: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), one per (request, position): splitmix64 of the three integers."""
    state = np.full(len(requests), seed & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    for part in (requests, positions):
        state = _mix(state ^ _mix(np.asarray(part, dtype=np.int64).astype(np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's output function (Steele et al., OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def broken_rows(logits: torch.Tensor) -> list[int]:
    """Rows of ``logits`` [R, vocab] with a value that is not finite.

    One pass over them: NaN and infinities survive a sum, and what only its sum makes infinite is
    looked at again. By numpy, since waking torch's threads takes longer than the sum of a step.
    """
    with np.errstate(all="ignore"):
        if math.isfinite(float(logits.detach().numpy().sum())):
            return []
    rows = (~torch.isfinite(logits)).any(dim=1).nonzero().flatten()
    return [int(row) for row in rows]


def whence(kv: PagedKV, blocks: Sequence[int]) -> str:
    """The first layer of a request's KV with values that are not finite, as words for an error."""
    places = torch.as_tensor(list(blocks), dtype=torch.int64)
    for index, layer in enumerate(kv.layers):
        if not bool(torch.isfinite(layer.blocks.index_select(0, places)).all()):
            return (
                f"its keys and values are finite below layer {index} (of 0 to {len(kv.layers) - 1})"
                if index
                else "its keys and values are not finite from layer 0 on"
            )
    return "its keys and values are all finite: the last layer or the output head made them"
