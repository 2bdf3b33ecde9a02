"""Steps of models with windows, pieces and latents: which kernels run for which part of a batch."""

from __future__ import annotations

import msgspec
import pytest

from nexusbench.core.batch import Batch, BatchShape
from nexusbench.core.layers import DenseMlp, ExpertsMlp, LayerGroup, LayerStack
from nexusbench.core.mixers import (
    FullAttention,
    LatentAttention,
    Mixer,
    SparseAttention,
    WindowAttention,
)
from nexusbench.core.specs import ModelSpec, with_used_kernels
from nexusbench.models.config import describe_model
from nexusbench.physics.attention import Attention
from nexusbench.physics.gemm import Gemm
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.latent import AbsorbedAttention, ExpandedAttention
from nexusbench.physics.launches import Physics
from nexusbench.physics.operators import attainable
from nexusbench.physics.remote import split_launch
from nexusbench.physics.windows import WindowedAttention

H200, L40S = load_gpu("h200"), load_gpu("l40s")
BANDWIDTH = attainable(H200, 132)
FULL = FullAttention(num_heads=32, num_kv_heads=8, head_dim=128)
WINDOW = WindowAttention(num_heads=32, num_kv_heads=8, head_dim=128, window=1024)
PIECES = msgspec.structs.replace(WINDOW, chunked=True)
LATENT = LatentAttention(
    num_heads=32, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
)


def group(mixer: Mixer, count: int) -> LayerGroup:
    return LayerGroup(count=count, mixer=mixer, mlp=DenseMlp(intermediate_size=8192))


def model(*groups: LayerGroup, order: tuple[int, ...] = ()) -> ModelSpec:
    order = order or tuple(i for i, one in enumerate(groups) for _ in range(one.count))
    stack = LayerStack(groups=groups, order=order)
    return ModelSpec(
        "made", len(order), 4096, 32, 8, 128, 8192, 32_000, 131_072, stack=stack
    )  # fmt: skip


def attention(mixer: Mixer, shape: BatchShape) -> float:
    return Physics(H200, model(group(mixer, 5))).attention(shape, 132).time


def test_a_window_bounds_what_decodes_take() -> None:
    at = [attention(WINDOW, BatchShape(64, 64 * length)) for length in (500, 1500, 30_000)]
    assert at[0] < at[1] == at[2] < attention(FULL, BatchShape(64, 64 * 1500))
    kernel = WindowedAttention(H200, 32, 8, 128, 1024, layers=5)
    assert at[2] == kernel.time((), 64, 64 * 30_001, 132, BANDWIDTH).time


