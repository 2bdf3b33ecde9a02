"""What ``advise`` compares: every scheduler with the partitioners that are worth trying, by the
registries, so that a plug-in takes part as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.registry import Registry, parse_options, split_spec
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import Scheduler, schedulers

# vLLM's default budget is 2,048 to 8,192 tokens by GPU; Sarathi-Serve uses 512.
CHUNKS = (512, 1024, 2048, 4096, 8192)


class Candidate(msgspec.Struct, frozen=True):
    """A way to serve: policies as typed, and the tokens of a step."""

    scheduler: str
    partitioner: str
    chunk: int

    @property
    def policy(self) -> str:
        """Without the chunk size."""
        return f"{self.scheduler} + {self.partitioner}"

    def __str__(self) -> str:
        return f"{self.policy}, {self.chunk} tokens"

    def apply(self, config: RunConfig) -> RunConfig:
        """``config`` served this way."""
        return msgspec.structs.replace(
            config,
            scheduler=self.scheduler,
            partitioner=self.partitioner,
            max_num_batched_tokens=self.chunk,
        )


def find_candidates(
    asked: Sequence[str] = (),
    sizers: Sequence[str] = (),
    chunks: Sequence[int] = CHUNKS,
    gpus: int = 1,
) -> tuple[list[Candidate], list[str]]:
    """All candidates in a fixed order, and why plug-ins were left out.

    ``asked`` and ``sizers`` are schedulers and partitioners as typed; none is all of them with the
    options that they advise, for a device of so many ``gpus``. Raises UsageError if nothing is
    left, or for a name typed wrongly.
    """
    skipped: list[str] = []
    found: list[Candidate] = []
    sizing = [
        (spec, partitioners.load(split_spec(spec)[0]))
        for spec in _specs(partitioners, sizers, skipped)
    ]
    for scheduler in _specs(schedulers, asked, skipped):
        policy = schedulers.load(split_spec(scheduler)[0])
        if not asked and policy.num_gpus != gpus:
            continue  # twice the hardware is no advice about this one
        found += [
            Candidate(scheduler, spec, chunk)
            for spec, cls in sizing
            if policy.partitions in cls.serves and policy.num_gpus in cls.num_gpus
            if sizers or _belongs(split_spec(spec)[0], policy)
            for chunk in chunks
        ]
    if not found:
        raise UsageError("no partitioner asked for can serve a scheduler asked for")
    return found, skipped


def _belongs(partitioner: str, policy: type[Scheduler]) -> bool:
    """Whether a policy is worth trying with a partitioner that was not asked for."""
    if partitioner == policy.default_partitioner:
        return True
    return policy.any_partitioner and partitioner not in schedulers.names()


def _specs(registry: Registry, asked: Sequence[str], skipped: list[str]) -> list[str]:
    """Plug-ins with their options, each set of options once."""
    if asked:
        return list(dict.fromkeys(_plain(registry, spec) for spec in asked))
    specs: list[str] = []
    for name in registry.names():
        try:
            advised: Sequence[str] = getattr(registry.load(name), "advised", ("",))
            specs += [_plain(registry, f"{name}:{options}") for options in advised]
        except NexusbenchError as error:
            # One that is broken must not keep the others from being compared.
            skipped.append(f"{registry.kind} {name} is left out: {error}")
    return list(dict.fromkeys(specs))


def _plain(registry: Registry, spec: str) -> str:
    """``spec`` without options that say what is so anyway. Raises UsageError for unknown ones."""
    name, options = split_spec(spec)
    kind: type[Any] = registry.load(name).Options
    made, usual = parse_options(kind, options, f"{registry.kind} '{name}'"), kind()
    differing = [f"{k}={v}" for k, v in options.items() if getattr(made, k) != getattr(usual, k)]
    return f"{name}:{','.join(differing)}" if differing else name
