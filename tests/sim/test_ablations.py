"""Each ablation of Nexus that docs/ablations.md lists is an option, and takes out what it says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from nexusbench.core.registry import parse_options, split_spec
from nexusbench.core.state import Limits
from nexusbench.costs.base import cost_models
from nexusbench.partitioners.base import partitioners
from nexusbench.schedulers.base import schedulers
from nexusbench.testing import offer, serve, tiny_gpu
from nexusbench.testing._harness import Setting

GPU = tiny_gpu(num_sms=92, sm_minimum=4, sm_multiple=2)
SETTING = Setting(gpu=GPU, limits=Limits(16, 128, 1024))
REQUESTS = [offer(i, 30 * i, 20 + 61 * (i * 7 % 13), 4 + 11 * (i % 4)) for i in range(40)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "ablations.md"
FAMILIES = {"scheduler": schedulers, "partitioner": partitioners, "cost-model": cost_models}


def run(partitioner="nexus", scheduler="nexus"):
    return serve(REQUESTS, scheduler, partitioner, setting=SETTING)


def changes(engine):
    """Changes of split after the one that is logged at the start."""
    return len(engine.log.tables["repartitioned"]) - 1


def splits(engine):
    return {split.sms for split in engine.splits}


@pytest.mark.slow
def test_no_dynamic_sms_is_one_split_for_ever():
    assert changes(run()) > 0
    static = run("fixed:prefill=50")
    assert changes(static) == 0
    assert splits(static) == {(46, 46)}


def test_no_hysteresis_changes_more_often_down_to_one_step_of_the_device():
    with_it, without = run("nexus:delta=20"), run("nexus:delta=0")
    assert changes(with_it) < changes(without)
    rows = without.log.tables["repartitioned"].columns["split"]
    sizes = [without.splits[row].sms[0] for row in rows]
    assert min(abs(a - b) for a, b in pairwise(sizes)) == 2


def test_no_contention_term_asks_the_belief_without_a_neighbour():
    with_it, without = run("nexus:delta=0"), run("nexus:delta=0,contention=false")
    assert with_it.log.digest() != without.log.digest()
    assert splits(with_it) != splits(without)


def test_fcfs_admits_in_order_of_arrival():
    def order(engine):
        return list(dict.fromkeys(engine.log.tables["admitted"].columns["request"]))

    assert order(run(scheduler="nexus:order=fcfs")) == list(range(len(REQUESTS)))
    assert order(run()) != list(range(len(REQUESTS)))


def test_reserved_sms_stay_idle_and_expanding_ones_do_not():
    def most(partitioner):
        return max(run(partitioner).log.tables["submitted"].columns["sms"])

    assert most("fixed:prefill=50,idle=expand") == 92
    assert most("fixed:prefill=50,idle=reserve") == 46


def test_no_partition_shares_all_sms():
    assert splits(run("whole", "semi-pd")) == {(92, 92)}


LISTED = re.findall(r"--(scheduler|partitioner|cost-model) ([^\s`]+)", DOCUMENT.read_text())


@pytest.mark.parametrize(("flag", "spec"), LISTED)
def test_what_the_document_lists_is_understood(flag, spec):
    name, options = split_spec(spec)
    cls = FAMILIES[flag].load(name)
    assert parse_options(cls.Options, options, name) is not None
    if name != "fixed":  # whose default is a static split already
        assert parse_options(cls.Options, options, name) != cls.Options() or not options


def test_the_document_lists_them_all():
    specs = {spec for _, spec in LISTED}
    assert {"nexus:order=fcfs", "nexus:delta=0", "nexus:contention=false", "whole"} <= specs
