"""The seams are as small as the documents say: what a device is asked, what a policy can reach."""

from __future__ import annotations

import re
from pathlib import Path

from nexusbench.devices.base import Device
from nexusbench.planning.context import SchedulerContext
from nexusbench.planning.journal import Journal

DOCS = Path(__file__).parents[2] / "docs"


def public(cls):
    return {
        name
        for name, value in vars(cls).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    } | {name for name, value in vars(cls).items() if isinstance(value, classmethod)}


def test_the_calls_of_a_device_are_all_in_the_documents():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"\| called by .*?\n\n", text, re.S).group()
    told = re.findall(r"(\*\*)?`(\w+)`", table.replace("`list`, `doctor`", ""))
    assert len(told) == len({name for _, name in told}) == 20
    assert {name for _, name in told} == public(Device)
    assert {name for bold, name in told if bold} == Device.__abstractmethods__


def test_the_guide_shows_all_that_a_policy_can_reach():
    guide = (DOCS / "adding-a-scheduler.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`ctx\.(\w+)", guide)) == public(SchedulerContext)


def test_what_is_the_engines_is_no_part_of_what_a_policy_sees():
    assert public(SchedulerContext) & public(Journal) == {"rollback"}
