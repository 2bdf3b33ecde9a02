"""Work counts of attention by kind of mixer: what a token sees, and what it reads."""

from __future__ import annotations

import random

import msgspec
import pytest

from nexusbench.core.batch import BatchShape, Split
from nexusbench.core.layers import DenseMlp, ExpertsMlp, LayerGroup, LayerStack
from nexusbench.core.mixer_work import MIXER_WORK, FullWork, MixerWork, pieces
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    Mixer,
    SparseAttention,
    StateMixer,
    WindowAttention,
)
from nexusbench.core.specs import DeviceSpec, ModelSpec
from nexusbench.core.work import model_work
from nexusbench.costs.roofline import Roofline
from nexusbench.models.config import describe_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.profiles.stages import Stages
from nexusbench.serving.assembly import work_of

FULL = FullAttention(num_heads=8, num_kv_heads=2, head_dim=64)
WINDOW = WindowAttention(num_heads=8, num_kv_heads=2, head_dim=64, window=100)
PIECES = WindowAttention(num_heads=8, num_kv_heads=2, head_dim=64, window=100, chunked=True)
LATENT = LatentAttention(
    num_heads=16, q_rank=96, kv_rank=32, nope_dim=24, rope_dim=8, value_dim=20
)  # fmt: skip


def work(mixer: Mixer, kv: float = 2.0, activation: float = 2.0) -> MixerWork:
    return MIXER_WORK[type(mixer)](mixer, kv, activation)


def seen(mixer: FullAttention, position: int) -> range:
    """Keys that the token at ``position`` attends to."""
    if not isinstance(mixer, WindowAttention):
        return range(position + 1)
    if mixer.chunked:
        return range(position - position % mixer.window, position + 1)
    return range(max(0, position - mixer.window + 1), position + 1)


@pytest.mark.parametrize("mixer", [FULL, WINDOW, PIECES])
def test_pairs_and_keys_of_chunks_are_those_that_the_mask_leaves(mixer: FullAttention) -> None:
    draw = random.Random(5)
    for _ in range(40):
        chunks = tuple((draw.randint(1, 350), draw.randint(0, 350)) for _ in range(2))
        pairs = keys = 0
        for count, before in chunks:
            each = [seen(mixer, before + i) for i in range(count)]
            pairs += sum(map(len, each))
            keys += len({key for one in each for key in one})
        tokens = sum(count for count, _ in chunks)
        flops, size = work(mixer).chunks(chunks)
        assert flops == pairs * 4 * 8 * 64
        assert size == keys * 2 * 2 * 64 * 2 + tokens * 2 * 8 * 64 * 2


def test_a_decode_reads_no_more_than_its_window() -> None:
    for context in (1, 99, 100, 101, 5000):
        flops, size = work(WINDOW).decodes(3, 3 * context)
        keys = 3 * min(context, 100)
        assert (flops, size) == (keys * 4 * 8 * 64, keys * 2 * 2 * 64 * 2)
    # Anywhere in a piece: half of it on average, once contexts are longer.
    assert work(PIECES).decodes(2, 200)[0] == 200 * 4 * 8 * 64
    assert work(PIECES).decodes(2, 9000)[0] == 2 * 50.5 * 4 * 8 * 64


def test_pieces_of_chunks_keep_every_token() -> None:
    assert pieces(((250, 30), (10, 200)), 100) == ((70, 30), (100, 0), (80, 0), (10, 0))


def test_values_of_another_size_and_keys_of_an_earlier_layer() -> None:
    narrow = work(msgspec.structs.replace(FULL, value_dim=32))
    assert isinstance(narrow, FullWork)
    assert narrow.pair_flops == 2 * 8 * (64 + 32)
    assert narrow.key_bytes == narrow.token_bytes == 2 * (64 + 32) * 2
    assert narrow.message_values == 8 * 96 + 2 * 96
    shared = work(msgspec.structs.replace(FULL, shares_kv=True))
    assert isinstance(shared, FullWork)
    assert shared.token_bytes == 0  # nothing is kept, but as much is read
    assert shared.key_bytes == 2 * 2 * 64 * 2
    assert shared.rotated == 8 * 64  # queries only


def test_latent_attention_by_hand() -> None:
    """Expanded: 16 heads of keys of 32 values and values of 20. Absorbed: queries of 32 + 8 values
    over one latent, outputs of 32.
    """
    made = work(LATENT, kv=1.0)
    flops, size = made.chunks(((10, 0), (4, 50)))
    pairs, expanded = 10 * 5.5 + 4 * 52.5, 16 * (32 + 20)
    assert flops == pairs * 2 * expanded + 50 * 2 * 32 * 16 * (24 + 20)
    assert size == 14 * 2 * 2 * expanded + 50 * (40 * 1.0 + 2 * 2 * expanded)
    flops, size = made.decodes(3, 300)
    assert flops == 300 * 2 * 16 * (32 + 8 + 32)
    assert size == 300 * 40 * 1.0 + 3 * 16 * (32 + 8 + 32) * 2
    assert made.message_values == 16 * (32 + 8 + 32) + 40


