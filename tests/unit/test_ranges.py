"""Contested constants: places on their ranges, the GPUs made of them, and the verdict over them."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.core.specs import GpuSpec
from nexusbench.experiments.neutral import gpu_file, neutral_gpu
from nexusbench.experiments.over_range import (
    DrawnReading,
    EndReading,
    OverRange,
    RangeReading,
    constants_of,
    over_range,
    range_words,
)
from nexusbench.experiments.ranges import (
    BESIDE_ONLY,
    Place,
    ends,
    in_use,
    latin_hypercube,
    place_on,
    ranged_gpu,
    with_constants,
)
from nexusbench.models.config import load_model
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.launches import Physics

RANGES = {"jitter": (0.01, 0.05), "turn_taking": (0.1, 1.0), "bandwidth_curve": (0.5, 2.0)}


def gpu(ranges: dict[str, tuple[float, float]] = RANGES) -> GpuSpec:
    found = load_gpu("l20")
    sim = msgspec.structs.replace(
        found.sim, jitter=0.02, turn_taking=0.1,
        bandwidth_curve=((0.0, 0.0), (0.2, 0.5), (0.5, 0.9), (1.0, 1.0)), weights_curve=(),
    )  # fmt: skip
    return msgspec.structs.replace(found, sim=sim, ranges=ranges)


def test_ends_are_one_constant_at_a_time_and_none_that_is_in_use() -> None:
    assert in_use(gpu()) == {"bandwidth_curve": 1.0, "jitter": 0.02, "turn_taking": 0.1}
    assert [place.values for place in ends(gpu())] == [
        {"bandwidth_curve": 0.5}, {"bandwidth_curve": 2.0}, {"jitter": 0.01}, {"jitter": 0.05},
        {"turn_taking": 1.0},
    ]  # fmt: skip
    assert ends(gpu())[0].name == "bandwidth_curve = 0.5"
    assert ends(gpu({})) == ()
    assert ends(gpu({"jitter": (0.02, 0.02)})) == ()


def test_a_hypercube_has_one_draw_in_every_stratum_and_is_the_same_again() -> None:
    places = latin_hypercube(gpu(), 10, seed=3)
    assert places == latin_hypercube(gpu(), 10, seed=3)
    assert places != latin_hypercube(gpu(), 10, seed=4)
    assert [place.name for place in places[:2]] == ["draw 0", "draw 1"]
    for key, (low, high) in RANGES.items():
        strata = sorted(
            math.floor((place.values[key] - low) / (high - low) * 10) for place in places
        )
        assert strata == list(range(10)), key
    assert latin_hypercube(gpu(), 0, seed=3) == latin_hypercube(gpu({}), 5, seed=3) == ()


def test_two_gpus_of_the_same_keys_are_drawn_alike() -> None:
    """Paired: draw i lies at the same share of each one's range."""
    wide = {key: (low, high + 1.0) for key, (low, high) in RANGES.items()}
    for one, other in zip(
        latin_hypercube(gpu(), 6, 0), latin_hypercube(gpu(wide), 6, 0), strict=True
    ):
        for key in RANGES:
            shares = [
                (place.values[key] - ranges[key][0]) / (ranges[key][1] - ranges[key][0])
                for place, ranges in ((one, RANGES), (other, wide))
            ]
            assert shares[0] == pytest.approx(shares[1], abs=0.01)


def test_constants_are_put_in_and_a_curve_is_stretched() -> None:
    changed = with_constants(gpu(), {"jitter": 0.05, "bandwidth_curve": 2.0})
    assert (changed.sim.jitter, changed.sim.turn_taking, changed.ranges) == (0.05, 0.1, {})
    # Half as fast a rise, cut where all SMs are: at 0.9 of the bandwidth, which is all there.
    assert changed.sim.bandwidth_curve == (
        (0.0, 0.0), (0.4, pytest.approx(0.5 / 0.9)), (1.0, 1.0),
    )  # fmt: skip
    narrow = with_constants(gpu(), {"bandwidth_curve": 0.5}).sim.bandwidth_curve
    assert narrow == ((0.0, 0.0), (0.1, 0.5), (0.25, 0.9), (0.5, 1.0), (1.0, 1.0))
    assert with_constants(gpu(), {"bandwidth_curve": 1.0}).sim == gpu().sim
    between = with_constants(gpu(), {"bandwidth_curve": 1.25}).sim.bandwidth_curve
    assert between[-2][1] == pytest.approx(0.9 / 0.96)
    with pytest.raises(UsageError, match="'kernel_us' has no range"):
        with_constants(gpu(), {"kernel_us": 1.0})


