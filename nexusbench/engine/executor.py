"""Commit a plan, complete a step: the only code that changes queues, progress and the event log."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import Batch, BatchShape, Plan, Split, StepOutput, TransferOutput
from nexusbench.core.errors import InvariantBreach, UsageError
from nexusbench.core.events import OUTCOMES, PREEMPTION_KINDS, EventLog
from nexusbench.core.registry import overridden
from nexusbench.core.request import Request
from nexusbench.core.state import EngineState, InFlight
from nexusbench.devices.base import Device
from nexusbench.engine.arrivals import ORPHANED
from nexusbench.engine.movers import Movers
from nexusbench.engine.shared import SharedState
from nexusbench.kv.manager import KVCacheManager
from nexusbench.partitioners.base import Partitioner
from nexusbench.planning.journal import Journal
from nexusbench.schedulers.base import Scheduler

FINISHED = OUTCOMES.index("finished")
CANCELLED = OUTCOMES.index("cancelled")
_MOST_PREDICTED_NS = 2.0**63  # what a column of the log holds


class Executor:
    """Turns plans into launches, and ended launches into progress.

    The allocator already holds a plan's blocks (the journal took them), and the Auditor has checked
    it against the contract; what is left is to log it and to launch it.
    """

    def __init__(
        self,
        state: EngineState,
        pools: Sequence[KVCacheManager],
        device: Device,
        scheduler: Scheduler,
        partitioner: Partitioner,
        log: EventLog,
        shared: SharedState,
        stop_tokens: frozenset[int] = frozenset(),
        block_bytes: float = 0.0,
    ) -> None:
        """``shared.states`` ends with this engine's."""
        self.state, self.pools, self.device, self.log = state, pools, device, log
        self.movers = Movers(state, pools, device, log, block_bytes)
        self.scheduler, self.partitioner, self.arrivals = scheduler, partitioner, shared.arrivals
        self._shared = shared
        self.num_ended = 0
        self.num_tokens = 0
        self._split_code = 0
        self._steps: dict[int, InFlight] = {}
        self._leaving: dict[int, tuple[Request, str]] = {}  # cancelled in flight, and why
        self._stop_tokens = stop_tokens
        self._stopped: set[int] = set()  # requests that such a token ended
        belief = partitioner.belief
        self._learning = belief if belief is not None and belief.learns else None
        self._one_gpu = state.device.num_gpus == 1
        self._at_step = overridden("completed", (scheduler, Scheduler), (partitioner, Partitioner))
        self._at_end = [
            *overridden("finished", (scheduler, Scheduler)), *overridden("forget", (device, Device))
        ]  # fmt: skip
        names, engine = scheduler.partitions, len(shared.states) - 1
        self._partition_code = {name: engine * len(names) + i for i, name in enumerate(names)}
        self._set_split(state.split)

    # -- commit ------------------------------------------------------------------------------------

    def commit(self, plan: Plan, split: Split, journal: Journal) -> None:
        """Log and launch ``plan``, which was checked, under ``split``."""
        state, tables = self.state, self.log.tables
        for request in journal.kv_blocked:
            tables["kv_blocked"].row(request.index, state.now)
        journal.kv_blocked.clear()
        for preemption in plan.preemptions:
            request = preemption.request
            kind, lost = PREEMPTION_KINDS.index(preemption.kind), preemption.lost_tokens
            tables["preempted"].row(request.index, state.now, kind, lost)
        for transfer in plan.transfers:
            self.movers.start(transfer)
        if split is not state.split and split != state.split:
            self._set_split(split)
        launched = {batch.partition for batch in plan.batches}
        launches = [(batch, self._sms(batch.partition, launched)) for batch in plan.batches]
        for batch, sms in launches:
            beside = self._neighbour(batch.partition)
            if beside is None and len(launches) > 1 and self._one_gpu:
                beside = next((b.shape, n) for b, n in launches if b is not batch)
            self._launch(batch, sms, beside)

    def _sms(self, partition: str, launched: set[str]) -> int:
        """SMs of a launch: its share under the split, or all if it runs alone and ``idle`` is
        ``expand``.
        """
        state = self.state
        if self.partitioner.options.idle == "expand" and self._one_gpu:
            for other, running in state.in_flight.items():
                if other != partition and (running or other in launched):
                    break
            else:
                return state.device.num_sms
        return state.split.of(partition)

    def _launch(self, batch: Batch, sms: int, beside: tuple[BatchShape, int] | None) -> None:
        state, shape, shared = self.state, batch.shape, self._shared
        step = shared.num_steps
        shared.num_steps = step + 1
        belief = self.partitioner.belief
        predicted = -1
        if belief is not None:
            guess = belief.predict(shape.at_home, sms, beside)
            if not guess < _MOST_PREDICTED_NS:
                raise UsageError(
                    f"cost model '{belief.name}' predicts {guess:.3g} ns for a launch of "
                    f"{shape.num_tokens} tokens on {sms} SMs, more than can be logged. Look at "
                    "the GPU's description or at the profile that it is fitted to"
                )
            predicted = int(guess)
        prefill_tokens = shape.num_tokens - shape.num_decodes
        if batch.chunks:
            self._log_chunks(step, batch)
        if len(shared.states) == 1:
            used, running, waiting = self._blocks_used(), state.num_running, len(state.waiting)
        else:
            used, running, waiting = shared.loads()
        self.log.tables["submitted"].row(
            step, state.now, self._partition_code[batch.partition], sms, shape.num_decodes,
            shape.decode_context, len(shape.chunks), prefill_tokens, predicted,
            used, running, waiting, self._split_code,
        )  # fmt: skip
        entry = InFlight(step, batch, sms, predicted, state.now)
        state.in_flight[batch.partition].append(entry)
        self._steps[step] = entry
        if shape.remote is not None:
            batch.remote_sms = state.split.of("remote")
        self.device.submit(step, batch, sms)

    def _blocks_used(self) -> int:
        """KV blocks in use on all GPUs."""
        if len(self.pools) == 1:
            return self.pools[0].num_used
        return sum(kv.num_used for kv in self.pools[: self.state.device.num_gpus])

    def _neighbour(self, partition: str) -> tuple[BatchShape, int] | None:
        """Shape and SMs of the launch in flight on the other partition of the same GPU, or None."""
        state = self.state
        for other, running in state.in_flight.items():
            if other != partition and running and state.pool_of(other) == state.pool_of(partition):
                return running[0].batch.shape, running[0].sms
        return None

    def _log_chunks(self, step: int, batch: Batch) -> None:
        """Log the chunks of a launch; a request's first one after it waited is its admission."""
        tables, now = self.log.tables, self.state.now
        for chunk in batch.chunks:
            request = chunk.request
            tables["chunk"].row(step, request.index, chunk.num_tokens, chunk.context)
            if chunk.context == request.num_cached_tokens and request.layers_done == 0:
                tables["admitted"].row(request.index, now, chunk.context)
                request.kv_blocked = False

    def _set_split(self, split: Split) -> None:
        self.state.split = split
        splits = self._shared.splits
        if split not in splits:
            splits.append(split)
        self._split_code = splits.index(split)
        reason = self.log.code(self.partitioner.mode)
        self.log.tables["repartitioned"].row(self.state.now, self._split_code, reason)

    # -- complete ----------------------------------------------------------------------------------

    def complete(self, output: StepOutput | TransferOutput) -> None:
        """Account for an ended launch, or one repetition of it: progress, tokens, ends, freed
        blocks and published hashes; or for an ended copy.
        """
        state = self.state
        if isinstance(output, TransferOutput):
            self.movers.complete(output)
            if self._leaving:
                self._let_go()
            return
        if output.end_ns < state.now:
            raise InvariantBreach("I2", f"step {output.step} ended before {state.now} ns")
        state.now = output.end_ns
        entry = self._steps[output.step]
        batch = entry.batch
        if self._learning is not None and entry.predicted >= 0:
            # The prediction is of the whole launch, the time of one repetition of it.
            taken = (output.end_ns - entry.since) * batch.repeat
            self._learning.observe(batch.shape, entry.sms, entry.predicted, taken)
            entry.since = output.end_ns
        if output.last:
            del self._steps[output.step]
            state.in_flight[batch.partition].remove(entry)
        made = self.log.tables["token"].columns["request"]
        before = len(made)
        if self._stop_tokens and output.tokens is not None:
            self._stop(batch, output.tokens)
        if batch.repeat > 1:
            done = self._complete_repetition(entry, output.last)
        else:
            done = self._complete_decodes(batch.decodes)
        if batch.chunks:
            done += self._complete_chunks(batch)
        count = len(made) - before
        self.num_tokens += count
        self.log.tables["step_done"].row(output.step, output.end_ns, output.solo_ns, count)
        for hook in self._at_step:
            hook(batch, output.end_ns)
        for request in done:
            self._finish(request)
            self._forget(request)
        if self._leaving:
            self._let_go()

    def _stop(self, batch: Batch, tokens: list[int]) -> None:
        """Shorten requests to the token that they get in this step, if it is a stop token."""
        producers = list(batch.decodes)
        for chunk in batch.chunks:
            if chunk.context + chunk.num_tokens == chunk.request.num_tokens:
                producers.append(chunk.request)
        for request, token in zip(producers, tokens, strict=True):
            if token in self._stop_tokens and request.num_tokens < request.stop_len:
                request.stop_len = request.num_tokens + 1
                self._stopped.add(request.index)

    def _complete_decodes(self, decodes: list[Request]) -> list[Request]:
        """One token for each; returns the requests that have all their tokens now."""
        done = []
        for request in decodes:
            count = request.num_tokens
            request.num_computed_tokens = count
            count += 1
            request.num_tokens = count
            request.in_flight = False
            if count >= request.stop_len:
                done.append(request)
        self.log.tables["token"].columns["request"].extend([r.index for r in decodes])
        return done

    def _complete_repetition(self, entry: InFlight, last: bool) -> list[Request]:
        """One of several decode steps in one launch.

        A request that ends before the last repetition stays in flight and holds its blocks until
        the launch ends (I11).
        """
        alive = [r for r in entry.batch.decodes if r.num_tokens < r.stop_len]
        self._complete_decodes(alive)
        for request in entry.batch.decodes:
            request.in_flight = not last
        for request in alive:
            if request.num_tokens >= request.stop_len:
                self._finish(request)
        if last:
            for request in entry.batch.decodes:
                if request.num_tokens >= request.stop_len:
                    self._forget(request)
        return []

    def _complete_chunks(self, batch: Batch) -> list[Request]:
        """Progress of chunks; one that computes its request's last token makes the next one."""
        state, done = self.state, []
        made = self.log.tables["token"].columns["request"]
        for chunk in batch.chunks:
            request = chunk.request
            request.in_flight = False
            if batch.layers is not None and batch.layers[1] < state.device.num_layers:
                request.layers_done = batch.layers[1]
                request.layers_tokens = chunk.num_tokens
                continue
            request.layers_done = 0
            request.num_computed_tokens = chunk.context + chunk.num_tokens
            self.pools[request.pool].publish(request)
            if request.num_computed_tokens == request.num_tokens:
                request.num_tokens += 1
                made.append(request.index)
                state.prefilling.remove(request)
                state.decoding.append(request)
                if request.num_tokens >= request.stop_len:
                    done.append(request)
        return done

    # -- ends --------------------------------------------------------------------------------------

    def cancel(self, request: Request, reason: str) -> None:
        """End a request that its client has cancelled: now, or when its launch has ended (I11)."""
        if request.in_flight:
            self._leaving[request.index] = (request, reason)
            return
        self.end(request, CANCELLED, reason)
        self._forget(request)

    def _let_go(self) -> None:
        """End the requests that were cancelled in flight and are in flight no more."""
        for request, reason in list(self._leaving.values()):
            if not request.in_flight:
                del self._leaving[request.index]
                self.end(request, CANCELLED, reason)
                self._forget(request)

    def _finish(self, request: Request) -> None:
        """End a request that has all its tokens: as finished, or as cancelled if it was."""
        left = self._leaving.pop(request.index, None) if self._leaving else None
        if left is None:
            stopped = request.index in self._stopped
            self.end(request, FINISHED, "stop" if stopped else "length")
        else:
            self.end(request, CANCELLED, left[1])

    def _forget(self, request: Request) -> None:
        """Remove an ended request from its queue and free its blocks."""
        state = self.state
        if request.blocks:
            kv = self.pools[request.pool]
            queues = (state.decoding, state.prefilling, state.swapped)  # the last: if cancelled
            next(queue for queue in queues if request in queue).remove(request)
            if request.named_tokens and request.pool != state.device.host:
                kv.publish_own(request)  # the next turn begins with this prompt and answer
            kv.free(request)
        else:
            state.waiting.remove(request)
        for hook in self._at_end:
            hook(request)

    def end(self, request: Request, outcome: int, reason: str) -> None:
        """Log the one end of a request (I1), and those of requests that now never arrive."""
        self._log_end(request, outcome, reason)
        if self.arrivals.chained:
            now = self.state.now
            for orphan in self.arrivals.ended(request, now, finished=outcome == FINISHED):
                orphan.arrival_ns = now
                row = self.log.tables["arrived"].row
                row(orphan.index, now, orphan.num_prompt_tokens, orphan.max_tokens)
                self._log_end(orphan, CANCELLED, ORPHANED)

    def _log_end(self, request: Request, outcome: int, reason: str) -> None:
        if request.outcome >= 0:
            raise InvariantBreach("I1", f"request '{request.id}' ended twice")
        request.outcome = outcome
        self.num_ended += 1
        row = self.log.tables["ended"].row
        row(request.index, self.state.now, outcome, self.log.code(reason))
