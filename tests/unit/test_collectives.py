"""Collectives by hand, kinds of links, and measured tables of collectives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import UNSET
from msgspec.structs import replace

from nexusbench.core.errors import InputError, UsageError
from nexusbench.experiments.fidelity.aiconfigurator import installed
from nexusbench.experiments.fidelity.collective_tables import read_collectives
from nexusbench.experiments.neutral import gpu_file
from nexusbench.physics import collectives, link_kinds
from nexusbench.physics.collectives import Collectives
from nexusbench.physics.gpus import gpu_names, load_gpu
from nexusbench.physics.link_kinds import LinkAlgorithm, LinkKind, link_names, link_of, load_link

A = LinkAlgorithm
# 100 GB/s in LL and Simple; direct copies at 50 GB/s, in the switch at 200.
KIND = LinkKind(
    name="Round", gbps=100.0, latency_us=5.0, ring=(A(2.0, 1.0, 50.0), A(20.0, 2.0, 100.0)),
    pairwise=(A(3.0, 0.5, 50.0),), copy_gbps=1000.0, direct_gpus=8, one_shot=A(1.0, 0.25, 50.0),
    two_shot=A(4.0, 0.5, 80.0), switch_gpus=8, in_switch=A(30.0, 0.0, 200.0),
    multimem=A(6.0, 0.0, 40.0),
)  # fmt: skip
PCIE = replace(
    KIND, direct_gpus=2, switch_gpus=0, pair_gpus=2, host_gbps=40.0, socket_gpus=4, socket_gbps=20.0
)
GPU = replace(load_gpu("h100"), link="round", link_gbps=100.0, link_latency_us=5.0)


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Collectives over a kind of link that is easy to count by hand."""

    def make(gpus: int, kind: LinkKind = KIND, **changes: float) -> Collectives:
        monkeypatch.setattr(collectives, "link_of", lambda gpu: ("round", kind))
        return Collectives(replace(GPU, **changes), gpus)

    return make


def near(ns: float) -> Any:
    return pytest.approx(ns, rel=1e-12)


def test_a_ring_takes_its_steps_and_its_share_of_the_bytes(of: Any) -> None:
    four = of(4)
    assert four.all_gather(0) == near(2_000 + 3 * 1_000)
    assert four.all_gather(1e3) == four.reduce_scatter(1e3) == near(5_000 + 750 / 50 + 1)
    # Large ones in the protocol of the higher rate; an all-reduce goes round twice.
    assert four.all_gather(1e8) == near(20_000 + 3 * 2_000 + 0.75e8 / 100 + 1e5)
    assert four.library_all_reduce(1e8) == near(20_000 + 6 * 2_000 + 1.5e8 / 100 + 1e5)
    assert four.all_to_all(1e6) == near(3_000 + 3 * 500 + 0.75e6 / 50 + 1e3)


def test_an_engine_takes_the_fastest_way_to_reduce(of: Any) -> None:
    four, eight = of(4), of(8)
    assert four.all_reduce(1e4) == near(1_000 + 3 * 250 + 3e4 / 50)  # one-shot
    assert four.all_reduce(1e6) == near(4_000 + 6 * 500 + 1.5e6 / 80)  # two-shot
    assert eight.all_reduce(4e5) == near(6_000 + 4e5 / 40)  # the switch adds up
    assert eight.all_reduce(1e8) == near(30_000 + 1e8 / 200 + 1e5)  # NCCL in the switch
    assert eight.library_all_reduce(1e8) == eight.all_reduce(1e8)
    assert eight.library_all_reduce(4e5) > eight.all_reduce(4e5)
    assert of(4, replace(KIND, direct_gpus=2)).all_reduce(10) == four.library_all_reduce(10)


def test_beyond_a_node_the_switch_of_a_rack_adds_up(of: Any) -> None:
    rack = replace(KIND, direct_gpus=4, across_gpus=8, across=A(7.0, 0.0, 80.0))
    four, eight, more = (of(gpus, rack) for gpus in (4, 8, 16))
    assert four.all_reduce(1e4) == near(1_000 + 3 * 250 + 3e4 / 50)  # one-shot
    assert eight.all_reduce(1e4) == near(7_000 + 1e4 / 80)
    assert eight.library_all_reduce(1e4) > eight.all_reduce(1e4)
    assert more.all_reduce(1e4) == more.library_all_reduce(1e4)


def test_more_gpus_than_a_pair_share_the_path_through_the_host(of: Any) -> None:
    size = 1e9
    # Every byte on the wire of a GPU waits for one of each, and between sockets again.
    for gpus, waits in ((2, 0.0), (4, 4 / 40), (8, 8 / 40 + 8 / 20)):
        wire = (gpus - 1) / gpus * size
        fixed = 20_000 + 2_000 * (gpus - 1)
        assert of(gpus, PCIE).all_gather(size) == near(fixed + wire * (1 / 100 + waits) + 1e6)
    # Protocol LL sends twice the bytes.
    small = of(4, PCIE).all_gather(1e3)
    assert small == near(5_000 + 750 * (1 / 50 + 2 * 4 / 40) + 1)


def test_a_gpu_of_another_rate_and_latency_scales_its_kind(of: Any) -> None:
    made, fast, slow = of(4), of(4, link_gbps=200.0), of(4, link_latency_us=15.0)
    for size in (0.0, 1e9):
        assert fast.all_gather(2 * size) == near(made.all_gather(size))
    assert slow.all_reduce(0) == near(3 * made.all_reduce(0))


