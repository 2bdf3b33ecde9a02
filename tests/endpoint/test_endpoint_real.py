"""A replay against a server of somebody else's, if one is there to be asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nexusbench

URL = os.environ.get("NEXUSBENCH_ENDPOINT", "")


@pytest.mark.skipif(not URL, reason="NEXUSBENCH_ENDPOINT names no server to ask")
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_a_real_server(
    api: Any, write_trace: Callable[[list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    lines = [
        {"timestamp": 50 * index, "input_length": 40 + 5 * index, "output_length": 4 + index}
        for index in range(8)
    ]
    config = nexusbench.EndpointConfig(trace=str(write_trace(lines)), endpoint=URL, api=api)
    result = nexusbench.run(config, results=tmp_path / "results")
    metrics = result.summary.metrics
    assert metrics["finished"].value == 8
    assert metrics["ttft"].n == 8
    assert metrics["tbt"].n > 0
    client = result.resolved.client
    if result.resolved.endpoint.pinned:
        assert (client.short, client.long) == (0, 0)
        assert result.events.num_output_tokens.tolist() == list(range(4, 12))
    if result.resolved.endpoint.prompt == "ids" and client.prompts_counted:
        assert client.prompt_worst <= 2