def model(mixer: Mixer, count: int = 3) -> ModelSpec:
    group = LayerGroup(count=count, mixer=mixer, mlp=DenseMlp(intermediate_size=512))
    return ModelSpec(
        "base", count, 256, 16, 2, 64, 512, 1000, 8192,
        stack=LayerStack(groups=(group,), order=(0,) * count),
    )  # fmt: skip


def test_projections_are_split_by_heads_and_latents_are_not() -> None:
    gated = msgspec.structs.replace(LATENT, gate=16 * 20)
    made = model_work(model(gated), 4)
    assert [(one.name, one.inputs, one.outputs) for one in made.linears] == [
        ("q_a", 256, 96), ("q_b", 96, 4 * 32), ("kv_a", 256, 40), ("kv_b", 32, 4 * 44),
        ("attn_out", 4 * 20, 256), ("attn_gate", 256, 80), ("gate_up", 256, 256),
        ("down", 128, 256),
    ]  # fmt: skip
    assert made.kv_bytes_per_token == 3 * 40 * 2  # on each GPU
    mixed = FullAttention(num_heads=8, num_kv_heads=2, head_dim=64, value_dim=32, gate=8)
    made = model_work(model(mixed), 4)
    assert [(one.name, one.inputs, one.outputs) for one in made.linears[:3]] == [
        ("qkv", 256, 2 * 64 + 64 + 32), ("attn_out", 2 * 32, 256), ("attn_gate", 256, 2),
    ]  # fmt: skip
    same = msgspec.structs.replace(FULL, keys_are_values=True)
    assert model_work(model(same), 2).linears[0].outputs == 4 * 64 + 64


@pytest.mark.parametrize("name", ["gpt-oss-120b", "deepseek-v3"])
@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_work_of_all_gpus_is_that_of_the_model(name: str, gpus: int) -> None:
    """FLOPs of experts, attention and products add up over GPUs; those of projections that every
    GPU computes alike, and of routers, count on each.
    """
    spec = describe_model(name)
    one, part = model_work(spec), model_work(spec, gpus)
    chunks = ((500, 700),)
    assert part.chunk_attention(chunks)[0] * gpus == pytest.approx(one.chunk_attention(chunks)[0])
    assert part.decode_attention(9, 9000)[0] * gpus == one.decode_attention(9, 9000)[0]
    alike = ("router", "q_a", "kv_a")

    def products(made: object, names: bool) -> float:
        return sum(
            one.inputs * one.outputs * one.count
            for one in made.linears  # type: ignore[attr-defined]
            if (one.name in alike) == names
        )

    assert products(part, names=True) == products(one, names=True)
    assert products(part, names=False) * gpus == products(one, names=False)


def test_beliefs_count_a_window_and_a_latent() -> None:
    gpu = load_gpu("h200")
    shape = BatchShape(64, 64 * 8000)
    for mixer, keys in ((FULL, 8001), (WINDOW, 100)):
        spec = model(mixer)
        attention = Stages(gpu, spec).work(shape)
        assert attention.decode_bytes == 3 * 64 * keys * 2 * 2 * 64 * 2
        assert attention.decode_flops == 3 * 64 * keys * 4 * 8 * 64
        assert Roofline(gpu=gpu, model=spec).operators(shape)[2][1] == attention.decode_bytes
    near = Roofline(gpu=gpu, model=model(WINDOW)).predict(shape, 132)
    assert near < Roofline(gpu=gpu, model=model(FULL)).predict(shape, 132)


def test_many_heads_over_one_latent_are_bound_by_tensor_cores() -> None:
    """128 heads take 242 FLOPs for each byte of the latents, more than an H200 has."""
    wide = LatentAttention(
        num_heads=128, q_rank=0, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )
    gpu = load_gpu("h200")
    belief = Roofline(gpu=gpu, model=model(wide))
    long, short = BatchShape(64, 64 * 80_000), BatchShape(64, 64)
    taken = belief.predict(long, 132) - belief.predict(short, 132)
    flops = 3 * 64 * 79_999 * 2 * 128 * (2 * 512 + 64)
    assert taken == pytest.approx(flops / (gpu.peak_tflops * 1e3), rel=0.01)


class RealDevice:
    """As much of one as work counts look at."""

    spec = DeviceSpec("cuda", "cuda", False, 132, (), Split(("all",), (132,)), 1, 1e9, 3)
    gpu = load_gpu("h200")


def test_utilisation_is_not_made_up_where_work_is_not_even() -> None:
    """MFU multiplies tokens and pairs; a window sees fewer pairs, and experts read few weights."""
    full = work_of(model(FULL), RealDevice())  # type: ignore[arg-type]
    assert full is not None
    assert full.pair_flops == 3 * 4 * 8 * 64
    routed = ExpertsMlp(num_experts=8, experts_per_token=2, intermediate_size=64)
    experts = LayerGroup(count=3, mixer=FULL, mlp=routed)
    stack = LayerStack(groups=(experts,), order=(0,) * 3)
    for other in (model(WINDOW), model(LATENT), msgspec.structs.replace(model(FULL), stack=stack)):
        assert work_of(other, RealDevice()) is None  # type: ignore[arg-type]


