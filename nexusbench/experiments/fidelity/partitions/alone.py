"""Readers of tables in which one operator runs alone on some of the SMs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.specs import ModelSpec
from nexusbench.experiments.fidelity.partitions.cells import (
    MOST_BATCH,
    MOST_SIZE,
    MOST_TOKENS,
    MeasuredRow,
)
from nexusbench.experiments.fidelity.partitions.points import (
    PartitionPoints,
    TimeOnSms,
    over_all_sms,
)
from nexusbench.experiments.fidelity.partitions.reading import (
    LLAMA_HEADS,
    MLP,
    ZAMBA_HEADS,
    TableReading,
)
from nexusbench.experiments.fidelity.partitions.simulated import AttentionLayout, SimulatedGpu

KV_IN_L2 = 50 * 2**20  # bytes: the L2 of an H100 holds as much, an A100's a little less
MOST_OF_A_CALL = 0.02  # ms of a kernel that is short enough to tell what calling it costs
_NS_PER_MS = 1e6
MOST_PROMPTS = 2**23  # of a table's steps in all: each is simulated by itself
OTHER_TYPES = ("fp4", "int4", "fp8", "int8", "tf32", "fp32")
_STAGE_CONTEXT = 1000  # tokens of each sequence; the source does not say


def _made(reading: TableReading, rows: Iterable[TimeOnSms], *notes: str) -> PartitionPoints:
    found = list(rows)
    points, more = over_all_sms(found)
    counts, total = {row.sms for row in found}, reading.gpu.gpu.num_sms
    if len(counts) > 1 and max(counts) < total:
        more.append(f"times are over those on {max(counts)} of the {total} SMs: no row is on more")
    return PartitionPoints(points, [*notes, *more])


# -- streaming kernels -----------------------------------------------------------------------------


def scan(reading: TableReading) -> PartitionPoints:
    """``sms,memory_kernel_ms``: a kernel that streams as many bytes on any number of SMs."""

    def rows() -> Iterator[TimeOnSms]:
        for row in reading.rows():
            sms = row.sms("sms", reading.gpu.gpu)
            simulated = reading.gpu.streaming(sms).solo
            measured = row.positive("memory_kernel_ms")
            yield TimeOnSms("stream", (), "", sms, measured, simulated, row.line, absolute=False)

    return _made(reading, every_second(rows()))


def reads(reading: TableReading) -> PartitionPoints:
    """``sms,gb_per_s``: the bandwidth of a kernel that reads; times are ms per GB."""

    def rows() -> Iterator[TimeOnSms]:
        for row in reading.rows():
            sms = row.sms("sms", reading.gpu.gpu)
            measured = 1e3 / row.positive("gb_per_s")
            simulated = 1e3 / reading.gpu.bandwidth(sms)
            yield TimeOnSms("stream", (), "", sms, measured, simulated, row.line)

    return _made(reading, every_second(rows()), "stream, absolute: ms to read a GB")


def every_second(rows: Iterable[TimeOnSms]) -> list[TimeOnSms]:
    """The one curve of a streaming kernel, or of weights: constants may be fitted on every second
    SM count from the least on, and on all SMs; the counts between judge them.
    """
    ordered = sorted(rows, key=lambda row: row.sms)
    counts = list(dict.fromkeys(row.sms for row in ordered))
    kept = {*counts[::2], *counts[-1:]}
    return [msgspec.structs.replace(row, fitted=row.sms in kept) for row in ordered]


# -- kernels ---------------------------------------------------------------------------------------


def with_calls(rows: list[TimeOnSms]) -> tuple[list[TimeOnSms], list[str]]:
    """Simulated times of attention with what calling it costs, and sentences that say how much.

    An attention library launches several kernels from Python. Of its shortest call on all SMs,
    where there is next to nothing to compute, all that exceeds the simulated kernel is the call.
    """
    most, notes = max((row.sms for row in rows), default=0), list[str]()
    made, kernels_of = list(rows), dict[tuple[str, object], list[int]]()
    for at, row in enumerate(rows):
        for word in ("decode attention", "prefill attention"):
            if row.shape.startswith(word):
                kernels_of.setdefault((word, row.kernel[0]), []).append(at)
    for (word, _), own in kernels_of.items():
        whole = [rows[at] for at in own if rows[at].sms == most]
        shortest = min(whole, key=lambda row: row.simulated, default=None)
        if shortest is None or shortest.simulated > MOST_OF_A_CALL:
            continue
        call = shortest.measured - shortest.simulated
        if call <= 0.0:
            continue
        for at in own:
            made[at] = msgspec.structs.replace(rows[at], simulated=rows[at].simulated + call)
        notes.append(
            f"{word}: {1e3 * call:.1f} us are added to every simulated time for the call: the "
            f"shortest kernel ({shortest.shape}) takes {1e3 * shortest.simulated:.1f} us as "
            f"simulated, {1e3 * shortest.measured:.1f} as measured"
        )
    return made, notes


def gemm_band(tokens: int) -> str:
    """The name that a product of so many rows is scored by."""
    for low, high in ((1, 16), (17, 128), (129, 1024)):
        if tokens <= high:
            return f"gemm {low}..{high} tokens"
    return "gemm above 1024 tokens"


def kernels(reading: TableReading) -> PartitionPoints:
    """``op,K,N,tokens_or_batch,context,sms,ms``: GEMM and attention of one layer."""
    ops: tuple[tuple[str, Callable[[TableReading, MeasuredRow, int], TimeOnSms]], ...] = (
        ("gemm", _gemm),
        ("decode_attention", _decode_attention),
        ("prefill_attention", _prefill_attention),
    )

    left: dict[str, int] = {}  # why, and the line of the first

    def rows() -> Iterator[TimeOnSms]:
        for row in reading.rows():
            op = row.text("op").lower()
            read = next((read for name, read in ops if op.startswith(name)), None)
            if read is None:
                known = ", ".join(name for name, _ in ops)
                raise row.error("op", f"is '{op:.40}'", f"Known: what begins with {known}")
            why = _not_simulated(op, row)
            if why:
                left.setdefault(why, row.line)
            else:
                yield read(reading, row, row.sms("sms", reading.gpu.gpu))

    made, calls = with_calls(list(rows()))
    return _made(
        reading,
        made,
        "kernels are repeated on the same operands, which stay in L2 if they fit",
        *calls,
        *(f"not scored, from line {line} on: {why}" for why, line in left.items()),
    )


def _not_simulated(op: str, row: MeasuredRow) -> str:
    """Why a row of kernels has no simulated time; '' if it has."""
    other = next((word for word in OTHER_TYPES if word in op), None)
    if other is not None:
        return f"kernels of {other}; those of 16-bit values are simulated"
    if op.startswith("prefill") and row.has("context"):
        context = row.whole("context", MOST_TOKENS, least=0)
        if context not in (0, row.count("tokens_or_batch", MOST_TOKENS)):
            return "prefill attention with a context other than its own tokens"
    return ""


def _gemm(reading: TableReading, row: MeasuredRow, sms: int) -> TimeOnSms:
    inputs, outputs = row.count("K", MOST_SIZE), row.count("N", MOST_SIZE)
    tokens = row.count("tokens_or_batch", MOST_TOKENS)
    made = reading.gpu.gemm(tokens, inputs, outputs, sms)
    shape = f"gemm K={inputs} N={outputs} tokens={tokens}"
    return _kernel(gemm_band(tokens), ("gemm",), shape, sms, row, made.time)


def _kernel_of(op: str, usual: AttentionLayout) -> AttentionLayout:
    """The layout with the attention kernel that an operator's name tells, if it does."""
    kernel = "fa3" if "fa3" in op else "fa2" if "paged" in op else usual.kernel
    return AttentionLayout(usual.heads, usual.kv_heads, usual.head_size, kernel)


