"""A CUDA driver without a GPU: rounds SM counts as the real one documents, hands out numbers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

INVALID_SPLIT = 914  # CUDA_ERROR_INVALID_RESOURCE_TYPE's neighbour; only its name is looked at


class Resource:
    """Behaves like a CUdevResource of kind SM; drivers before CUDA 13 say no granularity."""

    def __init__(self, ids: Sequence[int], fields: dict[str, int]) -> None:
        self.ids = list(ids)
        self.sm = SimpleNamespace(smCount=len(self.ids), **fields)


class FakeDriver:
    """``least`` SMs at least and in multiples of ``step``: 8 and 8 on sm_90, 4 and 2 on sm_80.

    ``fails`` maps the name of a call to the number of calls after which it fails. ``live`` holds
    the contexts and streams that exist, ``sms`` each context's SM numbers.
    """

    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM=1)
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(
        self,
        sms: int = 132,
        least: int = 8,
        step: int = 8,
        *,
        says: bool = True,
        fails: dict[str, int] | None = None,
        lies: bool = False,
        refuses: Sequence[int] = (),
    ) -> None:
        self.total, self.least, self.step, self.lies, self.refuses = sms, least, step, lies, refuses
        self.fields = {"minSmPartitionSize": least, "smCoscheduledAlignment": step} if says else {}
        self.fails = dict(fails or {})
        self.sms: dict[int, list[int]] = {}
        self.live: set[int] = set()
        self.calls: list[str] = []
        self._next = 0x1000

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cu") or name == "cuGetErrorName":
            return found

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            left = self.fails.get(name)
            if left is not None:
                self.fails[name] = left - 1
                if left <= 0:
                    return (2, None)
            return found(*arguments)

        return call

    def cuGetErrorName(self, error: int) -> tuple[int, bytes]:
        names = {2: b"CUDA_ERROR_OUT_OF_MEMORY", INVALID_SPLIT: b"CUDA_ERROR_INVALID_RESOURCE"}
        return 0, names[error]

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, ordinal

    def cuDeviceGetDevResource(self, device: int, kind: int) -> tuple[int, Resource]:
        return 0, Resource(range(self.total), self.fields)

    def cuDevSmResourceSplitByCount(
        self, groups: int, resource: Resource, flags: int, least: int
    ) -> Any:
        size = -(-max(least, self.least) // self.step) * self.step
        if size * groups > len(resource.ids) or least in self.refuses:
            return INVALID_SPLIT, [], 0, Resource([], {})
        cut = [resource.ids[i * size : (i + 1) * size] for i in range(groups)]
        rest = resource.ids[groups * size :]
        return 0, [Resource(ids, self.fields) for ids in cut], groups, Resource(rest, self.fields)

    def cuDevResourceGenerateDesc(self, resources: list[Resource], count: int) -> Any:
        assert len(resources) == count
        return 0, [sm for resource in resources for sm in resource.ids]

    def cuGreenCtxCreate(self, description: list[int], device: int, flags: int) -> Any:
        handle = self._new()
        self.sms[handle] = description[:-2] if self.lies else description
        return 0, handle

    def cuGreenCtxGetDevResource(self, context: int, kind: int) -> Any:
        return 0, Resource(self.sms[context], self.fields)

    def cuGreenCtxStreamCreate(self, context: int, flags: int, priority: int) -> Any:
        assert flags == 1, "green streams must not block"
        assert context in self.live
        return 0, self._new()

    def cuStreamDestroy(self, stream: int) -> tuple[int]:
        self.live.remove(stream)
        return (0,)

    def cuGreenCtxDestroy(self, context: int) -> tuple[int]:
        self.live.remove(context)
        return (0,)

    def _new(self) -> int:
        self._next += 16
        self.live.add(self._next)
        return self._next
