"""What a run resolved: written by the composition root, read as fields by every screen, report,
gate and comparison, and checked once where a manifest is decoded (``results/manifest.py``).

Every run writes all of it, except what is measured until its end (``decision_us``,
``host_gaps``, ``client``). A field has a default where runs of schema 1 may lack it; of schema 2
every key is demanded on reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from nexusbench.core.documents import JsonObject, ReadByKey, convert
from nexusbench.core.events import RunFacts
from nexusbench.core.host import EngineHost
from nexusbench.core.kv_layout import KvPages
from nexusbench.core.specs import Dtypes, GpuSpec, ModelSpec
from nexusbench.core.state import Limits
from nexusbench.core.work import Amount, Count, HostGap, Work

_INT64 = 2**63 - 1
Positive = Annotated[int, msgspec.Meta(ge=1, le=_INT64)]
Above = Annotated[float, msgspec.Meta(gt=0)]
SloBounds = dict[Literal["ttft", "tbt", "tpot", "e2e", "itl", "e2el"], Above]  # ms
StepBudgets = dict[Literal["max_num_seqs", "max_num_batched_tokens", "max_model_len"], int]
PolicyOptions = JsonObject  # of one policy, as its own Options struct holds them


class ServedTrace(ReadByKey, frozen=True, kw_only=True):
    """The trace that was served; ``concurrency`` users of a closed loop, ``following`` turns that
    begin after the end of the turn before.
    """

    name: str
    format: str = ""
    sha256: str
    requests: Count
    notes: list[str]
    oracle_max_tokens: bool = False
    concurrency: Count
    following: Count


class ServedDtypes(Dtypes, frozen=True, kw_only=True):
    """Data types per tensor class, none left out."""

    weights: str
    embeddings: str
    kv: str
    activations: str


class ServedModel(ModelSpec, frozen=True, kw_only=True):
    """The model that was served."""

    dtypes: ServedDtypes


class FittedProfile(ReadByKey, frozen=True, kw_only=True):
    """The profile that a belief was fitted to; ``forced`` if it is one of another device or model,
    ``limits`` the step budgets within which was measured.
    """

    file: str = ""
    points_sha256: str
    of: str
    forced: bool
    limits: StepBudgets | None


class BeliefFacts(ReadByKey, frozen=True, kw_only=True):
    """The cost model that was asked; ``recalibrate`` may say over what."""

    cost_model: str
    options: PolicyOptions = {}
    profile: FittedProfile | None
    recalibrate: bool | str


class ResolvedRun(ReadByKey, frozen=True, kw_only=True):
    """What every run resolved, whatever served it."""

    device: str
    trace: ServedTrace
    machine: dict[str, str | int | float | bool | None]
    seed: Count
    slo: SloBounds
    warmup_ns: Count
    gpus: Positive
    price_per_hour: Above | None  # dollars for an hour of one GPU
    watts: Above | None  # of one GPU


class ResolvedEngineRun(ResolvedRun, frozen=True, kw_only=True):
    """What a run of the engine resolved. ``pools`` are the memories that hold KV blocks, ``homes``
    the pool of each partition's GPU; ``kv_blocks`` counts those of all GPUs.
    """

    gpu: GpuSpec
    num_sms: Positive
    kernel_table: str | None
    environment: dict[str, str]
    work: Work | None
    random_weights: bool
    made_of_profile: str | None
    host: EngineHost | UnsetType = UNSET  # of the serving engine named, if one was
    legal_splits: list[str] = []
    model: ServedModel
    caveats: list[str] = []
    scheduler: str
    # Whose rules of which version; runs of before it was kept have none.
    scheduler_rules: str | UnsetType = UNSET
    scheduler_options: PolicyOptions
    partitioner: str
    partitioner_options: PolicyOptions
    kv_blocks: Positive
    block_size: Positive
    # What blocks are where not all layers keep all tokens; ``kv_blocks`` are pages then.
    kv_groups: KvPages | UnsetType = UNSET
    limits: Limits
    swap_bytes: float = 0.0
    pools: Annotated[list[str], msgspec.Meta(min_length=1)]
    homes: list[Count]
    belief: BeliefFacts | None
    decision_us: dict[str, Count | Amount] | UnsetType = UNSET
    host_gaps: dict[str, HostGap] | UnsetType = UNSET


class NamedThing(ReadByKey, frozen=True, kw_only=True):
    """What is known of a model or a GPU behind a server."""

    name: str


class ServerLimits(ReadByKey, frozen=True, kw_only=True):
    """The longest context of a server, where it told."""

    max_model_len: Positive | None


class ServerFacts(ReadByKey, frozen=True, kw_only=True):
    """How the server was asked. ``measure``: tokens that it counts for a text, fixed
    and per word.
    """

    url: str
    api: str
    prompt: str
    pinned: bool
    usage: str = ""
    measure: dict[str, float] | None = None
    notes: list[str]
    timeout_s: float = 0.0


class ClientFacts(ReadByKey, frozen=True, kw_only=True):
    """What the client noticed of the answers (``endpoint/recording.py``) and of itself."""

    answered: Count = 0
    finished: Count = 0
    prompts_counted: Count
    prompts_exact: Count
    prompt_tokens_asked: Count
    prompt_tokens_counted: Count
    prompt_worst: Count
    cached_counted: Count = 0
    cached_tokens: Count = 0
    cached_refused: Count = 0
    odd: Count = 0
    short: Count
    long: Count
    deliveries: Count
    several: Count
    at_once: Count = 0
    in_bursts: Count = 0
    untold: Count = 0
    reasoned: Count = 0
    hidden: Count = 0
    hidden_tokens: Count = 0
    counting: dict[str, Count]
    warnings: list[str] = []
    connections_opened: Count
    sent_on_a_late_connection: Count
    made_when_due: Count = 0


class ResolvedReplay(ResolvedRun, frozen=True, kw_only=True):
    """What a replay against a server resolved; a client sees no GPU, policy or KV pool."""

    observed: Literal["client"]
    gpu: NamedThing
    num_sms: Literal[0] = 0
    kv_blocks: Literal[0] = 0
    block_size: Literal[0] = 0
    model: NamedThing
    scheduler: None = None
    partitioner: None = None
    belief: None = None
    limits: ServerLimits
    endpoint: ServerFacts
    client: ClientFacts | UnsetType = UNSET


Resolved = ResolvedEngineRun | ResolvedReplay


def slo_bounds(goodput: Mapping[str, float]) -> SloBounds:
    """The bounds of a config, ms. Raises InputError for an unknown name or a bound not above 0."""
    return convert(goodput, SloBounds, None, at="goodput")


def budgets(limits: Limits | None) -> StepBudgets | None:
    """What bounds a step; None where that is not known."""
    return None if limits is None else msgspec.convert(limits.budgets, StepBudgets)


def served_model(model: ModelSpec) -> ServedModel:
    """``model`` for :class:`ResolvedEngineRun`."""
    return msgspec.convert(msgspec.to_builtins(model), ServedModel)


def facts_for_metrics(
    resolved: Resolved,
    *,
    simulated: bool,
    partitions: Sequence[str],
    splits: Sequence[Sequence[int]],
    strings: Sequence[str] = (),
) -> RunFacts:
    """What metrics take of a run besides its event log."""
    facts = RunFacts(
        simulated=simulated,
        num_sms=resolved.num_sms,
        kv_blocks=resolved.kv_blocks,
        block_size=resolved.block_size,
        partitions=tuple(partitions),
        splits=tuple(map(tuple, splits)),
        strings=tuple(strings),
        device=resolved.device,
        slo={str(name): bound for name, bound in resolved.slo.items()},
        warmup_ns=resolved.warmup_ns,
        gpus=resolved.gpus,
        price_per_hour=resolved.price_per_hour,
        watts=resolved.watts,
    )
    if isinstance(resolved, ResolvedReplay):
        return msgspec.structs.replace(facts, observed="client")
    return msgspec.structs.replace(
        facts,
        work=resolved.work,
        pools=tuple(resolved.pools),
        homes=tuple(resolved.homes),
        host_gaps={} if resolved.host_gaps is UNSET else resolved.host_gaps,
    )
