"""I8: the engine's greedy tokens are transformers' own, whatever the schedule."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.examples import slow

torch = pytest.importorskip("torch")

from checkpoints import write_checkpoint  # noqa: E402
from serving import served  # noqa: E402

from nexusbench.core.state import Limits  # noqa: E402
from nexusbench.models.agreement import TIE  # noqa: E402
from nexusbench.testing import offer  # noqa: E402
from nexusbench.testing._harness import Setting  # noqa: E402
from tests.sim.pieces import pieces  # noqa: E402

FAMILIES = ("llama-3.1", "qwen2", "qwen3")
BLOCK = 8  # hash block
LENGTHS = ((5, 9), (40, 12), (21, 1), (64, 7), (33, 14), (64, 10), (17, 16), (64, 5))
LONG = ((5, 44), (9, 40), (6, 42), (12, 38), (7, 41))  # grow far beyond what they begin with
WAYS = [
    ("vllm", "whole"),
    ("sglang", "whole"),
    ("nexus", "fixed"),
    ("nexus", "nexus"),
    ("nexus", "whole"),
    ("pieces", "fixed"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    pytest.importorskip("transformers", reason="needs the package transformers (extra 'check')")
    folder = tmp_path_factory.mktemp("models")
    return {name: (folder / name, write_checkpoint(folder / name, name)) for name in FAMILIES}


@cache
def prompts(lengths: tuple[tuple[int, int], ...] = LENGTHS) -> dict[int, list[int]]:
    """Token ids of each request. Those of 64 tokens begin with the same 40."""
    draw = random.Random(5)
    shared = [draw.randrange(211) for _ in range(40)]
    made = {}
    for index, (count, _) in enumerate(lengths):
        own = [draw.randrange(211) for _ in range(count)]
        made[index] = (shared + own)[:count] if count == 64 else own
    return made


def requests(lengths: tuple[tuple[int, int], ...] = LENGTHS) -> list[Any]:
    """All arrive within 20 ms; equal beginnings have equal ids."""
    made = []
    for index, (count, output) in enumerate(lengths):
        ids = tuple(range(5)) + tuple(range(100 * index + 5, 100 * index + 8))
        ids = ids if count == 64 else ()
        made.append(offer(index, 3 * index, count, output, max_tokens=output, prefix_ids=ids))
    return made


_expected: dict[Any, dict[int, tuple[list[int], list[float]]]] = {}


def expected(
    name: str, model: Any, lengths: tuple[tuple[int, int], ...]
) -> dict[int, tuple[list[int], list[float]]]:
    """What transformers generates greedily, and by how much it prefers each token."""
    known = _expected.setdefault((name, lengths), {})
    if not known:
        for index, (_, output) in enumerate(lengths):
            ids, margins = list(prompts(lengths)[index]), []
            with torch.inference_mode():
                for _ in range(output):
                    best = model(torch.tensor([ids])).logits[0, -1].float().topk(2)
                    margins.append(float(best.values[0] - best.values[1]))
                    ids.append(int(best.indices[0]))
            known[index] = (ids[-output:], margins)
    return known


def check(
    name: str,
    model: Any,
    got: dict[int, list[int]],
    lengths: tuple[tuple[int, int], ...] = LENGTHS,
) -> None:
    for index, (tokens, margins) in expected(name, model, lengths).items():
        assert len(got[index]) == len(tokens)
        for place, (mine, theirs, margin) in enumerate(
            zip(got[index], tokens, margins, strict=True)
        ):
            if mine != theirs:
                where = f"{name}, request {index}, token {place}: margin {margin:.2g}"
                assert margin <= TIE, where
                print(f"tie: {where}")
                break  # from here on it is another text


def policy(name: str) -> Any:
    return pieces(1, 3, 13, whole=3) if name == "pieces" else name


@pytest.mark.parametrize("caching", [True, *slow(False)], ids=["prefix", "no-prefix"])
@pytest.mark.parametrize("way", [*slow(*WAYS[:-1]), WAYS[-1]], ids="+".join)
@pytest.mark.parametrize("name", [*slow(*FAMILIES[:-1]), FAMILIES[-1]])
def test_tokens_are_transformers_own(
    checkpoints: dict[str, tuple[Path, Any]], name: str, way: tuple[str, str], caching: bool
) -> None:
    folder, model = checkpoints[name]
    budget = 19 if caching else 64  # an odd chunk size: chunks end within blocks
    setting = Setting(
        kv_blocks=512, block_size=4, hash_block=BLOCK, prefix_caching=caching,
        limits=Limits(6, budget, 512), prompts=prompts(),
    )  # fmt: skip
    scheduler, partitioner = way
    engine, got = served(folder, requests(), policy(scheduler), partitioner, setting=setting)
    check(name, model, got)
    hits = sum(engine.log.tables["admitted"].columns["cached_tokens"])
    assert hits > 0 if caching else hits == 0


@pytest.mark.parametrize("way", [*slow(*WAYS[:-1]), WAYS[-1]], ids="+".join)
def test_preemption_changes_no_token(
    checkpoints: dict[str, tuple[Path, Any]], way: tuple[str, str]
) -> None:
    folder, model = checkpoints["qwen3"]
    setting = Setting(
        kv_blocks=24, block_size=4, hash_block=BLOCK,
        limits=Limits(6, 33, 512), prompts=prompts(LONG),
    )  # fmt: skip
    scheduler, partitioner = way
    if scheduler == "sglang":  # as it is it reserves enough for these
        scheduler = "sglang:init_new_token_ratio=0.1"
    engine, got = served(folder, requests(LONG), policy(scheduler), partitioner, setting=setting)
    check("qwen3", model, got, LONG)
    assert len(engine.log.tables["preempted"]) > 0


@pytest.mark.slow
def test_time_shared_partitions_make_the_same_tokens(
    checkpoints: dict[str, tuple[Path, Any]],
) -> None:
    folder, model = checkpoints["qwen2"]
    setting = Setting(kv_blocks=512, limits=Limits(6, 29, 512), prompts=prompts())
    for partitioner in ("fixed:prefill=10", "nexus"):
        _, got = served(
            folder, requests(), "nexus", partitioner, argument="shared", setting=setting
        )
        check("qwen2", model, got)
