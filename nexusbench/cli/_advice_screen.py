"""What ``nexusbench advise`` does and shows."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.text import Text

from nexusbench import __version__
from nexusbench.cli._console import counted, results_console, say
from nexusbench.cli._countdown import Countdown
from nexusbench.cli._grid import TextGrid
from nexusbench.cli._screen import badge
from nexusbench.cli._session import JSON_SCHEMA
from nexusbench.cli._slo_asked import AskedSearch
from nexusbench.comparison.heading import place_text
from nexusbench.comparison.load import conditions, lines_about
from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.core.options import beyond, declared
from nexusbench.experiments.advise import (
    INDIFFERENT,
    Advice,
    Question,
    advise,
    plan_rounds,
    scored_slo,
)
from nexusbench.experiments.advise_ranges import advice_over_ranges, runs_over_ranges
from nexusbench.experiments.candidates import Candidate, find_candidates
from nexusbench.experiments.capacity import trace_load
from nexusbench.experiments.leads import Margin, Rated
from nexusbench.experiments.over_range import OverRange, range_words
from nexusbench.metrics.slo import Slo
from nexusbench.serving.opening import check_belief, check_run
from nexusbench.serving.resolve import caveats_of, rules_of

# Options of serve-trace that a command has to repeat where they have a value.
_REPEATED = (
    "max_num_seqs", "max_model_len", "kv_blocks", "swap_space", "cost_model", "profile", "dtype",
    "quantization", "kv_cache_dtype", "kernel_table", "engine", "limit", "request_rate",
    "burstiness",
)  # fmt: skip
# Those that devices which compute refuse. A kernel table and an engine stand in for what a real
# GPU has of its own; the others make its comparison another one, which is said.
_OWN = ("kernel_table", "engine")
_SIMULATED = (*_OWN, "swap_space", "quantization", "kv_cache_dtype")
_MOST_EARLY = 5
_MOST_LOADS = 3  # candidates, in a warning


def show_advice(asked: AskedSearch, chunks: str, effort: int, max_seeds: int | None) -> None:
    """Compare, then print the answer with its evidence (or one JSON document)."""
    slo, source = asked.judged_by()
    named, sizers = asked.policies()
    gpus = 2 if "+" in asked.config.device else 1
    candidates, skipped = find_candidates(named, sizers, _chunks(chunks), gpus)
    config = asked.base()
    _check(config, candidates if named else [])
    config, requests = _traffic(config)
    asked.check_ranges()
    scored = scored_slo(slo)
    question = Question(
        config=msgspec.structs.replace(config, goodput=scored.per_request()),
        slo=slo,
        candidates=tuple(candidates),
        requests=requests,
        seeds=asked.seeds,
        most_draws=_most_draws(asked.draws, max_seeds),
        effort=effort,
        cache=asked.cache,
        fresh=asked.fresh,
    )
    rounds = plan_rounds(len(candidates), question)
    total = sum(size * draws for size, _, draws in rounds)
    work = sum(size * length * draws for size, length, draws in rounds)
    countdown = Countdown("advise", total, weight=work, quiet=asked.quiet)
    advice = advise(question, asked.processes(), countdown.step)
    countdown.end(f"{counted(len(candidates), 'candidate')}")
    over = _over_ranges(asked, question, advice) if asked.over_ranges else None
    if asked.as_json:
        document = _document(question, advice, source, skipped)
        document["over_ranges"] = None if over is None else msgspec.to_builtins(over)
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    _show(question, advice, source, [*skipped, *advice.failed], _range_line(over))


def _over_ranges(asked: AskedSearch, question: Question, advice: Advice) -> OverRange | None:
    total = runs_over_ranges(question, advice, asked.over_ranges)
    work = total * question.requests
    countdown = Countdown("over the ranges", total, weight=work, quiet=asked.quiet)
    over = advice_over_ranges(
        question, advice, asked.over_ranges, asked.processes(), countdown.step
    )  # fmt: skip
    countdown.end(counted(total, "run"))
    return over


def _range_line(over: OverRange | None) -> str:
    """Whether another is surely better elsewhere on the ranges, in a sentence."""
    if over is None:
        return ""
    lead = f"{over.low:+.2f} to {over.high:+.2f} points at the ends"
    if over.least is not None and over.most is not None:
        lead += f", {over.least:+.2f} to {over.most:+.2f} in the draws"
    words = range_words(over, lambda points: f"{points:+.2f}")
    return f"Over the ranges of the contested constants: {words} (ahead of the best rival: {lead})."


def _check(config: RunConfig, named: Sequence[Candidate]) -> None:
    """Refuse configs that cannot run before any run starts. A broken policy that was not named does
    not prevent comparing the others.
    """
    check_belief(config)
    for one in {one.policy: one for one in named}.values():
        check_run(one.apply(config))


def _most_draws(seeds: int, most: int | None) -> int:
    if most is None:
        return 4 * seeds
    if most < seeds:
        raise UsageError(f"--max-seeds {most} is less than --seeds {seeds}")
    return most


def _chunks(text: str) -> list[int]:
    try:
        found = [int(piece) for piece in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise UsageError(f"--chunks '{text}': write token counts, as in 512,2048")
    bounds = declared(RunConfig)["max_num_batched_tokens"].bounds
    hint = None if bounds is None else beyond(bounds, max(found))
    if hint is not None:
        raise UsageError(f"--chunks {max(found)} is out of bounds. {hint}")
    return list(dict.fromkeys(found))


def _traffic(config: RunConfig) -> tuple[RunConfig, int]:
    """The config at the requested rate, or at the trace's own; each seed redraws the arrivals."""
    requests, own, closed = trace_load(config)
    if closed:
        return msgspec.structs.replace(config, burstiness=None), requests
    rate = config.request_rate or float(f"{own:.4g}")
    if not rate:
        raise UsageError(
            f"{config.trace}: all requests arrive at once, so there is no rate. Give --rate"
        )
    return msgspec.structs.replace(config, request_rate=rate), requests