def test_the_weights_curve_goes_with_that_of_streams_unless_it_has_a_range() -> None:
    curve = ((0.0, 0.0), (0.5, 0.8), (1.0, 1.0))
    both = msgspec.structs.replace(
        gpu(), sim=msgspec.structs.replace(gpu().sim, weights_curve=curve)
    )
    halved = ((0.0, 0.0), (0.25, 0.8), (0.5, 1.0), (1.0, 1.0))
    assert with_constants(both, {"bandwidth_curve": 0.5}).sim.weights_curve == halved
    assert with_constants(gpu(), {"bandwidth_curve": 0.5}).sim.weights_curve == ()
    own = msgspec.structs.replace(both, ranges={**RANGES, "weights_curve": (0.5, 2.0)})
    assert with_constants(own, {"bandwidth_curve": 0.5}).sim.weights_curve == curve
    alone = with_constants(own, {"weights_curve": 0.5}).sim
    assert (alone.weights_curve, alone.bandwidth_curve) == (halved, gpu().sim.bandwidth_curve)


@pytest.mark.parametrize("factor", [0.01, 0.3, 0.999, 1.001, 1.7, 5.0, 100.0])
@pytest.mark.parametrize("name", gpu_names())
def test_every_stretched_curve_is_one_that_is_read(
    name: str, factor: float, tmp_path: Path
) -> None:
    found = msgspec.structs.replace(load_gpu(name), ranges={"bandwidth_curve": (0.01, 100.0)})
    changed = with_constants(found, {"bandwidth_curve": factor})
    path = tmp_path / "made.toml"
    path.write_text(gpu_file(changed))
    assert load_gpu(path).sim == changed.sim
    assert load_gpu(path).kernels == found.kernels
    assert all(x0 < x1 and y0 <= y1 for (x0, y0), (x1, y1) in pairwise(changed.sim.bandwidth_curve))


def test_a_gpu_file_keeps_ranges_and_a_neutral_gpu_has_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(gpu_file(gpu()))
    assert load_gpu(path).ranges == RANGES
    assert neutral_gpu(gpu(), "turn_taking").ranges == {}  # 0 lies outside


def test_a_place_is_a_device_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(gpu_file(gpu()))
    low, high = (
        place_on(f"sim:{path}", place, tmp_path / "made") for place in ends(gpu())[2:4]
    )  # fmt: skip
    assert low != high
    assert load_gpu(low.removeprefix("sim:")).sim.jitter == 0.01
    pair = place_on("sim:l20+l20", ends(load_gpu("l20"))[0], tmp_path / "made")
    one, other = pair.removeprefix("sim:").split("+")
    assert one == other
    assert load_gpu(one).name == load_gpu("l20").name
    with pytest.raises(UsageError, match=r"has no \[ranges\]"):
        ranged_gpu(low)
    with pytest.raises(UsageError, match="only a simulated GPU"):
        ranged_gpu("cpu")


@pytest.mark.parametrize("name", gpu_names())
def test_what_is_said_to_spare_one_batch_does(name: str) -> None:
    """Maps do not run systems of one batch at a time again with these constants elsewhere."""
    found = load_gpu(name)
    keys = [*(set(found.ranges) & BESIDE_ONLY), *BESIDE_ONLY]
    ranged = msgspec.structs.replace(found, ranges=dict.fromkeys(keys, (0.0, 2.0)))
    values = dict.fromkeys(keys, 0.7)
    assert Place("x", values).spares_one_batch
    assert not Place("x", {**values, "kernel_us": 1.0}).spares_one_batch
    model = load_model("qwen2.5-3b")
    before, after = Physics(found, model), Physics(with_constants(ranged, values), model)
    for shape in (
        BatchShape(1, 9000), BatchShape(90, 90_000), BatchShape(0, 0, ((700, 5000),)),
        BatchShape(40, 60_000, ((512, 300),)),
    ):  # fmt: skip
        assert before.load(shape, found.num_sms).solo == after.load(shape, found.num_sms).solo


# The verdict, on made-up readings of "the points are above 0".

ABOVE = (0.0, math.inf)


def reading(points: float) -> RangeReading:
    return RangeReading(points, points > 0)


