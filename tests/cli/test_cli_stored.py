"""Stored runs: those of manifest schema 1 as they were read before, and any damage to a manifest of
either schema as a located error of every reader.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commandline import Outcome
from test_cli_damaged import REMOVED, changed, places, refusal

from nexusbench.core.errors import InputError
from nexusbench.results.manifest import SCHEMA_VERSION, decode_manifest, encode_json
from nexusbench.results.reader import RunReader
from tests.examples import slow

Call = Callable[..., Outcome]
# A run of the engine and a replay against a server, made by the last version that wrote schema 1,
# and what its ``compare --json`` printed of them.
STORED = Path(__file__).parents[1] / "data" / "schema-1"
KINDS = ("engine", "replay")
# One change in so many is tried in each part; all parts together try every key.
PARTS = 48


def stored_run(kind: str, schema: int, at: Path) -> Path:
    """A copy of a stored run, its manifest written in ``schema``."""
    folder = at / kind
    shutil.copytree(STORED / kind, folder)
    shutil.copy(STORED / "small.jsonl", at)
    if schema > 1:
        path = folder / "manifest.json"
        path.write_bytes(encode_json(decode_manifest(path.read_bytes(), path)))
    return folder


def same(printed: Any, expected: Any, at: str = "") -> None:
    """``printed`` holds what is ``expected``; there may be keys that were not known then."""
    if isinstance(expected, dict):
        assert isinstance(printed, dict), at
        for key, value in expected.items():
            assert key in printed, f"{at}.{key}"
            same(printed[key], value, f"{at}.{key}")
    else:
        assert type(printed) is type(expected), at
        assert printed == expected, at


@pytest.mark.parametrize("schema", [1, SCHEMA_VERSION])
def test_what_was_stored_is_printed_as_before(call: Call, tmp_path: Path, schema: int) -> None:
    for kind in KINDS:
        stored_run(kind, schema, tmp_path)
    done = call("compare", *KINDS, "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    expected = json.loads((STORED / "compare.json").read_bytes())
    for now, then in zip(printed["runs"], expected["runs"], strict=True):
        same(now, then)
    same(printed["claims"], expected["claims"])
    assert printed["verdict"] == expected["verdict"]


def test_a_stored_run_of_another_gpu_description_says_what_changed(
    call: Call, tmp_path: Path
) -> None:
    """The constants of the simulated L20 have changed since."""
    stored_run("engine", 1, tmp_path)
    done = call("rerun", "engine", "--no-progress", "--json")
    assert done.code == 1, done.err
    answer = json.loads(done.out)
    assert answer["verdict"] == "differs"
    assert "gpu.sim.turn_taking: 0.15 -> 0.9" in answer["changes"]


@pytest.mark.parametrize("kind", KINDS)
def test_schema_1_is_schema_2_when_it_is_read(kind: str) -> None:
    path = STORED / kind / "manifest.json"
    manifest = decode_manifest(path.read_bytes(), path)
    assert manifest.schema == SCHEMA_VERSION
    assert decode_manifest(encode_json(manifest), path) == manifest
    document = json.loads(path.read_bytes())
    again = json.loads(encode_json(manifest))
    same(again["resolved"], document["resolved"])
    same(again["config"], document["config"])


def readers(folder: Path) -> list[tuple[object, ...]]:
    """A command of each kind that reads a stored run. What a server answers is not asked again."""
    name = folder.name
    commands: list[tuple[object, ...]] = [
        ("compare", name), ("report", name, "-o", "out.html"), ("explain", name),
        ("gate", "baseline", "save", name, "-o", "out.json", "--update"),
    ]  # fmt: skip
    return commands if name == "replay" else [*commands, ("rerun", name, "--no-progress")]


def is_located(error: InputError, path: Path, place: tuple[str | int, ...]) -> bool:
    """It names the file, and the key or what it stands in."""
    told = f"{error.field} {error.problem}"
    named = [key for key in place if isinstance(key, str)]
    return str(error.file).endswith(path.name) and any(key in told for key in named[-2:])


@pytest.mark.parametrize("part", [0, *slow(*range(1, PARTS))])
@pytest.mark.parametrize("schema", [*slow(1), SCHEMA_VERSION])
@pytest.mark.parametrize("kind", KINDS)
def test_every_key_less_or_of_another_type_is_a_located_error(
    call: Call, tmp_path: Path, kind: str, schema: int, part: int
) -> None:
    """Of every reader, unless it is a key that may be missing: then none of them minds."""
    folder = stored_run(kind, schema, tmp_path)
    path = folder / "manifest.json"
    whole = path.read_bytes()
    document = json.loads(whole)
    Path("out.json").write_text('{"kind": "nexusbench gate baseline", "schema": 1, "series": {}}')
    commands = readers(folder)
    for number, place in enumerate(list(places(document))[part::PARTS]):
        value = document
        for key in place:
            value = value[key]
        for to in (REMOVED, [{"x": 1}] if not isinstance(value, list) else {"x": 1}):
            path.write_bytes(changed(document, place, to))
            error = refusal(lambda: RunReader(folder))
            if error is not None:
                assert error.exit_code == 2
                assert is_located(error, path, place), (place, str(error))
                # All of them open a run by the same reader: one for each key shows that it says so.
                done = call(*commands[number % len(commands)])
                assert done.code == 2, (place, to, done.err)
                assert "manifest.json" in done.err
                continue
            assert to is REMOVED or "options" in "".join(map(str, place)), place
            for command in commands:
                done = call(*command)
                if command[0] != "rerun":  # which may find that another config gives another log
                    # An item less may leave a code in a table that stands for nothing.
                    assert done.code == 0 or ": field '" in done.err, (place, done.err)
                assert done.code in (0, 1, 2), (place, to, command, done.err)
                assert "unexpected" not in done.err
