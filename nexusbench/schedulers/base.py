"""The scheduler seam: from a context, a policy makes a plan."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from nexusbench.core.batch import Batch, Plan, PreemptionKind
from nexusbench.core.registry import NotNegative, Policy, Registry
from nexusbench.core.request import RequestView
from nexusbench.costs.base import CostModel
from nexusbench.planning.context import SchedulerContext
from nexusbench.planning.order import Ranking

__all__ = ["Order", "Scheduler", "SchedulerContext", "SchedulerOptions", "schedulers"]


Order = Literal["fcfs", "spf", "lpm", "hit-rate"]


class SchedulerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options that every scheduler has.

    ``order`` of the waiting queue: ``fcfs`` by arrival; ``spf`` shortest prompt first
    with ageing, score = tokens left - gamma x age (Nexus Eq. in section 4.3.1, gamma in tokens per
    second); ``lpm`` longest cached prefix first, fcfs while more than 128 wait (SGLang; without
    its second look at prefixes that other waiting requests are about to compute); ``hit-rate``
    largest cached share of the prompt first (KVShare, arXiv 2503.16525). KVShare's order has no
    ageing; here waiting ``ageing_s`` seconds is worth a full hit, 0 leaves it as theirs.
    With spf at gamma 0, with lpm, and with hit-rate without ageing, requests can starve.
    ``preemption``: what happens to a running request whose blocks are needed; ``swap``
    copies them to the host and back, on devices with host memory (vLLM v0's ``--swap-space``).
    """

    order: Order = "fcfs"
    gamma: NotNegative = 15.0
    ageing_s: NotNegative = 10.0
    preemption: PreemptionKind = "recompute"


if TYPE_CHECKING:  # the default is Python 3.13's: Scheduler alone is Scheduler[SchedulerOptions]
    from typing_extensions import TypeVar

    OptionsT = TypeVar("OptionsT", bound=SchedulerOptions, default=SchedulerOptions, covariant=True)
else:
    from nexusbench.core.registry import OptionsT


class Scheduler(Policy[OptionsT]):
    """A scheduling policy: subclass it in a file of its own in this folder, and it is in
    ``nexusbench list``.

    ``partitions`` names the shares of the GPU that its batches run on, ``default_partitioner`` the
    partitioner that sizes them. ``work_conserving`` promises invariant I7 (no partition idles while
    it could be filled); a policy that leaves one idle on purpose sets it to False and says why.
    ``source`` names the paper or code that it follows, first whose rules of which version these
    are: up to a semicolon or colon it stands beside the policy's name on screens (``rules``).
    """

    Options: ClassVar[type[msgspec.Struct]] = SchedulerOptions
    kind: ClassVar[str] = "scheduler"
    partitions: ClassVar[tuple[str, ...]] = ("all",)
    default_partitioner: ClassVar[str] = "whole"
    work_conserving: ClassVar[bool] = True
    # Options worth trying on unknown traffic, as typed after the name; advise compares them.
    advised: ClassVar[tuple[str, ...]] = ("order=fcfs", "order=spf")
    # advise tries it with every partitioner that is no other policy's own, not just with its own.
    any_partitioner: ClassVar[bool] = False
    num_gpus: ClassVar[int] = 1  # GPUs with a KV pool each that its partitions run on
    needs_belief: ClassVar[bool] = False  # asks ``self.belief`` how long a batch will take
    calibrates: ClassVar[bool] = False  # its belief follows the device while it serves
    swap_gib: ClassVar[float] = 0.0  # host memory for KV that it counts on, per GPU
    source: ClassVar[str] = ""
    belief: CostModel | None = None  # set by the composition root where needs_belief

    @property
    def rules(self) -> str:
        """Whose rules these are and of which version, with the options that were given."""
        return self.source.partition(";")[0].partition(":")[0]

    def order_key(self, request: RequestView) -> float:
        """Place in the waiting queue, smaller first; called each time a request starts to wait.

        With ``lpm`` the place among those with equally long cached prefixes; ``hit-rate`` depends
        on cache and arrival only.

        For ``spf`` the score ``left - gamma (now - arrival)`` orders requests as ``left + gamma
        arrival`` does, which no longer depends on now, so the queue never needs sorting again.
        """
        if self.options.order == "spf":
            return request.num_tokens + self.options.gamma * request.arrival_ns * 1e-9
        return float(request.arrival_rank)

    @property
    def ranking(self) -> Ranking | None:
        """How the waiting queue is ordered by the prefix cache, None if it is not."""
        order = self.options.order
        return Ranking(order, self.options.ageing_s) if order in ("lpm", "hit-rate") else None

    @abstractmethod
    def schedule(self, ctx: SchedulerContext) -> Plan:
        """Propose what to launch now; called whenever a partition has a free slot and there is
        work.
        """

    def completed(self, batch: Batch, now: int) -> None:
        """A step of ``batch`` ended at ``now`` (ns): its decodes got a token, so did chunks whose
        request is decoding now. Requests that have all their tokens leave after this call.
        """

    def finished(self, request: RequestView) -> None:
        """A request has ended, in whatever way."""


schedulers = Registry("nexusbench.schedulers", "scheduler", "Scheduler")
