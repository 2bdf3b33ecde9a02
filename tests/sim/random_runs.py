"""Random runs of every scheduler, partitioner, order and way to preempt, as a seed and a number
name them; for the independent log checker.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from nexusbench.core.request import Request
from nexusbench.core.state import Limits
from nexusbench.engine.engine import Engine
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import offer, tiny_gpu, tiny_model
from nexusbench.testing._harness import Setting, build, make_scheduler
from tests.sim.log_checker import Facts, Offer, check

LAYERWISE = {"bullet", "flowprefill", "muxwise", "pdmux"}
MOST_TURNS = 20_000  # of the engine's loop; a run that needs more goes round for ever
ORDERS = ("fcfs", "spf", "lpm", "hit-rate")
PREEMPTIONS = ("swap", "recompute")
# More options that change what is launched, of which one is drawn now and then.
EXTRAS = {
    "sarathi": ("mode=maximal", "chunk=16,tile=0", "chunk=1,tile=8", "chunk=40,tile=16"),
    "fastserve": ("quantum_ms=1", "max_batch=2", "max_prefill_tokens=8", "promoted=reset",
                  "starved_ms=0,check_every=1"),
    "vllm": ("whole_prompt=true",),
    "sglang": ("max_prefill_tokens=16", "schedule_conservativeness=0.1"),
    "duetserve": ("tbt_ms=5", "look_ahead=3,tbt_ms=20"),
    "muxwise": ("preempt=true,ttft_ms=5000",),
    "pdmux": ("split_forward_token_budget=64",),
    "bullet": ("layers_per_step=1", "pause=false", "ttft_ms=20,tbt_ms=200"),
    "slack": ("tbt_ms=5", "tbt_ms=20,least=8", "tbt_ms=1000"),
    "debt": ("tbt_ms=5", "tbt_ms=200", "share=4", "share=0.1"),
    "openinfer": ("most_prompts=1",),
    "flowprefill": ("layers=1", "norm_ttft_ms=2,layers=1", "ttft_ms=50,late_ms=100",
                    "batch_tokens=1,layers=3"),
    "adrenaline": ("ratio=0.5", "ratio=9", "ratio=0", "prefill_kv=0.5"),
}  # fmt: skip
SPLITS = {
    "fixed": ("prefill=20", "prefill=80"),
    "nexus": ("kv_switch=-1", "kv_switch=1,delta=0", "reading=swapped,kv_switch=0.5"),
    "adrenaline": ("ttft_ms=1", "ttft_ms=3000"),
    "pdmux": ("divisions=h200", "sm_group_num=4,decode_bs_divisor=2"),
    "semi-pd": ("window=3,ttft_ms=30,tbt_ms=20",),
}


@dataclass(frozen=True)
class Case:
    """One run: what is typed for the policy and the partitioner, requests and where they go."""

    scheduler: str
    partitioner: str
    requests: list[Request]
    setting: Setting
    seed: int

    @property
    def room(self) -> float:
        """For how many requests as long as the longest the pool has room."""
        longest = max(-(-r.stop_len // self.setting.block_size) for r in self.requests)
        return self.setting.kv_blocks / longest


def pairs() -> list[tuple[str, str]]:
    """Every scheduler with every partitioner that can serve it."""
    found = []
    for name in schedulers.names():
        policy = schedulers.load(name)
        for other in partitioners.names():
            cls = partitioners.load(other)
            if policy.partitions in cls.serves and policy.num_gpus in cls.num_gpus:
                found.append((name, other))
    return found


def turns() -> list[tuple[str, str, str, str]]:
    """What comes up once before anything comes again: (scheduler, partitioner, preemption, order);
    schedulers that no partitioner divides four times, for they have fewer partitioners.
    """
    return [
        (scheduler, partitioner, preemption, order)
        for order in ORDERS
        for preemption in PREEMPTIONS
        for scheduler, partitioner in pairs()
        for _ in range(1 if "prefill" in schedulers.load(scheduler).partitions else 4)
    ]


def cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` runs; the same seed gives the same ones. Every pair of plug-ins, way to preempt and
    order has its turn before one comes again.
    """
    every = turns()
    random.Random(f"turns {seed}").shuffle(every)
    for number in range(count):
        yield case(random.Random(f"run {seed} {number}"), *every[number % len(every)])


