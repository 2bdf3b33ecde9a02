"""Time-debt chunks: what a chunk takes from decodes they get back before the next one starts."""

from __future__ import annotations

from functools import cache

import pytest

from nexusbench.core.errors import InputError
from nexusbench.core.state import Limits
from nexusbench.testing import offer, serve
from nexusbench.testing._harness import Setting, make_scheduler

MS = 1_000_000
WIDE = Setting(kv_blocks=9000, limits=Limits(12, 4096, 16_000))
CHATS = [offer(i, 0, 8, 500, max_tokens=500) for i in range(2)]
LOAD = [*CHATS, *[offer(2 + i, 300 + 900 * i, 1800 + 500 * (i % 3), 4) for i in range(5)]]


@cache
def usual(name):
    """The steps of LOAD."""
    return steps(name, LOAD)


def steps(name, requests):
    """(tokens of chunks, decodes, decodes there were, ns) of each launch."""
    policy, there = make_scheduler(name), []
    inner = policy.schedule

    def schedule(ctx):
        decoding = len(ctx.decoding)
        plan = inner(ctx)
        there.extend([decoding] * len(plan.batches))
        return plan

    policy.schedule = schedule
    log = serve(requests, policy, setting=WIDE).log.tables
    rows, done = log["submitted"].columns, log["step_done"].columns
    took = [end - start for start, end in zip(rows["time"], done["time"], strict=True)]
    columns = zip(rows["prefill_tokens"], rows["decodes"], there, took, strict=True)
    return list(columns)


def test_a_launch_is_a_chunk_or_a_decode_step():
    kinds = {(bool(tokens), bool(decodes)) for tokens, decodes, _, _ in usual("debt")}
    assert kinds == {(True, False), (False, True)}


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_decodes_get_back_their_share_of_a_chunks_time_before_the_next_chunk(share):
    owed, repaid, last, chunks, over = 0.0, 0.0, 0.0, 0, []
    for tokens, _, there, took in usual(f"debt:share={share},tbt_ms=400"):
        if tokens and there:
            chunks += 1
            assert repaid >= owed
            over.append((repaid - owed, last))
            owed, repaid = share * took, 0.0
        elif not tokens:
            repaid, last = repaid + took, took
        if not there:
            owed = 0.0
    assert chunks > 5
    # And no longer: with some decode step less the debt was not repaid, while prompts wait.
    assert sum(extra < step for extra, step in over[1:]) > len(over) / 2


def test_decodes_keep_their_share_of_the_speed_that_they_have_alone():
    rows = [row for row in usual("debt:share=2.0,tbt_ms=400") if row[2]]
    chunks = sum(took for tokens, _, _, took in rows if tokens)
    decode = sum(took for tokens, _, _, took in rows if not tokens)
    assert decode / (decode + chunks) >= 2 / 3


@pytest.mark.parametrize(("name", "target_ms"), [("debt:tbt_ms=600", 600), ("debt", 500)])
def test_chunks_are_sized_in_time_by_the_best_speed_seen(name, target_ms):
    """A bound on gaps holds the decode step after the chunk too; oMLX's 500 ms are the chunk's."""
    best, step, checked = 0.0, 0.0, 0
    for tokens, _, there, took in usual(name):
        if tokens and there and best:
            left = target_ms * MS - (step if "tbt" in name else 0)
            most = max(256, int(left * best) // 64 * 64)
            assert tokens <= most
            checked += tokens == most
        if tokens:
            best = max(best, tokens / took)
        else:
            step = took
    assert checked > 2


def test_no_chunk_is_below_256_tokens_but_the_last_of_a_prompt():
    started = [offer(0, 0, 1, 400, max_tokens=400), offer(1, 0, 2000, 3)]
    sizes = [tokens for tokens, _, _, _ in steps("debt:tbt_ms=1", started) if tokens]
    assert sizes[0] == 2001  # no request decodes yet: no bound
    late = [offer(0, 0, 1, 400, max_tokens=400), offer(1, 50, 2000, 3)]
    sizes = [tokens for tokens, _, there, _ in steps("debt:tbt_ms=1", late) if tokens and there]
    assert sizes == [256] * 7 + [208]


def test_where_no_request_decodes_there_is_neither_debt_nor_bound():
    rows = steps("debt", [offer(i, 2500 * i, 3000, 3) for i in range(4)])
    assert [tokens for tokens, _, there, _ in rows if tokens and not there] == [3000] * 4


def test_options_that_promise_nothing_are_refused():
    for option in ("share=0", "tbt_ms=0"):
        with pytest.raises(InputError, match=option.partition("=")[0]):
            make_scheduler(f"debt:{option}")


def test_debt_to_decodes_that_have_ended_is_forgiven():
    """The one that it was owed to is gone: the next prompt need not wait for another's decodes."""
    requests = [offer(0, 0, 8, 3), offer(1, 30, 3000, 50), offer(2, 1000, 300, 2)]
    rows = steps("debt:share=20", requests)
    sizes = [tokens for tokens, *_ in rows]
    owed = next(i for i, (tokens, _, there, _) in enumerate(rows) if tokens and there)
    rest = sizes.index(3000 - sizes[owed])
    assert rows[rest][2] == 0  # no request decodes any more
    assert sizes[rest + 1] == 300
