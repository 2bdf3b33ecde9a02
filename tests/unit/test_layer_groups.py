"""A model as a stack of layer groups: what follows from the groups, and that groups of full
attention are timed as their sum.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import InputError, UsageError
from nexusbench.core.kv_layout import kv_layout
from nexusbench.core.layers import DenseMlp, ExpertsMlp, LayerGroup, LayerStack
from nexusbench.core.mixer_work import MIXER_WORK
from nexusbench.core.mixers import (
    CompressedAttention,
    FullAttention,
    LatentAttention,
    Mixer,
    Projection,
    SparseAttention,
    StateMixer,
    WindowAttention,
)
from nexusbench.core.specs import Dtypes, ModelSpec, MoeSpec
from nexusbench.core.work import model_work
from nexusbench.costs.roofline import Roofline
from nexusbench.models.config import describe_model
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.launches import Physics
from nexusbench.profiles.profile import model_fingerprint
from nexusbench.results.resolved import served_model
from nexusbench.serving.resolve import check_tensor_parallel

H200 = load_gpu("h200")
PREFILL = BatchShape(0, 0, ((700, 100),))
DECODE = BatchShape(40, 40_000)
MIXED = BatchShape(24, 30_000, ((512, 64), (64, 0)))
BASE = ModelSpec("base", 10, 1024, 16, 4, 64, 2816, 32_000, 8192)
ATTENTION = FullAttention(num_heads=16, num_kv_heads=4, head_dim=64)


def stacked(model: ModelSpec, *groups: LayerGroup, order: tuple[int, ...] = ()) -> ModelSpec:
    """``model`` with those layers instead of its own."""
    order = order or tuple(i for i, group in enumerate(groups) for _ in range(group.count))
    stack = LayerStack(groups=groups, order=order)
    return msgspec.structs.replace(model, num_layers=len(order), stack=stack)


def some(count: int, **more: object) -> LayerGroup:
    """Ordinary layers, or with another mixer or mlp."""
    whole: dict[str, object] = {"mixer": ATTENTION, "mlp": DenseMlp(intermediate_size=2816), **more}
    return LayerGroup(count=count, **whole)  # type: ignore[arg-type]


MOE = ExpertsMlp(num_experts=32, experts_per_token=4, intermediate_size=512, shared_size=512)


@pytest.mark.parametrize("moe", [None, MoeSpec(32, 4, 512, 1)])
def test_one_group_is_the_model_without_a_stack(moe: MoeSpec | None) -> None:
    model = msgspec.structs.replace(BASE, moe=moe)
    grouped = stacked(model, *model.groups)
    for name in ("num_parameters", "active_parameters", "weight_bytes", "kv_bytes_per_token",
                 "wide", "linears"):  # fmt: skip
        assert getattr(grouped, name) == getattr(model, name)
    assert model_work(grouped, 2) == model_work(model, 2)
    for gpus in (1, 2):
        one, other = Physics(H200, model, gpus), Physics(H200, grouped, gpus)
        for shape in (PREFILL, DECODE, MIXED):
            assert other.load(shape, 60) == one.load(shape, 60)


def test_equal_groups_take_the_time_of_one() -> None:
    two = stacked(BASE, some(4), some(6))
    assert two.weight_bytes == BASE.weight_bytes
    assert two.kv_bytes_per_token == BASE.kv_bytes_per_token
    for shape in (PREFILL, DECODE, MIXED):
        one, other = Physics(H200, BASE).load(shape, 132), Physics(H200, two).load(shape, 132)
        assert other.solo == pytest.approx(one.solo, rel=1e-12)
        believed = [Roofline(gpu=H200, model=m).predict(shape, 132) for m in (BASE, two)]
        assert believed[1] == pytest.approx(believed[0], rel=1e-12)


def test_groups_are_timed_as_their_sum() -> None:
    dense, experts = some(3), some(7, mlp=MOE, mixer=ATTENTION)
    wide = some(2, mixer=FullAttention(num_heads=8, num_kv_heads=8, head_dim=128))
    bare = some(2, mixer=None)
    groups = (dense, experts, wide, bare)
    for shape in (PREFILL, DECODE, MIXED):

        def solo(*groups: LayerGroup, shape: BatchShape = shape) -> float:
            return Physics(H200, stacked(BASE, *groups)).load(shape, 100).solo

        # What a step takes besides its layers: twice one layer less two.
        outside = 2 * solo(some(1, mixer=None)) - solo(some(2, mixer=None))
        layers = [solo(group) - outside for group in groups]
        assert min(layers) > 0
        assert solo(*groups) == pytest.approx(outside + sum(layers), rel=1e-9)


def test_a_range_of_layers_is_that_of_its_kinds() -> None:
    big = some(5, mlp=DenseMlp(intermediate_size=28_160))
    order = (0, 1) * 5
    physics = Physics(H200, stacked(BASE, some(5), big, order=order))
    pieces = [
        physics.load(msgspec.structs.replace(PREFILL, layers=(i, i + 1)), 132).dense.time
        for i in range(9)
    ]
    assert pieces[1] > 3 * pieces[0]
    assert pieces[0] == pieces[8]
    both = physics.load(msgspec.structs.replace(PREFILL, layers=(0, 2)), 132)
    assert both.dense.time == pytest.approx(pieces[0] + pieces[1])


def test_layers_without_attention_are_cheaper_and_keep_nothing() -> None:
    bare = stacked(BASE, some(5), some(5, mixer=None))
    assert bare.kv_bytes_per_token == BASE.kv_bytes_per_token / 2
    full, half = Physics(H200, BASE, 2), Physics(H200, bare, 2)
    assert half.attention(DECODE, 132).time == pytest.approx(full.attention(DECODE, 132).time / 2)
    # One all-reduce instead of two in five of ten layers.
    assert half._all_reduce(100) == pytest.approx(0.75 * full._all_reduce(100))


LATENT = LatentAttention(
    num_heads=16, q_rank=256, kv_rank=128, nope_dim=64, rope_dim=32, value_dim=64
)
STATE = StateMixer(kind="Mamba2", heads=8, key_dim=64, value_dim=32, matrices=(), conv_values=100)
KINDS = [
    # (mixer, values a token, bytes of index keys, values of a window, bytes of a state)
    (ATTENTION, 2 * 4 * 64, 0, 0, 0),
    (msgspec.structs.replace(ATTENTION, value_dim=32), 4 * (64 + 32), 0, 0, 0),
    (msgspec.structs.replace(ATTENTION, keys_are_values=True), 2 * 4 * 64, 0, 0, 0),
    (msgspec.structs.replace(ATTENTION, shares_kv=True), 0, 0, 0, 0),
    (WindowAttention(num_heads=16, num_kv_heads=4, head_dim=64, window=128), 0, 0,
     2 * 4 * 64 * 128, 0),
    (LATENT, 160, 0, 0, 0),
    (SparseAttention(base=LATENT, topk=64, index_heads=4, index_dim=128, index_inputs=256),
     160, 132, 0, 0),
    (SparseAttention(base=LATENT, topk=64, index_heads=4, index_dim=128, index_inputs=256,
                     reuses=True), 160, 0, 0, 0),
    (CompressedAttention(num_heads=16, head_dim=64, q_rank=64, groups=2, out_rank=32, window=128,
                         ratio=4, topk=32, index_heads=4, index_dim=128), 16, 33, 128 * 64, 0),
    (STATE, 0, 0, 0, 8 * 64 * 32 * 4 + 200),
]  # fmt: skip


@pytest.mark.parametrize(("mixer", "values", "index", "window", "state"), KINDS)
def test_what_a_sequence_keeps(
    mixer: FullAttention, values: float, index: float, window: float, state: float
) -> None:
    model = stacked(BASE, some(3, mixer=mixer), some(2, mixer=None))
    model = msgspec.structs.replace(model, dtypes=Dtypes(kv="fp8"))
    assert model.kv_bytes_per_token == 3 * values
    assert model.index_bytes_per_token == 3 * index
    assert model.window_bytes_per_sequence == 3 * window
    assert model.state_bytes_per_sequence == 3 * state


@pytest.mark.parametrize("mixer", [one for one, *_ in KINDS])
def test_every_kind_of_layer_is_simulated(mixer: FullAttention) -> None:
    model = stacked(BASE, some(3), some(2, mixer=mixer))
    assert type(mixer) in MIXER_WORK
    plain = Physics(H200, stacked(BASE, some(3))).load(DECODE, 132).solo
    assert plain < Physics(H200, model).load(DECODE, 132).solo < 100 * plain


def test_matrices_beside_a_layer_are_products_on_each_gpu() -> None:
    beside = Projection("hyper_connection", 4 * BASE.hidden_size, 24, 2, "router")
    model = stacked(BASE, msgspec.structs.replace(some(3), others=(beside,)))
    plain = stacked(BASE, some(3))
    for gpus in (1, 4):
        found = [one for one in model_work(model, gpus).linears if one.name == beside.name]
        assert [(one.inputs, one.outputs, one.count) for one in found] == [(beside.inputs, 24, 6)]
    shape = BatchShape(0, 0, ((8192, 0),))
    more = Physics(H200, model).load(shape, 132).solo - Physics(H200, plain).load(shape, 132).solo
    # Streams are mixed to what a part takes, and with what it gives to new ones: 6 times.
    streams = 6 * 8192 * (3 * beside.inputs + 2 * BASE.hidden_size) * 2.0
    assert more > streams / H200.hbm_gbps


def test_tensor_parallel_shards_every_group() -> None:
    model = stacked(BASE, some(5), some(5, mixer=FullAttention(
        num_heads=12, num_kv_heads=12, head_dim=64)))  # fmt: skip
    check_tensor_parallel(4, model)
    with pytest.raises(UsageError, match="split 1, 2, 4 ways"):
        check_tensor_parallel(8, model)
    work = model_work(model, 4)
    assert [linear.outputs for linear in work.linears if linear.name == "qkv"] == [6 * 64, 9 * 64]
    assert (
        work.kv_bytes_per_token * 4 == kv_layout(model, 4).token_bytes == model.kv_bytes_per_token
    )


LATENT = LatentAttention(
    num_heads=16, q_rank=256, kv_rank=512, nope_dim=64, rope_dim=64, value_dim=64
)


@pytest.mark.parametrize(
    "mixer",
    [
        SparseAttention(base=LATENT, topk=64, index_heads=16, index_dim=64, index_inputs=256),
        SparseAttention(base=ATTENTION, topk=64, index_heads=4, index_dim=64, index_inputs=1024),
        CompressedAttention(
            num_heads=16, head_dim=64, q_rank=256, groups=8, out_rank=64, window=64
        ),
        StateMixer(kind="gated delta net", heads=16, key_dim=64, value_dim=64, matrices=()),
    ],
    ids=["latent", "grouped", "compressed", "state"],
)
def test_heads_of_every_kind_must_divide(mixer: Mixer) -> None:
    model = stacked(BASE, some(2, mixer=mixer, mlp=DenseMlp(intermediate_size=3072)))
    check_tensor_parallel(4, model)
    for degree in (3, 32):  # 5 of 16 heads on each of 3 GPUs, none on each of 32
        with pytest.raises(UsageError, match="can be split 1, 2"):
            check_tensor_parallel(degree, model)


def test_a_stack_goes_into_a_manifest_and_comes_back() -> None:
    model = stacked(BASE, some(3, mixer=KINDS[6][0]), some(2, mlp=MOE, mixer=STATE))
    text = msgspec.json.encode(served_model(model))
    assert msgspec.json.decode(text, type=ModelSpec) == model
    plain = msgspec.json.encode(served_model(BASE))
    assert b"stack" not in plain  # manifests and digests of other models are those of before
    assert msgspec.json.decode(plain, type=ModelSpec).stack is UNSET
    assert model_fingerprint(model) != model_fingerprint(BASE)


# -- from config.json ------------------------------------------------------------------------------

CONFIG: dict[str, object] = {
    "model_type": "mistral", "hidden_size": 256, "intermediate_size": 768,
    "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 4096, "vocab_size": 2048, "torch_dtype": "bfloat16",
}  # fmt: skip


def read(tmp_path: Path, **changes: object) -> ModelSpec:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}, indent=1))
    return describe_model(tmp_path)


def kinds(model: ModelSpec) -> list[str]:
    if model.stack is UNSET:
        return ["FullAttention"] * model.num_layers
    return [type(model.groups[index].mixer).__name__ for index in model.stack.order]


WINDOWED, FULL = "WindowAttention", "FullAttention"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sliding_window": None}, [FULL] * 4),
        ({"sliding_window": 4096}, [FULL] * 4),
        ({"sliding_window": 512}, [WINDOWED] * 4),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 512,
          "max_window_layers": 3}, [FULL] * 3 + [WINDOWED]),
        ({"model_type": "qwen3", "sliding_window": 512,
          "layer_types": ["full_attention", "sliding_attention"] * 2}, [FULL, WINDOWED] * 2),
        ({"model_type": "gpt_oss", "num_local_experts": 8, "sliding_window": 128},
         [WINDOWED, FULL] * 2),
        ({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 512},
         [WINDOWED] * 5 + [FULL, WINDOWED]),
        ({"model_type": "llama4_text", "attention_chunk_size": 512}, [WINDOWED] * 3 + [FULL]),
    ],
)  # fmt: skip
def test_windows(tmp_path: Path, changes: dict[str, object], expected: list[str]) -> None:
    assert kinds(read(tmp_path, **changes)) == expected


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 4096),
        ({"type": "linear", "factor": 4.0}, 4096),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"type": "yarn", "factor": 4.0}, 16384),
        ({"full_attention": {"rope_type": "yarn", "factor": 2.0}}, 8192),
    ],
)
def test_the_context_that_results(tmp_path: Path, scaling: object, length: int) -> None:
    assert read(tmp_path, rope_scaling=scaling).max_model_len == length


@pytest.mark.parametrize("factor", ["x", -1, 1e30, [2]])
def test_a_factor_that_gives_no_context(tmp_path: Path, factor: object) -> None:
    with pytest.raises(InputError, match=r"rope_scaling\.factor"):
        read(tmp_path, rope_scaling={"type": "yarn", "factor": factor})


def test_experts_in_some_layers(tmp_path: Path) -> None:
    moe = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192}
    model = read(tmp_path, model_type="qwen3_moe", decoder_sparse_step=2, **moe)
    assert [isinstance(g.mlp, ExpertsMlp) for g in model.groups] == [False, True]
    assert [g.count for g in model.groups] == [2, 2]
    model = read(tmp_path, model_type="qwen3_moe", mlp_only_layers=[0], **moe)
    assert model.stack is not UNSET
    assert model.stack.order == (0, 1, 1, 1)
    # Others have experts in every layer: transformers knows these keys of Qwen's alone.
    for family in ("mixtral", "qwen3_5_moe_text", "glm4_moe", "qwen3"):
        for key, value in (("decoder_sparse_step", 2), ("mlp_only_layers", [0])):
            with pytest.raises(InputError, match="not an ordinary") as caught:
                read(tmp_path, model_type=family, **{key: value})
            assert caught.value.field == key


def test_quantised_experts_of_gpt_oss_are_only_the_experts() -> None:
    model = describe_model("gpt-oss-120b")
    assert {g.dtypes.attention for g in model.groups} == {"bfloat16"}
    assert {g.dtypes.experts for g in model.groups} == {"mxfp4"}
    assert model.weight_bytes / 1e9 == pytest.approx(65.2, abs=0.1)  # as published


def test_a_multi_modal_config_describes_its_decoder(tmp_path: Path) -> None:
    inner = {
        key: value for key, value in CONFIG.items() if key not in ("model_type", "torch_dtype")
    }
    whole = {
        "model_type": "qwen3_vl", "text_config": inner, "torch_dtype": "float16",
        "tie_word_embeddings": True, "vision_config": {"hidden_size": 64},
        "quantization_config": {"quant_method": "fp8", "ignored_layers": ["re:.*self_attn.*"]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(whole))
    model = describe_model(tmp_path)
    assert model.dtypes == Dtypes("fp8", "float16", "float16", "float16")
    assert model.tie_word_embeddings
    assert [g.dtypes.attention for g in model.groups] == ["float16"]
    assert model.stack is not UNSET
    assert "Only the text decoder is described" in model.stack.said[0]
    (tmp_path / "config.json").write_text(json.dumps({**whole, "text_config": None}))
    with pytest.raises(InputError, match="'text_config': is missing"):
        describe_model(tmp_path)


@pytest.mark.parametrize("key", ["moe_layers", "no_rope_layers", "layer_types"])
def test_a_list_of_layers_without_end_takes_no_time(tmp_path: Path, key: str) -> None:
    path = tmp_path / "config.json"
    config = {**CONFIG, "model_type": "llama4_text", "num_hidden_layers": 4096}
    path.write_text(json.dumps({**config, key: list(range(200_000))}))
    begin = time.process_time()
    with contextlib.suppress(InputError):
        describe_model(path)
    assert time.process_time() - begin < 5
