"""The decoder against transformers on checkpoints that transformers wrote."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.examples import sample, slow

torch = pytest.importorskip("torch")

from checkpoints import VARIANTS, write_checkpoint  # noqa: E402

from nexusbench.core.errors import NexusbenchError  # noqa: E402
from nexusbench.kernels.attention.sdpa import SdpaAttention  # noqa: E402
from nexusbench.kernels.linear import LinearLayer  # noqa: E402
from nexusbench.kernels.native import bindings, build  # noqa: E402
from nexusbench.kernels.paged import PagedKV  # noqa: E402
from nexusbench.kernels.planner import plan_attention  # noqa: E402
from nexusbench.models.agreement import compare  # noqa: E402
from nexusbench.models.architecture import load_decoder_config  # noqa: E402
from nexusbench.models.checkpoint import RandomTensors  # noqa: E402
from nexusbench.models.decoder import Decoder  # noqa: E402
from nexusbench.models.sampling import greedy  # noqa: E402
from nexusbench.models.step import make_step  # noqa: E402

TIE = 1e-4
PROMPTS = (3, 1, 40, 17, 33)
NEW = 14


class Runner:
    """Greedy generation in chunks, all sequences in one batch, over scattered blocks."""

    def __init__(
        self, decoder: Decoder, block_size: int = 16, seed: int = 0, *, sdpa: bool = False
    ) -> None:
        self.decoder, self.block_size = decoder, block_size
        self.kv = decoder.new_kv(64, block_size)
        self.backend = SdpaAttention(self.kv) if sdpa else decoder.new_attention(self.kv)
        self.free = list(range(64))
        random.Random(seed).shuffle(self.free)

    def generate(
        self, prompts: Sequence[Sequence[int]], new: int, chunks: Sequence[int], layerwise: bool
    ) -> tuple[list[list[int]], list[list[torch.Tensor]]]:
        """Each prompt with its continuation, and the logits that each new token was taken from."""
        ids = [list(prompt) for prompt in prompts]
        wanted = [len(prompt) + new for prompt in prompts]
        needed = [-(-count // self.block_size) for count in wanted]
        tables = [[self.free.pop() for _ in range(count)] for count in needed]
        done, logits, step = [0] * len(ids), [[] for _ in ids], 0
        while active := [i for i in range(len(ids)) if len(ids[i]) < wanted[i]]:
            sizes = [min(chunks[(step + i) % len(chunks)], len(ids[i]) - done[i]) for i in active]
            plan = plan_attention(
                sizes, [done[i] for i in active], [tables[i] for i in active], self.block_size
            )
            tokens = [
                ids[i][done[i] : done[i] + size] for i, size in zip(active, sizes, strict=True)
            ]
            rows = self.forward(plan, tokens, layerwise)
            for row, i, size in zip(rows, active, sizes, strict=True):
                done[i] += size
                if done[i] == len(ids[i]):
                    ids[i] += greedy(row.unsqueeze(0))
                    logits[i].append(row)
            step += 1
        return ids, logits

    def forward(self, plan: Any, tokens: list[list[int]], layerwise: bool) -> torch.Tensor:
        vocab = self.decoder.config.spec.vocab_size
        step = make_step(plan, tokens, self.backend, vocab)
        if not layerwise:
            return self.decoder.forward(step, self.kv)
        hidden = self.decoder.forward(step, self.kv, (0, 1))
        hidden = self.decoder.forward(step, self.kv, (1, 2), hidden)
        return self.decoder.forward(step, self.kv, (2, 3), hidden)


@cache
def prompts() -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(211) for _ in range(length)] for length in PROMPTS]


@cache
def expected(model: Any) -> list[tuple[list[int], torch.Tensor]]:
    """transformers' own continuation of each prompt and the logits at its positions."""
    found = []
    for prompt in prompts():
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )[0].tolist()
            found.append((ids, model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: variant -> (folder, transformers' model), each written once."""
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")

    @cache
    def write(variant: str) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp(variant)
        return folder, write_checkpoint(folder, variant)

    return write


@pytest.fixture
def without_native_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where none can be compiled."""
    monkeypatch.setenv(build.OFF, "1")
    bindings.forget()
    yield
    monkeypatch.undo()
    bindings.forget()


@pytest.mark.parametrize("chunks", [*slow((7,)), (1, 13, 3), *slow((64,))], ids=str)
@pytest.mark.parametrize("variant", sample(VARIANTS, 3))
def test_greedy_tokens_equal_transformers(checkpoint: Any, variant: str, chunks: Any) -> None:
    folder, model = checkpoint(variant)
    decoder = Decoder.load(load_decoder_config(folder), dtype="float32")
    check_tokens(decoder, variant, model, chunks)


@pytest.mark.usefixtures("without_native_kernels")
@pytest.mark.parametrize("variant", sample(VARIANTS, 5))
def test_greedy_tokens_equal_transformers_on_torch_alone(checkpoint: Any, variant: str) -> None:
    folder, model = checkpoint(variant)
    decoder = Decoder.load(load_decoder_config(folder), dtype="float32")
    assert not decoder.native
    assert decoder.head.path == "torch"
    check_tokens(decoder, variant, model, (1, 13, 3))


def check_tokens(decoder: Decoder, variant: str, model: Any, chunks: Any) -> None:
    found, _ = Runner(decoder).generate(prompts(), NEW, chunks, layerwise=chunks == (7,))
    for prompt, ids, (right, logits) in zip(prompts(), found, expected(model), strict=True):
        for place, (mine, theirs) in enumerate(
            zip(ids[len(prompt) :], right[len(prompt) :], strict=True)
        ):
            if mine != theirs:
                margin = float(logits[place, theirs] - logits[place, mine])
                assert margin <= TIE, f"{variant}: token {place}, margin {margin}"
                break  # a tie, and all that follows from it


@pytest.mark.parametrize("variant", ["llama-3.1", *slow("qwen2-tied", "qwen3")])
def test_logits_are_transformers_up_to_rounding(checkpoint: Any, variant: str) -> None:
    folder, model = checkpoint(variant)
    decoder = Decoder.load(load_decoder_config(folder), dtype="float32")
    ids, logits = Runner(decoder, block_size=8).generate(prompts(), NEW, (5, 30), layerwise=False)
    for prompt, tokens, mine in zip(prompts(), ids, logits, strict=True):
        with torch.inference_mode():
            right = model(torch.tensor([tokens])).logits[0, len(prompt) - 1 : -1]
        assert float((torch.stack(mine) - right).abs().max()) < 2e-4
        assert float(right.std()) > 0.5  # the comparison means something


@pytest.mark.parametrize("variant", ["qwen3", *slow("llama", "qwen2")])
def test_check_model_agrees(checkpoint: Any, variant: str) -> None:
    folder, _ = checkpoint(variant)
    config = load_decoder_config(folder)
    for dtype in ("float32", "bfloat16"):
        found = compare(config, dtype, prompts=(5, 37), new_tokens=8)
        assert found.agrees, found
        assert 0 < found.largest_difference <= found.tolerance


def packed(layer: Any, part: str) -> torch.Tensor:
    """A matrix of a layer: of kernels of ours, or of torch where the CPU has none of them."""
    if part == "qkv":
        return (layer.qkv if hasattr(layer, "qkv") else layer.heads._qkv).packed
    return getattr(getattr(layer, "mlp", layer), part).packed


def test_sharded_and_half_precision_checkpoints_give_the_same_model(
    checkpoint: Any, tmp_path: Path
) -> None:
    folder, model = checkpoint("llama")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    one = Decoder.load(load_decoder_config(folder), dtype="float32")
    other = Decoder.load(load_decoder_config(tmp_path / "shards"), dtype="float32")
    assert torch.equal(packed(one.layers[1], "qkv"), packed(other.layers[1], "qkv"))
    rows = torch.arange(211)
    assert torch.equal(one.head.rows(rows), other.head.rows(rows))
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model.to(dtype).save_pretrained(tmp_path / name)
        half = Decoder.load(load_decoder_config(tmp_path / name))
        assert half.dtype == dtype
        assert torch.allclose(half.head.rows(rows).float(), one.head.rows(rows), 1e-2, 1e-2)
    model.float()


def test_random_weights_depend_on_the_seed_alone() -> None:
    config = load_decoder_config("tiny")
    one, same, other = (Decoder.load(config, dtype="float32", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(packed(one.layers[3], "gate_up"), packed(same.layers[3], "gate_up"))
    assert not torch.equal(packed(one.layers[3], "gate_up"), packed(other.layers[3], "gate_up"))
    assert not torch.equal(packed(one.layers[3], "down"), packed(one.layers[2], "down"))
    assert float(one.head.packed.std()) == pytest.approx(0.02, rel=0.01)
    assert Decoder.load(config).dtype == torch.bfloat16


@pytest.mark.slow
def test_large_random_tensors_repeat_a_block_from_places_of_their_own() -> None:
    period, source = 16_777_213, RandomTensors(1)
    one, other = (source.read(name, (5000, 4096)).flatten() for name in ("one", "other"))
    assert torch.equal(one, RandomTensors(1).read("one", (5000, 4096)).flatten())
    assert torch.equal(one[period:], one[: len(one) - period])
    assert not torch.equal(one, other)
    assert not torch.equal(one, RandomTensors(2).read("one", (5000, 4096)).flatten())
    assert float(one.std()) == pytest.approx(0.02, rel=0.01)


def test_the_wanted_sequences_give_their_logits_in_the_wanted_order() -> None:
    decoder = Decoder.load(load_decoder_config("tiny"), dtype="float32")
    runner = Runner(decoder)
    tokens = [[5, 6, 7], [9], [1, 2]]
    plan = plan_attention([3, 1, 2], [0, 0, 0], [[1], [2], [3]], 16)
    every = decoder.forward(make_step(plan, tokens, runner.backend, 4096), runner.kv)
    some = make_step(plan, tokens, runner.backend, 4096, wanted=[2, 0])
    assert torch.allclose(decoder.forward(some, runner.kv), every[[2, 0]], atol=1e-6)


def test_a_launch_in_the_middle_needs_hidden_states() -> None:
    decoder = Decoder.load(load_decoder_config("tiny"))
    runner = Runner(decoder)
    step = make_step(plan_attention([1], [0], [[0]], 16), [[1]], runner.backend, 4096)
    with pytest.raises(NexusbenchError, match="layers 1:2 need the hidden states"):
        decoder.forward(step, runner.kv, (1, 2))


@pytest.mark.slow
def test_two_threads_share_a_decoder_and_its_kv() -> None:
    """As partitions do: each with an attention backend of its own, in blocks of its own."""
    decoder = Decoder.load(load_decoder_config("tiny"), dtype="float32")
    kv = decoder.new_kv(40, 16)

    def run(first_block: int, size: int) -> torch.Tensor:
        torch.set_num_threads(1)
        backend = decoder.new_attention(kv)
        table = [list(range(first_block, first_block + 20))]
        rows = []
        for done in range(0, 300, size):
            plan = plan_attention([size], [done], table, 16)
            tokens = [[(done + place) * 7 % 4096 for place in range(size)]]
            rows.append(decoder.forward(make_step(plan, tokens, backend, 4096), kv))
        return torch.cat(rows)

    alone = [run(0, 30), run(20, 5)]
    with ThreadPoolExecutor(2) as pool:
        together = [pool.submit(run, 0, 30), pool.submit(run, 20, 5)]
        for before, after in zip(alone, together, strict=True):
            assert torch.equal(before, after.result())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decodes_have_the_same_bits_alone_and_in_any_batch(dtype: str) -> None:
    decoder = Decoder.load(load_decoder_config("tiny"), dtype=dtype)
    if not decoder.native:
        pytest.skip(bindings.note())
    lengths = [3, 70, 18, 1, 33]
    draw = random.Random(4)
    ids = [[draw.randrange(4096) for _ in range(length)] for length in lengths]
    tables = [list(range(5 * index, 5 * index + 5)) for index in range(len(ids))]

    def step(some: list[int], kv: PagedKV, query: list[int], context: list[int]) -> torch.Tensor:
        plan = plan_attention(query, context, [tables[i] for i in some], 16)
        tokens = [
            (ids[i] + [7])[done : done + size]
            for i, size, done in zip(some, query, context, strict=True)
        ]
        backend = decoder.new_attention(kv)
        return decoder.forward(make_step(plan, tokens, backend, 4096), kv).clone()

    kv = decoder.new_kv(25, 16)
    every = list(range(len(ids)))
    step(every, kv, lengths, [0] * len(ids))
    together = step(every, kv, [1] * len(ids), lengths)
    for index in every:
        alone = step([index], kv, [1], lengths[index : index + 1])
        assert torch.equal(alone[0], together[index])
    # Beside a chunk the same kernels run, layer by layer.
    mixed = step([1, 0, 4], kv, [1, 3, 1], [lengths[1], 0, lengths[4]])
    assert torch.equal(mixed[0], together[1])
    assert torch.equal(mixed[2], together[4])


@pytest.mark.parametrize("variant", ["llama-3.1", "qwen2-tied", "qwen3"])
def test_attention_of_another_backend_gives_the_same(checkpoint: Any, variant: str) -> None:
    """The decoder takes any backend; one without native decodes is called layer by layer."""
    folder, _ = checkpoint(variant)
    decoder = Decoder.load(load_decoder_config(folder), dtype="float32")
    found, rows = Runner(decoder).generate(prompts(), NEW, (5, 30), layerwise=False)
    again, others = Runner(decoder, sdpa=True).generate(prompts(), NEW, (5, 30), layerwise=False)
    assert found == again
    for mine, other in zip(rows, others, strict=True):
        assert torch.allclose(torch.stack(mine), torch.stack(other), atol=1e-4)


def test_a_tied_embedding_is_read_from_the_packed_head(checkpoint: Any) -> None:
    folder, model = checkpoint("qwen2-tied")
    weight = model.model.embed_tokens.weight.detach()
    rows = torch.tensor([0, 15, 16, 31, 32, 210, 7, 7])
    for dtype in (torch.float32, torch.bfloat16):
        decoder = Decoder.load(load_decoder_config(folder), dtype=str(dtype)[6:])
        assert torch.equal(decoder.head.rows(rows), weight.to(dtype)[rows])


@pytest.mark.slow
def test_rotations_grow_with_the_context_while_others_read_them() -> None:
    decoder = Decoder.load(load_decoder_config("tiny"), dtype="float32")
    kv = decoder.new_kv(64, 16)
    backend = decoder.new_attention(kv)
    ids = [place * 11 % 4096 for place in range(1000)]
    plan = plan_attention([1000], [0], [list(range(63))], 16)
    whole = decoder.forward(make_step(plan, [ids], backend, 4096), kv).clone()
    for done in (0, 200, 400, 600, 800):
        plan = plan_attention([200], [done], [list(range(63))], 16)
        rows = decoder.forward(make_step(plan, [ids[done : done + 200]], backend, 4096), kv)
    assert torch.allclose(rows, whole, atol=1e-4)


@pytest.mark.slow
def test_a_forward_pass_stays_on_its_device() -> None:
    """On torch's meta device, which knows shapes and places only: what forgets to name its device
    makes a tensor on the CPU, and the next operation refuses both.
    """
    decoder = Decoder.load(load_decoder_config("tiny"), device="meta")
    kv = decoder.new_kv(8, 16)
    backend = decoder.new_attention(kv)
    plan = plan_attention([1, 5, 1], [20, 0, 3], [[0, 1], [2], [3]], 16, padded_tokens=512)
    step = make_step(plan, [[1], [1, 2, 3, 4, 5], [7]], backend, 4096, [0, 1])
    assert decoder.forward(step, kv).is_meta
    linear = LinearLayer(torch.empty(6, 4, device="meta"), gated=True)
    rows = torch.empty(2, 4, device="meta")
    assert linear(rows, out=torch.empty(2, 3, device="meta")).shape == (2, 3)