PICKED = SparseAttention(
    base=LATENT, topk=100, index_heads=4, index_dim=16, index_inputs=96
)  # fmt: skip
ENTRIES = CompressedAttention(
    num_heads=8, head_dim=64, q_rank=96, groups=2, out_rank=32, window=50, ratio=4, topk=60,
    index_heads=4, index_dim=16,
)  # fmt: skip
HEAVY = msgspec.structs.replace(ENTRIES, ratio=32, topk=0, index_heads=0, index_dim=0)
STATE = StateMixer(
    kind="gated delta net", heads=4, key_dim=32, value_dim=16, matrices=(), conv_values=96
)


def test_pairs_of_chosen_tokens_are_at_most_those_chosen() -> None:
    draw = random.Random(7)
    for _ in range(40):
        count, before = draw.randint(1, 350), draw.randint(0, 350)
        last = before + count
        pairs = sum(min(position, 100) for position in range(before + 1, last + 1))
        scored = sum(range(before + 1, last + 1))
        flops, size = work(PICKED).chunks(((count, before),))
        exact = pairs * 2 * 16 * (2 * 32 + 8) + scored * 2 * 4 * 16
        assert flops == pytest.approx(exact, rel=0.02)
        latents = min(last, count * 100) * 40 * 2.0 + last * PICKED.index_bytes
        assert size == pytest.approx(latents + count * 16 * (2 * 32 + 8) * 2)
    flops, size = work(PICKED).decodes(3, 3000)
    assert flops == 300 * 2 * 16 * 72 + 3000 * 2 * 4 * 16
    assert size == 300 * 80 + 3000 * PICKED.index_bytes + 3 * 16 * 72 * 2
    # An earlier layer's picks cost nothing to find, and no key of their own.
    again = work(msgspec.structs.replace(PICKED, reuses=True))
    assert again.decodes(3, 3000) == (300 * 2 * 16 * 72, 300 * 80 + 3 * 16 * 72 * 2)
    assert again.token_bytes == 80 == work(PICKED).token_bytes - PICKED.index_bytes


@pytest.mark.parametrize("mixer", [ENTRIES, HEAVY])
def test_pairs_of_entries_are_those_before_and_a_window(mixer: CompressedAttention) -> None:
    most = mixer.topk or 10**9
    for count, before in ((1, 0), (300, 0), (40, 500), (300, 999)):
        seen = range(before + 1, before + count + 1)
        pairs = sum(min(at, 50) + min(at / mixer.ratio, most) for at in seen)
        scored = sum(at / mixer.ratio for at in seen) if mixer.topk else 0.0
        flops, size = work(mixer).chunks(((count, before),))
        assert flops == pytest.approx(pairs * 4 * 8 * 64 + scored * 2 * 4 * 16, rel=0.02)
        last = before + count
        read = min(last, count + 50) + min(last / mixer.ratio, count * most)
        read = read * 64 * 2 + (last * mixer.index_bytes if mixer.topk else 0)
        assert size == pytest.approx(read + count * 2 * 8 * 64 * 2)
    keys = 50 + min(1000 / mixer.ratio, most)
    index = 1000 * mixer.index_bytes
    flops, size = work(mixer).decodes(2, 2000)
    assert size == pytest.approx(2 * (keys * 64 * 2 + index + 2 * 8 * 64 * 2))
    assert flops == pytest.approx(
        2 * (keys * 4 * 8 * 64 + (1000 / 4 * 2 * 4 * 16 if mixer.topk else 0))
    )
    plain = work(msgspec.structs.replace(HEAVY, ratio=0))
    assert plain.decodes(2, 2000) == plain.decodes(2, 200_000)


def test_states_are_read_and_written_once_a_chunk_or_decode() -> None:
    made = work(STATE)
    moved, kept = 2 * 4 * 48 * 2, 4 * 32 * 16 * 4.0 + 96 * 2.0
    token = 6 * 4 * 32 * 16
    assert made.chunks(((10, 5), (7, 900))) == (17 * token, 17 * moved + 4 * kept)
    assert made.decodes(3, 3) == made.decodes(3, 90_000) == (3 * token, 3 * (moved + 2 * kept))
    assert made.token_bytes == 0


@pytest.mark.parametrize("name", ["glm-5.2-fp8", "deepseek-v4-flash", "qwen3.6-27b-nvfp4"])
def test_beliefs_know_what_sparse_and_recurrent_layers_read(name: str) -> None:
    """An unfitted roofline is below the simulated step, and not by an order of magnitude."""
    spec, gpu = describe_model(name), load_gpu("h200")
    for shape in (BatchShape(64, 64 * 20_000), BatchShape(0, 0, ((4096, 8192),))):
        believed = Roofline(gpu=gpu, model=spec, tensor_parallel=4).predict(shape, 132)
        simulated = Physics(gpu, spec, 4).load(shape, 132).solo
        assert 0.1 * simulated < believed < simulated
