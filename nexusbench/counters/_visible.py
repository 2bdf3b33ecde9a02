"""The GPU that CUDA computes on, as a handle of NVML.

CUDA numbers what CUDA_VISIBLE_DEVICES leaves, by speed unless CUDA_DEVICE_ORDER says otherwise;
NVML numbers all GPUs by their PCI bus. Where the two do not match for
certain, the result is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nexusbench.core.errors import CounterError

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
_BY_BUS = "PCI_BUS_ID"
_NAME_IT = "Name the GPU with nvml:device=UUID"


def computing_gpu(nvml: Any, uuid: str, ordinal: int, environment: Mapping[str, str]) -> Any:
    """The handle of CUDA's GPU number ``ordinal``, or of that of ``uuid`` where it is known.

    Raises CounterError where there is no such GPU, it cannot be identified, or only a part of it
    (MIG) computes.
    """
    if uuid:
        return _whole(nvml, _by_uuid(nvml, uuid))
    listed = environment.get(VISIBLE)
    if listed is None:
        return _whole(nvml, _by_number(nvml, ordinal, environment))
    # CUDA takes the entries up to the first that names no GPU.
    entries: list[str] = []
    for entry in map(str.strip, listed.split(",")):
        number = int(entry) if re.fullmatch(r"\d{1,6}", entry) else None
        if number is None and not entry.upper().startswith(("GPU-", "MIG-")):
            break
        if number is not None and number >= _count(nvml, number + 1):
            break
        entries.append(entry)
    if ordinal >= len(entries):
        raise CounterError(
            f"{VISIBLE}='{listed[:60]}' leaves CUDA {len(entries)} GPUs, and number {ordinal} "
            "is asked for"
        )
    chosen = entries[ordinal]
    if chosen.isdecimal():
        return _whole(nvml, _by_number(nvml, int(chosen), environment))
    return _whole(nvml, _by_uuid(nvml, chosen))


def _by_number(nvml: Any, number: int, environment: Mapping[str, str]) -> Any:
    """CUDA's GPU ``number`` of all there are."""
    if environment.get(ORDER, "").strip().upper() != _BY_BUS:
        names = {str(_ask(nvml, "nvmlDeviceGetName", handle)) for handle in _all(nvml)}
        if len(names) > 1:
            raise CounterError(
                "CUDA numbers GPUs by speed and NVML by PCI bus, and there are several kinds here: "
                f"which is number {number} is not known. {_NAME_IT}, or set {ORDER}={_BY_BUS}"
            )
    return _ask(nvml, "nvmlDeviceGetHandleByIndex", number)


def _by_uuid(nvml: Any, uuid: str) -> Any:
    """The GPU of a UUID, which may be cut short as CUDA allows."""
    if uuid.upper().startswith("MIG-"):
        raise _mig(uuid)
    wanted = uuid.lower()
    found = [handle for handle in _all(nvml) if _uuid(nvml, handle).lower().startswith(wanted)]
    if len(found) != 1:
        raise CounterError(f"{len(found) or 'no'} GPUs have the UUID {uuid[:60]}. {_NAME_IT}")
    return found[0]


def _whole(nvml: Any, handle: Any) -> Any:
    """``handle``, unless CUDA sees instances of that GPU only."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except Exception:  # no GPU with instances, or a driver that has none
        return handle
    if current == 1:
        raise _mig(_uuid(nvml, handle))
    return handle


def _mig(uuid: str) -> CounterError:
    return CounterError(
        f"CUDA computes on a MIG instance ({uuid[:60]}), and NVML would read the whole GPU. "
        f"{_NAME_IT} to read that"
    )


def _all(nvml: Any) -> list[Any]:
    numbers = range(int(_ask(nvml, "nvmlDeviceGetCount")))
    return [_ask(nvml, "nvmlDeviceGetHandleByIndex", number) for number in numbers]


def _count(nvml: Any, otherwise: int) -> int:
    try:
        return int(nvml.nvmlDeviceGetCount())
    except Exception:
        return otherwise


def _uuid(nvml: Any, handle: Any) -> str:
    found = _ask(nvml, "nvmlDeviceGetUUID", handle)
    return found.decode() if isinstance(found, bytes) else str(found)


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """A call that must succeed for the GPU to be known. Raises CounterError."""
    try:
        return getattr(nvml, function)(*arguments)
    except Exception as error:
        raise CounterError(
            f"which GPU CUDA computes on is not known: {function}: {error}. {_NAME_IT}"
        ) from error
