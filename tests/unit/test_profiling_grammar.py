"""vLLM's batch grammar: what it means, there and back, and clear complaints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexusbench.core.batch import BatchShape
from nexusbench.core.errors import UsageError
from nexusbench.profiling.grammar import format_batch, parse_batch


@pytest.mark.parametrize(
    ("text", "shape", "contexts"),
    [
        ("q2k", BatchShape(0, 0, ((2048, 0),)), ()),
        ("2q2k_32q1s1k", BatchShape(32, 32 * 1023, ((2048, 0), (2048, 0))), ()),
        ("q512s3k", BatchShape(0, 0, ((512, 2560),)), ()),
        ("Q1S100_q1s300", BatchShape(2, 398), (99, 299)),
        ("q1", BatchShape(0, 0, ((1, 0),)), ()),
    ],
)
def test_examples(text, shape, contexts):
    assert parse_batch(text) == (shape, contexts)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "an empty segment"),
        ("2q2k_", "an empty segment"),
        ("32d1k", "segment '32d1k' is not in the grammar"),
        ("q2m", "not in the grammar"),
        ("q", "not in the grammar"),
        ("-1q5", "not in the grammar"),
        ("0q5", "computes nothing"),
        ("q0s5", "computes nothing"),
        ("q10s5", "cannot be less"),
        ("q99999999999", "above 10,000,000"),
    ],
)
def test_complaints_name_the_segment(text, says):
    with pytest.raises(UsageError, match=r"--batch '.*'") as error:
        parse_batch(text)
    assert says in str(error.value)


chunks = st.tuples(st.integers(2, 5000), st.integers(0, 5000))


@given(st.lists(chunks, max_size=4), st.lists(st.integers(1, 5000), max_size=6))
def test_there_and_back(parts, contexts):
    shape = BatchShape(len(contexts), sum(contexts), tuple(parts))
    if parts or contexts:
        differ = tuple(contexts) if len(set(contexts)) > 1 else ()
        assert parse_batch(format_batch(shape, differ)) == (shape, differ)
