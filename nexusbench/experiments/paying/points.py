"""The points of a map: every run that it is made of, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from nexusbench.experiments.paying.measuring import MapRow
from nexusbench.experiments.paying.spec import MapSpec, Traffic
from nexusbench.experiments.ranges import Place, ends, in_use, latin_hypercube
from nexusbench.serving.resolve import find_device

# As the constant of a cell: each draw of the arrivals has its own draw of the constants.
DRAWN = "drawn"
_DRAW = "draw "


class MapPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``slo`` is the one that the policy was told, '' for those that are told none;
    ``constant`` is the one made neutral, or the place on the ranges; '' for the GPU as it is.
    """

    gpu: str
    traffic: str
    load: float
    system: str
    slo: str
    seed: int
    constant: str = ""


class GpuPlaces(msgspec.Struct, frozen=True, kw_only=True):
    """Of a GPU: the contested constants in use, and the places on their ranges that were run."""

    used: dict[str, float]
    ends: tuple[Place, ...] = ()
    draws: tuple[Place, ...] = ()

    def find(self, name: str) -> Place | None:
        """The place of that name."""
        return next((place for place in (*self.ends, *self.draws) if place.name == name), None)


class Survey(msgspec.Struct, kw_only=True):
    """The rows of a map by point; ``capacity`` (requests/s) and ``requests`` by (gpu, traffic),
    ``places`` by GPU.
    """

    spec: MapSpec
    capacity: dict[tuple[str, str], float]
    requests: dict[tuple[str, str], int]
    rows: dict[MapPoint, MapRow]
    places: dict[str, GpuPlaces] = {}

    def place(self, gpu: str, constant: str) -> Place | None:
        """The place on the ranges; None for the GPU as it is, or with a constant made neutral."""
        known = self.places.get(gpu)
        return None if known is None else known.find(constant)

    def spares_one_batch(self, gpu: str, constant: str) -> bool:
        """Whether systems that run one batch at a time were not run again there."""
        place = self.place(gpu, constant)
        return place is None or place.spares_one_batch


def places_of(spec: MapSpec) -> dict[str, GpuPlaces]:
    """The places that the spec asks for, by GPU; of a GPU without ranges there are none."""
    asked = spec.ranges
    if asked is None:
        return {}
    gpus = {name: find_device(name).describe() for name in spec.about.gpus}
    return {
        name: GpuPlaces(
            used=in_use(gpu), ends=ends(gpu) if asked.ends else (),
            draws=latin_hypercube(gpu, asked.draws, asked.seed),
        )
        for name, gpu in gpus.items()
        if gpu.ranges
    }  # fmt: skip


def constant_at(constant: str, seed: int) -> str:
    """The constant of one draw of the arrivals of a cell."""
    return f"{_DRAW}{seed}" if constant == DRAWN else constant


def map_points(survey: Survey) -> Iterator[MapPoint]:
    """Every point, each once: the map, then neutral constants, then the ranges."""
    yield from dict.fromkeys((*_map(survey), *_neutral(survey), *_ranges(survey)))


def _map(survey: Survey) -> Iterator[MapPoint]:
    for gpu in survey.spec.about.gpus:
        for traffic in survey.spec.traffic:
            for load in traffic.loads:
                seeds = range(traffic.seeds)
                yield from _cell(survey, gpu, traffic, load, seeds, systems=traffic.systems)


def _neutral(survey: Survey) -> Iterator[MapPoint]:
    sensitivity = survey.spec.sensitivity
    for constant in sensitivity.constants:
        for gpu in survey.spec.about.gpus:
            for traffic in survey.spec.traffic:
                for load in sensitivity.loads if traffic.trace else ():
                    seeds = range(sensitivity.seeds)
                    yield from _cell(survey, gpu, traffic, load, seeds, constant)


def _ranges(survey: Survey) -> Iterator[MapPoint]:
    """Ends with the first draws of the arrivals each; draw i of the constants with draw i of them,
    and the systems that no constant touches with all of those.
    """
    asked = survey.spec.ranges
    if asked is None:
        return
    for gpu, places in survey.places.items():
        for traffic in survey.spec.traffic:
            for load in asked.loads if traffic.trace else ():
                for place in places.ends:
                    seeds = range(asked.seeds)
                    yield from _cell(
                        survey, gpu, traffic, load, seeds, place.name, systems=asked.systems
                    )
                for seed, place in enumerate(places.draws):
                    one = range(seed, seed + 1)
                    yield from _cell(
                        survey, gpu, traffic, load, one, place.name, systems=asked.systems
                    )
                    if place.spares_one_batch:
                        yield from _cell(
                            survey, gpu, traffic, load, one, systems=asked.systems,
                            whole_only=True,
                        )  # fmt: skip


def _cell(
    survey: Survey, gpu: str, traffic: Traffic, load: float, seeds: range, constant: str = "",
    *, systems: tuple[str, ...] = (), whole_only: bool = False,
) -> Iterator[MapPoint]:  # fmt: skip
    spares = bool(constant) and survey.spares_one_batch(gpu, constant)
    for system in survey.spec.systems:
        whole = system.kind == "whole"
        if (whole and spares) or (whole_only and not whole):
            continue  # nothing runs beside it, and it has all SMs: these constants touch it not
        if systems and system.name not in systems:
            continue
        for slo in traffic.slos if system.told_slo else ("",):
            for seed in seeds:
                yield MapPoint(
                    gpu=gpu, traffic=traffic.name, load=load, system=system.name, slo=slo,
                    seed=seed, constant=constant,
                )  # fmt: skip
