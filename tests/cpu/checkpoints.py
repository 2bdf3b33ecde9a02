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
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
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
}


def write_checkpoint(folder: Path, variant: str, **saving: Any) -> Any:
    """Write the variant's checkpoint; returns transformers' model."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config_class, model_class, changes = VARIANTS[variant]
    torch.manual_seed(sum(map(ord, variant)))
    config = getattr(transformers, config_class)(**{**SHAPE, **changes})
    model = getattr(transformers, model_class)(config).eval()
    for name, parameter in model.named_parameters():
        # As initialised, norms are one and biases zero: a wrong one would go unseen.
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    model.save_pretrained(folder, **saving)
    return model
