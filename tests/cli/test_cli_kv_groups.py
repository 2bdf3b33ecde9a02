"""What commands say of models whose layers keep different tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from commandline import Outcome

Call = Callable[..., Outcome]


def test_model_show_says_what_each_group_keeps(call: Call) -> None:
    done = call("model", "show", "gpt-oss-120b")
    words = "36 KiB a token + 36 KiB a token of the last 128; 4.504 GiB of a sequence of 131,072"
    assert words in " ".join(done.out.split())
    shown = json.loads(call("model", "show", "gpt-oss-120b", "--json").out)
    assert shown["kv_groups"] == [
        {"kind": "full", "num_bytes": 18 * 2048, "window": 0},
        {"kind": "window", "num_bytes": 18 * 2048, "window": 128},
    ]
    assert "KV groups" not in call("model", "show", "llama-3.1-8b").out


def test_a_run_with_pages_is_stored_and_read(call: Call, trace: Path) -> None:
    done = call(
        "serve-trace", trace, "--device", "sim:h200", "--model", "gpt-oss-120b", "--kv-blocks",
        400, "--no-progress",
    )  # fmt: skip
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert (
        "400 pages of 576 KiB = 225 MiB, for blocks of 16 tokens of 36 KiB a token + 36 KiB a "
        "token of the last 128; a request of 131,072 tokens holds 8,200; prefix caching on"
    ) in said
    (folder,) = Path("results").iterdir()
    found = json.loads((folder / "manifest.json").read_text())["resolved"]["kv_groups"]
    assert (found["pages"], found["page_bytes"]) == ([1, 1], 16 * 18 * 2048)
    again = call("compare", folder.name, "--json")
    assert again.code == 0, again.err
    found["pages"] = [1]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["resolved"]["kv_groups"] = found
    (folder / "manifest.json").write_text(json.dumps(manifest))
    damaged = call("compare", folder.name)
    assert damaged.code == 2
    assert "kv_groups" in damaged.err


def test_a_pool_that_holds_no_request_is_refused_in_pages(call: Call, trace: Path) -> None:
    done = call(
        "serve-trace", trace, "--device", "sim:h200", "--model", "gpt-oss-120b", "--kv-blocks", 2
    )
    assert done.code == 2
    assert "a KV pool of 2 pages, which the blocks of all groups of layers share, holds no" in (
        " ".join(done.err.split())
    )


def test_with_states_no_prefix_is_looked_for_and_it_is_said(call: Call, trace: Path) -> None:
    done = call(
        "serve-trace", trace, "--device", "sim:b200", "--model", "qwen3.6-27b-nvfp4",
        "--no-progress",
    )  # fmt: skip
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "32 KiB a token + 146.8 MiB of states" in said
    assert "prefix caching off, since a state is of one request alone" in said


def test_a_rejection_says_that_a_chunk_lies_whole_in_windows(call: Call, tmp_path: Path) -> None:
    """9,000 tokens: 563 pages of all of them, and 521 of the window and a chunk of 8,192."""
    path = tmp_path / "long.jsonl"
    lines = [
        {"timestamp": i, "input_length": n, "output_length": 4} for i, n in ((0, 50), (1, 9000))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ("--device", "sim:h200", "--model", "gpt-oss-120b", "--kv-blocks", 1083)
    said = " ".join(call("serve-trace", path, *flags, "--no-progress").out.split())
    assert "exceeds the KV pool of 1083 pages (a chunk lies whole in the blocks of windows" in said
    less = call("serve-trace", path, *flags, "--max-num-batched-tokens", 8176, "--no-progress")
    assert "rejected" not in less.out


def test_a_pair_copies_and_counts_pages(call: Call, trace: Path) -> None:
    flags = ("--device", "sim:h200+h200", "--model", "gemma-3-12b", "--scheduler", "vllm-pd")
    done = call("serve-trace", trace, *flags, "--kv-blocks", 5000, "--no-progress")
    assert done.code == 0, done.err
    assert "10,000 pages of 1 MiB = 9.766 GiB, 5,000 pages on each GPU" in " ".join(
        done.out.split()
    )
