"""Tiny quantised checkpoints, packed value by value from the definition of each format, and the
same weights as plain floats.

Nothing here is shared with the package: a matrix is quantised, its codes are written bit by bit
into words, and what the codes stand for is computed in Python floats.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

HIDDEN, WIDE, HEADS, KV_HEADS, VOCAB, LAYERS = 64, 96, 4, 2, 61, 2
SIZE = HIDDEN // HEADS
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5, "eos_token_id": None,
}  # fmt: skip
MATRICES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV_HEADS * SIZE, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * SIZE, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}  # fmt: skip
Tensors = dict[str, torch.Tensor]
# (name of the module, weight) -> (stored tensors, the weights that they stand for)
Packer = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def words(codes: list[int], bits: int) -> list[int]:
    """Codes -> signed 32-bit words, lowest bits first."""
    made = []
    for first in range(0, len(codes), 32 // bits):
        word = 0
        for place, code in enumerate(codes[first : first + 32 // bits]):
            assert 0 <= code < 1 << bits
            word |= code << (bits * place)
        made.append(word - (1 << 32) if word >= 1 << 31 else word)
    return made


def along_rows(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[R, C] codes, each row packed on its own."""
    return torch.tensor([words([int(x) for x in row], bits) for row in codes], dtype=torch.int32)


