"""Models: their description from an HF ``config.json`` (needs no torch) and the torch decoder."""
