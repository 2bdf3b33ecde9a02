"""Random workloads and policies for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from nexusbench.core.state import Limits
from nexusbench.testing import offer
from nexusbench.testing._harness import Setting
from nexusbench.testing._workloads import RandomWorkload

GAPS = st.sampled_from([0.0, 0.0, 0.5, 7.0, 40.0, 400.0])
PROMPTS = st.one_of(st.integers(1, 24), st.integers(1, 90), st.integers(60, 260))
OUTPUTS = st.one_of(st.just(1), st.integers(1, 6), st.integers(1, 40))
HASH_BLOCK = 8


@st.composite
def workloads(draw, max_requests=14):
    """Bursts and gaps, one-token outputs, shared prefixes, KV pools from just enough to plenty."""
    requests = []
    now, longest = 0.0, 0
    for index in range(draw(st.integers(1, max_requests))):
        now += draw(GAPS)
        prompt, output = draw(PROMPTS), draw(OUTPUTS)
        blocks = -(-prompt // HASH_BLOCK)
        shared = min(blocks, draw(st.sampled_from([0, 0, 1, 3, 40])))
        own = range(10_000 + 100 * index, 10_000 + 100 * index + blocks - shared)
        ids = (*range(500, 500 + shared), *own) if shared else ()
        requests.append(offer(index, now, prompt, output, prefix_ids=ids))
        longest = max(longest, prompt + output)
    block = draw(st.sampled_from([1, 2, 4, 8]))
    least = -(-longest // block)
    extra = draw(st.sampled_from([0, 1, 3, least // 3, 2 * least, 20 * least]))
    limits = Limits(draw(st.sampled_from([1, 2, 4, 12])), draw(st.sampled_from([4, 16, 64])), 1024)
    caching = draw(st.booleans())
    setting = Setting(
        kv_blocks=least + extra,
        host_blocks=draw(st.sampled_from([1, least, 100 * least])),
        block_size=block,
        prefix_caching=caching,
        limits=limits,
    )
    return RandomWorkload("random", requests, setting)


ORDERS = st.sampled_from(
    ["order=fcfs", "order=spf", "order=spf,gamma=5000", "order=lpm", "order=hit-rate"]
)
IDLE = st.sampled_from(["idle=expand", "idle=reserve"])
# kv_switch below 0 is never reached from below, 1 always: both modes are forced, and 0.5 mixes.
SPLITS = st.one_of(
    st.sampled_from(["fixed:prefill=20", "fixed:prefill=80"]),
    st.builds(
        "nexus:kv_switch={},delta={},reading={}".format,
        st.sampled_from([-1, 0.5, 1]),
        st.sampled_from([0, 5, 30]),
        st.sampled_from(["literal", "swapped"]),
    ),
)
SINGLE = st.sampled_from(["vllm", "sglang", "sarathi", "fastserve"])
ONE_STREAM = st.builds("{}:{}".format, SINGLE, ORDERS)
TWO_STREAMS = st.tuples(
    st.builds("nexus:{}".format, ORDERS),
    st.one_of(
        st.builds("{},{}".format, SPLITS, IDLE),
        st.builds("whole:{}".format, IDLE),
    ),
)
POLICIES = st.one_of(st.tuples(ONE_STREAM, st.just("whole")), TWO_STREAMS)
SWAPS = st.sampled_from(["preemption=swap", "preemption=recompute"])
ON_A_PAIR = st.tuples(
    st.one_of(
        st.builds("vllm-pd:{},{}".format, ORDERS, SWAPS),
        st.builds("adrenaline:{},{},ratio={}".format, ORDERS, SWAPS, st.sampled_from([0.3, 1, 9])),
        st.builds("adrenaline:{},{}".format, ORDERS, SWAPS),
    ),
    st.builds("adrenaline:ttft_ms={}".format, st.sampled_from([1, 300, 3000])),
)
SWAPPING = st.tuples(st.builds("{},preemption=swap".format, ONE_STREAM), st.just("whole"))
SWAPPING_SPLIT = st.builds(lambda policy: (f"{policy[0]},preemption=swap", policy[1]), TWO_STREAMS)
MOVING = st.one_of(ON_A_PAIR, ON_A_PAIR, SWAPPING, SWAPPING_SPLIT)  # those that copy KV
