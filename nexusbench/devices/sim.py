"""The simulated GPU: a virtual clock over ``physics/``, deterministic by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from nexusbench.core.batch import Batch, Split, StepOutput, TransferOutput
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.parallelism import Parallelism
from nexusbench.core.specs import DeviceSpec, GpuSpec, ModelSpec
from nexusbench.devices._sim_launch import Meters, SimLaunch
from nexusbench.devices._sim_memory import kv_bytes
from nexusbench.devices._sim_pipeline import Pipeline
from nexusbench.devices._sim_ranks import FreeRanks, LockstepRanks
from nexusbench.devices.base import Device, DeviceOptions
from nexusbench.physics.gpus import is_profile, legal_splits, load_gpu, warned
from nexusbench.physics.launches import Physics
from nexusbench.physics.links import LAST_NS, Links, past_the_clock
from nexusbench.physics.lockstep import IDLE, Lockstep
from nexusbench.physics.measured import MeasuredPhysics
from nexusbench.physics.profiled import Truth
from nexusbench.physics.remote import Away, ghost, remote_slowdown, split_launch
from nexusbench.physics.sharing import LaunchLoad
from nexusbench.physics.tables import load_table
from nexusbench.profiles.profile import load_profile

POOLS = {1: ("gpu",), 2: ("gpu0", "gpu1")}  # names of KV pools, by number of GPUs


class Sim(Device):
    """A GPU described by data (or two, each with a KV pool), one virtual nanosecond clock, one
    launch at a time per partition.

    Two launches that overlap slow each other down as Physics says; whenever one starts or ends, the
    other's remaining work is re-timed. Everything it produces is simulated and labelled so.
    """

    source: ClassVar[str] = "virtual clock; physics in docs/architecture.md"

    def __init__(
        self,
        gpu: GpuSpec,
        model: ModelSpec,
        options: DeviceOptions,
        *,
        name: str = "",
        truth: Truth | None = None,
        count: int = 1,
    ) -> None:
        self.gpu, self.model = gpu, model
        self.host, engine = options.host, ""
        if self.host is not None:
            engine = f"@{self.host.name}"
        parallel = options.parallel
        # Of ranks in lockstep the host's time comes to that of the slowest one, and a pipeline's
        # is not that of a stage.
        apart = parallel.in_lockstep(model) or parallel.pipeline > 1
        host = IDLE if apart else self.host
        self.physics = Physics(gpu, model, options.tensor_parallel, host=host, parallel=parallel)
        if truth is not None:
            self.physics, self.made_of_profile = truth.physics, truth.sha256
        if options.kernel_table is not None:
            _check_table(parallel, model)
            table = load_table(Path(options.kernel_table), gpu, model, options.tensor_parallel)
            self.physics = MeasuredPhysics(
                gpu, model, table, options.tensor_parallel, host=host, parallel=parallel
            )
            self.kernel_table_sha256 = table.sha256
        self.spec = DeviceSpec(
            name=f"sim:{name or gpu.name}{options.parallel.suffix}{engine}",
            kind="sim",
            simulated=True,
            num_sms=gpu.num_sms * count,
            splits=_splits(gpu, count) if truth is None else truth.splits,
            whole=Split(("all",), (gpu.num_sms,)),
            depth=parallel.pipeline,
            stages=parallel.pipeline,
            kv_bytes=kv_bytes(gpu, model, options),
            num_layers=model.num_layers,
            tensor_parallel=options.tensor_parallel,
            pools=(*POOLS[count], *(("host",) if options.swap_bytes else ())),
            pool_of={"prefill": 0, "decode": 1, "remote": 0} if count == 2 else {},
            host_bytes=options.swap_bytes * options.tensor_parallel * count,
            frees_windows=True,
            times_lengths=self.physics.times_lengths,
        )
        # Times launches, where not each is timed by itself: ranks in lockstep, a pipeline.
        self.taker: Callable[[int, Batch], None] | None = None
        self._links: Links | None = None  # made with the first copy: most devices have no link
        self._now = 0
        self._launches: list[SimLaunch] = []
        self._noise = random.Random(options.seed)
        self._jitter = gpu.sim.jitter
        self._meters = Meters() if options.profiling else None

    @classmethod
    def describe(cls, argument: str) -> GpuSpec:
        """A shipped GPU by name, one from the user's own TOML file, or that of a profile."""
        if not argument:
            raise UsageError(
                "--device sim needs a GPU: write sim:l20, sim:FILE.toml for your own, or "
                "sim:DIR for the times of the profile in that folder"
            )
        if is_profile(argument):
            return load_profile(Path(argument)).gpu
        return warned(load_gpu(_one_of(argument)[0]))

    @classmethod
    def open(cls, argument: str, model: ModelSpec, options: DeviceOptions) -> Self:
        """``sim:l20``, ``sim:FILE.toml``, ``sim:DIR`` or ``sim:DIR/profile.json``; ``sim:l20+l20``
        is a pair of GPUs, prefill on one and decode on the other. A file keeps its suffix in the
        device's name, which so differs from that of a shipped GPU.

        Raises UsageError if the weights do not fit, or a profile is of something else.
        """
        if is_profile(argument):
            if options.kernel_table is not None:
                raise UsageError(
                    f"--device sim:{argument} has the times of a profile already; leave "
                    "--kernel-table away"
                )
            if options.host is not None:
                raise UsageError(
                    f"--device sim:{argument} has the times of a profile, the host's among them; "
                    "leave --engine away"
                )
            if options.parallel != Parallelism(options.tensor_parallel):
                raise UsageError(
                    f"--device sim:{argument} has the times of a profile of one engine; leave "
                    "--data-parallel-size, --pipeline-parallel-size and --enable-expert-parallel "
                    "away"
                )
            truth = Truth(Path(argument), model, options.tensor_parallel)
            return cls(truth.gpu, model, options, name=truth.name, truth=truth)
        one, count = _one_of(argument)
        name, gpu = "+".join([Path(one).name.lower()] * count), warned(load_gpu(one))
        parallel = options.parallel
        sims = [
            cls(gpu, model, msgspec.structs.replace(options, seed=options.seed + rank), name=name,
                count=count)
            for rank in range(parallel.data)
        ]  # fmt: skip
        if parallel.pipeline > 1:
            for rank, sim in enumerate(sims):
                Pipeline(sim, parallel, options.host, options.seed + rank)
        first = sims[0]
        if parallel.in_lockstep(model):
            together = Lockstep(
                gpu, first.physics, parallel, options.host, options.max_num_seqs
            )  # fmt: skip
            first.ranks = LockstepRanks(sims, together, options.seed)
        elif len(sims) > 1:
            first.ranks = FreeRanks(sims)
        return first

    def start(self) -> None:
        """The virtual clock stands at 0 until work is submitted."""

    def now(self) -> int:
        """Virtual nanoseconds."""
        return self._now

    def submit(self, step: int, batch: Batch, sms: int) -> None:
        """Start now; launches in progress are slowed down from now on."""
        launches = self._launches
        if not 0 < sms <= self.gpu.num_sms:
            raise NexusbenchError(f"{self.spec.name} has {self.gpu.num_sms} SMs, not {sms}")
        if self.taker is not None:
            self.taker(step, batch)
            return
        for launch in launches:
            if launch.partition == batch.partition:
                raise NexusbenchError(f"partition '{batch.partition}' of {self.spec.name} is busy")
        away = None
        if batch.shape.remote is None:
            load = self.physics.load(batch.shape, sms)
        else:
            load, away = split_launch(self.physics, batch, sms, self.spec.pool_of["remote"])
        solo = load.solo * (1.0 + self._jitter * (2.0 * self._noise.random() - 1.0))
        self.launch(step, batch, load, solo, away)

    def launch(
        self, step: int, batch: Batch, load: LaunchLoad, solo: float, away: Away | None = None
    ) -> SimLaunch:
        """Start what takes ``solo`` ns without a neighbour. Raises UsageError for an end that is no
        time.
        """
        launches = self._launches
        if not self._now + solo < LAST_NS:
            raise past_the_clock(self.spec.name, "a launch", self._now + solo)
        end = self._now + int(solo) + 1
        launch = SimLaunch(
            step, batch.partition, load, solo, 1.0, end, int(solo) + 1, batch.repeat, away
        )
        launches.append(launch)
        if self._meters is not None:
            self._meters.count(load, batch.repeat)
        if len(launches) > 1:
            self._retime(self._now)
        return launch

    def transfer(self, number: int, source: int, target: int, num_bytes: float) -> None:
        """Start a copy; copies from one pool to another follow each other."""
        if self._links is None:
            self._links = Links(self.gpu, self.spec)
        self._links.start(number, source, target, num_bytes, self._now)

    @property
    def next_end(self) -> int | None:
        """When the next launch or copy ends as things stand; None with nothing in flight."""
        links, ends = self._links, [launch.ends_ns for launch in self._launches]
        if links is not None and links.busy:
            ends.append(links.next_ns)
        return min(ends) if ends else None

    def wait(self, until: int | None) -> Sequence[StepOutput | TransferOutput]:
        """Advance the clock to the next end, or to ``until`` if that is earlier."""
        launches, links = self._launches, self._links
        if (links is not None and links.busy) and (
            not launches or links.next_ns <= min([x.ends_ns for x in launches])
        ):
            due = links.next_ns
            if until is not None and until < due:
                self._advance(max(until, self._now))
                return []
            self._advance(max(due, self._now))
            return [TransferOutput(links.pop(), self._now)]
        if not launches:
            if until is not None and until > self._now:
                self._now = until
            return []
        end = launches[0].ends_ns if len(launches) == 1 else min([x.ends_ns for x in launches])
        if until is not None and until < end:
            self._advance(max(until, self._now))
            return []
        if len(launches) == 1:
            launch = launches[0]
            self._now = end
            if launch.repeats_left == 1:
                launches.clear()
            else:
                self._next_repetition(launch)
            return [self._output(launch, end, not launches)]
        return self._end_some(end)

    def reseed(self, seed: int) -> None:
        """Restart jitter from ``seed`` and counters from 0, since longer sums round differently."""
        self._noise.seed(seed)
        if self._meters is not None:
            self._meters = Meters()

    def totals(self) -> dict[str, float] | None:
        """Exact counts of all launches since the last reseed; None unless opened for profiling."""
        if self._meters is None:
            return None
        return {**msgspec.structs.asdict(self._meters), "now_ns": float(self._now)}

    def close(self) -> None:
        """Nothing to release."""
        self._launches.clear()

    def _end_some(self, end: int) -> list[StepOutput]:
        """Outputs at ``end`` with several launches in flight; re-time the rest."""
        self._advance(end)
        outputs = []
        for launch in [x for x in self._launches if x.ends_ns <= end]:
            last = launch.repeats_left == 1
            if last:
                self._launches.remove(launch)
            else:
                self._next_repetition(launch)
            outputs.append(self._output(launch, end, last))
        self._retime(end)
        return outputs

    def _output(self, launch: SimLaunch, end: int, last: bool) -> StepOutput:
        output = StepOutput(launch.step, end, launch.solo_ns, last)
        if self._meters is not None:
            load = launch.load
            output.operators_ns = {"dense": load.dense.time, "attention": load.attention.time}
        return output

    def _next_repetition(self, launch: SimLaunch) -> None:
        """The next decode step of one launch (its context growth of one token a row is below the
        noise).
        """
        launch.repeats_left -= 1
        launch.left = launch.load.solo
        launch.solo_ns = int(launch.load.solo) + 1
        launch.ends_ns = self._end(launch, self._now)

    def _advance(self, to: int) -> None:
        """Advance the clock to ``to``: every launch does work at its present speed."""
        elapsed = to - self._now
        self._now = to
        for launch in self._launches:
            launch.left = max(0.0, launch.left - elapsed / launch.slow)

    def _retime(self, now: int) -> None:
        """New speeds and ends after a launch started or ended."""
        if self.taker is not None:
            return
        physics, pair = self.physics, bool(self.spec.pool_of)
        for launch in self._launches:
            slow = 1.0
            if pair:
                slow = self._slow_on_pair(launch)
            else:
                for other in self._launches:
                    if other is not launch:
                        slow += physics.slowdown(launch.load, other.load) - 1.0
            launch.slow = slow
            launch.ends_ns = self._end(launch, now)

    def _end(self, launch: SimLaunch, now: int) -> int:
        """The end of a launch at its present speed. Raises UsageError if it does not fit 63 bits of
        ns.
        """
        left = launch.left * launch.slow
        if not now + left < LAST_NS:
            raise past_the_clock(self.spec.name, "a launch", now + left)
        return now + int(left) + 1

    def _slow_on_pair(self, launch: SimLaunch) -> float:
        """The factor by which a launch is slower: by other launches on its GPU, and on the GPU that
        computes its remote attention.
        """
        physics, away, slow = self.physics, launch.away, 1.0
        for load in self._beside(launch, self.spec.pool_of[launch.partition]):
            slow += physics.slowdown(launch.load, load) - 1.0
        if away is not None:
            slower = remote_slowdown(physics, away, self._beside(launch, away.pool))
            slow += away.time(slower) / away.time() - 1.0
        return slow

    def _beside(self, launch: SimLaunch, pool: int) -> list[LaunchLoad]:
        """Loads of other launches on a GPU: those that run there, and their remote attention."""
        home, loads = self.spec.pool_of, []
        for other in self._launches:
            if other is not launch:
                if home[other.partition] == pool:
                    loads.append(other.load)
                if other.away is not None and other.away.pool == pool:
                    loads.append(ghost(other.away, other.load.solo))
        return loads


