"""Models and GPUs as data: ``models/*.json`` as published, ``gpus/*.toml`` with the source of each number."""
