"""What a manifest's ``config`` and ``resolved`` hold, as readers rely on it: checked once, on
decoding, so that a damaged or foreign manifest is one located error and never a reader's surprise.

All of it is written by every run, so all of it is required, but for what only the end of a run
knows (``decision_us``, ``host_gaps``, ``client``): a run that was cut short has none of those.
Keys that no reader needs may be there, and may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from nexusbench.core.specs import Dtypes, GpuSpec, ModelSpec
from nexusbench.core.state import Limits

_INT64 = 2**63 - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=_INT64)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_INT64)]
Above = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Slo = dict[Literal["ttft", "tbt", "tpot", "e2e", "itl", "e2el"], Above]


class _Traffic(msgspec.Struct, kw_only=True):
    """What was asked of the traffic, whatever served it."""

    trace: str
    seed: Count
    too_long: str
    speed: Above | None
    request_rate: Above | None
    burstiness: Above | None
    limit: Positive | None
    window: str | None
    spread_ties: str
    quantize_arrivals: Above | None
    concurrency: Positive | None


class AskedOfEngine(_Traffic, kw_only=True):
    """The settings of an engine's run that screens and comparisons read."""

    device: str
    model: str
    scheduler: str
    partitioner: str | None
    cost_model: str | None
    profile: str | None
    recalibrate: bool
    tensor_parallel_size: Positive
    prefix_caching: bool
    max_tokens: str | None


class AskedOfServer(_Traffic, kw_only=True):
    """The settings of a replay against a server that screens and comparisons read."""

    endpoint: str
    model: str | None


class TraceFacts(msgspec.Struct, kw_only=True):
    """The trace that was served; ``concurrency`` users of a closed loop, ``following`` turns."""

    name: str
    sha256: str
    requests: Count
    notes: list[str]
    concurrency: Count
    following: Count


class DtypeFacts(Dtypes, frozen=True, kw_only=True):
    """Data types per tensor class, none left out."""

    weights: str
    embeddings: str
    kv: str
    activations: str


class ModelFacts(ModelSpec, frozen=True, kw_only=True):
    """The model that was served."""

    dtypes: DtypeFacts


class Fitted(msgspec.Struct, kw_only=True):
    """The profile that a belief was fitted to."""

    of: str
    forced: bool
    points_sha256: str
    limits: dict[Literal["max_num_seqs", "max_num_batched_tokens", "max_model_len"], int] | None


class BeliefFacts(msgspec.Struct, kw_only=True):
    """The cost model that was asked; ``recalibrate`` may say over what."""

    cost_model: str
    profile: Fitted | None
    recalibrate: bool | str


class Gap(msgspec.Struct, kw_only=True):
    """Launches of a partition that followed another, and the ns in between."""

    count: Count
    total_ns: Count
    longest_ns: Count


class _Run(msgspec.Struct, kw_only=True):
    """What every run resolved."""

    device: str
    trace: TraceFacts
    machine: dict[str, str | int | float | bool | None]
    seed: Count
    slo: Slo
    warmup_ns: Count
    gpus: Positive
    price_per_hour: Above | None
    watts: Above | None


class ResolvedOfEngine(_Run, kw_only=True):
    """What a run of the engine resolved."""

    gpu: GpuSpec
    num_sms: Positive
    model: ModelFacts
    kernel_table: str | None
    made_of_profile: str | None
    environment: dict[str, str]
    random_weights: bool
    work: dict[str, Amount] | None
    scheduler: str
    scheduler_options: dict[str, Any]
    partitioner: str
    partitioner_options: dict[str, Any]
    kv_blocks: Positive
    block_size: Positive
    limits: Limits
    pools: Annotated[list[str], msgspec.Meta(min_length=1)]
    homes: list[Count]
    belief: BeliefFacts | None
    caveats: list[str] = []  # of runs that are older than caveats, none
    decision_us: dict[str, Amount] = {}
    host_gaps: dict[str, Gap] = {}


class _Named(msgspec.Struct, kw_only=True):
    """What is known of a model or a GPU behind a server."""

    name: str


class _Context(msgspec.Struct, kw_only=True):
    """The longest context of a server, where it told."""

    max_model_len: Positive | None


class EndpointFacts(msgspec.Struct, kw_only=True):
    """How the server was asked."""

    url: str
    api: str
    prompt: str
    pinned: bool
    notes: list[str]


class ClientFacts(msgspec.Struct, kw_only=True):
    """What the client noticed of the answers and of itself."""

    prompts_counted: Count
    prompts_exact: Count
    prompt_tokens_asked: Count
    prompt_tokens_counted: Count
    prompt_worst: Count
    short: Count
    long: Count
    deliveries: Count
    several: Count
    counting: dict[str, Count]
    connections_opened: Count
    sent_on_a_late_connection: Count
    warnings: list[str] = []


class ResolvedOfServer(_Run, kw_only=True):
    """What a replay against a server resolved; a client sees no GPU, policy or KV pool."""

    observed: Literal["client"]
    gpu: _Named
    model: _Named
    num_sms: Literal[0]
    kv_blocks: Literal[0]
    block_size: Literal[0]
    scheduler: None
    partitioner: None
    belief: None
    limits: _Context
    endpoint: EndpointFacts
    client: ClientFacts | None = None


def kinds_of(resolved: Mapping[str, Any]) -> tuple[type[Any], type[Any]]:
    """The types of ``config`` and ``resolved``: an engine's, or those of a client of a server."""
    if resolved.get("observed") == "client":
        return AskedOfServer, ResolvedOfServer
    return AskedOfEngine, ResolvedOfEngine
