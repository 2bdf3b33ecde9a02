"""Copies of KV blocks between pools: to another GPU, to the host and back."""

from __future__ import annotations

from collections.abc import Sequence

from nexusbench.core.batch import Transfer, TransferOutput
from nexusbench.core.errors import InvariantBreach
from nexusbench.core.events import EventLog
from nexusbench.core.state import EngineState
from nexusbench.devices.base import Device
from nexusbench.kv.manager import KVCacheManager


class Movers:
    """Starts copies on the device, and changes queues and pools when they have ended.

    A request whose blocks are being copied holds blocks in both pools and is in flight (I11); those
    in the source pool are freed when the copy has ended (I3).
    """

    def __init__(
        self,
        state: EngineState,
        pools: Sequence[KVCacheManager],
        device: Device,
        log: EventLog,
        block_bytes: float,
    ) -> None:
        self._state, self._pools, self._device, self._log = state, pools, device, log
        self._block_bytes = block_bytes
        self._started = 0
        self._under_way: dict[int, tuple[Transfer, int]] = {}  # and since when (ns)

    def start(self, transfer: Transfer) -> None:
        """Submit a planned copy: the bytes of the tokens that its request has computed."""
        state, number = self._state, self._started
        self._started = number + 1
        self._under_way[number] = (transfer, state.now)
        state.moving += 1
        if transfer.target == state.device.host:
            state.swapping_blocks += self._pools[transfer.source].held(transfer.request)
        source = self._pools[transfer.source]
        filled = source.growth(0, transfer.request.num_computed_tokens) / source.block_size
        self._device.transfer(number, transfer.source, transfer.target, filled * self._block_bytes)

    def complete(self, output: TransferOutput) -> None:
        """The request holds its blocks in the target pool now; free those in the source pool."""
        state = self._state
        if output.end_ns < state.now:
            raise InvariantBreach("I2", f"copy {output.transfer} ended before {state.now} ns")
        state.now = output.end_ns
        transfer, since = self._under_way.pop(output.transfer)
        request, near = transfer.request, self._pools[transfer.source]
        state.moving -= 1
        if transfer.target == state.device.host:
            state.swapping_blocks -= near.held(request)
            near.publish_own(request)
        near.free(request)
        request.blocks, request.pool, request.in_flight = transfer.blocks, transfer.target, False
        tables = self._log.tables
        tables["moved"].row(
            request.index, since, output.end_ns, transfer.source, transfer.target,
            request.num_computed_tokens,
        )  # fmt: skip
        if transfer.target == state.device.host:
            queue = state.decoding if request in state.decoding else state.prefilling
            queue.remove(request)
            state.swapped.append(request)
        elif transfer.source == state.device.host:
            tables["admitted"].row(request.index, output.end_ns, request.num_computed_tokens)

    def blocks_ahead(self, pool: int) -> list[list[int]]:
        """Blocks of ``pool`` that are held as targets of copies under way (for I3)."""
        return [move.blocks for move, _ in self._under_way.values() if move.target == pool]