def _show(
    question: Question, advice: Advice, source: str, faults: Sequence[str], ranged: str
) -> None:
    console = results_console()
    console.print(Text.assemble(("nexusbench advise", "bold"), "  ", badge(advice.simulated)))
    config = question.config
    rate = "" if config.request_rate is None else f" at {config.request_rate:g} req/s"
    counts = counted(question.requests, "request")
    say(console, f"traffic   {config.trace}: {counts}{rate}, {_draws(question)}", indent=10)
    say(console, f"on        {place_text(config)}", indent=10)
    for text in caveats_of(config):
        say(console, f"WARNING   {text}", "bold", indent=10)
    say(console, f"SLO       {question.slo}  ({source})", indent=10)
    rounds = ", then ".join(
        f"{size} on {requests:,} requests" + (f" x {draws} draws" if draws > 1 else "")
        for size, requests, draws in advice.rounds
    )
    say(console, f"compared  {rounds}", indent=10)
    if rules := rules_of(one.candidate.scheduler for one in advice.final):
        say(console, f"rules     {rules}", indent=10)
    for line in _load_lines(advice):
        say(console, f"WARNING: {line}.", "bold red")
    _table(console, advice)
    say(
        console,
        "within: requests that keep every bound; score: that, less 1 for using all of the bounds",
        "dim",
    )
    dropped = [f"{one.candidate} ({one.attained:.1f} %)" for one in advice.early[:_MOST_EARLY]]
    if dropped:
        more = len(advice.early) - len(dropped)
        text = f"dropped last, with what they kept then: {'; '.join(dropped)}"
        say(console, text + (f"; and {more} more" if more > 0 else ""), "dim")
    for fault in faults:
        say(console, f"WARNING: could not be compared: {fault}", "bold red")
    console.print()
    say(console, verdict(question, advice), "bold")
    if ranged:
        say(console, ranged, "bold")
    for title, commands in verification(question, advice).items():
        console.print()
        console.print(f"{title}:")
        for command in commands:
            console.print(f"  {command}", soft_wrap=True)