def test_pieces_are_sequences_of_their_own() -> None:
    found = attention(PIECES, BatchShape(8, 8 * 5000, ((2000, 500),)))
    kernel = Attention(H200, 32, 8, 128, layers=5)
    cut = ((524, 500), (1024, 0), (452, 0))
    assert found == kernel.time(cut, 8, 8 * 1025 // 2, 132, BANDWIDTH).time


def test_keys_of_an_earlier_layer_are_not_written() -> None:
    shape = BatchShape(0, 0, ((4096, 0),))
    for mixer in (FULL, WINDOW):
        shared = msgspec.structs.replace(mixer, shares_kv=True)
        assert attention(shared, shape) < attention(mixer, shape)
        # Of long contexts as many are read.
        long = BatchShape(64, 64 * 20_000)
        assert attention(shared, long) == pytest.approx(attention(mixer, long), rel=0.01)


def test_values_half_as_wide_take_three_quarters_of_the_keys_time() -> None:
    narrow = msgspec.structs.replace(FULL, value_dim=64)
    long = BatchShape(64, 64 * 50_000)
    found = attention(narrow, long) / attention(FULL, long)
    assert found == pytest.approx(0.75, rel=0.02)


def test_decodes_run_absorbed_and_prompts_expanded() -> None:
    absorbed = AbsorbedAttention(H200, 32, 512, 64, layers=5)
    expanded = ExpandedAttention(H200, 32, 192, 128, layers=5)
    decodes = absorbed.time((), 16, 16 * 1001, 132, BANDWIDTH)
    assert attention(LATENT, BatchShape(16, 16 * 1000)) == decodes.time
    prompt = expanded.time(((2000, 100),), 0, 0, 132, BANDWIDTH)
    assert attention(LATENT, BatchShape(0, 0, ((2000, 100),))) == prompt.time
    both = attention(LATENT, BatchShape(16, 16 * 1000, ((2000, 100),)))
    assert both == pytest.approx(decodes.time + prompt.time)
    # vLLM runs chunks of up to 512 tokens as decodes on Hopper, and on other cards those of one.
    short = absorbed.time(((512, 100),), 16, 16 * 1001, 132, BANDWIDTH)
    assert attention(LATENT, BatchShape(16, 16 * 1000, ((512, 100),))) == short.time
    mixed = attention(LATENT, BatchShape(16, 16 * 1000, ((512, 100), (2000, 100))))
    assert mixed == pytest.approx(short.time + prompt.time)
    other = Physics(L40S, model(group(LATENT, 5))).attention(BatchShape(0, 0, ((512, 0),)), 142)
    alone = ExpandedAttention(L40S, 32, 192, 128, layers=5)
    assert other.time == alone.time(((512, 0),), 0, 0, 142, attainable(L40S, 142)).time


def test_products_of_latents_follow_what_runs_how() -> None:
    """Beyond those of every token: two absorbed ones a layer, head by head, for decodes; for
    prompts the expansion, of the tokens before them too.
    """
    physics = Physics(H200, model(group(LATENT, 5)))
    weights = attainable(H200, 132, weights=True)

    def product(rows: int, inputs: int, outputs: int, groups: int = 1) -> float:
        made = Gemm(H200).time(rows, inputs, outputs, 2.0, 2.0, 132, weights, groups=groups)
        return 5 * made.time

    def more(shape: BatchShape) -> float:
        head = physics.head(shape.num_decodes + len(shape.chunks), 132).time
        return (
            physics.load(shape, 132).dense.time - head - physics.dense(shape.num_tokens, 132).time
        )

    found = more(BatchShape(64, 64_000))
    assert found == pytest.approx(product(64, 128, 512, 32) + product(64, 512, 128, 32))
    first = more(BatchShape(0, 0, ((2048, 0),)))
    assert first == pytest.approx(product(2048, 512, 32 * 256))
    later = more(BatchShape(0, 0, ((2048, 8192),)))
    assert later > first + product(8192, 512, 32 * 256)
    assert later < 1.5 * (first + product(8192, 512, 32 * 256))


def test_shared_experts_run_beside_routed_ones_in_small_batches() -> None:
    """Their weights are read in between, and the rest hides; large batches compute one after the
    other, and a dense part beside experts (Gemma 4) always does.
    """
    routed = ExpertsMlp(num_experts=64, experts_per_token=4, intermediate_size=1024)

    def layer(tokens: int, **more: int) -> float:
        mlp = msgspec.structs.replace(routed, **more)
        made = Physics(H200, model(LayerGroup(count=4, mixer=FULL, mlp=mlp)))
        return made.dense(tokens, 132).time / 4

    def products(tokens: int) -> float:
        made = Physics(H200, model(group(FULL, 4)))._products["bfloat16"]
        weights, streams = attainable(H200, 132, weights=True), attainable(H200, 132)
        sizes = ((4096, 2048, "gate_up"), (1024, 4096, "down"))
        return sum(made.time(n, tokens, a, b, 132, weights, streams).time for a, b, n in sizes)

    read = 3 * 4096 * 1024 * 2.0 / attainable(H200, 132, weights=True)
    more = layer(16, shared_size=1024) - layer(16)
    assert read < more < 1.1 * read < products(16)
    assert layer(16, dense_size=1024) - layer(16) > products(16)
    assert layer(256, shared_size=1024) - layer(256) < products(256)
    assert layer(512, shared_size=1024) - layer(512) > products(512)


def test_a_share_of_experts_that_do_not_divide_is_the_largest() -> None:
    traffic = [
        Physics(
            H200,
            model(LayerGroup(count=4, mixer=FULL, mlp=ExpertsMlp(
                num_experts=64, experts_per_token=4, intermediate_size=width
            ))),
            4,
        ).routed(16, 132).traffic
        for width in (1021, 1024)
    ]  # fmt: skip
    assert traffic[0] == traffic[1]


def test_projections_down_to_ranks_are_one_product() -> None:
    apart = msgspec.structs.replace(LATENT, q_rank=0)
    linears = [one.name for one in Physics(H200, model(group(LATENT, 5)))._linears]
    assert linears == ["qkv_a", "q_b", "attn_out", "gate_up", "down"]
    linears = [one.name for one in Physics(H200, model(group(apart, 5)))._linears]
    assert linears == ["q", "kv_a", "attn_out", "gate_up", "down"]


@pytest.mark.parametrize("shape", [
    BatchShape(64, 64 * 3000), BatchShape(0, 0, ((3000, 4000),)), BatchShape(9, 9000, ((700, 0),)),
])  # fmt: skip
@pytest.mark.parametrize("name", [
    "gpt-oss-120b", "deepseek-v3", "glm-5.2-fp8", "deepseek-v4-flash", "qwen3.6-27b-nvfp4",
])  # fmt: skip
def test_layers_add_up_to_the_model(name: str, shape: BatchShape) -> None:
    physics = Physics(H200, describe_model(name), 4)
    count = physics.model.num_layers
    whole = physics.load(shape, 132)
    parts = [
        physics.load(msgspec.structs.replace(shape, layers=(at, at + 1)), 132)
        for at in range(count)
    ]
    for kind in ("dense", "attention"):
        added = sum(getattr(one, kind).time for one in parts)
        assert added == pytest.approx(getattr(whole, kind).time)
    if name == "gpt-oss-120b":  # every second layer has a window of 128 tokens
        assert parts[0].attention.time < parts[1].attention.time == parts[3].attention.time
    if name == "deepseek-v3":
        assert parts[0].attention.time == pytest.approx(parts[60].attention.time)


def test_states_take_no_longer_for_long_contexts() -> None:
    """Of a model whose other layers have full attention, those alone do."""
    physics = Physics(H200, describe_model("qwen3.6-27b-nvfp4"))
    scans, full = sorted(physics.mixing, key=lambda one: -one.layers)
    assert (scans.layers, full.layers) == (48, 16)

    def times(length: int) -> list[float]:
        return [one.time for one in physics.attention_by_kind(BatchShape(32, 32 * length), 132)]

    at = physics.mixing.index(scans)
    short, long = times(100), times(30_000)
    assert short[at] == long[at]
    assert short[1 - at] < long[1 - at]
    state = 32 * 2 * describe_model("qwen3.6-27b-nvfp4").state_bytes_per_sequence
    assert short[at] > 0.9 * state / H200.hbm_gbps


def test_latents_of_chosen_tokens_are_always_absorbed() -> None:
    """In prompts too, however long: there is no expansion of what came before."""
    latent = LatentAttention(
        num_heads=32, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128
    )
    picked = SparseAttention(
        base=latent, topk=2048, index_heads=32, index_dim=128, index_inputs=1536
    )
    physics = Physics(H200, model(group(picked, 5)))
    (kind,) = physics.mixing
    weights, streams = attainable(H200, 132, weights=True), BANDWIDTH
    assert kind.products is not None
    first, later, decodes = (
        kind.products.time(chunks, count, 132, weights, streams).time
        for chunks, count in ((((2048, 0),), 0), (((2048, 50_000),), 0), ((), 2048))
    )
    assert first == later == decodes > 0


@pytest.mark.parametrize("gpu", ["h200", "b200", "l40s", "a100"])
@pytest.mark.parametrize("mixer", [WINDOW, PIECES, LATENT])
def test_steps_grow_with_what_they_compute(gpu: str, mixer: Mixer) -> None:
    spec = load_gpu(gpu)
    physics = Physics(spec, model(group(mixer, 4)))

    def time(*shape: object) -> float:
        return physics.load(BatchShape(*shape), spec.num_sms).solo  # type: ignore[arg-type]

    decodes = [time(count, count * 4000) for count in (1, 8, 64, 256)]
    assert decodes == sorted(decodes)
    contexts = [time(64, 64 * length) for length in (100, 400, 20_000)]  # in half a piece, too
    assert contexts == sorted(contexts)
    prompts = [time(0, 0, ((count, 0),)) for count in (513, 1000, 4000, 8000)]
    assert prompts == sorted(prompts)
    # What has to be read sets a floor: weights, and the keys of a window or latents.
    size = physics.model.weight_bytes - 2 * 32_000 * 4096 * 2.0
    assert contexts[0] > size / spec.hbm_gbps


def test_attention_on_another_gpu_sends_latents() -> None:
    mixed = model(group(LATENT, 3), group(WINDOW, 2))
    physics = Physics(H200, mixed)
    shape = BatchShape(6, 6000, remote=(2, 2000))
    batch = Batch("decode", [], [], shape, remote_sms=40)
    load, away = split_launch(physics, batch, 132, 0)
    (kept, there, wire), (near, far, other) = away.kinds
    each = 2e3 * H200.link_latency_us
    assert wire == pytest.approx(3 * (2 * (32 * 1088 + 576) * 2.0 / H200.link_gbps + each))
    assert other == pytest.approx(2 * (2 * (2 * 32 + 2 * 8) * 128 * 2.0 / H200.link_gbps + each))
    assert away.attention.time == pytest.approx(there + far)
    # Layers of a kind wait for each other, not for those of another kind.
    assert load.solo == pytest.approx(away.rest + max(kept, there + wire) + max(near, far + other))


def test_constants_of_windows_and_latents_count_where_they_run() -> None:
    for mixer in (WINDOW, LATENT):
        assert with_used_kernels(H200, model(group(mixer, 2))).kernels == H200.kernels
    assert with_used_kernels(H200, model(group(FULL, 2))).kernels != H200.kernels
