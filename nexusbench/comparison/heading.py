"""What stands above and below a comparison: what ran on what, and what the marks mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import UNSET

from nexusbench.comparison.endpoint import CLIENT_DEFINITIONS, endpoint_lines
from nexusbench.comparison.rows import TableRow
from nexusbench.comparison.view import Column, RunView, gpus_differ
from nexusbench.core.config import EndpointConfig, RunConfig
from nexusbench.core.options import declared
from nexusbench.core.parallel_options import SEVERAL
from nexusbench.core.parts import unit_of
from nexusbench.core.state import Limits
from nexusbench.core.units import NS_PER_S, bytes_text, counted
from nexusbench.results.resolved import (
    BeliefFacts,
    Resolved,
    ResolvedEngineRun,
    ResolvedReplay,
    StepBudgets,
)

_DEFINITIONS = (
    "TTFT: scheduled arrival to first token = queueing (to first admission) + service.",
    "TBT: every gap between a request's tokens, pooled. TPOT: (end to end - TTFT) / (tokens - 1).",
)
_SLO_DEFINITION = (
    "goodput: requests that kept every bound, per second. Attainment: their share of the requests "
    "offered; what was rejected, failed or did not finish is a miss."
)
_DATA_TYPES = ("dtype", "quantization", "kv_cache_dtype")  # options
TIGHT_BETA = 1.3
_TIGHT_BETA = (
    "nexus allows decode only a few percent over its time without a neighbour; a fitted belief "
    "knows that contention alone takes more, and leaves prefill few SMs. Compare "
    "--partitioner nexus:beta=2 (docs/cost-models.md)"
)


def header_lines(view: RunView, why_simulated: str = "") -> list[tuple[str, str]]:
    """Name and text of each header line; ``why_simulated`` says why ``auto`` took no GPU."""
    resolved, config = view.resolved, view.config
    trace_line = _trace_line(view)
    if isinstance(resolved, ResolvedReplay):
        return endpoint_lines(view, resolved, trace_line) + _judged_lines(view)
    assert isinstance(config, RunConfig)
    limits = resolved.limits
    device = _device_text(resolved)
    if config.device == "auto":
        device += f" (--device auto{why_simulated if view.simulated else ''})"
    elif "/" in config.device or "\\" in config.device:
        device += f" (--device {config.device})"  # the name of a file does not say which one
    whose = " on both GPUs together" if _is_pair(resolved) else ""
    if config.data_parallel_size > 1:
        whose = " of each engine"
    lines = [
        ("device", device),
        ("model", _model_line(resolved, config)),
        *(("WARNING", text) for text in resolved.caveats),
        ("trace", trace_line),
        ("KV pool", _pool_text(resolved, config)),
        (
            "limits",
            f"max_num_seqs {limits.max_num_seqs:,}{whose}, max_num_batched_tokens "
            f"{limits.max_num_batched_tokens:,}, max_model_len {limits.max_model_len:,}",
        ),
    ]
    return lines + _judged_lines(view)


def _judged_lines(view: RunView) -> list[tuple[str, str]]:
    """By what the run is judged, where it is said."""
    lines, slo, warmup = [], view.summary.slo, view.summary.warmup
    if slo:
        bounds = ", ".join(f"{key} {bound:g} ms" for key, bound in slo.items())
        lines.append(("SLO", bounds + (" (tbt: p99 of each request)" if "tbt" in bounds else "")))
    if warmup.seconds:
        left_out = counted(warmup.requests, "request")
        lines.append(("warm-up", f"{left_out} of the first {warmup.seconds:g} s out"))
    return lines


def _pool_text(resolved: ResolvedEngineRun, config: RunConfig) -> str:
    """How many blocks, what they hold, and whether prefixes are found in them."""
    caching = "on" if config.prefix_caching else "off"
    groups, count, size = resolved.kv_groups, resolved.kv_blocks, resolved.block_size
    if groups is UNSET:
        text = f"{count:,} blocks of {size} tokens = {count * size:,} tokens"
        return f"{text}{_per_side(resolved, config)}; prefix caching {caching}"
    longest = resolved.limits.max_model_len
    text = f"{count:,} pages of {bytes_text(groups.page_bytes)} = "
    text += f"{bytes_text(count * groups.page_bytes)}{_per_side(resolved, config)}, for blocks of "
    text += f"{size} tokens of {' + '.join(group.label for group in groups.groups)}; a request of "
    text += f"{longest:,} tokens holds {groups.of(longest):,}; prefix caching "
    if config.prefix_caching and any(group.kind == "state" for group in groups.groups):
        return text + "off, since a state is of one request alone"
    return text + caching


def _is_pair(resolved: ResolvedEngineRun) -> bool:
    """Two GPUs, or groups of them, with a KV pool each."""
    return "gpu1" in resolved.pools


def _blocks_of_a_pool(resolved: Resolved) -> int:
    """What one pool has of the KV blocks of all GPUs: a request lies whole in one."""
    if not isinstance(resolved, ResolvedEngineRun):
        return resolved.kv_blocks
    return resolved.kv_blocks // sum(pool != "host" for pool in resolved.pools)


def _per_side(resolved: ResolvedEngineRun, config: RunConfig) -> str:
    """How the KV blocks of a pair, or of several engines, are divided: evenly."""
    engines, unit = config.data_parallel_size, "pages" if _is_grouped(resolved) else "blocks"
    if engines > 1:
        return f", {_blocks_of_a_pool(resolved):,} {unit} of each of {engines} engines"
    if not _is_pair(resolved):
        return ""
    degree = config.tensor_parallel_size
    side = "GPU" if degree == 1 else f"group of {degree} GPUs"
    return f", {_blocks_of_a_pool(resolved):,} {unit} on each {side}"


def _device_text(resolved: ResolvedEngineRun) -> str:
    """The device, what its partitions are made of, and whether they share it in time only."""
    name, unit, gpus = resolved.device, unit_of(resolved.device), resolved.gpus
    cores = resolved.environment.get("cores")
    if cores is None:
        if gpus > 1:
            each = resolved.gpu.num_sms
            return f"{name}: {resolved.gpu.name}, {gpus} GPUs of {each} {unit} each"
        return f"{name}: {resolved.gpu.name}, {resolved.num_sms} {unit}"
    text = f"{name}: {resolved.gpu.name}, {len(cores.split(','))} cores"
    if name.endswith(":shared"):
        text += ", TIME-SHARED: a split is a share of their time by thread priority, not of cores"
    return text


def _model_line(resolved: ResolvedEngineRun, config: RunConfig) -> str:
    model, degree = resolved.model, config.tensor_parallel_size
    text = f"{model.name}, weights {model.dtypes.weights}, KV {model.dtypes.kv}"
    if resolved.random_weights:
        text += ", RANDOM weights"
    text += f", tensor parallel over {degree} GPUs" if degree > 1 else ""
    stages, engines = config.pipeline_parallel_size, config.data_parallel_size
    text += f", {stages} pipeline stages" if stages > 1 else ""
    text += f", {engines} data-parallel engines" if engines > 1 else ""
    return text + (", experts spread over all GPUs" if config.enable_expert_parallel else "")


def _trace_line(view: RunView) -> str:
    trace = view.resolved.trace
    span, count, following = view.span_ns / NS_PER_S, trace.requests, trace.following
    text = f"{trace.name}: {counted(count, 'request')}"
    if trace.concurrency:
        text += f" of {trace.concurrency:,} users in a closed loop"
    elif span:
        what = "first turns/s" if following else "req/s"
        text += f" in {span:,.1f} s, mean {(count - following - 1) / span:.3g} {what}"
    # The first note is about the file as it is, the others about what was made of it.
    return f"{text}. File: {'; '.join(trace.notes)}"


def policies_line(columns: Sequence[Column]) -> str:
    """Scheduler, whose rules it follows, partitioner and belief of each column, with the options
    that were typed.
    """
    texts = []
    for column in columns:
        resolved, config = column.first.resolved, column.first.config
        if isinstance(resolved, ResolvedReplay) or isinstance(config, EndpointConfig):
            continue  # the policies of a server are unknown
        belief, partitioner = resolved.belief, config.partitioner or resolved.partitioner
        asks = f" asking {_belief(belief, config.cost_model)}" if belief else ""
        said = resolved.scheduler_rules
        rules = f"rules of {said}; " if isinstance(said, str) else ""
        texts.append(f"{column.label} ({rules}partitioner {partitioner}{asks})")
    return ", ".join(texts)


def _belief(facts: BeliefFacts, asked: str | None) -> str:
    """What a partitioner asks, and what that was fitted to."""
    text, profile = asked or facts.cost_model, facts.profile
    if profile is not None:
        text += f" fitted to a profile of {profile.of}"
        text += " (forced)" if profile.forced else ""
    return text + (", recalibrated" if facts.recalibrate else "")


def note_lines(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """What must be known of these policies, as further header lines."""
    notes = [_TIGHT_BETA] if any(map(_is_tight, columns)) else []
    notes += _gpus_notes(columns)
    notes += _failed_notes(columns)
    notes += belief_notes(columns[0].first.config, [column.first.resolved for column in columns])
    return [("note", text) for text in notes]


def _gpus_notes(columns: Sequence[Column]) -> list[str]:
    """The number of GPUs of each column, where these differ."""
    if not gpus_differ(columns):
        return []
    named = [
        f"{c.label} {c.gpus} ({c.first.resolved.device}, {c.first.resolved.kv_blocks:,} KV blocks)"
        for c in columns
    ]
    return [f"not all use the same number of GPUs: {', '.join(named)}; rates stand per GPU too"]


def _failed_notes(columns: Sequence[Column]) -> list[str]:
    """Metrics and plug-ins that have no value here because they failed, each once."""
    faults: dict[str, str] = {}
    for column in columns:
        for view in column.views:
            faults |= view.summary.failed
    return [f"metric {name} FAILED and has no value: {why}" for name, why in faults.items()]


def _is_tight(column: Column) -> bool:
    """Nexus's published slack with a belief that models contention."""
    resolved = column.first.resolved
    if isinstance(resolved, ResolvedReplay) or resolved.belief is None:
        return False
    beta = resolved.partitioner_options.get("beta")
    tight = isinstance(beta, float | int) and beta < TIGHT_BETA
    return tight and resolved.belief.profile is not None