def _decode_attention(reading: TableReading, row: MeasuredRow, sms: int) -> TimeOnSms:
    batch = row.count("tokens_or_batch", MOST_BATCH)
    layout = _kernel_of(row.text("op"), reading.layout(row, LLAMA_HEADS))
    return _decode(reading.gpu, layout, batch, row, sms)


def _decode(
    gpu: SimulatedGpu, layout: AttentionLayout, batch: int, row: MeasuredRow, sms: int
) -> TimeOnSms:
    context = row.count("context", MOST_TOKENS)
    made = gpu.decode_attention(layout, batch, context, sms)
    size = 4.0 * layout.kv_heads * layout.head_size * batch * context
    fits = "up to" if size <= KV_IN_L2 else "above"
    shape = f"decode attention batch={batch} context={context}"
    groups = ("decode attention", "attention")
    time = _kernel(f"decode attention {fits} 50 MiB", groups, shape, sms, row, made.time)
    return msgspec.structs.replace(time, kernel=(layout.kernel, layout))


def _prefill_attention(reading: TableReading, row: MeasuredRow, sms: int) -> TimeOnSms:
    tokens = row.count("tokens_or_batch", MOST_TOKENS)
    op = row.text("op")
    layout = _kernel_of(op, reading.layout(row, LLAMA_HEADS))
    return _prefill(reading.gpu, layout, tokens, row, sms, causal="noncausal" not in op)


