"""Kinds of links between GPUs: ``data/links/*.toml``, which GPU files name."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import msgspec

from nexusbench.core.documents import convert, parse_toml
from nexusbench.core.errors import UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.specs import GpuSpec

_SHIPPED = "nexusbench.data"


class LinkAlgorithm(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One way to do a collective: ``us`` once, ``step_us`` for each step, and its bytes at
    ``gbps`` (1e9 bytes per s).
    """

    us: float
    step_us: float
    gbps: float


class LinkKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How GPUs of one kind of link exchange data; what each part means: ``Collectives``.

    ``gbps`` and ``latency_us`` are those of a GPU file for which the rest was measured. An
    algorithm that is None does not exist on this link; a limit of GPUs that is 0 is never reached.
    ``fitted_on`` names the GPUs whose measured tables the constants were fitted on.
    """

    name: str
    gbps: float
    latency_us: float
    ring: tuple[LinkAlgorithm, ...]
    pairwise: tuple[LinkAlgorithm, ...]
    copy_gbps: float | None = None  # each GPU's own pass over the whole buffer
    direct_gpus: int = 0  # up to so many GPUs, all of one node, read each other's memory
    one_shot: LinkAlgorithm | None = None
    two_shot: LinkAlgorithm | None = None
    switch_gpus: int = 0  # from so many GPUs on the switch adds up (NVLS)
    in_switch: LinkAlgorithm | None = None
    multimem: LinkAlgorithm | None = None
    across_gpus: int = 0  # up to so many GPUs, of several nodes, the switch adds up for engines
    across: LinkAlgorithm | None = None
    pair_gpus: int = 0  # more GPUs than that share the path through the host
    host_gbps: float | None = None
    socket_gpus: int = 0  # more GPUs than that share the path between two sockets as well
    socket_gbps: float | None = None
    fitted_on: tuple[str, ...] = ()
    sources: dict[str, str] = {}


def link_names() -> list[str]:
    """The shipped kinds, sorted."""
    shipped = (files(_SHIPPED) / "links").iterdir()
    return sorted(e.name.removesuffix(".toml") for e in shipped if e.name.endswith(".toml"))


@lru_cache(maxsize=32)
def load_link(name: str) -> LinkKind:
    """A shipped kind of link by name. Raises UsageError for one that is not known."""
    known = link_names()
    if name not in known:
        raise UsageError(f"no link called '{name}'. {did_you_mean(name, known)}")
    file = files(_SHIPPED) / "links" / f"{name}.toml"
    return convert(parse_toml(file.read_text(encoding="utf-8"), file), LinkKind, file)


def link_of(gpu: GpuSpec) -> tuple[str, LinkKind]:
    """The link that a GPU's file names; for a file that names none the kind whose rate is nearest
    to the GPU's ``link_gbps`` by their ratio, of equal ones the first by name.
    """
    if isinstance(gpu.link, str):
        return gpu.link, load_link(gpu.link)
    kinds = [(name, load_link(name)) for name in link_names()]
    return min(kinds, key=lambda kind: _ratio(gpu.link_gbps, kind[1].gbps))


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)
