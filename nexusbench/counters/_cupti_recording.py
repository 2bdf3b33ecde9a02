"""Recorded PM samples as JSON: to keep what was counted, and to replay it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from nexusbench.core.documents import decode_json, read_document
from nexusbench.core.errors import InputError, NexusbenchError

FORMAT = 1
MOST_BYTES = 64 * 2**20


class CuptiRecording(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """PM samples in CUPTI's own metric names and units.

    ``origin`` describes in words what was recorded. A row of ``samples`` is start and end in ns of
    the GPU's clock, then a value (or null) for each of ``metrics``. ``overflow``: the hardware
    buffer was full, samples are missing at the end.
    """

    format: int = FORMAT
    origin: Annotated[str, msgspec.Meta(min_length=1)]
    chip: str
    interval_ns: Annotated[int, msgspec.Meta(gt=0)]
    overflow: bool = False
    metrics: list[str]
    samples: list[tuple[int, int, list[float | None]]]


def read_recording(path: str | Path) -> CuptiRecording:
    """Raises InputError that names the file and what is wrong in it."""
    file = Path(path)
    text = read_document(file, most=MOST_BYTES)
    what, hint = "a recording of PM samples", "See docs/counters.md"
    found = decode_json(text, CuptiRecording, file, what=what, hint=hint)
    if found.format != FORMAT:
        raise InputError(f"has format {found.format}, this version reads {FORMAT}", file=file)
    for number, (start, end, values) in enumerate(found.samples):
        if end < start or len(values) != len(found.metrics):
            raise InputError(
                f"sample {number} has {len(values)} values from {start} to {end} ns; "
                f"{len(found.metrics)} in order of time are due", file=file, field="samples",
            )  # fmt: skip
    return found


def write_recording(path: str | Path, recording: CuptiRecording) -> None:
    """One sample a line. Raises NexusbenchError if the file cannot be written."""
    head = msgspec.json.encode(msgspec.structs.replace(recording, samples=[])).decode()
    rows = ",\n".join(msgspec.json.encode(sample).decode() for sample in recording.samples)
    try:
        Path(path).write_text(head.removesuffix("[]}") + f"[\n{rows}\n]}}\n", encoding="utf-8")
    except OSError as error:
        raise NexusbenchError(f"{path}: cannot be written: {error.strerror}") from error
