"""A run from its config to its result: resolved, opened, assembled, served, recorded."""
