"""check_partitioner passes what is shipped, and fails what is wrong with the right name."""

from __future__ import annotations

import itertools
import random

import pytest

from nexusbench.core.batch import Split
from nexusbench.core.errors import UsageError
from nexusbench.partitioners.base import Partitioner, partitioners
from nexusbench.testing import ConformanceError, check_partitioner
from tests.examples import sample, slow


# In the fast set the others size the runs of test_check_scheduler.test_shipped_on_a_few_mixtures.
@pytest.mark.parametrize("name", ["nexus", *slow(*sorted({*partitioners.names()} - {"nexus"}))])
@pytest.mark.slow
def test_shipped(name):
    check_partitioner(name, examples=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        *slow(
            "nexus:reading=swapped,idle=reserve",
            "nexus:kv_switch=0,min_interval_ms=20",
            "nexus:delta=0,kv_switch=1",
        ),
        "fixed:prefill=90,idle=reserve",
    ],
)
def test_options(spec):
    check_partitioner(spec, examples=0)


class Even(Partitioner):
    """Half and half; the bad ones are this with one thing wrong."""

    def initial(self, spec):
        self.legal = [split for split in spec.splits if not split.overlapping]
        return self.legal[len(self.legal) // 2]

    def split(self, plan, state):
        return state.split


class StartsIllegal(Even):
    def initial(self, spec):
        return Split(("prefill", "decode"), (1, spec.num_sms - 1))


class Illegal(Even):
    def split(self, plan, state):
        half = state.device.num_sms // 2
        return Split(("prefill", "decode"), (half + 1, half + 1))


class ForTheWrongPartitions(Even):
    def split(self, plan, state):
        return state.device.whole


class Flips(Even):
    def initial(self, spec):
        first = super().initial(spec)
        self.turns = itertools.cycle((self.legal[0], self.legal[-1]))
        return first

    def split(self, plan, state):
        return next(self.turns)


class Wobbles(Even):
    """Follows every whim of the load."""

    def split(self, plan, state):
        tokens = sum(batch.shape.num_tokens for batch in plan.batches)
        return self.legal[tokens % len(self.legal)]


class Chance(Even):
    def split(self, plan, state):
        return random.choice(self.legal)


class NeedsBoth(Even):
    def split(self, plan, state):
        assert plan.batches[0].partition == "prefill"
        return state.split


class TouchesState(Even):
    def split(self, plan, state):
        state.now += 1
        return state.split


class PeeksAtLength(Even):
    """More SMs to decode if the next in the queue will generate much."""

    def split(self, plan, state):
        head = state.waiting.head
        much = head is not None and head.stop_len - head.num_prompt_tokens > 40
        return self.legal[0] if much else self.legal[-1]


@pytest.mark.parametrize(
    ("partitioner", "begins"),
    sample([
        (StartsIllegal, "I5: initial"),
        (Illegal, "I5: split"),
        (ForTheWrongPartitions, "I5: split"),
        (Flips, "contract: flaps"),
        (Wobbles, "contract: flaps"),
        (Chance, "I6: "),
        (NeedsBoth, "contract: raises"),
        (TouchesState, "I11: "),
        (PeeksAtLength, "I9: "),
    ], 3),
)  # fmt: skip
def test_bad_partitioners_fail_by_name(partitioner, begins):
    with pytest.raises(ConformanceError) as caught:
        check_partitioner(partitioner, examples=2)
    assert str(caught.value).startswith(begins)


@pytest.mark.slow
def test_an_honest_class_passes():
    check_partitioner(Even, examples=0)


def test_unknown_names_are_usage_errors():
    with pytest.raises(UsageError, match="Did you mean 'whole'"):
        check_partitioner("hole")
    with pytest.raises(UsageError, match="no Partitioner"):
        check_partitioner(lambda **_: 3)
