"""Products whose kernel takes the tile of fewest waves."""

from __future__ import annotations

import msgspec
import pytest

from nexusbench.core.kernel_constants import WaveConstants
from nexusbench.physics.gemm import ScaledGemm
from nexusbench.physics.gpus import load_gpu
from nexusbench.physics.precisions import product_constants
from nexusbench.physics.wave_tiles import WaveTile, wave_tile, wave_tile_ns

H200 = load_gpu("h200")
OWN = WaveConstants(step_us=0.07, sm_gbps=100.0, uneven=1.2, single_wave=3.0)


@pytest.mark.parametrize(
    ("rows", "outputs", "height", "width", "waves"),
    [
        (16, 4096, 64, 32, 1),  # the fullest single wave, of the lowest tiles
        (256, 12288, 128, 192, 1),
        (1024, 4096, 256, 128, 1),
        (2561, 2048, 256, 96, 2),  # 242 tiles fill two waves better than 231 wider ones
    ],
)
def test_the_tile_of_fewest_waves_and_of_the_fullest_last_one(
    rows: int, outputs: int, height: int, width: int, waves: int
) -> None:
    made = wave_tile(rows, outputs, 132)
    assert (made.height, made.width, made.waves) == (height, width, waves)
    assert made.tiles == -(-rows // height) * -(-outputs // width)


def test_half_of_the_sms_take_more_waves_and_fill_them() -> None:
    assert wave_tile(256, 12288, 66).waves == 2
    # 4,096 columns are 22 tiles of the widest that are legal.
    assert [wave_tile(64, 4096, sms).waves for sms in (8, 66, 132)] == [3, 1, 1]


@pytest.mark.parametrize(
    ("m", "measured"), [(64, 24.2), (512, 58.9), (1024, 301.8), (2048, 213.4), (4096, 418.1)]
)
def test_one_full_wave_of_large_tiles_takes_three_times_as_long(m: int, measured: float) -> None:
    """aiconfigurator 0.12.0, SGLang 0.5.14, an H200, N = 4,096, K = 16,384: twice the rows of 1,024
    take less.
    """
    gemm = ScaledGemm(H200, product_constants(H200, "fp8_block"), 1.0, 1.0)
    bandwidth = H200.hbm_gbps * H200.sim.bandwidth_efficiency
    made = gemm.time(m, 16384, 4096, H200.num_sms, bandwidth, copies=6).time / 1e3
    assert made == pytest.approx(measured, rel=0.2)


def test_a_tile_that_is_not_full_or_small_is_not_slowed() -> None:
    full = WaveTile(128, 192, 128, 1, full=True)
    slow = wave_tile_ns(OWN, full, 4096, 1e4)
    for change in ({"full": False}, {"waves": 2}):
        other = msgspec.structs.replace(full, **change)  # type: ignore[arg-type]
        assert slow == pytest.approx(3.0 * wave_tile_ns(OWN, other, 4096, 1e4))
    unlike = WaveTile(256, 112, 128, 1, full=True)  # of no part of a block that is unrolled
    again = msgspec.structs.replace(unlike, waves=2)
    assert wave_tile_ns(OWN, unlike, 4096, 1e4) == wave_tile_ns(OWN, again, 4096, 1e4)


def test_tiles_that_divide_no_block_of_scales_compute_more_slowly() -> None:
    even, odd = (
        wave_tile_ns(OWN, WaveTile(256, wide, 1, 2, False), 1024, 1e4) for wide in (128, 112)
    )
    assert odd / even == pytest.approx(
        (1.2 * 112 * 2 * 256 / 1e4 + 0.07) / (128 * 512 / 1e4 + 0.07)
    )
