"""RunConfig: everything that decides a run, in one frozen value."""

from __future__ import annotations

from typing import Literal

import msgspec


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides a run: the same config and trace give the same event log on ``sim``
    (I6).

    Names and meanings are vLLM's where it has them; None means "resolve from device and model", and
    what was resolved stands in the manifest. ``goodput`` maps ttft, tbt, tpot, e2e to bounds in ms.
    ``concurrency`` makes the trace a closed loop of so many users. ``price_per_hour`` is
    dollars for an hour of one GPU, ``watts`` what one GPU draws.
    """

    trace: str
    device: str = "auto"
    model: str = "llama-3.1-8b"
    scheduler: str = "nexus"
    partitioner: str | None = None
    cost_model: str = "roofline"
    tensor_parallel_size: int = 1
    kernel_table: str | None = None
    gpu_memory_utilization: float = 0.9
    kv_blocks: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    too_long: Literal["reject", "skip", "clip", "error"] = "reject"
    speed: float | None = None
    request_rate: float | None = None
    burstiness: float | None = None
    limit: int | None = None
    window: str | None = None
    spread_ties: Literal["none", "uniform"] = "none"
    concurrency: int | None = None
    max_tokens: str | None = None
    warmup_s: float = 0.0
    goodput: dict[str, float] = {}
    price_per_hour: float | None = None
    watts: float | None = None
    seed: int = 0
