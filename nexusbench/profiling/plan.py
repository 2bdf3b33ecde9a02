"""The sweep plan: which batches, on which SMs, beside which others. A pure function of sizes and
effort.

Sizes stay within the device's KV pool and step budgets. The grids that are fitted are tensors over
(chunk, context) and (batch, context), less the corners that exceed the pool; held-out shapes lie
off them. SM positions are chosen line by line, as measurements end (positions.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations, product

import msgspec

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import DeviceSpec
from nexusbench.profiles.points import PointSetting
from nexusbench.profiling.desk import MOST_REPEATS, Pool, ShapedBatch
from nexusbench.profiling.effort import Effort
from nexusbench.profiling.held_out import held_out_decodes, held_out_mixed, held_out_prefills
from nexusbench.profiling.positions import (
    FINE_BEND,
    BatchOverSms,
    legal_sms,
    picked,
    spread,
    spread_splits,
)

SHORTEST = 128  # tokens that a request may have at least; below, hardly a batch of the sweep fits


class MeasuringPlan(msgspec.Struct, frozen=True):
    """Lines first, then settings in order; a pair follows both of its sides alone."""

    lines: tuple[BatchOverSms, ...]
    settings: tuple[PointSetting, ...]
    notes: tuple[str, ...] = ()

    @property
    def most_points(self) -> int:
        """At most so many will be measured."""
        return sum(line.budget for line in self.lines) + len(self.settings)

    def everything(self) -> Iterator[PointSetting]:
        """All settings, lines at one of their SM counts."""
        yield from self.settings
        for line in self.lines:
            yield line.setting(line.start[0])


def alone(setting: PointSetting) -> PointSetting:
    """The measured side of a pair, without its neighbour."""
    kind = setting.phase
    return msgspec.structs.replace(setting, kind=kind, neighbour=None, neighbour_sms=0)


def make_plan(
    spec: DeviceSpec, pool: Pool, effort: Effort, batches: Sequence[tuple[str, ShapedBatch]] = ()
) -> MeasuringPlan:
    """What to measure. ``batches`` are the user's (text, batch); they are held out of fits.

    Raises UsageError if there is room for no prefill or no decode: nothing can be learnt then.
    """
    made = _Planner(spec, pool, effort)
    made.prefill_lines()
    made.decode_lines()
    made.mixed()
    made.skewed()
    made.pairs()
    made.streams()
    made.held_out()
    for text, work in batches:
        made.user_batch(text, work)
    return made.plan()


class _Planner:
    """Collects lines and settings; leaves out what does not fit, and says so."""

    def __init__(self, spec: DeviceSpec, pool: Pool, effort: Effort) -> None:
        self.spec, self.pool, self.effort = spec, pool, effort
        self._lines: dict[ShapedBatch, BatchOverSms] = {}
        self._settings: dict[str, PointSetting] = {}
        self._notes: list[str] = []
        limits = pool.limits
        longest = min(limits.max_model_len, effort.longest)
        if longest < SHORTEST:
            raise UsageError(
                f"--max-model-len {longest} is too short to profile: give {SHORTEST} at least"
            )
        self.chunks = effort.chunks_up_to(min(limits.max_num_batched_tokens, longest))
        room = longest - self.chunks[-1]
        self.contexts = (0, *effort.contexts_up_to(room)) if room > 0 else (0,)
        self.batches = effort.batches_up_to(limits.max_num_seqs)
        self.lengths = effort.lengths_up_to(longest - MOST_REPEATS)

    def sms(self, phase: str) -> tuple[int, ...]:
        """SM counts to measure ``phase`` on."""
        least = self.effort.least_share * self.spec.num_sms
        return tuple(sms for sms in legal_sms(self.spec, phase) if sms >= least)

    def plan(self) -> MeasuringPlan:
        """What was collected."""
        return MeasuringPlan(
            tuple(self._lines.values()), tuple(self._settings.values()), tuple(self._notes)
        )

    # -- lines -------------------------------------------------------------------------------------

    def prefill_lines(self) -> None:
        """(a) Every chunk after every context; the largest, halfway in, is the reference."""
        works = [
            ShapedBatch(BatchShape(0, 0, ((n, c),))) for n, c in product(self.chunks, self.contexts)
        ]
        middle = self.contexts[len(self.contexts) // 2]
        reference = ShapedBatch(BatchShape(0, 0, ((self.chunks[-1], middle),)))
        self._add_lines(works, "prefill", reference)

    def decode_lines(self) -> None:
        """(b) Every batch at every context that the pool holds."""
        works = [ShapedBatch(BatchShape(n, n * c)) for n, c in product(self.batches, self.lengths)]
        fitting = [work for work in works if self.pool.misfit(work) is None]
        if len(fitting) < len(works):
            self._notes.append(
                f"{len(works) - len(fitting)} of {len(works)} decode batches of the grid exceed "
                "the KV pool and were left out"
            )
        batch = self.batches[len(self.batches) // 2]
        own = [work for work in fitting if work.shape.num_decodes == batch]
        # What tells the cost of sharing: weights (one decode of the shortest context), and keys and
        # values (two contexts of one batch).
        telling = [*fitting[:1], *own[:1], *own[-1:]]
        reference = own[len(own) // 2] if own else None
        self._add_lines(fitting or works, "decode", reference, telling)

    def _add_lines(
        self,
        works: Sequence[ShapedBatch],
        phase: str,
        reference: ShapedBatch | None,
        telling: Collection[ShapedBatch] = (),
    ) -> None:
        legal = self.sms(phase)
        effort = self.effort
        if all(self.pool.misfit(work) is not None for work in works):
            smallest = min(works, key=lambda w: w.shape.num_tokens + w.shape.decode_context)
            problem = self.pool.misfit(smallest)
            raise UsageError(
                f"there is no room to measure {phase}, not even the smallest batch of the sweep: "
                f"{problem}"
            )
        for work in works:
            if self.pool.misfit(work) is not None:
                continue
            line = BatchOverSms(work, legal, spread(legal, effort.coarse), effort.line_budget)
            if work in telling:
                start = spread(legal, effort.sharing_sms)
                line = BatchOverSms(work, legal, start, max(len(start), effort.line_budget))
            if work == reference:
                start = spread(legal, min(len(legal), 2 * effort.coarse))
                line = BatchOverSms(work, legal, start, effort.reference_budget, FINE_BEND)
            self._lines[work] = line

    # -- single settings ---------------------------------------------------------------------------

    def mixed(self) -> None:
        """(c) Decodes beside a chunk in one batch, on all SMs."""
        each, most = self.effort.mixed_each, self.pool.limits.max_num_batched_tokens
        decodes = [b for b in self.batches if 1 < b < min(self.pool.limits.max_num_seqs, most)]
        chunks = list(product(picked(self.chunks, each), picked(self.contexts, 2)))
        for count in picked(decodes, each):
            for length, (chunk, before) in product(self._lengths_of(count, each), chunks):
                size = min(chunk, most - count)
                shape = BatchShape(count, count * length, ((size, before),))
                self._add(PointSetting("mixed", shape, self.spec.num_sms))

    def _lengths_of(self, count: int, most: int) -> list[int]:
        """At most so many of the contexts that ``count`` decodes can all have."""
        return picked(
            [
                length
                for length in self.lengths
                if self.pool.misfit(ShapedBatch(BatchShape(count, count * length))) is None
            ],
            most,
        )

    def skewed(self) -> None:
        """(b) Decodes of which an eighth are nine times as long as the rest, on a few SM counts."""
        legal = self.sms("decode")
        batches = [count for count in self.batches if count >= 8]
        for count in picked(batches, 2):
            for length in self._lengths_of(count, 3):
                contexts = skewed_contexts(count, length)
                shape = BatchShape(count, sum(contexts))
                for sms in spread(legal, self.effort.skewed_sms):
                    self._add(PointSetting("decode", shape, sms, contexts=contexts))

    def pairs(self) -> None:
        """(d) Both sides of every legal split of a grid, each also alone on the same SMs."""
        effort = self.effort
        prefills = [
            BatchShape(0, 0, ((chunk, context),))
            for chunk in picked(self.chunks, effort.pair_chunks)
            for context in picked(self.contexts, effort.pair_contexts)
        ]
        decodes = [
            BatchShape(batch, batch * length)
            for batch in picked(self.batches, effort.pair_batches + 1)[1:]
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
                    PointSetting("pair", prefill, sms[0], decode, sms[1], held_out=held_out),
                    PointSetting("pair", decode, sms[1], prefill, sms[0], held_out=held_out),
                )
                for side in sides:
                    self._add(alone(side))
                for side in sides:
                    self._add(side)

    def streams(self) -> None:
        """(e) Two batches that both have all SMs: each phase beside the other and beside itself."""
        if not any(split.overlapping for split in self.spec.splits):
            self._notes.append(
                "two launches on all of the device were not measured: it has no split in which "
                "both may use all"
            )
            return
        prefills = self._stream_prefills()
        decodes = self._stream_decodes(prefills)
        pairs = [*product(prefills, decodes), *combinations(decodes, 2), *combinations(prefills, 2)]
        most = self.spec.num_sms
        for one, other in pairs:
            if not self._fits_together(one, other):
                continue
            sides = (
                PointSetting("streams", one, most, other, most),
                PointSetting("streams", other, most, one, most),
            )
            for side in sides:
                self._add(alone(side))
            for side in sides:
                self._add(side)

    def _stream_prefills(self) -> list[BatchShape]:
        """Chunks from the middle size to the largest, every other one halfway into a context."""
        sides, count = self.effort.stream_sides, len(self.chunks)
        chunks = picked(self.chunks[max(0, min(count // 2, count - sides)) :], sides)
        contexts = (0, self.contexts[len(self.contexts) // 2])
        return [BatchShape(0, 0, ((chunk, contexts[i % 2]),)) for i, chunk in enumerate(chunks)]

    def _stream_decodes(self, prefills: Sequence[BatchShape]) -> list[BatchShape]:
        """One decode of the shortest context, which waits for weights; and batches of the longest
        contexts that there is room for beside the ``prefills``, which wait for keys and values.
        """
        made = [BatchShape(1, self.lengths[0])]
        middle = len(self.batches) // 2
        for batch in self.batches[middle : middle + self.effort.stream_sides - 1]:
            shapes = [BatchShape(batch, batch * length) for length in reversed(self.lengths)]
            made += [
                shape for shape in shapes if all(self._fits_together(p, shape) for p in prefills)
            ][:1]
        return list(dict.fromkeys(made))

    def _fits_together(self, prefill: BatchShape, decode: BatchShape) -> bool:
        works = (ShapedBatch(prefill), ShapedBatch(decode))
        if any(self.pool.misfit(work) is not None for work in works):
            return False
        needed = sum(self.pool.blocks_of(work, MOST_REPEATS) for work in works)
        return needed <= self.pool.num_blocks

    # -- held out ----------------------------------------------------------------------------------

    def held_out(self) -> None:
        """Whole batches that no fit sees, off the grids, over SMs and in pairs."""
        effort = self.effort
        prefills = self._off_grid(held_out_prefills(self.chunks[-1], self.contexts[-1]))
        tokens = self.pool.paging.tokens_in(self.pool.num_blocks, self.lengths[-1])
        decodes = self._off_grid(held_out_decodes(self.batches[-1], self.lengths[-1], tokens))
        for phase, shapes in (("prefill", prefills), ("decode", decodes)):
            for shape in shapes[: effort.held_out_shapes]:
                for sms in spread(self.sms(phase), effort.held_out_sms):
                    self._add(PointSetting(phase, shape, sms, held_out=True))  # type: ignore[arg-type]
        for shape in self._off_grid(held_out_mixed(self.chunks[-1], self.batches[-1])):
            self._add(PointSetting("mixed", shape, self.spec.num_sms, held_out=True))
        each = effort.held_out_pairs
        self._pair_up(prefills[:each], decodes[:each], effort.held_out_splits, held_out=True)

    def _off_grid(self, shapes: Sequence[BatchShape]) -> list[BatchShape]:
        """Those that fit and that no fitted setting uses."""
        used = {line.work.shape for line in self._lines.values()}
        used |= {setting.shape for setting in self._settings.values()}
        return [
            shape
            for shape in dict.fromkeys(shapes)
            if shape not in used and self.pool.misfit(ShapedBatch(shape)) is None
        ]

    def user_batch(self, text: str, work: ShapedBatch) -> None:
        """A batch of the command line, on all SMs; held out unless the grid has it anyway.

        Raises UsageError if it does not fit.
        """
        problem = self.pool.misfit(work)
        if problem is not None:
            raise UsageError(f"--batch '{text}' does not fit this device: {problem}")
        both = work.shape.chunks and work.shape.num_decodes
        kind = "mixed" if both else "prefill" if work.shape.chunks else "decode"
        new = bool(self._off_grid([work.shape]))
        setting = PointSetting(
            kind,  # type: ignore[arg-type]
            work.shape, self.spec.num_sms, contexts=work.contexts, held_out=new,
        )  # fmt: skip
        self._add(setting)

    def _add(self, setting: PointSetting) -> None:
        if self.pool.misfit(ShapedBatch(setting.shape, setting.contexts)) is None:
            self._settings.setdefault(setting.key, setting)


def skewed_contexts(count: int, mean: int) -> tuple[int, ...]:
    """``count`` contexts of about that mean: an eighth long (4.5 means), the rest half a mean."""
    long = count // 8
    return (max(1, mean // 2),) * (count - long) + (round(4.5 * mean),) * long