def case(rng: random.Random, scheduler: str, partitioner: str, preemption: str, order: str) -> Case:
    """A random run of given plug-ins: pools from just enough to plenty, more often tight."""
    options = [f"order={order}", f"preemption={preemption}"]
    if scheduler in EXTRAS and rng.random() < 0.4:
        extra = rng.choice(EXTRAS[scheduler])
        if not (partitioner == "whole" and extra.startswith("ratio=")):  # no SMs to offload to
            options.append(extra)
    split = [rng.choice(("idle=expand", "idle=reserve"))] if partitioner != "adrenaline" else []
    if partitioner in SPLITS and rng.random() < 0.5:
        split.append(rng.choice(SPLITS[partitioner]))
    crowded = rng.random() < 0.4  # several prompts half done at once, in a pool for one of them
    requests = _requests(rng, crowded)
    block = rng.choice((4, 8) if crowded else (1, 2, 4, 8))
    least = max(-(-r.stop_len // block) for r in requests)
    room = rng.choice(
        (0, 0, 1, 2, least // 4, least // 2, least, 10 * least)[: 5 if crowded else 8]
    )
    setting = Setting(
        kv_blocks=least + room,
        host_blocks=50 * least if crowded else rng.choice((1, least // 2 + 1, least, 50 * least)),
        block_size=block,
        prefix_caching=rng.random() < 0.6,
        limits=Limits(
            rng.choice((3, 8, 16) if crowded else (1, 2, 3, 8, 16)),
            rng.choice((17, 64) if crowded else (1, 4, 17, 64, 256)),
            1024,
        ),
        concurrency=0 if crowded else rng.choice((0, 0, 0, 1, 4)),
        audit_every=1 << 40,
    )
    return Case(
        f"{scheduler}:{','.join(options)}",
        ":".join(filter(None, (partitioner, ",".join(split)))),
        requests,
        setting,
        rng.randrange(1000),
    )


def _requests(rng: random.Random, crowded: bool) -> list[Request]:
    """Bursts and gaps, equal prefixes, sessions, clients without patience."""
    made: list[Request] = []
    now, gap = 0.0, rng.choice((30.0, 60.0) if crowded else (3.0, 30.0, 200.0))
    impatient, talk = rng.random() < 0.3, rng.random() < 0.3
    follows: set[int] = set()
    for index in range(rng.randint(5, 10) if crowded else rng.randint(1, rng.choice((4, 12)))):
        now += rng.choice((0.0, 0.0, rng.expovariate(1 / gap)))
        prompt = rng.choice((rng.randint(1, 20), rng.randint(1, 90), rng.randint(60, 260)))
        output = rng.choice((1, rng.randint(1, 8), rng.randint(4, 60)))
        if crowded:
            prompt = rng.choice((16, 17, rng.randint(50, 100), rng.randint(150, 300)))
            output = rng.choice((1, 12, 26, 30, 80))
        blocks = -(-prompt // 8)
        shared = rng.randint(0, blocks) if rng.random() < 0.4 else 0
        family = 100 * rng.randint(1, 2)
        own = range(1000 * (index + 1), 1000 * (index + 1) + blocks - shared)
        ids = (*range(family, family + shared), *own) if shared else ()
        after = -1
        if talk and index and rng.random() < 0.4 and index - 1 not in follows:
            after = index - 1
            follows.add(after)
        made.append(
            offer(
                index, now, prompt, output, prefix_ids=ids, after=after,
                think_ms=rng.choice((0.0, 25.0)) if after >= 0 else 0.0,
                timeout_ms=rng.choice((0.0, 400.0)) if impatient else 0.0,
                cancel_after_ms=rng.choice((0.0, 0.0, 90.0)) if impatient else 0.0,
            )
        )  # fmt: skip
    return made


class GoesRound(Exception):
    """The loop turns and turns, and requests do not end."""


def serve(one: Case) -> Engine:
    """Run it to its end. Raises what the engine raises, and GoesRound."""
    turns = 0

    def watch(engine: Engine) -> None:
        nonlocal turns
        turns += 1
        if turns > MOST_TURNS:
            raise GoesRound(f"{engine.num_ended} of {len(engine.requests)} ended")

    policy = make_scheduler(one.scheduler)
    engine = build(
        one.requests, policy, one.partitioner, setting=one.setting, seed=one.seed, observer=watch
    )
    engine.run()
    return engine


def columns(engine: Engine) -> dict[str, dict[str, list[int]]]:
    """The log as plain lists, by table."""
    return {
        name: {key: list(values) for key, values in table.columns.items()}
        for name, table in engine.log.tables.items()
    }


def facts(engine: Engine, one: Case) -> Facts:
    """What the checker is told of where it ran."""
    spec, limits, policy = engine.device.spec, one.setting.limits, engine.scheduler
    legal = (*spec.splits, spec.whole)
    return Facts(
        pools=tuple(kv.num_blocks for kv in engine.pools),
        host=spec.host is not None,
        block_size=one.setting.block_size,
        hash_block=one.setting.hash_block,
        caching=one.setting.prefix_caching,
        seats=limits.max_num_seqs,
        budget=limits.max_num_batched_tokens,
        longest=limits.max_model_len,
        homes=tuple(spec.pool_of.get(name, 0) for name in policy.partitions),
        num_sms=spec.num_sms,
        legal=tuple(split.sms for split in legal),
        overlapping=tuple(split.sms for split in legal if split.overlapping),
        expands=engine.partitioner.options.idle == "expand",
        layerwise=policy.name in LAYERWISE,
        conserving=policy.work_conserving,
        names=policy.partitions,
        users=one.setting.concurrency,
        reorders=policy.name in ("fastserve", "adrenaline"),
        mixes=policy.name == "duetserve",
        link=(
            tiny_model().kv_bytes_per_token,
            tiny_gpu().link_gbps,
            tiny_gpu().host_gbps,
            tiny_gpu().link_latency_us * 1e3,
        ),
    )


def offers(one: Case) -> list[Offer]:
    """The requests as the checker gets them."""
    return [
        Offer(
            r.arrival_ns, r.num_prompt_tokens, r.stop_len - r.num_prompt_tokens, r.max_tokens,
            r.prefix_ids, r.after, r.think_ns, r.timeout_ns, r.cancel_after_ns,
        )
        for r in one.requests
    ]  # fmt: skip


def breaches(one: Case) -> list[str]:
    """Serve it and check its log; what the engine raises counts as a breach too."""
    try:
        engine = serve(one)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    splits = [split.sms for split in engine.splits]
    return check(columns(engine), splits, facts(engine, one), offers(one))
