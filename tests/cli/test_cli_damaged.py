"""Files with one key removed or of another type: a located error each, or the right output."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Outcome

from nexusbench.core.errors import InputError
from nexusbench.gates.baseline import load_baseline
from nexusbench.profiles.profile import load_profile
from nexusbench.results.reader import RunReader
from tests.examples import examples, slow

Call = Callable[..., Outcome]
REMOVED = object()
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """The paths of all keys, and of the first item of every list."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


def changed(document: Any, place: Place, to: Any) -> bytes:
    made = copy.deepcopy(document)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if to is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = to
    return json.dumps(made).encode()


def refusal(read: Callable[[], object]) -> InputError | None:
    try:
        read()
    except InputError as error:
        return error
    return None


def read_damaged(
    path: Path, read: Callable[[], object], others: tuple[Any, ...] = (REMOVED, {"x": [1]})
) -> list[tuple[Place, Any]]:
    """What is accepted of all single changes; everything else names the file and the key."""
    whole = path.read_bytes()
    document, accepted = json.loads(whole), []
    for place in places(document):
        for to in others:
            path.write_bytes(changed(document, place, to))
            error = refusal(read)
            if error is None:
                accepted.append((place, to))
                continue
            assert error.exit_code in (2, 5)
            assert path.name in str(error), place
            told = f"{error.field} {error.problem}"
            named = [key for key in place if isinstance(key, str)]
            assert not named or any(key in told for key in named[-2:]), (place, str(error))
    path.write_bytes(whole)
    return accepted


@pytest.fixture
def run(runs_of: Callable[..., list[str]]) -> Path:
    (name,) = runs_of("--device", "sim:l20", "--scheduler", "nexus")
    return Path("results") / name


def free(place: Place, to: Any) -> bool:
    """Keys of a manifest that no reader needs: what only the end of a run knows, options that no
    screen reads, sources, ranges and default constants of a GPU and a model, settings that only a
    rerun takes, and items of lists.
    """
    head, last = place[:2], place[-1]
    if place[0] == "config":
        # A rerun takes what an older version did not write from the defaults.
        return head[1] in RERUN_ONLY
    if place[0] == "invariants":
        return to is REMOVED and len(place) == 2
    if head[1:] and head[1] in UNREAD:
        return True
    if isinstance(last, int):
        return to is REMOVED
    if place[0] == "parts":
        return to is REMOVED  # the tables do not fit together then: an error of its own
    if head in (("resolved", "scheduler_options"), ("resolved", "partitioner_options")):
        return len(place) > 2 or to is not REMOVED
    if head == ("resolved", "gpu"):
        described = any(table in place[:-1] for table in ("sources", "ranges"))
        return to is REMOVED and (described or place[2] in ("sim", "host_gbps", "link", "kernels"))
    if head == ("resolved", "model"):
        return (
            to is REMOVED and len(place) == 3 and last in ("tie_word_embeddings", "moe", "source")
        )
    if place in (("resolved", "caveats"), ("resolved", "scheduler_rules")):
        return to is REMOVED
    if head == ("resolved", "limits"):
        return to is REMOVED and last in ("ttft_ms", "tbt_ms")
    if head == ("resolved", "decision_us") or place[:2] == ("resolved", "machine"):
        return to is REMOVED and (len(place) > 2 or last == "decision_us")
    return place[1:] in (
        ("trace", "format"), ("trace", "oracle_max_tokens"), ("belief", "options"),
        ("belief", "options", "bandwidth_sms"), ("belief", "options", "contention"),
    )  # fmt: skip


UNREAD = ("legal_splits", "swap_bytes", "host_gaps", "observed")
RERUN_ONLY = (
    "force_profile", "load_format", "dtype", "quantization", "kv_cache_dtype", "temperature",
    "top_p", "stop_at_eos", "graphs",
    "kernel_table", "gpu_memory_utilization", "kv_blocks", "swap_space", "block_size",
    "max_num_seqs", "max_num_batched_tokens", "max_model_len", "warmup_s", "goodput",
    "price_per_hour", "watts",
)  # fmt: skip


@pytest.mark.slow
def test_every_key_of_a_manifest(run: Path) -> None:
    accepted = read_damaged(run / "manifest.json", lambda: RunReader(run))
    wrong = [place for place, to in accepted if not free(place, to)]
    assert wrong == []