def along_columns(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[R, C] codes, each column packed on its own."""
    return along_rows(codes.T, bits).T.contiguous()


def affine(
    weight: torch.Tensor, bits: int, group_of: list[int], symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, torch.Tensor]:
    """Integers [outputs, inputs], zeros and scales [outputs, groups], and what they stand for.
    Scales are numbers of 16 bits.
    """
    top = (1 << bits) - 1
    outputs, inputs = weight.shape
    groups = max(group_of) + 1
    codes, zeros = np.zeros((outputs, inputs), int), np.zeros((outputs, groups), int)
    scales = np.zeros((outputs, groups), np.float16)
    made = torch.empty(outputs, inputs)
    for o in range(outputs):
        for g in range(groups):
            own = [i for i in range(inputs) if group_of[i] == g]
            values = [float(weight[o, i]) for i in own]
            low, high = min(*values, 0.0), max(*values, 0.0)
            if symmetric:
                high = max(high, -low)
                low = -high
            scale = np.float16((high - low) / top)
            zero = (top + 1) // 2 if symmetric else round(-low / float(scale))
            zeros[o, g], scales[o, g] = min(max(zero, 1), top), scale
            for i in own:
                code = round(float(weight[o, i]) / float(scale)) + int(zeros[o, g])
                codes[o, i] = min(max(code, 0), top)
                made[o, i] = (int(codes[o, i]) - int(zeros[o, g])) * float(scale)
    return codes, zeros, scales, made


def neighbours(inputs: int, group: int) -> list[int]:
    """The group of each input."""
    return [0 if group == -1 else i // group for i in range(inputs)]


def gptq(
    bits: int = 4, group: int = 32, *, reordered: bool = False, v2: bool = False,
    symmetric: bool = False,
) -> Packer:  # fmt: skip
    """AutoGPTQ: [inputs, outputs], words along the inputs; v1 stores zeros less one."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        group_of = neighbours(weight.shape[1], group)
        if reordered:
            random.Random(len(name)).shuffle(group_of)
        codes, zeros, scales, made = affine(weight, bits, group_of, symmetric)
        stored = {
            f"{name}.qweight": along_columns(codes.T, bits),
            f"{name}.qzeros": along_rows(zeros.T - (0 if v2 else 1), bits),
            f"{name}.scales": torch.from_numpy(scales.T.copy()),
            f"{name}.g_idx": torch.tensor(group_of, dtype=torch.int32),
        }
        return stored, made

    return pack


def awq(group: int = 32) -> Packer:
    """AutoAWQ's GEMM: [inputs, outputs], eight outputs a word in the order 0 2 4 6 1 3 5 7."""

    def interleaved(codes: np.ndarray) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        places = [first + o for first in range(0, codes.shape[1], 8) for o in order]
        return along_rows(codes[:, places], 4)

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        group_of = neighbours(weight.shape[1], group)
        codes, zeros, scales, made = affine(weight, 4, group_of, False)
        stored = {
            f"{name}.qweight": interleaved(codes.T), f"{name}.qzeros": interleaved(zeros.T),
            f"{name}.scales": torch.from_numpy(scales.T.copy()),
        }  # fmt: skip
        return stored, made

    return pack


def compressed_integers(
    bits: int, group: int, symmetric: bool = True, reordered: bool = False
) -> Packer:
    """compressed-tensors' pack-quantized: [outputs, inputs]; zeros packed along the outputs."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        group_of = neighbours(weight.shape[1], group)
        group_of = group_of[::-1] if reordered else group_of
        codes, zeros, scales, made = affine(weight, bits, group_of, symmetric)
        stored = {
            f"{name}.weight_packed": along_rows(codes, bits),
            f"{name}.weight_scale": torch.from_numpy(scales),
            f"{name}.weight_shape": torch.tensor(weight.shape),
        }
        if reordered:
            stored[f"{name}.weight_g_idx"] = torch.tensor(group_of, dtype=torch.int32)
        if not symmetric:
            stored[f"{name}.weight_zero_point"] = along_columns(zeros, bits)
        return stored, made

    return pack


def int8_rows(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """compressed-tensors' int-quantized: a scale for each row."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    codes = torch.round(weight / scales).to(torch.int8)
    return {f"{name}.weight": codes, f"{name}.weight_scale": scales}, codes.float() * scales


def fp8(scale_name: str, rows: int, columns: int, *, scalar: bool = False) -> Packer:
    """E4M3 with a scale for each block of so many rows and columns."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        outputs, inputs = weight.shape
        down, across = -(-outputs // rows), -(-inputs // columns)
        scales, made = torch.empty(down, across), torch.empty(outputs, inputs)
        codes = torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn)
        for r in range(down):
            for c in range(across):
                at = slice(r * rows, (r + 1) * rows), slice(c * columns, (c + 1) * columns)
                scales[r, c] = weight[at].abs().max() / 448
                codes[at] = (weight[at] / scales[r, c]).to(torch.float8_e4m3fn)
                made[at] = codes[at].float() * scales[r, c]
        kept = scales.view(()) if scalar else scales
        stored = {f"{name}.weight": codes, f"{name}.{scale_name}": kept.clone()}
        stored[f"{name}.input_scale"] = torch.tensor(0.5)
        return stored, made

    return pack


def small_floats(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """NVFP4 as ModelOpt writes it: scales of 16 values in E4M3, times one of the tensor."""
    outputs, inputs = weight.shape
    whole = float(weight.abs().max()) / (6 * 448)
    codes = torch.zeros(outputs, inputs // 2, dtype=torch.uint8)
    scales = torch.empty(outputs, inputs // 16, dtype=torch.float8_e4m3fn)
    made = torch.empty(outputs, inputs)
    for o in range(outputs):
        for g in range(inputs // 16):
            own = weight[o, 16 * g : 16 * g + 16]
            scales[o, g] = float(own.abs().max()) / 6 / whole
            scale = float(scales[o, g].float()) * whole
            for place in range(16):
                value = float(own[place]) / scale
                code = min(range(8), key=lambda each: abs(FP4[each] - abs(value)))
                made[o, 16 * g + place] = FP4[code] * scale * (-1 if value < 0 else 1)
                code += 8 if value < 0 else 0
                codes[o, (16 * g + place) // 2] |= code << (4 * (place % 2))
    stored = {
        f"{name}.weight": codes, f"{name}.weight_scale": scales,
        f"{name}.weight_scale_2": torch.tensor(whole),
    }  # fmt: skip
    return stored, made


def plain_weights(seed: int = 0) -> Tensors:
    """Random weights of the tiny model, float32."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.15

    made = {
        "model.embed_tokens.weight": drawn(VOCAB, HIDDEN),
        "lm_head.weight": drawn(VOCAB, HIDDEN),
    }
    made["model.norm.weight"] = 1 + drawn(HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            made[f"{at}.{norm}.weight"] = 1 + drawn(HIDDEN)
        for module, shape in MATRICES.items():
            made[f"{at}.{module}.weight"] = drawn(*shape)
    return made


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """config.json and one file of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(
        {name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors"
    )


def compressed(bits: int, kind: str, group: int | None = None, **weights: Any) -> dict[str, Any]:
    """``quantization_config`` of compressed-tensors with one group."""
    form = "pack-quantized" if group is not None and kind == "int" else f"{kind}-quantized"
    held = {"num_bits": bits, "type": kind, "group_size": group, **weights}
    return {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": held}},
    }  # fmt: skip


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
# name -> (quantization_config, how matrices are packed)
KINDS: dict[str, tuple[dict[str, Any], Packer]] = {
    "fp8 per tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        fp8("weight_scale", 1000, 1000, scalar=True),
    ),
    "fp8 in blocks": (
        {"quant_method": "fp8", "weight_block_size": [32, 40]}, fp8("weight_scale_inv", 32, 40)
    ),
    "fp8 of ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
        fp8("weight_scale", 1000, 1000, scalar=True),
    ),
    "fp8 of compressed-tensors": (compressed(8, "float"), fp8("weight_scale", 1, 1000)),
    "fp8 of compressed-tensors in blocks": (
        compressed(8, "float", strategy="block", block_structure=[48, 32]),
        fp8("weight_scale", 48, 32),
    ),
    "int8 of compressed-tensors": (compressed(8, "int"), int8_rows),
    "int4 of compressed-tensors": (compressed(4, "int", 32), compressed_integers(4, 32)),
    "int4 of compressed-tensors, reordered": (
        compressed(4, "int", 32, actorder="group"), compressed_integers(4, 32, reordered=True)
    ),
    "int8 of compressed-tensors, packed": (compressed(8, "int", -1), compressed_integers(8, -1)),
    "int4 of compressed-tensors, with zeros": (
        compressed(4, "int", 32, symmetric=False), compressed_integers(4, 32, symmetric=False)
    ),
    "gptq": (_GPTQ, gptq()),
    "gptq, symmetric": ({**_GPTQ, "sym": True}, gptq(symmetric=True)),
    "gptq, reordered": ({**_GPTQ, "desc_act": True}, gptq(reordered=True)),
    "gptq of 8 bits, whole rows": (
        {**_GPTQ, "bits": 8, "group_size": -1}, gptq(bits=8, group=-1)
    ),
    "gptq, version 2": ({**_GPTQ, "checkpoint_format": "gptq_v2"}, gptq(v2=True)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq()),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
              small_floats),
}  # fmt: skip


@cache
def packed(kind: str) -> tuple[Tensors, Tensors]:
    """(tensors of the checkpoint, weights that they stand for): the matrices of layer 0 are packed,
    all else is left as it is. Packing value by value takes a while, so each kind is made once.
    """
    stored: Tensors = {}
    meant: Tensors = {}
    for name, tensor in plain_weights().items():
        if "layers.0." not in name or "_proj" not in name:
            stored[name] = meant[name] = tensor
        else:
            made, meant[name] = KINDS[kind][1](name.removesuffix(".weight"), tensor)
            stored |= made
    return stored, meant


def write_quantised(folder: Path, kind: str) -> Tensors:
    """Write the checkpoint of that kind; returns all weights as they are to be computed with."""
    stored, meant = packed(kind)
    write_folder(folder, {**CONFIG, "quantization_config": KINDS[kind][0]}, stored)
    return meant
