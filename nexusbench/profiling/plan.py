"""The sweep plan: which batches, on which SMs, beside whom. A pure function of sizes and effort.

Sizes stay within the device's KV pool and step budgets. The grids that are fitted are tensors over
(chunk, context) and (batch, context), less the corners that exceed the pool; held-out shapes lie
off them. SM positions are chosen line by line, as the measurements come in (``refine``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product

import msgspec

from nexusbench.core.batch import BatchShape, Split
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import DeviceSpec
from nexusbench.costs._points import Setting
from nexusbench.profiling._desk import MOST_REPEATS, Pool, Work
from nexusbench.profiling.effort import Effort

BEND = 0.02  # a line is refined until linear interpolation in 1/SMs is about this good
FINE_BEND = 0.005  # ... a reference line, from which saturation points are read


class Line(msgspec.Struct, frozen=True):
    """One batch over SMs: ``start``, then more of ``legal`` where it bends, ``budget`` in all."""

    work: Work
    legal: tuple[int, ...]
    start: tuple[int, ...]
    budget: int
    bend: float = BEND

    def setting(self, sms: int) -> Setting:
        """That position of the line."""
        shape = self.work.shape
        kind = "prefill" if shape.chunks else "decode"
        return Setting(kind, shape, sms, contexts=self.work.contexts)  # type: ignore[arg-type]


class Plan(msgspec.Struct, frozen=True):
    """Lines first, then settings in order; a pair comes after both of its sides alone."""

    lines: tuple[Line, ...]
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()

    @property
    def most_points(self) -> int:
        """At most so many will be measured."""
        return sum(line.budget for line in self.lines) + len(self.settings)


def alone(setting: Setting) -> Setting:
    """The measured side of a pair, without its neighbour."""
    kind = setting.phase
    return msgspec.structs.replace(setting, kind=kind, neighbour=None, neighbour_sms=0)


def refine(line: Line, measured: Mapping[int, float]) -> int | None:
    """The next SM count to measure on a line, or None when it is smooth or its budget is spent.

    Bisects the interval in which linear interpolation in 1/SMs is worst, by the bend of the curve
    at its ends. Depends on nothing but ``measured`` (ns by SM count).
    """
    for sms in line.start:
        if sms not in measured:
            return sms
    if len(measured) >= min(line.budget, len(line.legal)):
        return None
    for error, low, high in sorted(_intervals(measured), reverse=True):
        if error <= line.bend:
            break
        between = [sms for sms in line.legal if low < sms < high]
        if between:
            middle = 2 / (1 / low + 1 / high)
            return min(between, key=lambda sms: (abs(sms - middle), sms))
    return None


def _intervals(measured: Mapping[int, float]) -> list[tuple[float, int, int]]:
    """(interpolation error as a share of the latency, SMs at the ends) of each interval.

    With x = 1/SMs the error in the middle of an interval of width h is f'' h^2 / 8, and f'' at a
    position is the change of slope there over half the distance of its neighbours.
    """
    positions = sorted(measured)
    curvature = dict.fromkeys(positions, 0.0)
    for a, b, c in zip(positions, positions[1:], positions[2:], strict=False):
        left = (measured[a] - measured[b]) / (1 / a - 1 / b)
        right = (measured[b] - measured[c]) / (1 / b - 1 / c)
        curvature[b] = abs(left - right) / ((1 / a - 1 / c) / 2)
    found = []
    for low, high in pairwise(positions):
        width = 1 / low - 1 / high
        bend = max(curvature[low], curvature[high]) * width * width / 8
        found.append((bend / min(measured[low], measured[high]), low, high))
    return found


def make_plan(
    spec: DeviceSpec, pool: Pool, effort: Effort, batches: Sequence[tuple[str, Work]] = ()
) -> Plan:
    """What to measure. ``batches`` are the user's (text, batch); they are held out of fits."""
    made = _Planner(spec, pool, effort)
    made.prefill_lines()
    made.decode_lines()
    made.mixed()
    made.skewed()
    made.pairs()
    made.held_out()
    for text, work in batches:
        made.user_batch(text, work)
    return made.plan()


