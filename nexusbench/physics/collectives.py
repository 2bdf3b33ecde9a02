"""Collectives over the GPUs of one server: all-reduce, all-gather, reduce-scatter, all-to-all.

Every algorithm takes a fixed time, a time for each step, and its bytes on the wire at a rate; the
fastest one is taken, as tuned libraries do.

* The ring of NCCL: p - 1 steps with (p - 1)/p of the buffer on each GPU's wire, twice that for an
  all-reduce, in one of three protocols (LL: no wait for flags, but twice the bytes; LL128; Simple).
  From a number of GPUs on the NVLink switch adds up instead (NVLS): the buffer crosses a GPU's link
  once each way. Sources: NCCL's src/graph/tuning.cc; Hu et al., "Demystifying NCCL" (2025).
* All-to-all sends to each GPU apart, in protocols of its own.
* An engine's own all-reduce for small sizes: one-shot (each GPU reads all of every other's buffer)
  and two-shot (a reduce-scatter, then an all-gather), where GPUs can read each other's memory;
  multimem where the switch adds up. Source: vLLM's csrc/custom_all_reduce.cuh and symm_mem.py.
  The first two need GPUs of one node (custom_all_reduce.py). A rack with one switch for all nodes
  adds up ``across`` them, for up to 8 GPUs.

Over PCIe more GPUs than a pair share the path through the host, and beyond a socket the one between
sockets: each byte waits for as many bytes as there are GPUs. What was fitted on what:
``data/links/*.toml``; how far it is from measurements: docs/fidelity.md.
"""

from __future__ import annotations

from nexusbench.core.specs import GpuSpec
from nexusbench.physics.link_kinds import LinkAlgorithm, link_of

_Line = tuple[float, float]  # ns, and ns per byte of the buffer
LL_BYTES = 2.0  # on the wire, of one byte in protocol LL: 4 of 8 bytes are data, 4 a flag


class Collectives:
    """Times of collectives over ``gpus`` GPUs of a kind, for buffers of any size.

    A buffer is what one GPU holds before (all-reduce, reduce-scatter, all-to-all) or after
    (all-gather) the collective, in bytes; the data type does not matter, as measured. Rates are
    scaled by the GPU's ``link_gbps`` over that of its link's kind, times by ``link_latency_us``.
    """

    def __init__(self, gpu: GpuSpec, gpus: int) -> None:
        self._kind = link_of(gpu)[1]
        self._gpus, kind = gpus, self._kind
        self._faster = gpu.link_gbps / kind.gbps
        self._slower = gpu.link_latency_us / kind.latency_us
        part, steps = (gpus - 1) / gpus, gpus - 1
        copy = 0.0 if kind.copy_gbps is None else 1.0 / (kind.copy_gbps * self._faster)
        self._once = self._protocols(kind.ring, steps, part, copy)
        self._exchange = self._protocols(kind.pairwise, steps, part, copy)
        self._twice = self._protocols(kind.ring, 2 * steps, 2.0 * part, copy)
        switch = 0 < kind.switch_gpus <= gpus
        if switch and kind.in_switch is not None:
            self._twice.append(self._line(kind.in_switch, 0, 1.0, copy))
        self._engine = list(self._twice)
        if gpus <= kind.direct_gpus:
            if kind.one_shot is not None:
                self._engine.append(self._line(kind.one_shot, steps, float(steps)))
            if kind.two_shot is not None:
                self._engine.append(self._line(kind.two_shot, 2 * steps, 2.0 * part))
            if switch and kind.multimem is not None:
                self._engine.append(self._line(kind.multimem, 0, 1.0))
        elif gpus <= kind.across_gpus and kind.across is not None:
            self._engine.append(self._line(kind.across, 0, 1.0))

    def all_reduce(self, size: float) -> float:
        """Ns of an engine's all-reduce of ``size`` bytes, launched from a CUDA graph."""
        return _fastest(self._engine, size)

    def library_all_reduce(self, size: float) -> float:
        """Ns of NCCL's all-reduce of ``size`` bytes."""
        return _fastest(self._twice, size)

    def all_gather(self, size: float) -> float:
        """Ns of an all-gather after which each GPU holds ``size`` bytes."""
        return _fastest(self._once, size)

    def reduce_scatter(self, size: float) -> float:
        """Ns of a reduce-scatter before which each GPU holds ``size`` bytes."""
        return _fastest(self._once, size)

    def all_to_all(self, size: float) -> float:
        """Ns of an all-to-all of equal shares, of ``size`` bytes on each GPU, its own included."""
        return _fastest(self._exchange, size)

    def _protocols(
        self, algorithms: tuple[LinkAlgorithm, ...], steps: int, bytes_each: float, copy: float
    ) -> list[_Line]:
        """The first of ``algorithms`` is LL; ``bytes_each`` on a GPU's wire per byte of buffer."""
        shared, lines = self._shared(), []
        for number, algorithm in enumerate(algorithms):
            waits = shared * (1.0 if number else LL_BYTES) * bytes_each
            lines.append(self._line(algorithm, steps, bytes_each, copy + waits))
        return lines

    def _line(
        self, algorithm: LinkAlgorithm, steps: int, bytes_each: float, more: float = 0.0
    ) -> _Line:
        fixed = (algorithm.us + algorithm.step_us * steps) * 1e3 * self._slower
        return fixed, bytes_each / (algorithm.gbps * self._faster) + more

    def _shared(self) -> float:
        """Ns that a byte on the wire waits for paths that all GPUs share."""
        kind, gpus, waits = self._kind, self._gpus, 0.0
        if kind.host_gbps is not None and gpus > kind.pair_gpus:
            waits += gpus / (kind.host_gbps * self._faster)
        if kind.socket_gbps is not None and gpus > kind.socket_gpus:
            waits += gpus / (kind.socket_gbps * self._faster)
        return waits


def _fastest(lines: list[_Line], size: float) -> float:
    fixed, per_byte = lines[0]
    best = fixed + size * per_byte
    for fixed, per_byte in lines:
        taken = fixed + size * per_byte
        if taken < best:
            best = taken
    return best
