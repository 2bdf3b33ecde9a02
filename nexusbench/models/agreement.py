"""How closely the decoder agrees with transformers: the same tokens through both."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from nexusbench.core.errors import UsageError
from nexusbench.kernels.planner import plan_attention
from nexusbench.models.architecture import DecoderConfig
from nexusbench.models.checkpoint import open_source
from nexusbench.models.decoder import Decoder
from nexusbench.models.document import open_config
from nexusbench.models.plain_copy import PlainCopy
from nexusbench.models.sampling import broken_rows
from nexusbench.models.step import make_step
from nexusbench.models.weights import torch_dtype

# Odd on purpose: no chunk ends with a block or a tile.
CHUNKS = (7, 29, 1, 13, 61, 3)
PROMPTS = (5, 37, 90)
TIE = 1e-4  # in fp32 two logits this close may change places
# Largest difference that is still rounding, as a share of the largest logit.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}
_BLOCK = 16


class Disagreement(msgspec.Struct, frozen=True):
    """A greedy token that differs. ``margin`` is by how much transformers prefers its own."""

    prompt: int
    position: int
    ours: int
    theirs: int
    margin: float
    tie: bool


class BrokenLogits(msgspec.Struct, frozen=True):
    """Positions of a prompt whose logits are NaN or infinite, the first of them and their number.

    ``side`` is ``ours`` or ``transformers``.
    """

    side: str
    prompt: int
    position: int
    count: int


class Agreement(msgspec.Struct, frozen=True):
    """Both sides' logits over the same tokens.

    ``largest_difference`` and ``largest_logit`` are absolute and of the positions where both sides
    are finite; ``tolerance`` is what the difference may be in this data type. ``dequantised``:
    transformers was given the weights of a quantised checkpoint as the decoder dequantised them.
    """

    model: str
    dtype: str
    prompts: tuple[int, ...]
    new_tokens: int
    positions: int
    largest_difference: float
    largest_logit: float
    tolerance: float
    disagreements: tuple[Disagreement, ...]
    broken: tuple[BrokenLogits, ...] = ()
    dequantised: bool = False

    @property
    def empty(self) -> bool:
        """All finite logits are 0, which every model that computes nothing agrees on."""
        return self.largest_logit == 0

    @property
    def agrees(self) -> bool:
        """All logits finite and equal up to rounding, some not 0, greedy tokens up to ties."""
        close = self.largest_difference <= self.tolerance and not self.broken and not self.empty
        return close and all(found.tie for found in self.disagreements)


def compare(
    config: DecoderConfig,
    dtype: str = "float32",
    prompts: Sequence[int] = PROMPTS,
    new_tokens: int = 16,
    seed: int = 0,
) -> Agreement:
    """Run random prompts of these lengths through transformers, greedily, and through ours.

    Ours computes the same tokens in odd chunks, with chunks and decodes of the prompts mixed in a
    batch over scattered KV blocks. Raises UsageError without transformers or without weights.
    """
    if config.folder is None:
        raise UsageError(
            f"'{config.spec.name}' is shipped as a description without weights. Give a folder with "
            "its safetensors"
        )
    longest = max(prompts) + new_tokens
    if longest > config.spec.max_model_len:
        raise UsageError(
            f"prompts of {max(prompts)} and {new_tokens} new tokens exceed the model's context of "
            f"{config.spec.max_model_len}. Ask for shorter ones (--prompts, --new-tokens)"
        )
    decoder, theirs = _both(config, dtype)
    draw = random.Random(seed)
    vocab = config.spec.vocab_size
    ids = [[draw.randrange(vocab) for _ in range(length)] for length in prompts]
    ids = [theirs.greedy(prompt, new_tokens) for prompt in ids]
    ours = teacher_forced(decoder, ids, prompts, seed)
    pairs = [(ours[index], theirs.logits(tokens)) for index, tokens in enumerate(ids)]
    broken = [broken for index, pair in enumerate(pairs) for broken in _broken(index, pair)]
    largest, peak = _largest(pairs)
    limit = TIE if dtype == "float32" else TOLERANCES[dtype] * peak
    found: list[Disagreement] = []
    for index, (length, pair) in enumerate(zip(prompts, pairs, strict=True)):
        found += _differing(index, length, *pair, limit)
    return Agreement(
        model=config.spec.name,
        dtype=dtype,
        prompts=tuple(prompts),
        new_tokens=new_tokens,
        positions=sum(map(len, ids)),
        largest_difference=largest,
        largest_logit=peak,
        tolerance=TOLERANCES[dtype] * max(1.0, peak),
        disagreements=tuple(found),
        broken=tuple(broken),
        dequantised=config.packing is not None,
    )


def _both(config: DecoderConfig, dtype: str) -> tuple[Decoder, _Reference]:
    """The decoder and transformers' model of the same weights."""
    kind, folder = torch_dtype(dtype), config.folder
    assert folder is not None
    if config.packing is None:
        decoder = Decoder.load(config, dtype=dtype, load_format="safetensors")
        return decoder, _Reference(folder, kind)
    source = open_source(config, "safetensors")
    with tempfile.TemporaryDirectory() as written:
        copied = PlainCopy(source, Path(written), kind)
        decoder = Decoder(config, copied, kind)
        copied.finish(open_config(folder))
        return decoder, _Reference(Path(written), kind)