@pytest.mark.parametrize("number", slow(*range(12)))
def test_every_reader_of_a_manifest(call: Call, run: Path, number: int) -> None:
    """What decoding lets pass every command reads: the output of before, or a located error."""
    commands = [
        ("compare", run), ("compare", run, "--goodput", "ttft:500", "--by", "tenant"),
        ("compare", run, "--json"), ("explain", run), ("explain", run, "--request", "3"),
        ("timeline", run, "-o", "line.json"),
        ("gate", "baseline", "save", run, "-o", "out.json", "--update"),
        ("report", run, "-o", "out.html"),
    ]  # fmt: skip
    Path("out.json").write_text('{"kind": "nexusbench gate baseline", "schema": 1, "series": {}}')
    before = [call(*command).code for command in commands]
    assert before == [0] * len(commands)
    path = run / "manifest.json"
    whole = path.read_bytes()
    document = json.loads(whole)
    every = list(places(document))
    for place in every[number * 3 :: 36]:
        for to in (REMOVED, None, "x", -1, [], 2**70):
            path.write_bytes(changed(document, place, to))
            try:
                RunReader(run)
            except InputError:
                continue  # as all of them say
            for command in commands:
                done = call(*command)
                assert done.code in (0, 2), (place, to, command, done.err)
                assert "unexpected" not in done.err
    path.write_bytes(whole)


@pytest.mark.slow
def test_every_key_of_a_baseline(call: Call, run: Path) -> None:
    done = call("gate", "baseline", "save", run, "-o", "base.json")
    assert done.code == 0, done.err
    path = Path("base.json")
    accepted = read_damaged(path, lambda: load_baseline(path))
    # A metric, or a fact of the environment, less: the check says what is missing.
    for place, to in accepted:
        assert to is REMOVED, place
        known = place[2:3] in (("metrics",), ("environment",), ("machine",)) or len(place) == 2
        assert known or place[-1] == "events", place
    for place, to in accepted[:: max(1, len(accepted) // examples(40))]:
        document = json.loads(path.read_text())
        path.write_bytes(changed(document, place, to))
        done = call("gate", "check", run, "--baseline", path)
        path.write_text(json.dumps(document))
        assert done.code in (0, 1, 3, 4, 5), (place, done.err)
        assert "unexpected" not in done.err


@pytest.mark.parametrize(
    "content",
    [
        b"", *slow(b"null"), b"[]", *slow(b"{"), b"\xff\xfe", b"[" * 100_000,
        *slow(b'{"a":' * 100_000, b"NaN", b"\0" * 99),
    ],
    ids=["empty", "null", "list", "cut", "not UTF-8", "deep list", "deep object", "NaN", "zeros"],
)  # fmt: skip
@pytest.mark.slow
def test_a_manifest_that_is_none(call: Call, run: Path, content: bytes) -> None:
    (run / "manifest.json").write_bytes(content)
    for command in ("compare", "explain", "timeline", "rerun", "report"):
        done = call(command, run)
        assert done.code == 2
        assert "manifest.json: " in done.err


def test_a_manifest_that_is_a_folder_or_endless(call: Call, run: Path) -> None:
    path = run / "manifest.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert call("compare", run).code == 2
    path.unlink()
    path.mkdir()
    assert call("compare", run).code == 2


@pytest.mark.slow
def test_every_key_of_a_profile(call: Call, tmp_path: Path) -> None:
    done = call(
        "profile", "--device", "sim:l20", "--model", "qwen2.5-3b", "--quick", "-o", "prof",
        "--no-progress",
    )  # fmt: skip
    assert done.code == 0, done.err
    path = tmp_path / "prof" / "profile.json"
    accepted = read_damaged(path, lambda: load_profile(path.parent), (REMOVED,))
    for place, _ in accepted[:: max(1, len(accepted) // 40)]:
        whole = path.read_bytes()
        path.write_bytes(changed(json.loads(whole), place, REMOVED))
        done = call("profile", "show", "prof")
        path.write_bytes(whole)
        assert done.code in (0, 2), (place, done.err)
        assert "unexpected" not in done.err