def _prefill(
    gpu: SimulatedGpu,
    layout: AttentionLayout,
    tokens: int,
    row: MeasuredRow,
    sms: int,
    *,
    causal: bool,
) -> TimeOnSms:
    made = gpu.prefill_attention(layout, tokens, sms, causal=causal)
    shape = f"prefill attention tokens={tokens}"
    time = _kernel("prefill attention", ("attention",), shape, sms, row, made.time)
    return msgspec.structs.replace(time, kernel=(layout.kernel, layout, causal))


def _kernel(
    operator: str,
    groups: tuple[str, ...],
    shape: str,
    sms: int,
    row: MeasuredRow,
    ns: float,
    *,
    absolute: bool = True,
) -> TimeOnSms:
    measured = row.positive("ms")
    return TimeOnSms(operator, groups, shape, sms, measured, ns / _NS_PER_MS, row.line, absolute)


def decode_attention(reading: TableReading) -> PartitionPoints:
    """``batch,context,sms,ms``: decode attention of one layer, Zamba2-7B if not told."""

    def rows() -> Iterator[TimeOnSms]:
        for row in reading.rows():
            layout = reading.layout(row, ZAMBA_HEADS)
            sms = row.sms("sms", reading.gpu.gpu)
            yield _decode(reading.gpu, layout, row.count("batch", MOST_BATCH), row, sms)

    made, calls = with_calls(list(rows()))
    return _made(reading, made, *calls)


def prefill_attention(reading: TableReading) -> PartitionPoints:
    """``prefill_tokens,sms,ms``: causal attention of one prompt in one layer."""

    def rows() -> Iterator[TimeOnSms]:
        for row in reading.rows():
            layout = reading.layout(row, ZAMBA_HEADS)
            tokens, sms = row.count("prefill_tokens", MOST_TOKENS), row.sms("sms", reading.gpu.gpu)
            yield _prefill(reading.gpu, layout, tokens, row, sms, causal=True)

    made, calls = with_calls(list(rows()))
    return _made(reading, made, *calls)


def mlp(reading: TableReading) -> PartitionPoints:
    """``tokens,sms,ms``: a gated MLP of one layer, Zamba2-7B if not told."""
    # Three products of Zamba2-7B's size take 1.5 times an A100's peak to be as fast as the source
    # says, so what exactly it timed is not known, and only ratios of it can be used.
    told = reading.model is not None or set(MLP) <= set(reading.columns)

    def rows() -> Iterator[TimeOnSms]:
        for row in reading.rows():
            hidden, wide = reading.mlp(row)
            tokens, sms = row.count("tokens", MOST_TOKENS), row.sms("sms", reading.gpu.gpu)
            ns = reading.gpu.gated_mlp(tokens, hidden, wide, sms).time
            shape = f"mlp {hidden} x {wide} tokens={tokens}"
            yield _kernel("prefill mlp", ("gemm",), shape, sms, row, ns, absolute=told)

    note = "times themselves are not scored: no column (hidden, wide) or --model tells the shape"
    return _made(reading, rows(), *([] if told else [note]))


# -- whole steps -----------------------------------------------------------------------------------