def _broken(prompt: int, pair: tuple[torch.Tensor, torch.Tensor]) -> list[BrokenLogits]:
    found = []
    for side, logits in zip(("ours", "transformers"), pair, strict=True):
        rows = broken_rows(logits)
        if rows:
            found.append(BrokenLogits(side, prompt, rows[0], len(rows)))
    return found


def _largest(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Largest difference and largest logit of transformers, where both sides are finite."""
    largest = peak = 0.0
    for ours, theirs in pairs:
        both = torch.isfinite(ours).all(dim=1) & torch.isfinite(theirs).all(dim=1)
        if bool(both.any()):
            largest = max(largest, float((ours[both] - theirs[both]).abs().max()))
            peak = max(peak, float(theirs[both].abs().max()))
    return largest, peak


def _differing(
    prompt: int, length: int, ours: torch.Tensor, theirs: torch.Tensor, limit: float
) -> list[Disagreement]:
    """Greedy tokens after the prompt that differ; ``limit`` is the margin of a tie."""
    found = []
    for row in range(length - 1, len(ours)):
        mine, other = int(ours[row].argmax()), int(theirs[row].argmax())
        if mine != other:
            margin = float(theirs[row, other] - theirs[row, mine])
            found.append(Disagreement(prompt, row + 1, mine, other, margin, margin <= limit))
    return found


def teacher_forced(
    decoder: Decoder, ids: Sequence[Sequence[int]], prompts: Sequence[int], seed: int = 0
) -> list[torch.Tensor]:
    """Logits [tokens, vocab] at every position of ``ids``: prompts in chunks, then token by token.

    All sequences advance in every step, so that chunks and decodes share batches.
    """
    needed = [-(-len(tokens) // _BLOCK) for tokens in ids]
    kv = decoder.new_kv(sum(needed), _BLOCK)
    backend = decoder.new_attention(kv)
    free = list(range(sum(needed)))
    random.Random(seed).shuffle(free)
    tables = [[free.pop() for _ in range(count)] for count in needed]
    done = [0] * len(ids)
    logits: list[list[torch.Tensor]] = [[] for _ in ids]
    step = 0
    while any(count < len(tokens) for count, tokens in zip(done, ids, strict=True)):
        sizes = [
            min(CHUNKS[(step + index) % len(CHUNKS)], length - count)
            if count < length
            else int(count < len(tokens))
            for index, (count, length, tokens) in enumerate(zip(done, prompts, ids, strict=True))
        ]
        active = [index for index, size in enumerate(sizes) if size]
        plan = plan_attention(
            [sizes[index] for index in active],
            [done[index] for index in active],
            [tables[index] for index in active],
            _BLOCK,
        )
        chunks = [ids[index][done[index] : done[index] + sizes[index]] for index in active]
        inputs = make_step(plan, chunks, backend, decoder.config.spec.vocab_size)
        inputs.logit_rows = None
        rows = decoder.forward(inputs, kv)
        for place, sequence in enumerate(plan.order.tolist()):
            start, stop = plan.query_starts[place : place + 2].tolist()
            logits[active[sequence]].append(rows[start:stop])
        for index in active:
            done[index] += sizes[index]
        step += 1
    return [torch.cat(parts) for parts in logits]


class _Reference:
    """The same checkpoint in transformers."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        try:
            import transformers
        except ImportError:
            raise UsageError(
                "comparing needs the package transformers. Install it with "
                'pip install "nexusbench[check]"'
            ) from None
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True
        ).eval()

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """The prompt and what transformers continues it with; end tokens do not end it."""
        ids = list(prompt)
        with torch.inference_mode():
            past, inputs = None, torch.tensor([ids])
            for _ in range(new_tokens):
                out = self._model(inputs, past_key_values=past, use_cache=True)
                past = out.past_key_values
                ids.append(int(out.logits[0, -1].argmax()))
                inputs = torch.tensor([ids[-1:]])
        return ids

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """[tokens, vocab] in one pass, fp32."""
        with torch.inference_mode():
            logits: torch.Tensor = self._model(torch.tensor([list(ids)])).logits[0].float()
        return logits