def footnotes(columns: Sequence[Column], rows: Sequence[TableRow]) -> list[str]:
    """What the marks of the table mean, and its words."""
    cells = [cell for row in rows for cell in row.cells]
    notes = []
    if any(cell.best for cell in cells):
        notes.append("* best of its row; equal values share it, and a lead may be within the noise")
    if any(cell.weak for cell in cells):
        notes.append("~ fewer than 10 samples beyond this percentile: weak")
    if any(len(column.views) > 1 for column in columns):
        notes.append("± half a 95 % interval over seeds")
    lines = ["; ".join(notes)] if notes else []
    of_client = all(isinstance(c.first.resolved, ResolvedReplay) for c in columns)
    lines += CLIENT_DEFINITIONS if of_client else _DEFINITIONS
    if columns[0].first.summary.slo:
        lines.append(_SLO_DEFINITION)
    return lines


def belief_notes(config: RunConfig | EndpointConfig, runs: Sequence[Resolved]) -> list[str]:
    """Sentences about runs that share the flags of ``config``; ``runs`` is what each resolved."""
    known = [run for run in runs if isinstance(run, ResolvedEngineRun)]
    beliefs = [run.belief for run in known if run.belief is not None]
    return notes_on(config, beliefs, known[0].limits if known else None)


def notes_on(
    config: RunConfig | EndpointConfig, beliefs: Sequence[BeliefFacts], limits: Limits | None
) -> list[str]:
    """The same of the beliefs that were asked in runs under ``limits``; None for a server's."""
    if not beliefs:
        return unused_flags(config)
    fitted = [belief.profile for belief in beliefs if belief.profile is not None]
    return beyond(fitted[0].limits, limits) if fitted and limits is not None else []