class _Planner:
    """Collects lines and settings; leaves out what does not fit, and says so."""

    def __init__(self, spec: DeviceSpec, pool: Pool, effort: Effort) -> None:
        self.spec, self.pool, self.effort = spec, pool, effort
        self._lines: dict[Work, Line] = {}
        self._settings: dict[str, Setting] = {}
        self._notes: list[str] = []
        limits = pool.limits
        self.chunks = effort.chunks_up_to(limits.max_num_batched_tokens)
        longest = min(limits.max_model_len, effort.longest)
        room = longest - self.chunks[-1]
        self.contexts = (0, *effort.contexts_up_to(room)) if room > 0 else (0,)
        self.batches = effort.batches_up_to(limits.max_num_seqs)
        self.lengths = effort.lengths_up_to(longest - MOST_REPEATS)

    def sms(self, phase: str) -> tuple[int, ...]:
        """SM counts to measure ``phase`` on."""
        least = self.effort.least_share * self.spec.num_sms
        return tuple(sms for sms in legal_sms(self.spec, phase) if sms >= least)

    def plan(self) -> Plan:
        """What was collected."""
        return Plan(tuple(self._lines.values()), tuple(self._settings.values()), tuple(self._notes))

    # -- lines -------------------------------------------------------------------------------------

    def prefill_lines(self) -> None:
        """(a) Every chunk after every context; the largest, halfway in, is the reference."""
        works = [Work(BatchShape(0, 0, ((n, c),))) for n, c in product(self.chunks, self.contexts)]
        middle = self.contexts[len(self.contexts) // 2]
        reference = Work(BatchShape(0, 0, ((self.chunks[-1], middle),)))
        self._add_lines(works, "prefill", reference)

    def decode_lines(self) -> None:
        """(b) Every batch at every context that the pool holds."""
        works = [Work(BatchShape(n, n * c)) for n, c in product(self.batches, self.lengths)]
        fitting = [work for work in works if self.pool.misfit(work) is None]
        if len(fitting) < len(works):
            self._notes.append(
                f"{len(works) - len(fitting)} of {len(works)} decode batches of the grid exceed "
                "the KV pool and were left out"
            )
        batch = self.batches[len(self.batches) // 2]
        own = [work for work in fitting if work.shape.num_decodes == batch]
        self._add_lines(fitting, "decode", own[len(own) // 2] if own else None)

    def _add_lines(self, works: Sequence[Work], phase: str, reference: Work | None) -> None:
        legal = self.sms(phase)
        effort = self.effort
        for work in works:
            if self.pool.misfit(work) is not None:
                continue
            line = Line(work, legal, spread(legal, effort.coarse), effort.line_budget)
            if work == reference:
                start = spread(legal, min(len(legal), 2 * effort.coarse))
                line = Line(work, legal, start, effort.reference_budget, FINE_BEND)
            self._lines[work] = line

    # -- single settings ---------------------------------------------------------------------------

    def mixed(self) -> None:
        """(c) Decodes beside a chunk in one batch, on all SMs."""
        each, most = self.effort.mixed_each, self.pool.limits.max_num_batched_tokens
        decodes = [b for b in self.batches if 1 < b < min(self.pool.limits.max_num_seqs, most)]
        chunks = list(product(_picked(self.chunks, each), _picked(self.contexts, 2)))
        for count in _picked(decodes, each):
            for length, (chunk, before) in product(self._lengths_of(count, each), chunks):
                size = min(chunk, most - count)
                shape = BatchShape(count, count * length, ((size, before),))
                self._add(Setting("mixed", shape, self.spec.num_sms))

    def _lengths_of(self, count: int, most: int) -> list[int]:
        """At most so many of the contexts that ``count`` decodes can all have."""
        return _picked(
            [
                length
                for length in self.lengths
                if self.pool.misfit(Work(BatchShape(count, count * length))) is None
            ],
            most,
        )

    def skewed(self) -> None:
        """(b) Decodes of which an eighth are nine times as long as the rest, on a few SM counts."""
        legal = self.sms("decode")
        batches = [count for count in self.batches if count >= 8]
        for count in _picked(batches, 2):
            for length in self._lengths_of(count, 3):
                contexts = skewed_contexts(count, length)
                shape = BatchShape(count, sum(contexts))
                for sms in spread(legal, self.effort.skewed_sms):
                    self._add(Setting("decode", shape, sms, contexts=contexts))

    def pairs(self) -> None:
        """(d) Both sides of every legal split of a grid, each also alone on the same SMs."""
        effort = self.effort
        prefills = [
            BatchShape(0, 0, ((chunk, context),))
            for chunk in _picked(self.chunks, effort.pair_chunks)
            for context in _picked(self.contexts, effort.pair_contexts)
        ]
        decodes = [
            BatchShape(batch, batch * length)
            for batch in _picked(self.batches, effort.pair_batches + 1)[1:]
            for length in self._lengths_of(batch, effort.pair_lengths)
        ]
        self._pair_up(prefills, decodes, effort.pair_splits, held_out=False)

    def _pair_up(
        self,
        prefills: Sequence[BatchShape],
        decodes: Sequence[BatchShape],
        count: int,
        *,
        held_out: bool,
    ) -> None:
        splits = spread_splits(self.spec, count, self.effort.least_share)
        for prefill, decode in product(prefills, decodes):
            if not self._fits_together(prefill, decode):
                continue
            for split in splits:
                sms = (split.of("prefill"), split.of("decode"))
                sides = (
                    Setting("pair", prefill, sms[0], decode, sms[1], held_out=held_out),
                    Setting("pair", decode, sms[1], prefill, sms[0], held_out=held_out),
                )
                for side in sides:
                    self._add(alone(side))
                for side in sides:
                    self._add(side)

    def _fits_together(self, prefill: BatchShape, decode: BatchShape) -> bool:
        works = (Work(prefill), Work(decode))
        if any(self.pool.misfit(work) is not None for work in works):
            return False
        needed = sum(self.pool.blocks_of(work, MOST_REPEATS) for work in works)
        return needed <= self.pool.num_blocks

    # -- held out ----------------------------------------------------------------------------------

    def held_out(self) -> None:
        """Whole batches that no fit sees, off the grids, over SMs and in pairs."""
        effort = self.effort
        prefills = self._off_grid(_held_out_prefills(self.chunks[-1], self.contexts[-1]))
        tokens = self.pool.num_blocks * self.pool.block_size
        decodes = self._off_grid(_held_out_decodes(self.batches[-1], self.lengths[-1], tokens))
        for phase, shapes in (("prefill", prefills), ("decode", decodes)):
            for shape in shapes[: effort.held_out_shapes]:
                for sms in spread(self.sms(phase), effort.held_out_sms):
                    self._add(Setting(phase, shape, sms, held_out=True))  # type: ignore[arg-type]
        for shape in self._off_grid(_held_out_mixed(self.chunks[-1], self.batches[-1])):
            self._add(Setting("mixed", shape, self.spec.num_sms, held_out=True))
        each = effort.held_out_pairs
        self._pair_up(prefills[:each], decodes[:each], effort.held_out_splits, held_out=True)

    def _off_grid(self, shapes: Sequence[BatchShape]) -> list[BatchShape]:
        """Those that fit and that no fitted setting uses."""
        used = {line.work.shape for line in self._lines.values()}
        used |= {setting.shape for setting in self._settings.values()}
        return [
            shape
            for shape in dict.fromkeys(shapes)
            if shape not in used and self.pool.misfit(Work(shape)) is None
        ]

    def user_batch(self, text: str, work: Work) -> None:
        """A batch of the command line, on all SMs; held out unless the grid has it anyway.

        Raises UsageError if it does not fit.
        """
        problem = self.pool.misfit(work)
        if problem is not None:
            raise UsageError(f"--batch '{text}' does not fit this device: {problem}")
        both = work.shape.chunks and work.shape.num_decodes
        kind = "mixed" if both else "prefill" if work.shape.chunks else "decode"
        new = bool(self._off_grid([work.shape]))
        setting = Setting(
            kind,  # type: ignore[arg-type]
            work.shape, self.spec.num_sms, contexts=work.contexts, held_out=new,
        )  # fmt: skip
        self._add(setting)

    def _add(self, setting: Setting) -> None:
        if self.pool.misfit(Work(setting.shape, setting.contexts)) is None:
            self._settings.setdefault(setting.key, setting)


def _held_out_prefills(chunk: int, context: int) -> list[BatchShape]:
    """Chunk batches: several prompts in one, one prompt's middle, a short one far in."""

    def part(share: float) -> int:
        return max(2, round(share * chunk))

    def far(share: float) -> int:
        return round(share * context)

    return [
        BatchShape(0, 0, ((part(0.21), 0), (part(0.33), far(0.07)), (part(0.27), far(0.19)))),
        BatchShape(0, 0, ((part(0.73), far(0.11)),)),
        BatchShape(0, 0, ((part(0.55), far(0.31)),)),
        BatchShape(0, 0, ((part(0.11), 0),) * 7),
        BatchShape(0, 0, ((part(0.17), far(0.63)), (part(0.71), 0))),
        BatchShape(0, 0, ((part(0.41), far(0.87)),)),
        BatchShape(0, 0, ((part(0.07), far(0.23)),)),
        BatchShape(0, 0, ((part(0.93), 0),)),
    ]


def _held_out_decodes(batch: int, length: int, pool: int) -> list[BatchShape]:
    """Decode batches between the sizes of the grid, at mean contexts between its lengths; at most
    half of the pool's tokens, so that they fit beside a prompt.
    """
    shares = ((0.3, 0.021), (0.09, 0.19), (0.55, 0.083), (0.04, 0.37), (0.83, 0.013),
              (0.21, 0.11), (0.012, 0.57), (0.43, 0.035))  # fmt: skip
    made = []
    for size, mean in shares:
        count = max(3, round(size * batch))
        context = min(max(40, round(mean * length)), pool // (2 * count) - MOST_REPEATS)
        if context > 1:
            made.append(BatchShape(count, count * context + count // 3))
    return made


def _held_out_mixed(chunk: int, batch: int) -> list[BatchShape]:
    """Decodes and one or two chunks together."""
    few, many = max(2, batch // 11), max(2, batch // 3)
    return [
        BatchShape(few, few * 777, ((round(0.47 * chunk), 1300),)),
        BatchShape(many, many * 1511, ((round(0.29 * chunk), 0),)),
        BatchShape(many, many * 350, ((round(0.13 * chunk), 5200), (round(0.37 * chunk), 0))),
        BatchShape(few, few * 3100, ((round(0.81 * chunk), 2600),)),
        BatchShape(few, few * 190, ((round(0.06 * chunk), 700),)),
        BatchShape(many, many * 620, ((round(0.61 * chunk), 9100),)),
        BatchShape(few, few * 5300, ((round(0.19 * chunk), 0), (round(0.23 * chunk), 3300))),
        BatchShape(many, many * 1150, ((round(0.08 * chunk), 14_300),)),
    ]


def skewed_contexts(count: int, mean: int) -> tuple[int, ...]:
    """``count`` contexts of about that mean: an eighth long (4.5 means), the rest half a mean."""
    long = count // 8
    return (max(1, mean // 2),) * (count - long) + (round(4.5 * mean),) * long


def legal_sms(spec: DeviceSpec, phase: str) -> tuple[int, ...]:
    """SM counts that a legal split can give ``phase``, and all SMs; growing."""
    counts = {split.of(phase) for split in spec.splits if phase in split.partitions}
    return tuple(sorted(counts | {spec.num_sms}))


def spread(legal: Sequence[int], count: int) -> tuple[int, ...]:
    """About ``count`` of the growing ``legal``, both ends among them, by equal ratios."""
    if len(legal) <= count:
        return tuple(legal)
    if count < 2:
        return (legal[-1],)
    ratio = (legal[-1] / legal[0]) ** (1 / (count - 1))
    wanted = [legal[0] * ratio**i for i in range(count)]
    found = {min(legal, key=lambda sms: (abs(sms / w - 1), sms)) for w in wanted}
    return tuple(sorted(found | {legal[0], legal[-1]}))


def spread_splits(spec: DeviceSpec, count: int, least_share: float = 0.0) -> tuple[Split, ...]:
    """About ``count`` of the disjoint legal splits, evenly from few to many SMs for prefill.

    Overlapping splits are no pair of partitions with SMs of their own; they are left out, and so
    are those that give a side less than ``least_share`` of the SMs.
    """
    least = least_share * spec.num_sms
    disjoint = [x for x in spec.splits if not x.overlapping and min(x.sms) >= least]
    return tuple(disjoint[i] for i in _even(len(disjoint), count))


def _picked(values: Sequence[int], count: int) -> list[int]:
    """About ``count`` of the values, both ends among them."""
    return [values[i] for i in _even(len(values), count)]


def _even(length: int, count: int) -> Iterator[int]:
    """``count`` positions out of ``length``, evenly, both ends among them (the last if one)."""
    if length <= count:
        yield from range(length)
    elif count == 1:
        yield length - 1
    else:
        yield from sorted({round(i * (length - 1) / (count - 1)) for i in range(count)})
