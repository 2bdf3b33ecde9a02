"""The invariants that are checked during and after a run; docs/invariants.md defines them."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import Plan
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.events import OUTCOMES
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState
from nexusbench.engine.executor import Executor
from nexusbench.kv.manager import KVCacheManager
from nexusbench.schedulers.base import Scheduler

FINISHED = OUTCOMES.index("finished")


class Auditor:
    """Checks state and KV pools as a whole; every breach raises InvariantBreach with its name.

    I2, I5 and I11 are checked where they could break (executor, context, journal).
    """

    def __init__(
        self,
        state: EngineState,
        pools: Sequence[KVCacheManager],
        executor: Executor,
        scheduler: Scheduler,
    ) -> None:
        self._state, self._pools, self._executor, self._scheduler = (
            state, pools, executor, scheduler,
        )  # fmt: skip

    def check_books(self) -> None:
        """I3: every block is free or held, reference counts are exact; blocks cover what is
        computed.
        """
        state = self._state
        running = [*state.decoding, *state.prefilling, *state.swapped]
        for number, kv in enumerate(self._pools):
            held = [r.blocks for r in running if r.pool == number]
            if state.moving:
                held += self._executor.movers.blocks_ahead(number)
            problem = kv.pool.audit(held)
            if problem is not None:
                raise InvariantBreach("I3", problem)
        for r in running:
            if len(r.blocks) * self._pools[0].block_size < r.num_computed_tokens:
                raise InvariantBreach("I3", f"request '{r.id}' has computed tokens without a block")
        for r in state.waiting:
            if r.blocks:
                raise InvariantBreach("I3", f"waiting request '{r.id}' holds blocks")

    def check_end(self, requests: Sequence[Request]) -> None:
        """I1, I3 and I4 after the run; ``requests`` are all that were offered."""
        self.check_books()
        executor, state, offered = self._executor, self._state, len(requests)
        if state.busy:
            raise InvariantBreach("I1", "a launch is still in flight at the end")
        made = 0
        for r in requests:
            if r.outcome < 0:
                raise InvariantBreach("I1", f"request '{r.id}' never ended")
            # 0: rejected, or cancelled before it could arrive.
            least = r.stop_len if r.outcome == FINISHED else r.num_prompt_tokens
            if not (least <= r.num_tokens <= r.stop_len or (not r.num_tokens and r.outcome)):
                raise InvariantBreach(
                    "I4", f"'{r.id}' has {r.num_tokens} tokens at the end, not {least} or more"
                )
            made += r.num_tokens - r.num_prompt_tokens if r.num_tokens else 0
        if made != executor.num_tokens:
            raise InvariantBreach(
                "I4", f"{made} tokens generated, but {executor.num_tokens} reported"
            )
        if executor.num_ended != offered:
            raise InvariantBreach("I1", f"{offered} requests offered, {executor.num_ended} ended")
        held = sum(kv.num_used for kv in self._pools)
        if held:
            raise InvariantBreach("I3", f"{held} blocks are held after the last request")

    def check_work_conserving(self, plan: Plan) -> None:
        """I7: no partition idles while a request that could run there is ready and would fit.

        Ready means: a decoding request that is not in flight and has room for its next token
        (``decode`` and ``all``), or a prefilling or waiting one for whose remaining tokens there
        are free blocks (``prefill`` and ``all``).
        """
        state = self._state
        if plan.preemptions:
            return
        for partition, running in state.in_flight.items():
            if running:
                continue
            pool = state.pool_of(partition)
            if partition != "prefill" and self._decode_ready(pool):
                raise self._idle(partition, "a decoding request is ready")
            if partition != "decode" and self._prefill_ready(pool):
                raise self._idle(partition, "a prompt is waiting and would fit")

    def _idle(self, partition: str, why: str) -> InvariantBreach:
        return InvariantBreach(
            "I7", f"scheduler '{self._scheduler.name}' leaves '{partition}' idle although {why}"
        )

    def _decode_ready(self, pool: int) -> bool:
        decoding = self._state.decoding
        return self._pools[pool].num_free > 0 and any(
            not r.in_flight and r.pool == pool for r in decoding
        )

    def _prefill_ready(self, pool: int) -> bool:
        state, kv = self._state, self._pools[pool]
        size, free = kv.block_size, kv.num_free
        started = [r for r in state.prefilling if not r.in_flight and r.pool == pool]
        if started:
            # A policy may keep waiting prompts behind one in mid-prefill that lacks blocks.
            return all(r.num_tokens <= (len(r.blocks) + free) * size for r in started)
        if state.num_running >= state.limits.max_num_seqs or state.swapped:
            return False  # a policy may keep seats and blocks for the swapped
        if state.moving and any(r.pool != pool for r in (*state.decoding, *state.prefilling)):
            return False  # and room that a request may need after its copy
        head = state.waiting.head
        # Less one block per running request: a policy may keep room for their next tokens.
        return head is not None and head.num_tokens <= (free - state.num_running) * size