def _check_table(parallel: Parallelism, model: ModelSpec) -> None:
    """Raise UsageError where no kernel table has the experts that a GPU has: their width is shared
    by other GPUs than the table's.
    """
    several = parallel.in_lockstep(model) or parallel.experts
    if several and (parallel.tensor > 1 or not parallel.experts):
        raise UsageError(
            "--kernel-table has the times of experts of one width: whole ones with "
            "--data-parallel-size, --enable-expert-parallel and no --tensor-parallel-size, "
            "or those of one engine without --enable-expert-parallel"
        )


def _one_of(argument: str) -> tuple[str, int]:
    """The GPU of ``l20`` or ``l20+l20``, and how many there are. Raises UsageError for others."""
    names = argument.split("+")
    if len(names) > max(POOLS) or len(set(names)) > 1:
        raise UsageError(
            f"--device sim:{argument}: a device is one GPU or two equal ones, such as "
            f"sim:{names[0]} or sim:{names[0]}+{names[0]}"
        )
    return names[0], len(names)


def _splits(gpu: GpuSpec, count: int) -> tuple[Split, ...]:
    """The legal splits; of a pair, how many SMs of the prefill GPU compute prefill and how many the
    attention of requests that the other GPU decodes. The last is a whole GPU for each stage.
    """
    one = legal_splits(gpu)
    if count == 1:
        return one
    names, every = ("prefill", "decode", "remote"), gpu.num_sms
    shared = [Split(names, (s.sms[0], every, s.sms[1])) for s in one if not s.overlapping]
    return (*shared, Split(names[:2], (every, every)))
