"""The invariants that are checked during and after a run; docs/invariants.md defines them."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import Batch, Plan, Split
from nexusbench.core.errors import InvariantBreach, PlanRefused
from nexusbench.core.events import OUTCOMES
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState
from nexusbench.engine.executor import Executor
from nexusbench.kv.manager import KVCacheManager
from nexusbench.planning.journal import Journal

FINISHED = OUTCOMES.index("finished")


class Auditor:
    """Checks plans, state and KV pools; every breach raises PlanRefused or InvariantBreach with the
    name of the invariant.

    I2 and I11 are checked where they could break (executor, context).
    """

    def __init__(
        self, state: EngineState, pools: Sequence[KVCacheManager], executor: Executor
    ) -> None:
        self._state, self._pools, self._executor = state, pools, executor
        self._policy, self._partitioner = executor.scheduler.name, executor.partitioner.name

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
            if not self._pools[r.pool].covers(r):
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

    def check_plan(self, plan: Plan, split: Split, journal: Journal) -> None:
        """The contract of a plan, and I5 (docs/invariants.md). Raises PlanRefused."""
        policy, state = self._policy, self._state
        if not journal.matches(plan):
            raise PlanRefused(
                "contract", policy, "preempts or moves requests otherwise than with the context"
            )
        if (
            plan.batches
            and split is not state.split
            and (split not in state.device.splits and split != state.device.whole)
        ):
            raise PlanRefused("I5", self._partitioner, f"wants the illegal split {split}")
        if not (plan.wake_at is None or isinstance(plan.wake_at, int)):
            raise PlanRefused("contract", policy, f"wants to wake at {plan.wake_at!r}, no ns")
        for batch in plan.batches:
            if not isinstance(batch, Batch):
                raise PlanRefused("contract", policy, f"launches {type(batch).__name__}, no Batch")
            if batch.partition not in state.in_flight:
                raise PlanRefused("contract", policy, f"knows no partition '{batch.partition}'")
            if len(state.in_flight[batch.partition]) >= state.device.depth:
                raise PlanRefused(
                    "I5", policy, f"launches on '{batch.partition}', whose queue is full"
                )
            shape, most = batch.shape, state.limits.max_num_batched_tokens
            tokens = shape.num_tokens
            if not 0 < tokens <= most:
                problem = f"launches {tokens} tokens; the budget is 1 to {most}"
                raise PlanRefused("contract", policy, problem)
            if not journal.drafted(batch):
                raise PlanRefused(
                    "contract", policy, "launches a batch that it did not build with the context"
                )
            if shape.remote is not None and "remote" not in split.partitions:
                raise PlanRefused(
                    "contract", self._partitioner, "leaves no SMs to the attention that "
                    f"'{policy}' plans on another GPU",
                )  # fmt: skip
            self._check_pieces(batch)

    def _check_pieces(self, batch: Batch) -> None:
        """Layer ranges are for chunks, from where they stopped; repetitions are for decodes."""
        policy, layers, most = self._policy, batch.layers, self._state.device.num_layers
        if batch.repeat < 1 or (batch.repeat > 1 and (batch.chunks or layers is not None)):
            raise PlanRefused("contract", policy, "repeats more than whole decode steps")
        if layers is not None and (batch.decodes or not 0 <= layers[0] < layers[1] <= most):
            raise PlanRefused(
                "contract", policy, f"computes layers {layers} of {most}, or decodes with them"
            )
        start = layers[0] if layers is not None else 0
        for chunk in batch.chunks:
            done = chunk.request.layers_done
            if start != done or (done and chunk.num_tokens != chunk.request.layers_tokens):
                raise PlanRefused(
                    "contract", policy, f"computes {chunk.num_tokens} tokens of "
                    f"'{chunk.request.id}' from layer {start}, but {done} layers of "
                    f"{chunk.request.layers_tokens} tokens are done",
                )  # fmt: skip

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
            "I7", f"scheduler '{self._policy}' leaves '{partition}' idle although {why}"
        )

    def _decode_ready(self, pool: int) -> bool:
        decoding = self._state.decoding
        return self._pools[pool].num_free >= self._pools[pool].step_blocks and any(
            not r.in_flight and r.pool == pool for r in decoding
        )

    def _prefill_ready(self, pool: int) -> bool:
        state, kv = self._state, self._pools[pool]
        step, free = state.limits.max_num_batched_tokens, kv.num_free
        started = [r for r in state.prefilling if not r.in_flight and r.pool == pool]
        if started:
            # A policy may keep waiting prompts behind one in mid-prefill that lacks blocks.
            return all(kv.most_blocks(r.num_tokens, step) <= kv.held(r) + free for r in started)
        if state.num_running >= state.limits.max_num_seqs or state.swapped:
            return False  # a policy may keep seats and blocks for the swapped
        if state.moving and any(r.pool != pool for r in (*state.decoding, *state.prefilling)):
            return False  # and room that a request may need after its copy
        head = state.waiting.head
        # Less a step of each running request: a policy may keep room for their next tokens.
        free -= state.num_running * kv.step_blocks
        return head is not None and kv.most_blocks(head.num_tokens, step) <= free
