"""A CUPTI library in Python: the real ctypes code runs on top of it, no GPU needed."""

from __future__ import annotations

import ctypes
from typing import Any

from nexusbench.counters import _cupti_structs as cu

Row = tuple[int, int, list[float]]


def rows_of(count: int) -> list[Row]:
    return [
        (100_000 * n, 100_000 * (n + 1), [4e8, 1e8, 150_000.0, 175_500.0, 9e4])
        for n in range(count)
    ]


class FakeCupti:
    """Decodes ``rows`` in images of ``room`` samples; ``fails``: function -> code it returns."""

    def __init__(self, rows: list[Row], room: int = 5, overflow: bool = False) -> None:
        self.rows, self.room, self.overflow = rows, room, overflow
        self.fails: dict[str, int] = {}
        self.log: list[str] = []
        self.names: list[str] = []
        self.config: dict[str, int] = {}
        self._left: list[Row] = []
        self._image: list[Row] = []

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("cupti"):
            raise AttributeError(function)
        body = getattr(type(self), "do_" + function, None)

        def call(arguments: Any) -> int:
            self.log.append(function)
            given = arguments._obj
            assert given.structSize == cu.struct_size(type(given)), function
            code = self.fails.get(function, 0)
            if not code and body is not None:
                body(self, given)
            return code

        return call

    def cuptiGetResultString(self, code: int, text: Any) -> int:
        text._obj.value = f"RESULT_{code}".encode()
        return 0

    def do_cuptiDeviceGetChipName(self, p: Any) -> None:
        p.pChipName = b"GH100"

    def do_cuptiPmSamplingEnable(self, p: Any) -> None:
        p.pPmSamplingObject = 0x10

    def do_cuptiProfilerHostInitialize(self, p: Any) -> None:
        assert (p.profilerType, p.pChipName) == (cu.PM_SAMPLING, b"GH100")
        p.pHostObject = 0x20

    def do_cuptiProfilerHostConfigAddMetrics(self, p: Any) -> None:
        names = ctypes.cast(p.ppMetricNames, ctypes.POINTER(ctypes.c_char_p))
        self.names = [names[place].decode() for place in range(p.numMetrics)]

    def do_cuptiProfilerHostGetConfigImageSize(self, p: Any) -> None:
        p.configImageSize = 64

    def do_cuptiPmSamplingSetConfig(self, p: Any) -> None:
        self.config = {name: getattr(p, name) for name, *_ in cu.SetConfig._fields_}

    def do_cuptiPmSamplingStart(self, p: Any) -> None:
        self._left = list(self.rows)

    def do_cuptiPmSamplingGetCounterDataSize(self, p: Any) -> None:
        p.counterDataSize = 128

    def do_cuptiPmSamplingDecodeData(self, p: Any) -> None:
        self._image, self._left = self._left[: self.room], self._left[self.room :]
        p.decodeStopReason = cu.COUNTER_DATA_FULL if self._left else 2
        p.overflow = int(self.overflow and not self._left)

    def do_cuptiPmSamplingGetCounterDataInfo(self, p: Any) -> None:
        p.numCompletedSamples = len(self._image)

    def do_cuptiPmSamplingCounterDataGetSampleInfo(self, p: Any) -> None:
        p.startTimestamp, p.endTimestamp, _ = self._image[p.sampleIndex]

    def do_cuptiProfilerHostEvaluateToGpuValues(self, p: Any) -> None:
        place = ctypes.cast(p.pMetricValues, ctypes.POINTER(ctypes.c_double))
        for number, value in enumerate(self._image[p.rangeIndex][2]):
            place[number] = value
