"""Run a map: capacities first, since loads are shares of them, then every cell that is not kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import UsageError
from nexusbench.experiments.capacity import trace_load
from nexusbench.experiments.keys import run_key
from nexusbench.experiments.neutral import gpu_file, neutral_gpu
from nexusbench.experiments.paying.measuring import (
    AT_ONCE,
    MapRow,
    MapTask,
    failed,
    measure,
    suffix,
)
from nexusbench.experiments.paying.points import MapPoint, Survey, map_points, places_of
from nexusbench.experiments.paying.spec import MapSpec, MapSystem, Traffic
from nexusbench.experiments.pool import Lost, run_all
from nexusbench.experiments.ranges import place_on
from nexusbench.experiments.store import Store
from nexusbench.serving.resolve import find_device
from nexusbench.workloads.arrivals import Poisson
from nexusbench.workloads.generate import make_trace
from nexusbench.workloads.lengths import Lognormal
from nexusbench.workloads.spec import ClassSpec, WorkloadSpec, WorkloadTable, load_spec
from nexusbench.workloads.trace import write_trace

# Lengths of runs are multiples of it, so that loads share their traces.
_STEP = 100
_MADE_UP_SEED = 7
_LEAST_REQUESTS = 20
_RATE_DIGITS = 4
# Of the real time of a run, against one batch at a time; for estimates only.
_STREAMS = 2

Told = Callable[[str], object]


class Surveyor:
    """Plans and runs a map; ``step`` is told of every cell that has run."""

    def __init__(
        self, spec: MapSpec, cache: Path, *, jobs: int = 1, fresh: bool = False, step: Told = str
    ) -> None:
        self.spec, self._cache, self._jobs = spec, Path(cache), jobs
        self._fresh, self._step = fresh, step
        self._traffic = {traffic.name: traffic for traffic in spec.traffic}
        self._systems = {system.name: system for system in spec.systems}
        self._stores: dict[str, Store] = {}
        self._traces: dict[tuple[str, int], str] = {}
        self.survey = Survey(
            spec=spec, capacity={}, requests={}, rows={}, places=places_of(spec)
        )  # fmt: skip
        self._todo: dict[MapPoint, MapTask] = {}
        self._wall_s: dict[tuple[str, str], float] = {}

    def prepare(self) -> int:
        """Find capacities and look up every cell; how many have to run.

        Raises UsageError if the reference cannot serve some traffic.
        """
        self._find_capacities()
        for point in map_points(self.survey):
            task = self._task(point)
            kept = self._kept(task)
            if kept is None:
                self._todo[point] = task
            else:
                self.survey.rows[point] = kept
        return len(self._todo)

    def _find_capacities(self) -> None:
        """How fast the reference finishes requests while a queue never empties.

        All requests arrive at once, n of them and then twice as many: what the second half adds to
        the makespan is free of the time in which the pool fills and runs dry.
        """
        about = self.spec.about
        pairs = [(gpu, traffic) for gpu in about.gpus for traffic in self.spec.traffic]
        lengths = [self._lengths(traffic) for _, traffic in pairs]
        crude = self._saturated(pairs, [fewest for fewest, _ in lengths])
        counts = []
        for (fewest, most), row in zip(lengths, crude, strict=True):
            wanted = math.ceil(fewest / row.longest_s * about.span_s / _STEP) * _STEP
            counts.append(min(max(wanted, fewest), most))
        once = self._saturated(pairs, counts)
        twice = self._saturated(pairs, [2 * count for count in counts])
        for (gpu, traffic), count, first, both in zip(pairs, counts, once, twice, strict=True):
            key = (gpu, traffic.name)
            self.survey.capacity[key] = count / (both.longest_s - first.longest_s)
            self.survey.requests[key] = count
            self._wall_s[key] = first.wall_s

    def _lengths(self, traffic: Traffic) -> tuple[int, int]:
        """The fewest and the most requests of a run; a ready trace must have twice as many.

        Raises UsageError for a trace whose rate cannot be changed, or that is too short.
        """
        fewest, most = self.spec.about.requests
        if not traffic.trace or traffic.trace.endswith(".toml"):
            return fewest, most
        requests, _, closed = trace_load(RunConfig(trace=traffic.trace))
        if closed:
            raise UsageError(f"{traffic.trace}: a closed loop has no rate. Use another trace")
        half = requests // 2
        if half < _LEAST_REQUESTS:
            raise UsageError(
                f"{traffic.trace}: {requests} requests are too few. Use a trace of "
                f"{2 * _LEAST_REQUESTS} or more"
            )
        return min(fewest, half), min(most, half)

    def _saturated(
        self, pairs: Sequence[tuple[str, Traffic]], counts: Sequence[int]
    ) -> list[MapRow]:
        """The reference with so many requests at once."""
        reference = self._systems[self.spec.about.reference]
        configs = [
            self._config(gpu, traffic, reference, count)
            for (gpu, traffic), count in zip(pairs, counts, strict=True)
        ]
        at_once = [msgspec.structs.replace(config, speed=AT_ONCE) for config in configs]
        rows = self._rows([MapTask(config, {}) for config in at_once])
        for (gpu, traffic), row in zip(pairs, rows, strict=True):
            if not math.isfinite(row.longest_s):
                reason = row.error or "requests do not finish"
                raise UsageError(
                    f"{reference.name} cannot serve {traffic.name} on {gpu}: {reason}. "
                    "Leave one of them out"
                )
        return rows

    def run(self) -> Survey:
        """Run what is not kept. Ctrl-C keeps what has ended; call again to go on."""
        points = list(self._todo)
        found = self._run([self._todo[point] for point in points])
        for index, row in found:
            self.survey.rows[points[index]] = row
        self._todo.clear()
        return self.survey

    def estimated_seconds(self) -> float:
        """Seconds on one core that the cells to run will take, by what like ones took.

        Where there are none, two streams are taken to cost twice what the capacity run of their GPU
        and traffic did.
        """
        like: dict[tuple[str, str, str], list[float]] = {}
        for point, row in self.survey.rows.items():
            like.setdefault((point.gpu, point.traffic, point.system), []).append(row.wall_s)
        total = 0.0
        for point in self._todo:
            key = (point.gpu, point.traffic, point.system)
            if key in like:
                total += sum(like[key]) / len(like[key])
            else:
                alone = self._wall_s[key[:2]]
                total += alone * (1 if self._systems[point.system].kind == "whole" else _STREAMS)
        return total

    def _task(self, point: MapPoint) -> MapTask:
        traffic, key = self._traffic[point.traffic], (point.gpu, point.traffic)
        system = self._systems[point.system]
        config = self._config(point.gpu, traffic, system, self.survey.requests[key])
        rate = float(f"{point.load / 100 * self.survey.capacity[key]:.{_RATE_DIGITS}g}")
        told = {point.slo: traffic.slos[point.slo]} if point.slo else traffic.slos
        config = msgspec.structs.replace(
            config, request_rate=rate, burstiness=traffic.burstiness, seed=point.seed,
            goodput=bounds(told[point.slo]) if point.slo else {},
        )  # fmt: skip
        if point.constant:
            device = self._gpu(point.gpu, point.constant)
            config = msgspec.structs.replace(config, device=device)
        return MapTask(config, dict(told))

    def _config(self, gpu: str, traffic: Traffic, system: MapSystem, requests: int) -> RunConfig:
        config = RunConfig(
            trace=self._trace(traffic, requests), limit=requests, device=gpu,
            model=self.spec.about.model,
        )  # fmt: skip
        return msgspec.structs.replace(config, **system.fields)

    def _rows(self, tasks: Sequence[MapTask]) -> list[MapRow]:
        """The row of each task, kept or run."""
        rows: dict[int, MapRow] = {}
        for index, task in enumerate(tasks):
            kept = self._kept(task)
            if kept is not None:
                rows[index] = kept
        left = [index for index in range(len(tasks)) if index not in rows]
        for index, row in self._run([tasks[index] for index in left]):
            rows[left[index]] = row
        return [rows[index] for index in range(len(tasks))]

    def _run(self, tasks: Sequence[MapTask]) -> Iterator[tuple[int, MapRow]]:
        for index, found in run_all(measure, tasks, self._jobs):
            row = failed(found.reason) if isinstance(found, Lost) else found
            task = tasks[index]
            if not row.error:
                content = msgspec.msgpack.encode(row)
                self._store(task).put(run_key(task.config), content)
            self._step(f"{task.config.device} {task.config.scheduler} {row.error}".strip())
            yield index, row

    def _kept(self, task: MapTask) -> MapRow | None:
        content = self._store(task).get(run_key(task.config))
        try:
            row = None if content is None else msgspec.msgpack.decode(content, type=MapRow)
        except msgspec.DecodeError:
            return None
        return None if row is None or row.load is None else row

    def _store(self, task: MapTask) -> Store:
        ending = suffix(task.slos)
        if ending not in self._stores:
            self._stores[ending] = Store(self._cache, ending, fresh=self._fresh)
        return self._stores[ending]

    def _trace(self, traffic: Traffic, requests: int) -> str:
        """A trace of so many requests; a ready one is cut by ``limit`` instead."""
        if traffic.trace and not traffic.trace.endswith(".toml"):
            return traffic.trace
        key = (traffic.name, requests)
        if key not in self._traces:
            spec = load_spec(traffic.trace) if traffic.trace else _made_up(traffic)
            plan = msgspec.structs.replace(spec.workload, num_requests=requests)
            path = self._cache / "made" / f"{traffic.name}-{requests}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_trace(make_trace(msgspec.structs.replace(spec, workload=plan)), path)
            self._traces[key] = str(path)
        return self._traces[key]

    def _gpu(self, gpu: str, constant: str) -> str:
        place = self.survey.place(gpu, constant)
        if place is not None:
            return place_on(gpu, place, self._cache / "made")
        named = find_device(gpu)
        changed = neutral_gpu(named.describe(), constant)
        name = f"{Path(named.argument).stem}-without-{constant.replace(' ', '-')}.toml"
        path = self._cache / "made" / name
        text = gpu_file(changed)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        return f"{named.kind}:{path}"


def bounds(slo: str) -> dict[str, float]:
    """What a policy is told of an SLO: its bounds in ms, as --goodput has them."""
    from nexusbench.metrics.slo import parse_slo

    return parse_slo([slo]).per_request()


def _made_up(traffic: Traffic) -> WorkloadSpec:
    """Lognormal lengths around the traffic's means; independent of each other."""
    return WorkloadSpec(
        workload=WorkloadTable(
            name=traffic.name, num_requests=1, seed=_MADE_UP_SEED, sampling="stratified"
        ),
        arrivals=Poisson(rate=1.0),
        classes=(
            ClassSpec(
                name="all",
                input=Lognormal(mean=traffic.prompt, cv=traffic.cv, most=100_000),
                output=Lognormal(mean=traffic.output, cv=traffic.cv, most=4_000),
            ),
        ),
    )  # fmt: skip
