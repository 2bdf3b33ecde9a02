"""Models (``models/*.json``, as published) and GPUs (``gpus/*.toml``, each number sourced)."""