def place_text(config: RunConfig) -> str:
    """Device and model, and what was asked of the number of GPUs and of data types, in flags."""
    asked = [config.device, str(config.model)]
    for name, field in declared(RunConfig).items():
        value = getattr(config, name)
        if (field.option.panel == SEVERAL or name in _DATA_TYPES) and value != field.default:
            asked.append(field.flag if value is True else f"{field.flag} {value}")
    return ", ".join(asked)


def unused_flags(config: RunConfig | EndpointConfig) -> list[str]:
    """A note on flags that choose a cost model, where no partitioner asks one."""
    if isinstance(config, EndpointConfig):
        return []
    flags = {
        "--profile": config.profile,
        "--cost-model": config.cost_model,
        "--recalibrate": config.recalibrate,
    }
    given = [flag for flag, value in flags.items() if value]
    if not given:
        return []
    verb = "have" if len(given) > 1 else "has"
    return [f"{' and '.join(given)} {verb} no effect: no partitioner here asks a belief"]


def beyond(measured: StepBudgets | None, limits: Limits) -> list[str]:
    """Where a run's step budgets are larger than those that were profiled; nothing is said of a
    profile that does not hold them.
    """
    allowed = limits.budgets
    larger = [
        f"{name} {allowed[name]:,} (profiled: {most:,})"
        for name, most in (measured or {}).items()
        if allowed[name] > most
    ]
    if not larger:
        return []
    return [
        f"this run allows {' and '.join(larger)}: for larger batches than were measured the fitted "
        "belief extrapolates. Profile with the same limits"
    ]


