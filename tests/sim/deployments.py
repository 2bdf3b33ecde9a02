"""Traces and refusals of runs on several GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.serving.assembly import assemble


def trace_of(tmp_path: Path, *rows: tuple[float, int, int], **more: Any) -> Path:
    """A trace of requests of (timestamp, input_length, output_length), all with ``more``."""
    path = tmp_path / "trace.jsonl"
    keys = ("timestamp", "input_length", "output_length")
    lines = [json.dumps({**dict(zip(keys, row, strict=True)), **more}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal_of(config: RunConfig) -> str:
    """Why the run cannot be."""
    with pytest.raises(UsageError) as error:
        assemble(config)
    return str(error.value)
