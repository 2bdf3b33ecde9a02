"""Made prompts: exact lengths, equal where the trace says so, the same whoever asks first."""

from __future__ import annotations

from nexusbench.devices._prompts import Prompts
from nexusbench.devices.base import Serving
from nexusbench.testing import offer


def prompts(seed: int = 0, vocab: int = 1000, **given) -> Prompts:
    return Prompts(Serving(10, 4, hash_block=8, seed=seed, **given), vocab)


def test_equal_ids_are_equal_tokens_and_the_rest_is_each_ones_own() -> None:
    made = prompts()
    one = made.known(offer(0, 0, 21, 1, prefix_ids=(5, 6, 7)))
    two = made.known(offer(1, 0, 24, 1, prefix_ids=(5, 6, 8)))
    bare = made.known(offer(2, 0, 21, 1))
    assert [len(t) for t in (one, two, bare)] == [21, 24, 21]
    assert one[:16] == two[:16]
    assert one[16:21] != two[16:21]
    assert bare[:16] != one[:16]
    assert len(set(bare)) > 15
    assert all(0 <= token < 1000 for token in (*one, *two, *bare))


def test_they_depend_on_the_seed_and_on_no_order() -> None:
    requests = [offer(i, 0, 30, 1, prefix_ids=(1, 2)) for i in range(3)]
    first = [prompts().known(r) for r in requests]
    again = prompts()
    assert [again.known(r) for r in reversed(requests)] == first[::-1]
    assert prompts(seed=1).known(requests[0]) != first[0]


def test_given_prompts_are_copied_and_forgotten() -> None:
    request = offer(0, 0, 3, 4)
    given = {0: [7, 8, 9]}
    made = prompts(prompts=given)
    made.known(request).append(1)
    request.num_tokens = 4
    assert list(made.generated(request)) == [1]
    made.forget(request)
    assert list(made.known(request)) == [7, 8, 9]
    assert given == {0: [7, 8, 9]}
