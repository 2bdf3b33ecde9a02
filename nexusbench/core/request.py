"""A request, and the part of it that a policy may see."""

from __future__ import annotations

from typing import Protocol

import msgspec


class RequestView(Protocol):
    """What a policy may read of a request. The trace's true output length is not among it."""

    @property
    def id(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def arrival_ns(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_computed_tokens(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def in_flight(self) -> bool: ...
    @property
    def layers_done(self) -> int: ...
    @property
    def layers_tokens(self) -> int: ...
    @property
    def pool(self) -> int: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrival_rank(self) -> int: ...


class Request(msgspec.Struct, gc=False, eq=False):
    """One request and its progress in the engine.

    There is no prefill or decode state: ``num_computed_tokens`` catches up with ``num_tokens``
    (prompt plus what was generated), and chunked prefill, prefix hits and recomputation all follow
    from those two numbers. Tokens are counted, times are nanoseconds on the device's clock.
    """

    id: str
    index: int  # position in the run, 0..n-1; the key of the event log
    arrival_ns: int
    num_prompt_tokens: int
    max_tokens: int
    stop_len: int  # prompt + true output length; the engine's alone (oracle boundary)
    prefix_ids: tuple[
        int, ...
    ] = ()  # one id per hash_block prompt tokens, equal only for equal prefixes
    tenant: str = ""
    num_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0  # prefix tokens found in the cache at the last admission
    num_preemptions: int = 0
    in_flight: bool = False
    layers_done: int = 0  # of the chunk that is being computed layer by layer
    layers_tokens: int = 0  # that chunk's size
    num_hashed_blocks: int = 0  # leading blocks whose hashes are published
    blocks: list[int] = []
    pool: int = 0  # where they are: a number of DeviceSpec.pools
    kv_blocked: bool = False  # an admission was tried and failed for want of blocks
    order_key: float = 0.0  # place in the waiting queue; smaller goes first
    arrival_rank: int = 0  # how many had arrived before it
    named_tokens: int = 0  # how many tokens prefix_ids name, if its session may share its answer
    after: int = -1  # index of the request whose end sets arrival_ns; -1 for none
    think_ns: int = 0  # from the end of that one to this one's arrival
    timeout_ns: int = 0  # its client gives up this long after the arrival; 0 never
    cancel_after_ns: int = 0  # its client cancels it this long after the arrival; 0 never
    outcome: int = -1  # index into OUTCOMES once it has ended

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt_tokens