# How a reason begins -> what to do about it.
_REMEDIES = {
    "exceeds the KV pool": "Give it more with --kv-blocks, --gpu-memory-utilization or another "
    "--device",
    "exceeds max_model_len": "Raise --max-model-len, or choose --too-long skip or clip",
}


def rejection_lines(columns: Sequence[Column]) -> list[str]:
    """A sentence per reason of what was rejected or failed; schedulers that it hit alike share
    one.
    """
    names: dict[str, list[str]] = {}
    for column in columns:
        reasons: Counter[tuple[str, str]] = Counter()
        for view in column.views:
            for outcome, found in (("rejected", view.rejections), ("failed", view.failures)):
                reasons.update({(outcome, reason): count for reason, count in found.items()})
        for (outcome, reason), count in sorted(reasons.items()):
            total = sum(view.resolved.trace.requests for view in column.views)
            detail = _reason(reason, column.first.resolved)
            text = f"{count:,} of {counted(total, 'request')} {outcome}: {detail}"
            names.setdefault(text, []).append(column.label)
    return [
        text if len(found) == len(columns) else f"{', '.join(found)}: {text}"
        for text, found in names.items()
    ]


def _reason(reason: str, resolved: Resolved) -> str:
    for begin, remedy in _REMEDIES.items():
        if reason.startswith(begin):
            size = ""
            if "KV pool" in begin:
                size = f" ({_blocks_of_a_pool(resolved) * resolved.block_size:,} tokens)"
                if _is_grouped(resolved):
                    size = " (a chunk lies whole in the blocks of windows: a smaller "
                    size += "--max-num-batched-tokens needs fewer)"
            return f"{reason}{size}. {remedy}"
    return reason


def _is_grouped(resolved: Resolved) -> bool:
    """Whether its KV blocks are pages, which are of no fixed number of tokens."""
    return isinstance(resolved, ResolvedEngineRun) and resolved.kv_groups is not UNSET


def nothing_measured(views: Sequence[RunView]) -> list[str]:
    """A sentence for each way in which runs have no numbers at all; none where all have some."""
    names: dict[str, list[str]] = {}
    for view in views:
        offered, rejected, failed = (
            view.summary.value(tag) for tag in ("offered", "rejected", "failed")
        )
        if not offered:
            seconds = view.summary.warmup.seconds
            text = "no request was measured"
            text += f": all began in the --warmup of {seconds:g} s" if seconds else ""
        elif offered == rejected:
            text = f"nothing was measured: all of {counted(int(offered), 'request')} rejected"
            text += "".join(f", {_reason(reason, view.resolved)}" for reason in view.rejections)
        elif offered == failed:
            text = f"nothing was measured: all of {counted(int(offered), 'request')} failed"
            text += "".join(f", {reason}" for reason in view.failures)
        else:
            continue
        if view.label not in names.setdefault(text, []):
            names[text].append(view.label)
    return [f"{', '.join(found)}: {text}" for text, found in names.items()]