def end(constant: str, used: float, value: float, points: float) -> EndReading:
    return EndReading(constant, used, value, reading(points))


def drawn(*points: float) -> DrawnReading:
    return DrawnReading(reading(min(points)), points)


def words(found: OverRange) -> str:
    return range_words(found, lambda points: f"{points:+g}")


def test_what_is_kept_everywhere_holds() -> None:
    sides = [end("x", 0.5, 0.0, 3.0), end("x", 0.5, 1.0, 20.0)]
    found = over_range(reading(10.0), sides, drawn(2.0, 9.0), ABOVE)
    assert (found.verdict, found.hangs_on, found.low, found.high) == ("holds", (), 3.0, 20.0)
    assert (found.draws, found.least, found.most) == (2.0, 2.0, 9.0)
    assert words(found) == "holds over the range"


def test_what_is_lost_at_an_end_hangs_on_that_constant_with_the_value_where_it_turns() -> None:
    sides = [end("x", 0.5, 0.0, 30.0), end("x", 0.5, 1.0, -10.0), end("y", 2.0, 4.0, 1.0)]
    found = over_range(reading(10.0), sides, drawn(-1.0, 9.0), ABOVE)
    assert found.verdict == "hangs"
    assert constants_of(found) == ["x"]
    (turn,) = found.hangs_on
    assert turn.turns_at == pytest.approx(0.75)  # halfway from +10 in use to -10 at the end
    assert words(found) == "hangs on x (turns at 0.75)"
    sides.append(end("y", 2.0, 1.0, -30.0))
    assert words(over_range(reading(10.0), sides, None, ABOVE)) == (
        "hangs on x (turns at 0.75), y (turns at 1.75)"
    )


def test_what_only_becomes_unsure_turns_nowhere() -> None:
    side = EndReading("x", 0.5, 1.0, RangeReading(4.0, held=False))
    found = over_range(reading(10.0), [side], None, ABOVE)
    assert found.hangs_on[0].turns_at is None
    assert words(found) == "hangs on x (+4 at 1)"


def test_what_is_lost_everywhere_else_fails() -> None:
    sides = [end("x", 0.5, 0.0, -3.0), end("x", 0.5, 1.0, -20.0)]
    assert over_range(reading(1.0), sides, drawn(-2.0), ABOVE).verdict == "fails"
    # The draws still bear it out: it is not lost everywhere.
    assert over_range(reading(1.0), sides, drawn(2.0), ABOVE).verdict == "hangs"
    # In use is an end itself: there it holds.
    assert over_range(reading(1.0), sides[:1], drawn(-2.0), ABOVE).verdict == "hangs"


def test_what_holds_nowhere_fails_and_what_holds_at_an_end_hangs() -> None:
    sides = [end("x", 0.5, 1.0, -20.0)]
    found = over_range(reading(-5.0), sides, drawn(-2.0), ABOVE)
    assert (found.verdict, words(found)) == ("fails", "fails over the range")
    sides = [end("x", 0.5, 1.0, 5.0)]
    assert words(over_range(reading(-5.0), sides, None, ABOVE)) == "hangs on x (turns at 0.75)"


def test_what_the_draws_alone_lose_hangs_on_several() -> None:
    sides = [end("x", 0.5, 0.0, 3.0), end("x", 0.5, 1.0, 20.0)]
    found = over_range(reading(10.0), sides, drawn(-4.0, 9.0), ABOVE)
    assert (found.verdict, constants_of(found)) == ("hangs", ["several together"])
    assert words(found) == "hangs on several together (-4 to +9 in the draws)"


def test_what_is_open_in_use_stays_open() -> None:
    found = over_range(None, [end("x", 0.5, 1.0, -3.0)], None, ABOVE, points=1.0)
    assert (found.verdict, found.low, found.high, words(found)) == ("open", -3.0, 1.0, "open")


def test_a_band_is_left_on_either_side() -> None:
    """A capacity leaves its interval, "no difference" its margin."""
    sides = [
        EndReading("x", 1.0, 2.0, RangeReading(6.0, held=False)),
        EndReading("y", 1.0, 3.0, RangeReading(-10.0, held=False)),
    ]
    found = over_range(RangeReading(0.0, held=True), sides, drawn(1.0), (-2.0, 2.0))
    assert [turn.turns_at for turn in found.hangs_on] == pytest.approx([4 / 3, 1.4])