def _draws(question: Question) -> str:
    shape, draws = question.config.burstiness, counted(len(question.seeds), "draw")
    if shape is None:
        return f"a closed loop, {draws}"
    return f"{'Poisson' if shape == 1 else f'gamma (shape {shape:g})'} arrivals, {draws}"


def _load_lines(advice: Advice) -> list[str]:
    """The first few finalists under which requests arrive faster than they leave."""
    told = [(str(one.candidate), load) for one in advice.final if (load := one.load)]
    return lines_about(told, len(advice.final), name_one=True, most=_MOST_LOADS)


def _table(console: Console, advice: Advice) -> None:
    crowded = any(one.load for one in advice.final)
    grid = TextGrid(
        "", ("scheduler", "partitioner", "chunk", "draws", "within, %", "worst draw",
             "bounds used, %", "score", "SLO kept", *(["overloaded"] * crowded)),
        keys=3, texts=(0, 1),
    )  # fmt: skip
    for one in advice.final:
        kept = sum(score.kept for score in one.scores)
        grid.add(
            one.candidate.scheduler,
            one.candidate.partitioner,
            f"{one.candidate.chunk:,}",
            str(len(one.scores)),
            f"{one.attained:.1f}",
            f"{min(score.attained for score in one.scores):.1f}",
            f"{100 * one.strain:.0f}",
            f"{one.points:.2f}",
            f"{kept} of {len(one.scores)}",
            *([_crowded(one)] * crowded),
        )
    grid.show(console)


def _crowded(one: Rated) -> str:
    """Number of draws in which requests arrive faster than they leave."""
    found = sum(bool(score.load and score.load.overloaded) for score in one.scores)
    return f"{found} of {len(one.scores)}" if found else "no"


def verdict(question: Question, advice: Advice) -> str:
    """The answer in words."""
    winner = advice.final[0]
    overloaded = sum(one.load is not None for one in advice.final)
    text = conditions(overloaded, len(advice.final), simulated=advice.simulated)
    text += (
        f"use {winner.candidate.policy} with --max-num-batched-tokens {winner.candidate.chunk}. "
    )
    text += (
        f"It keeps every bound for {winner.attained:.1f} % of the requests and uses "
        f"{100 * winner.strain:.0f} % of the bounds on average"
    )
    if advice.margin is None:
        return text + "; there was nothing to compare it with."
    other = advice.final[1]
    text += f", {_lead(advice.margin)} {other.candidate}. {_certainty(advice)}"
    rival = next(
        (o for o in advice.final if _family(o) != _family(winner)),
        None,
    )
    if rival is not None and rival is not other:
        text += (
            f" The best of another scheduler, {rival.candidate}, keeps them for "
            f"{rival.attained:.1f} %."
        )
    kept = sum(score.kept for score in winner.scores)
    if kept < len(winner.scores):
        text += (
            f" The SLO itself is kept in {kept} of {len(winner.scores)} draws: nexusbench capacity "
            "says up to which rate it would be."
        )
    return text


def _family(one: Rated) -> str:
    return one.candidate.scheduler.partition(":")[0]


def _lead(margin: Margin) -> str:
    spread = ""
    if margin.low is not None and margin.high is not None:
        spread = f" [{margin.low:.2f}, {margin.high:.2f}]"
    return f"a score {margin.mean:.2f}{spread} points above the runner-up,"


def _certainty(advice: Advice) -> str:
    margin = advice.margin
    assert margin is not None  # checked by the caller
    draws = f"better in {margin.draws_won} of {margin.draws} draws"
    if margin.chance is None:
        return "One draw says nothing of how sure that is: use --seeds 5."
    chance = "p < 0.001" if margin.chance < 0.001 else f"p = {margin.chance:.3f}"
    if not advice.tied:
        return f"Sure: {draws}, {chance} by a paired t test."
    tie = f"the first {advice.tied + 1} of the table"
    if advice.alike:
        return f"A tie: {tie} are within {INDIFFERENT:g} points of each other, take any of them."
    return (
        f"Not sure: {draws}, {chance} by a paired t test. A tie: {tie} cannot be told apart; take "
        "any of them, or go on with --max-seeds."
    )


