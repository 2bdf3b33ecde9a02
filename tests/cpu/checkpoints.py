"""Small checkpoints as transformers writes them, with weights large enough to matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
}
# Windows and ropes are short, so that prompts of a few dozen tokens are beyond them.
WINDOW = {"sliding_window": 24}
# name -> (configuration class, model class, what differs)
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama-3.1": ("LlamaConfig", "LlamaForCausalLM", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama-biases": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen2-tied": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "mistral-window": ("MistralConfig", "MistralForCausalLM", WINDOW),
    "qwen2-window": (
        "Qwen2Config", "Qwen2ForCausalLM",
        {**WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3-yarn": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32, "rope_parameters": YARN}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {}),
    "phi3-partial": (
        "Phi3Config", "Phi3ForCausalLM",
        {**WINDOW, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        }},
    ),
    "phi3-longrope": (
        "Phi3Config", "Phi3ForCausalLM",
        {"original_max_position_embeddings": 256, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0,
            "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.1, 3.8], "long_factor": [4.0] * 8,
        }},
    ),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    "mixtral-window": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4, **WINDOW}),
    "qwen2-moe": (
        "Qwen2MoeConfig", "Qwen2MoeForCausalLM",
        {**EXPERTS, "shared_expert_intermediate_size": 48, "mlp_only_layers": [1]},
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        {**EXPERTS, "head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    "deepseek-v2": (
        "DeepseekV2Config", "DeepseekV2ForCausalLM",
        {**LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 3.0},
    ),
    "deepseek-v2-lite": (
        "DeepseekV2Config", "DeepseekV2ForCausalLM",
        {**LATENT, "q_lora_rank": None, "n_group": None, "topk_group": None, "rope_parameters": {
            **YARN, "mscale": 0.7, "mscale_all_dim": 0.5,
        }},
    ),
    "deepseek-v3": (
        "DeepseekV3Config", "DeepseekV3ForCausalLM",
        {**LATENT, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "deepseek-v3-halves": (
        "DeepseekV3Config", "DeepseekV3ForCausalLM",
        {**LATENT, "rope_interleave": False, "attention_bias": True, "n_group": 1,
         "topk_group": 1, "norm_topk_prob": False},
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config", "Gemma2ForCausalLM",
        {**WINDOW, "head_dim": 16, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 4.0},
    ),
    "gemma3": (
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {**WINDOW, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
         }},
    ),
    "gpt-oss": (
        "GptOssConfig", "GptOssForCausalLM",
        {**WINDOW, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
         "swiglu_limit": 1.0, "rope_parameters": {**YARN, "truncate": False}},
    ),
}  # fmt: skip
# Decoders of multi-modal models: what stands beside the keys of the decoder.
TOWERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "gemma3-vision": (
        "gemma3",
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "mm_tokens_per_image": 4,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
        },
    ),
}
# One of each family that is more than a dense decoder of full attention.
FAMILIES = (
    "mixtral", "qwen2-moe", "qwen3-moe", "deepseek-v2", "deepseek-v3", "gemma2", "gemma3",
    "gpt-oss", "phi3",
)  # fmt: skip


def write_checkpoint(folder: Path, variant: str, **saving: Any) -> Any:
    """Write the variant's checkpoint; returns transformers' model."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(sum(map(ord, variant)))
    if variant in TOWERS:
        decoder, config_class, model_class, changes = TOWERS[variant]
        changes = {**changes, "text_config": {**SHAPE, **VARIANTS[decoder][2]}}
    else:
        config_class, model_class, changes = VARIANTS[variant]
        changes = {**SHAPE, **changes}
    config = getattr(transformers, config_class)(**changes)
    model = getattr(transformers, model_class)(config).eval()
    for name, parameter in model.named_parameters():
        # As initialised, norms are one and biases zero: a wrong one would go unseen.
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
        elif "sinks" in name:
            torch.nn.init.normal_(parameter, 1.0, 1.0)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer, 0.0, 0.2)
    model.save_pretrained(folder, **saving)
    return model
