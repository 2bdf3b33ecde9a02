"""Quantised checkpoints load as the weights they stand for, and what is wrong with one is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import quantised_checkpoints as made  # noqa: E402
from checkpoints import write_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from nexusbench.cli.main import main  # noqa: E402
from nexusbench.core.errors import InputError  # noqa: E402
from nexusbench.models import dequantised  # noqa: E402
from nexusbench.models.agreement import teacher_forced  # noqa: E402
from nexusbench.models.architecture import load_decoder_config  # noqa: E402
from nexusbench.models.checkpoint import open_source  # noqa: E402
from nexusbench.models.decoder import Decoder  # noqa: E402
from nexusbench.models.document import open_config  # noqa: E402
from nexusbench.models.packing import packing_of  # noqa: E402
from nexusbench.results.reader import RunReader  # noqa: E402

Edit = Callable[[made.Tensors], object]


@pytest.mark.parametrize("kind", made.KINDS)
def test_weights_are_what_their_codes_stand_for(kind: str, tmp_path: Path) -> None:
    meant = made.write_quantised(tmp_path, kind)
    source = open_source(load_decoder_config(tmp_path))
    for name, weight in meant.items():
        found = source.read(name, weight.shape)
        torch.testing.assert_close(found, weight, rtol=2e-7, atol=1e-9, msg=name)
    source.require_all_read(made.LAYERS)


def logits(folder: Path, dtype: str) -> torch.Tensor:
    """Logits of two prompts, chunked and token by token."""
    decoder = Decoder.load(load_decoder_config(folder), dtype=dtype)
    ids = [[7, 3, 11, 60, 5, 2], [1, 0, 9]]
    return torch.cat(teacher_forced(decoder, ids, [4, 2]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["fp8 in blocks", "gptq", "awq"])
def test_tokens_are_those_of_the_dequantised_weights(kind: str, dtype: str, tmp_path: Path) -> None:
    meant = made.write_quantised(tmp_path / "quantised", kind)
    made.write_folder(tmp_path / "plain", made.CONFIG, meant)
    quantised, plain = (logits(tmp_path / name, dtype) for name in ("quantised", "plain"))
    tolerance = 1e-5 if dtype == "float32" else 0.05
    torch.testing.assert_close(quantised, plain, rtol=0, atol=tolerance)
    assert float(plain.abs().max()) > 0.5


def edited(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Edit:
    """Replace (or, by None, remove) a tensor."""

    def edit(tensors: made.Tensors) -> None:
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed

    return edit


GATE = "model.layers.0.mlp.gate_proj"
# (kind of checkpoint, what is done to its tensors, tensor named, part of the message)
BROKEN: list[tuple[str, Edit, str, str]] = [
    ("fp8 per tensor", edited(f"{GATE}.weight_scale", lambda _: None), f"{GATE}.weight",
     "has data type F8_E4M3, and no scale: neither"),
    ("fp8 in blocks", edited(f"{GATE}.weight_scale_inv", lambda scale: scale[:2].clone()),
     f"{GATE}.weight_scale_inv", "has shape [2, 2], which fits no matrix of 96 x 64 in blocks of"),
    ("fp8 per tensor", edited(f"{GATE}.weight", lambda weight: weight[:, :32].clone()),
     f"{GATE}.weight", "has shape [96, 32], config.json asks for [96, 64]"),
    ("fp8 per tensor", edited(f"{GATE}.weight", lambda weight: weight.to(torch.float8_e5m2)),
     f"{GATE}.weight", "has data type F8_E5M2. Supported: F8_E4M3, I8"),
    ("fp8 per tensor", edited(f"{GATE}.weight_scale", lambda scale: scale * torch.nan),
     f"{GATE}.weight_scale", "holds NaN or infinite values"),
    ("fp8 of compressed-tensors", edited(f"{GATE}.weight", lambda weight: weight.fill_(torch.nan)),
     f"{GATE}.weight", "holds NaN or infinite values, or its scales do"),
    ("gptq", edited(f"{GATE}.scales", lambda _: None), f"{GATE}.scales", "is missing"),
    ("gptq", edited(f"{GATE}.qzeros", lambda _: None), f"{GATE}.qzeros", "is missing"),
    ("gptq", edited(f"{GATE}.qweight", lambda words: words[:4].clone()), f"{GATE}.qweight",
     "has shape [4, 96], config.json asks for [8, 96]"),
    ("gptq", edited(f"{GATE}.qweight", lambda words: words.to(torch.int16)), f"{GATE}.qweight",
     "has data type I16. Supported: I32"),
    ("gptq", edited(f"{GATE}.g_idx", lambda index: index + 1), f"{GATE}.g_idx",
     "names groups 1 to 2, of 2"),
    ("gptq, reordered", edited(f"{GATE}.g_idx", lambda _: None), f"{GATE}.g_idx", "is missing"),
    ("awq", edited(f"{GATE}.qzeros", lambda _: None), f"{GATE}.qzeros", "is missing"),
    ("awq", edited(f"{GATE}.scales", lambda scales: scales[:1].clone()), f"{GATE}.scales",
     "has shape [1, 96], config.json asks for [2, 96]"),
    ("int4 of compressed-tensors", edited(f"{GATE}.weight_scale", lambda _: None),
     f"{GATE}.weight_scale", "is missing"),
    ("int4 of compressed-tensors", edited(f"{GATE}.weight_shape", lambda shape: shape.flip(0)),
     f"{GATE}.weight_shape", "says [64, 96], config.json asks for [96, 64]"),
    ("int4 of compressed-tensors", edited(f"{GATE}.weight_scale", lambda scale: scale.repeat(1, 2)),
     f"{GATE}.weight_scale", "fits no matrix of 96 x 64 in groups of 32"),
    ("int4 of compressed-tensors, reordered", edited(f"{GATE}.weight_g_idx", lambda _: None),
     f"{GATE}.weight_g_idx", "is missing"),
    ("int8 of compressed-tensors",
     lambda tensors: tensors.update(
         {f"{GATE}.weight_scale": torch.ones(96, 2),
          f"{GATE}.weight_zero_point": torch.zeros(95, dtype=torch.int8)}
     ), f"{GATE}.weight_zero_point", "has shape [95], which fits no matrix of 96 x 64"),
    ("nvfp4", edited(f"{GATE}.weight_scale_2", lambda _: None), f"{GATE}.weight_scale_2",
     "is missing"),
    ("nvfp4", edited(f"{GATE}.weight_scale_2", lambda scale: scale.repeat(2)),
     f"{GATE}.weight_scale_2", "has shape [2], which fits no matrix of 96 x 64"),
    ("awq", lambda tensors: tensors.update({f"{GATE}.pre_quant_scale": torch.ones(64)}),
     f"{GATE}.pre_quant_scale", "has no place in the decoder"),
    ("gptq", lambda tensors: tensors.update({f"{GATE}.bias": torch.ones(96)}), f"{GATE}.bias",
     "has no place in the decoder"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "damage", "tensor", "message"), BROKEN)
def test_broken_ones(kind: str, damage: Edit, tensor: str, message: str, tmp_path: Path) -> None:
    made.write_quantised(tmp_path, kind)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as caught:
        Decoder.load(load_decoder_config(tmp_path))
    assert caught.value.file == tmp_path / "model.safetensors"
    assert caught.value.field == tensor
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_zero_of_none_that_gptq_stores_less_one_wraps(tmp_path: Path) -> None:
    found = []
    for stored in (0, -1):  # of all ones: less one is what the bits hold
        folder = tmp_path / str(stored)
        made.write_quantised(folder, "gptq")
        tensors = load_file(folder / "model.safetensors")
        tensors[f"{GATE}.qzeros"].fill_(stored)
        save_file(tensors, folder / "model.safetensors")
        source = open_source(load_decoder_config(folder))
        found.append(source.read(f"{GATE}.weight", (96, 64)))
    scales = tensors[f"{GATE}.scales"].float().repeat_interleave(32, dim=0).T
    torch.testing.assert_close(found[1] - found[0], scales)


def test_biases_of_zeros_that_gptq_adds_are_none(tmp_path: Path) -> None:
    made.write_quantised(tmp_path, "gptq")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{GATE}.bias"] = torch.zeros(96, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    Decoder.load(load_decoder_config(tmp_path))


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
REFUSED: list[tuple[dict[str, object], str, str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method", "cannot be computed"),
    ({**GPTQ, "bits": 3}, "quant_method", "with bits 3 is not supported"),
    ({**GPTQ, "group_size": 48}, "group_size", "is 48"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format", 'is "marlin"'),
    ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "version",
     'is "gemv"'),
    ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": False}, "zero_point",
     "is false"),
    ({**made.compressed(4, "int", 32), "format": "marlin-24"}, "format", 'is "marlin-24"'),
    ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 128}, "quant_algo",
     'is "W4A16_AWQ"'),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt", 'is "e5m2"'),
    ({**GPTQ, "desc_act": 1}, "desc_act", "is 1. Write true or false"),
    ({**GPTQ, "desc_act": "false"}, "desc_act", 'is "false". Write true or false'),
    (made.compressed(4, "int", 32, actorder="sideways"), "config_groups.weights.actorder",
     'is "sideways". With real tokens: group, dynamic, weight, static'),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "field", "message"), REFUSED)
def test_what_cannot_be_unpacked_is_refused(
    settings: dict[str, object], field: str, message: str, tmp_path: Path
) -> None:
    config = {**made.CONFIG, "quantization_config": settings}
    made.write_folder(tmp_path, config, {})
    with pytest.raises(InputError) as caught:
        load_decoder_config(tmp_path)
    assert caught.value.field == f"quantization_config.{field}"
    assert message in str(caught.value)
    assert caught.value.line


@pytest.mark.parametrize(
    ("order", "reordered"),
    [("group", True), ("GROUP", True), ("Dynamic", True), (True, True), ("static", False),
     ("weight", False), (False, False), (None, False)],
)  # fmt: skip
def test_orders_of_compressed_tensors(order: object, reordered: bool, tmp_path: Path) -> None:
    settings = made.compressed(4, "int", 32, actorder=order)
    made.write_folder(tmp_path, {**made.CONFIG, "quantization_config": settings}, {})
    packing = packing_of(open_config(tmp_path))
    assert packing is not None
    assert packing.reordered == reordered


def test_packed_weights_without_a_word_in_the_config(tmp_path: Path) -> None:
    made.write_quantised(tmp_path, "fp8 per tensor")
    (tmp_path / "config.json").write_text(json.dumps(made.CONFIG))
    with pytest.raises(InputError, match=r"has data type F8_E4M3.*how they are quantised"):
        Decoder.load(load_decoder_config(tmp_path))


@pytest.mark.parametrize("kind", made.KINDS)
def test_slabs_make_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "_SLAB", 1000)  # 15 rows of 64, of AWQ 8
    weight = made.write_quantised(tmp_path, kind)[f"{GATE}.weight"]
    found = open_source(load_decoder_config(tmp_path)).read(f"{GATE}.weight", weight.shape)
    torch.testing.assert_close(found, weight, rtol=2e-7, atol=1e-9)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    """MXFP4 [experts, outputs, blocks, 16 bytes], by powers of two; read as [experts, inputs,
    outputs].
    """
    name, (experts, outputs, inputs) = "model.layers.0.mlp.experts.down_proj", (2, 6, 64)
    codes = torch.randint(0, 16, (experts, outputs, inputs))
    powers = torch.randint(120, 130, (experts, outputs, inputs // 32))
    pairs = codes.view(experts, outputs, inputs // 32, 16, 2)
    stored = {
        f"{name}_blocks": (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8),
        f"{name}_scales": powers.to(torch.uint8),
    }
    settings = {"quant_method": "mxfp4"}
    made.write_folder(tmp_path, {**made.CONFIG, "quantization_config": settings}, stored)
    source = open_source(load_decoder_config(tmp_path))
    found = source.read(name, (experts, inputs, outputs))
    for at in ((0, 0, 0), (1, 63, 5), (0, 33, 2), (1, 17, 3)):
        code = int(codes[at[0], at[2], at[1]])
        value = made.FP4[code % 8] * (-1 if code > 7 else 1)
        assert float(found[at]) == value * 2.0 ** (int(powers[at[0], at[2], at[1] // 32]) - 127)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp8 in blocks", "gptq", "awq"])
def test_check_model_compares_them_with_transformers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")
    made.write_quantised(tmp_path, kind)
    assert main(["check-model", str(tmp_path), "--prompts", "5,20", "--new-tokens", "4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "in float32: agrees with transformers" in shown
    assert "transformers was given them as dequantised here" in shown
    command = ["check-model", str(tmp_path), "--dtype", "bfloat16", "--new-tokens", "2", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["dequantised"] is True


def microscaled(name: str, experts: torch.Tensor) -> tuple[made.Tensors, torch.Tensor]:
    """gpt-oss' experts [experts, inputs, outputs] in MXFP4, and what they stand for."""
    count, inputs, outputs = experts.shape
    blocks = experts.transpose(1, 2).reshape(count, outputs, inputs // 32, 32)
    powers = torch.ceil(torch.log2(blocks.abs().amax(dim=-1, keepdim=True) / 6))
    values = torch.tensor([*made.FP4, *(-one for one in made.FP4)])
    codes = (blocks.unsqueeze(-1) / 2 ** powers.unsqueeze(-1) - values).abs().argmin(dim=-1)
    meant = (values[codes] * 2**powers).reshape(count, outputs, inputs).transpose(1, 2)
    stored = {
        f"{name}_blocks": (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8),
        f"{name}_scales": (powers.squeeze(-1) + 127).to(torch.uint8),
    }
    return stored, meant


# A family -> (settings, which tensors are packed, how). Experts lie one by one, as parts of fused
# matrices, and stacked.
FAMILIES = {
    "deepseek-v3": (
        {"quant_method": "fp8", "weight_block_size": [32, 32]}, "_proj.weight",
        made.fp8("weight_scale_inv", 32, 32),
    ),
    "mixtral": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "experts", made.gptq()),
    "phi3": ({"quant_method": "awq", "bits": 4, "group_size": 32}, "qkv_proj", made.awq()),
    "gpt-oss": ({"quant_method": "mxfp4"}, "experts", microscaled),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_families(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")
    settings, packed, pack = FAMILIES[family]
    write_checkpoint(tmp_path / "plain", family)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    meant = load_file(tmp_path / "plain" / "model.safetensors")
    stored: made.Tensors = {}
    number = 0
    for name, tensor in meant.items():
        if packed in name and not name.endswith("bias") and tensor.dim() > 1:
            parts, meant[name] = pack(name.removesuffix(".weight"), tensor.float())
            stored |= parts
            number += 1
        else:
            stored[name] = tensor
    assert number > 2
    made.write_folder(tmp_path / "plain", config, meant)
    made.write_folder(
        tmp_path / "quantised", {**config, "quantization_config": settings}, stored
    )  # fmt: skip
    quantised, plain = (logits(tmp_path / name, "float32") for name in ("quantised", "plain"))
    torch.testing.assert_close(quantised, plain, rtol=0, atol=1e-5)
    assert main(["check-model", str(tmp_path / "quantised"), "--prompts", "5,40"]) == 0


@pytest.mark.slow
def test_a_run_says_what_it_computes_and_makes_the_same_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    meant = made.write_quantised(tmp_path / "model-gptq", "gptq")
    made.write_folder(tmp_path / "plain", made.CONFIG, meant)
    lines = [{"timestamp": 0, "input_length": 9 + i, "output_length": 5} for i in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("model-gptq", "plain"):
        command = ["serve-trace", "t.jsonl", "--device", "cpu:shared", "--model", f"./{name}"]
        command += ["--scheduler", "vllm", "--dtype", "float32", "--json"]
        assert main(command) == 0
        (run,) = json.loads(capsys.readouterr().out)["runs"]
        resolved = run["resolved"]
        assert resolved["model"]["dtypes"]["weights"] == "float32"
        said = [text for text in resolved["caveats"] if "dequantised to float32" in text]
        assert len(said) == len(resolved["caveats"]) == (name != "plain")
    one, two = (RunReader(folder).tokens() for folder in sorted(Path("results").glob("*-vllm*")))
    assert one == two
    assert [len(one[index]) for index in range(3)] == [5, 5, 5]