def verification(question: Question, advice: Advice) -> dict[str, list[str]]:
    """The commands that repeat the comparison of the first two, simulated and on a real GPU."""
    first = [one.candidate for one in advice.final[:2]]
    draws = len(advice.final[0].scores)  # an early loser has fewer draws
    by_chunk: dict[int, list[Candidate]] = {}
    for candidate in first:
        by_chunk.setdefault(candidate.chunk, []).append(candidate)
    device = question.config.device
    there = f"simulated, on {device}" if advice.simulated else f"again, on {device}"
    real, without = "on the real GPU", _without(question.config)
    if without:
        real += f" (without {', '.join(without)}: it refuses them)"
    return {
        title: [
            _command(question, chunk, group, draws, target) for chunk, group in by_chunk.items()
        ]
        for title, target in ((there, device), (real, "cuda"))
    }


def _without(config: RunConfig) -> list[str]:
    """The flags that change the comparison and that a device which computes refuses."""
    return [declared(RunConfig)[n].flag for n in _SIMULATED if n not in _OWN and getattr(config, n)]


def _command(
    question: Question, chunk: int, group: Sequence[Candidate], draws: int, device: str
) -> str:
    config, slo = question.config, scored_slo(question.slo)
    words = ["nexusbench", "serve-trace", config.trace, "--device", device]
    words += ["--model", config.model, "--scheduler", ",".join(c.scheduler for c in group)]
    words += ["--partitioner", ",".join(c.partitioner for c in group)]
    words += ["--max-num-batched-tokens", str(chunk)]
    if config.tensor_parallel_size != 1:
        words += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    if not math.isclose(config.gpu_memory_utilization, 0.9):
        words += ["--gpu-memory-utilization", f"{config.gpu_memory_utilization:g}"]
    for field in _REPEATED:
        value = getattr(config, field)
        if value is not None and (device.startswith("sim") or field not in _SIMULATED):
            words += [
                declared(RunConfig)[field].flag,
                f"{value:g}" if isinstance(value, float) else str(value),
            ]
    words += ["--force-profile"] * config.force_profile
    words += ["--goodput", *(f"{key}:{limit:g}" for key, limit in slo.per_request().items())]
    words += ["--seed", str(question.seeds[0]), "--seeds", str(draws)]
    return shlex.join(words)


def _document(
    question: Question, advice: Advice, source: str, skipped: Sequence[str]
) -> dict[str, object]:
    def rated(one: Rated) -> dict[str, object]:
        return {
            **msgspec.to_builtins(one.candidate),
            "attained": one.attained,
            "strain": one.strain,
            "points": one.points,
            "round": one.round,
            "overloaded": one.load is not None,
            "scores": msgspec.to_builtins(one.scores),
        }

    slo: Slo = question.slo
    return {
        "schema": JSON_SCHEMA,
        "command": "advise",
        "nexusbench": __version__,
        "simulated": advice.simulated,
        "slo": {"text": str(slo), "source": source, **msgspec.to_builtins(slo)},
        "config": msgspec.to_builtins(question.config),
        "caveats": caveats_of(question.config),
        "seeds": list(question.seeds),
        "rounds": [list(one) for one in advice.rounds],
        "overloaded": [str(one.candidate) for one in advice.final if one.load],
        "advice": msgspec.to_builtins(advice.final[0].candidate),
        "verdict": verdict(question, advice),
        "margin": None if advice.margin is None else msgspec.to_builtins(advice.margin),
        "sure": None if advice.margin is None else advice.tied == 0,
        "tied": [msgspec.to_builtins(one.candidate) for one in advice.final[1 : advice.tied + 1]],
        "final": [rated(one) for one in advice.final],
        "early": [rated(one) for one in advice.early],
        "failed": [*skipped, *advice.failed],
        "verify": verification(question, advice),
    }
