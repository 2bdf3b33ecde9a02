"""The desk of a sweep: batches of real requests that hold real KV blocks, and their submission."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from nexusbench.core.batch import Batch, BatchShape, Chunk, StepOutput, spread_of
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.kv_layout import KvPages, uniform_pages
from nexusbench.core.request import Request
from nexusbench.core.state import Limits
from nexusbench.devices.base import Device, Serving
from nexusbench.kv.grouped import kv_cache
from nexusbench.profiles.points import PointSetting

# So many output tokens that no request of a sweep ever ends.
_TOKENS_TO_COME = 1 << 20
MOST_REPEATS = 16


class ShapedBatch(msgspec.Struct, frozen=True):
    """A batch on paper: its shape and, where they differ, its decodes' contexts."""

    shape: BatchShape
    contexts: tuple[int, ...] = ()

    def lengths(self) -> list[int]:
        """Context of each decode: as given, else the sum dealt out evenly."""
        if self.contexts:
            return list(self.contexts)
        count = self.shape.num_decodes
        if not count:
            return []
        each, more = divmod(self.shape.decode_context, count)
        return [each + (position < more) for position in range(count)]


class Pool(msgspec.Struct, frozen=True):
    """What a device has room for: KV blocks, and the budgets of a step."""

    num_blocks: int
    block_size: int
    limits: Limits
    sizes: KvPages | None = None  # of blocks that are not of all layers

    @property
    def paging(self) -> KvPages:
        """What its blocks are."""
        return uniform_pages(self.block_size) if self.sizes is None else self.sizes

    def blocks_of(self, work: ShapedBatch, repeat: int = 1) -> int:
        """Blocks that a batch holds while it runs."""
        of = self.paging.of
        chunks = sum(of(count + before, before) for count, before in work.shape.chunks)
        return chunks + sum(of(length + repeat, length) for length in work.lengths())

    def enough_for(self, settings: Iterable[PointSetting]) -> Pool:
        """The part of it that ``settings`` need at most: a real device has to fill what it is given
        with zeros.
        """
        most = 2
        for setting in settings:
            needed = self.blocks_of(ShapedBatch(setting.shape, setting.contexts), MOST_REPEATS)
            if setting.neighbour is not None:
                needed += self.blocks_of(ShapedBatch(setting.neighbour), MOST_REPEATS)
            most = max(most, needed)
        return msgspec.structs.replace(self, num_blocks=min(most, self.num_blocks))

    def misfit(self, work: ShapedBatch) -> str | None:
        """Why a batch cannot be run here, or None."""
        shape, limits = work.shape, self.limits
        requests = shape.num_decodes + len(shape.chunks)
        # A decode's length includes the token that it computes.
        lengths = [context + 1 for context in work.lengths()]
        longest = max([*lengths, *(sum(chunk) for chunk in shape.chunks)], default=0)
        if requests > limits.max_num_seqs:
            return f"{requests:,} requests exceed --max-num-seqs {limits.max_num_seqs:,}"
        if shape.num_tokens > limits.max_num_batched_tokens:
            return (
                f"{shape.num_tokens:,} new tokens exceed --max-num-batched-tokens "
                f"{limits.max_num_batched_tokens:,}"
            )
        if longest > limits.max_model_len:
            return f"a length of {longest:,} exceeds --max-model-len {limits.max_model_len:,}"
        needed = self.blocks_of(work, MOST_REPEATS)
        if needed > self.num_blocks:
            return f"{needed:,} KV blocks are more than the {self.num_blocks:,} there are"
        return None


class BatchDesk:
    """Makes batches for one device and submits them, numbering its steps.

    The KV pool is the engine's: the device's KV memory in blocks. Batches made last are kept and
    found again, since a sweep varies SMs before shapes.
    """

    def __init__(self, device: Device, pool: Pool) -> None:
        self.device, self.pool = device, pool
        self.kv = kv_cache(pool.num_blocks, pool.paging, prefix_caching=False)
        self._steps = self._requests = 0
        self._held: dict[tuple[ShapedBatch, str, int], Batch] = {}
        device.prepare(Serving(pool.num_blocks, pool.block_size, again=True))
        device.start()

    def batch(
        self, work: ShapedBatch, partition: str, repeat: int = 1, *, beside: Batch | None = None
    ) -> Batch:
        """A batch whose requests hold their KV blocks, those of ``beside`` staying where they are.

        Raises UsageError if it does not fit.
        """
        key = (work, partition, repeat)
        held = self._held.pop(key, None)
        if held is None:
            problem = self.pool.misfit(work)
            if problem is not None:
                raise UsageError(f"a batch of {work.shape} does not fit the device: {problem}")
            needed = self.pool.blocks_of(work, repeat)
            for old in [key for key, batch in self._held.items() if batch is not beside]:
                if needed <= self.kv.num_free:
                    break
                self._free(old)
            held = self._make(work, partition, repeat)
        self._held[key] = held
        return held

    def submit(self, batch: Batch, sms: int) -> int:
        """Launch; returns the number of the step."""
        step, self._steps = self._steps, self._steps + 1
        self.device.submit(step, batch, sms)
        for request, _ in batch.items:
            request.in_flight = True
        return step

    def landed(self, batch: Batch) -> None:
        """Its launch has ended: it may be changed or freed again."""
        for request, _ in batch.items:
            request.in_flight = False

    def drain(self, batches: Sequence[Batch]) -> list[StepOutput]:
        """Wait until ``batches``, all that is in flight, have ended.

        Raises NexusbenchError if the device gives no output.
        """
        outputs: list[StepOutput] = []
        left = len(batches)
        while left:
            ended = self.device.wait_for_steps(None)
            if not ended:
                raise NexusbenchError(
                    f"{self.device.spec.name} has {left} launches in flight and reports no end"
                )
            outputs += ended
            left -= sum(output.last for output in ended)
        for batch in batches:
            self.landed(batch)
        return outputs

    def _make(self, work: ShapedBatch, partition: str, repeat: int) -> Batch:
        decodes = [self._request(length, length + 1, repeat) for length in work.lengths()]
        chunks = [
            Chunk(self._request(before, before + count, 0), count, before)
            for count, before in work.shape.chunks
        ]
        shape = msgspec.structs.replace(work.shape, repeat=repeat, unequal=spread_of(work.contexts))
        return Batch(partition, decodes, chunks, shape, None, repeat)

    def _request(self, computed: int, tokens: int, repeat: int) -> Request:
        """A request with ``computed`` of its ``tokens`` tokens in the cache, and room for them."""
        index, self._requests = self._requests, self._requests + 1
        request = Request(
            f"profile-{index}", index, 0, tokens, _TOKENS_TO_COME,
            tokens + _TOKENS_TO_COME, num_tokens=tokens, num_computed_tokens=computed,
        )  # fmt: skip
        made = self.kv.reserve(computed + repeat if repeat else tokens, computed)
        if made is None:
            raise UsageError("the two batches of a pair do not fit the KV pool together")
        request.blocks = made[0]
        return request

    def _free(self, key: tuple[ShapedBatch, str, int]) -> None:
        for request, _ in self._held.pop(key).items:
            self.kv.free(request)
            self.device.forget(request)


def make_pool(device: Device, sizes: KvPages, limits: Limits) -> Pool:
    """As the engine sizes it. Raises UsageError if not one block fits."""
    blocks = int(device.spec.kv_bytes // sizes.page_bytes)
    if blocks < 2:
        raise UsageError(f"{device.spec.name} has no room for KV blocks beside this model")
    return Pool(blocks, sizes.block_size, limits, None if sizes.is_uniform else sizes)