def steps(reading: TableReading) -> PartitionPoints:
    """``model,gpus,mps_percent,batch,tokens_each,phase,ms``: steps of a whole model, each GPU
    confined to a share of its SMs by MPS, which rounds up to whole ones.
    """
    gpu = reading.gpu

    def rows() -> Iterator[TimeOnSms]:
        prompts = 0
        for row in reading.rows():
            row.text("model")
            model, gpus = reading.step_model(row)
            sms = -(-row.count("mps_percent", 100) * gpu.gpu.num_sms // 100)
            batch = row.count("batch", MOST_BATCH)
            tokens = row.count("tokens_each", MOST_TOKENS)
            phase = row.text("phase").lower()
            if phase not in ("prefill", "decoding", "decode"):
                raise row.error("phase", f"is '{phase:.40}'", "Write prefill or decoding")
            decodes = phase != "prefill"
            prompts += 0 if decodes else batch
            if prompts > MOST_PROMPTS:
                problem = f"the steps up to here have more than {MOST_PROMPTS:,} prompts"
                raise row.error("batch", problem, "Split the file")
            name, step = step_of(model, gpus, batch, tokens, decodes)
            ns = gpu.step(model, gpus, step, sms, "fa2").solo
            word = "decode" if decodes else "prefill"
            shape = f"{word} step {model.name} gpus={gpus} batch={batch} tokens={tokens}"
            groups = (f"{word} step {model.name}", f"{word} step")
            yield _kernel(name, groups, shape, sms, row, ns)

    return _made(reading, rows())


def step_of(
    model: ModelSpec, gpus: int, batch: int, tokens: int, decodes: bool
) -> tuple[str, BatchShape]:
    """The name that a step of equal sequences is scored by, and the step."""
    if decodes:
        for low, high in ((1, 16), (17, 64)):
            if batch <= high:
                return f"decode step batch {low}..{high}", BatchShape(batch, batch * tokens)
        return "decode step batch above 64", BatchShape(batch, batch * tokens)
    size = "up to" if batch * tokens <= 512 else "above"
    return f"prefill step {size} 512 tokens", BatchShape(0, 0, ((tokens, 0),) * batch)


def stages(reading: TableReading) -> PartitionPoints:
    """``stage,sms,rel_to_N``: steps of a pipeline's stages over their time on all N SMs."""
    (column,) = reading.the_only(r"rel_to_\d+")
    most = int(column.removeprefix("rel_to_")[:9])
    made: list[TimeOnSms] = []
    unknown: dict[str, None] = {}
    begun: set[tuple[str, object]] = set()
    for row in reading.rows():
        stage, sms = row.text("stage"), row.sms("sms", reading.gpu.gpu)
        found = _stage(reading, stage, row)
        if found is None:
            unknown[stage[:60]] = None
            continue
        if not 1 <= most <= reading.gpu.gpu.num_sms:
            problem = f"is of {most} SMs; {reading.gpu.gpu.name} has {reading.gpu.gpu.num_sms}"
            raise row.error(column, problem, "Give a GPU with as many SMs")
        name, time, of = found
        curve = (name, (), stage)
        if (stage, of) not in begun:
            begun.add((stage, of))
            whole = TimeOnSms(*curve, most, 1.0, time(most), row.line, absolute=False, kernel=of)
            made.append(whole)
        if sms != most:
            measured = row.positive(column)
            made.append(
                TimeOnSms(*curve, sms, measured, time(sms), row.line, absolute=False, kernel=of)
            )
    notes = [
        "decode stages: a step of the model with 1,000 tokens a sequence stands for one of a model "
        "that is not described; compute stages: work that divides over the SMs"
    ]
    if unknown:
        notes.append(f"not scored, neither a decode step nor compute: {', '.join(unknown)[:300]}")
    points, more = over_all_sms(made)
    return PartitionPoints(points, notes + more)


def _stage(
    reading: TableReading, stage: str, row: MeasuredRow
) -> tuple[str, Callable[[int], float], tuple[object, ...]] | None:
    """The operator of a stage, its time on some SMs, and of which model; None for a stage that says
    nothing of it.
    """
    gpu, words = reading.gpu, stage.lower()
    batch = re.search(r"\bbatch (\d{1,5})\b", words)
    if batch and "decode" in words and int(batch[1]):
        (model, gpus), count = reading.step_model(row), int(batch[1])
        shape = BatchShape(count, count * _STAGE_CONTEXT)
        of = (model.name, gpus)
        return "stage decode step", lambda sms: gpu.step(model, gpus, shape, sms).solo, of
    if "compute" in words:
        return "stage compute", lambda sms: gpu.computing(sms).solo, ()
    return None