def test_a_file_without_a_link_gets_the_kind_of_the_nearest_rate() -> None:
    for rate, name in ((1.0, "pcie4"), (26.0, "pcie4"), (50.0, "pcie5"), (300.0, "nvlink3"),
                       (450.0, "nvlink4"), (900.0, "nvlink5"), (5e3, "nvlink5")):  # fmt: skip
        assert link_of(replace(GPU, link=UNSET, link_gbps=rate))[0] == name
    # That is what two of the shipped ones do without their line.
    for gpu in ("h100", "l40s"):
        spec = load_gpu(gpu)
        assert link_of(replace(spec, link=UNSET)) == link_of(spec)


def test_files_with_and_without_a_link(tmp_path: Path) -> None:
    for name in gpu_names():
        assert load_gpu(name).link in link_names()
    path = tmp_path / "own.toml"
    old = replace(load_gpu("l20"), link=UNSET, sources={}, ranges={})
    path.write_text(gpu_file(old))
    assert load_gpu(path) == old
    named = gpu_file(replace(old, link="pcie4"))
    path.write_text(named)
    assert load_gpu(path).link == "pcie4"
    path.write_text(named.replace("pcie4", "nvlink44"))
    with pytest.raises(InputError, match=r"toml:\d+: field 'link': .*Did you mean 'nvlink4'"):
        load_gpu(path)
    path.write_text(named.replace('"pcie4"', "4"))
    with pytest.raises(InputError, match="field 'link': has the wrong type"):
        load_gpu(path)
    with pytest.raises(UsageError, match="no link called 'nvlink44'"):
        load_link("nvlink44")


@pytest.mark.parametrize("name", link_names())
def test_shipped_kinds(name: str) -> None:
    kind = load_link(name)
    assert "ring" in kind.sources
    gpu = replace(load_gpu("h100"), link=name, link_gbps=kind.gbps, link_latency_us=kind.latency_us)
    sizes = [0.0, *(2.0**n for n in range(8, 31))]
    for gpus in (2, 3, 4, 8, 16):
        made = Collectives(gpu, gpus)
        for time in (made.all_reduce, made.library_all_reduce, made.all_gather, made.all_to_all):
            found = [time(size) for size in sizes]
            assert 1e3 < found[0] < 1e5
            assert np.all(np.diff(found) > 0)
            # Never faster than the data sheet: a GPU sends what the others have not.
            assert found[-1] > (gpus - 1) / gpus * sizes[-1] / kind.gbps
        assert made.all_reduce(1e4) <= made.library_all_reduce(1e4)


@pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator is not installed (pip install nexusbench[validate])",
)
@pytest.mark.parametrize(
    ("gpu", "most"),
    [("h200", 9.0), ("h100", 11.0), ("l40s", 15.0), ("gb200", 13.0), ("gb300", 8.0)],
)
def test_measured_collectives(gpu: str, most: float) -> None:
    found = read_collectives(installed(gpu), load_gpu(gpu), gpu)
    assert any(s.fitted for s in found) == (gpu in link_of(load_gpu(gpu))[1].fitted_on)
    for operator in (
        "all-reduce", "nccl all-reduce", "all-gather", "reduce-scatter", "all-to-all",
    ):  # fmt: skip
        own = [s for s in found if s.operator == operator and not s.fitted]
        errors = [s.physics_us / s.measured_us - 1 for s in own]
        assert len(own) > 20
        assert 100 * np.abs(errors).mean() < most, operator


def table(folder: Path, **changes: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "op_name": ["all_gather", "mystery"], "nccl_dtype": ["half", "half"], "num_gpus": [4, 4],
        "message_size": [1024, 2048], "latency": [0.01, 0.02], "more": [1, 2], **changes,
    }  # fmt: skip
    path = folder / "comm" / "nccl" / "2.9.1" / "nccl_perf.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({k: v for k, v in columns.items() if v is not None}), path)
    return folder


def test_a_table_is_read_by_values_of_its_data_type(tmp_path: Path) -> None:
    gpu = load_gpu("h100")
    (one,) = read_collectives(table(tmp_path), gpu, "h100")
    assert one.operator == "all-gather"
    assert one.count == 2048
    assert one.physics_us == pytest.approx(Collectives(gpu, 4).all_gather(2048) / 1e3)
    # The newest version counts, by number: 2.10 is after 2.9.
    newer = tmp_path / "comm" / "nccl" / "2.10.0" / "nccl_perf.parquet"
    newer.parent.mkdir()
    newer.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"2\.10\.0/nccl_perf\.parquet: cannot be read"):
        read_collectives(tmp_path, gpu, "h100")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"latency": None}, "field 'latency': has no such column"),
        ({"num_gpus": [4, 1]}, "field 'num_gpus': row 2: .*>= 2"),
        ({"message_size": [0, 5]}, "field 'message_size': row 1: .*>= 1"),
        ({"latency": [float("nan"), 1.0]}, "field 'latency': row 1: "),
        ({"latency": [float("inf"), 1.0]}, "field 'latency': row 1: "),
        ({"op_name": [1, 2]}, "field 'op_name': row 1: Expected `str`"),
    ],
)
def test_broken_tables_name_row_and_column(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=f"nccl_perf.parquet: {told}"):
        read_collectives(table(tmp_path, **changes), load_gpu("h100"), "h100")


def test_kinds_are_read_once() -> None:
    link_kinds.load_link.cache_clear()
    assert load_link("nvlink4") is load_link("nvlink4")
