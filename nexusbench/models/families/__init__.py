"""Model families: what a ``model_type`` of config.json is as a decoder; one a file."""
