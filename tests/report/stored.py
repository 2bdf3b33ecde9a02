"""Helpers about stored runs: traces to serve, run folders, manifests to change."""

from __future__ import annotations

import json
from pathlib import Path

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&%{x}\u202e"


def write_trace(path: Path, count: int, names: str = "") -> Path:
    lines = (
        json.dumps(
            {
                "timestamp": index * 60.0,
                "input_length": 200 + 370 * (index % 13),
                "output_length": 4 + 5 * (index % 9),
                **({"id": f"{names}{index}"} if names else {}),
            }
        )
        for index in range(count)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


def folders(root: Path) -> list[str]:
    order = {"nexus": 0, "vllm": 1, "sglang": 2}
    found = [path for path in root.iterdir() if (path / "manifest.json").is_file()]

    def key(path: Path) -> tuple[int, str]:
        return next(order[name] for name in order if name in path.name), path.name

    return [str(path) for path in sorted(found, key=key)]


def edit_manifest(folder: str, **changes: object) -> None:
    file = Path(folder) / "manifest.json"
    document = json.loads(file.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            document[key] |= value
        else:
            document[key] = value
    file.write_text(json.dumps(document))
