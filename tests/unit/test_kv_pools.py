"""How many KV blocks a run has: of each GPU, of the host, and where no request fits."""

from __future__ import annotations

import pytest

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.state import Limits
from nexusbench.engine.engine import EngineConfig
from nexusbench.serving.opening import check_pool, kv_pools
from nexusbench.serving.resolve import swap_gib
from nexusbench.testing import offer, tiny_device, tiny_model
from nexusbench.testing._harness import make_scheduler
from nexusbench.workloads.base import Trace, TraceRequest

MODEL = tiny_model()
BLOCK = 16 * MODEL.kv_bytes_per_token


def trace(hash_ids=(), hash_block=32):
    return Trace("t", [TraceRequest("0", 0, 40, 5, hash_ids)], hash_block=hash_block)


def config(**more):
    return RunConfig(trace="t", block_size=16, **more)


def test_a_gpus_blocks_are_what_its_memory_holds_or_as_many_as_asked():
    device = tiny_device()
    (first, others) = kv_pools(config(), MODEL, device, trace())
    assert (first.num_blocks, first.block_size) == (int(device.spec.kv_bytes // BLOCK), 16)
    assert others == []
    assert kv_pools(config(kv_blocks=77), MODEL, device, trace())[0].num_blocks == 77


def test_each_gpu_of_a_pair_has_as_many_and_the_host_what_it_is_given():
    device = tiny_device(count=2, host=True)
    first, (second, host) = kv_pools(config(kv_blocks=50), MODEL, device, trace())
    assert (first.num_blocks, second.num_blocks) == (50, 50)
    assert host.num_blocks == int(device.spec.host_bytes // BLOCK)
    # What is on the host is found by its request alone.
    assert [kv.prefix_caching for kv in (first, second, host)] == [True, True, False]
    off = config(kv_blocks=50, prefix_caching=False)
    first, (second, host) = kv_pools(off, MODEL, device, trace())
    assert not any(kv.prefix_caching for kv in (first, second, host))


def test_blocks_must_divide_what_a_hash_id_names():
    with pytest.raises(UsageError, match=r"--block-size 16 does not divide .* hash block of 40"):
        kv_pools(config(), MODEL, tiny_device(), trace((1,), 40))
    kv_pools(config(), MODEL, tiny_device(), trace((1, 2), 32))
    kv_pools(config(), MODEL, tiny_device(), trace((), 40))  # nothing is named


def test_a_pool_in_which_no_request_fits_is_refused():
    kv = kv_pools(config(kv_blocks=3), MODEL, tiny_device(), trace())[0]
    fits, not_quite, large = offer(0, 0, 40, 8), offer(1, 0, 40, 9), offer(2, 0, 90, 9)
    check_pool([large, fits], kv, 64)
    check_pool([], kv, 64)
    with pytest.raises(UsageError, match=r"pool of 3 blocks .* the smallest needs 4"):
        check_pool([large, not_quite], kv, 64)


def test_swap_space_is_the_users_else_the_policys_where_it_swaps():
    plain, swaps = make_scheduler("vllm"), make_scheduler("vllm:preemption=swap")
    assert swap_gib(config(), plain, "sim") == 0.0
    assert swap_gib(config(), swaps, "sim") > 0.0
    assert swap_gib(config(), None, "sim") == 0.0
    assert swap_gib(config(swap_space=2.5), plain, "sim") == 2.5
    assert swap_gib(config(swap_space=0.0), swaps, "sim") == 0.0


def test_what_an_engine_does_unless_it_is_told():
    """Books are audited every 4,096 steps (docs/invariants.md), and no token ends a request."""
    usual = EngineConfig(Limits(8, 64, 1024))
    assert (usual.audit_every, usual.concurrency, usual.block_bytes) == (4096, 0, 0.0)
    assert usual.stop_tokens == frozenset()
