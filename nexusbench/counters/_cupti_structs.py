"""CUPTI's parameter structures for PM sampling, as ctypes. Layouts of CUPTI 12.6 to 13.0.

Checked against the headers of 13.0.85 (cupti_pmsampling.h, cupti_profiler_host.h,
cupti_profiler_target.h, cupti_target.h); a test holds the sizes fixed. CUPTI distinguishes
versions by ``structSize``, so later ones that append fields accept these.
"""

from __future__ import annotations

import ctypes as c
from typing import Any, TypeVar

# CUptiResult
SUCCESS = 0
INVALID_OPERATION = 7
OUT_OF_MEMORY = 8
HARDWARE_BUSY = 26
NOT_SUPPORTED = 27
INSUFFICIENT_PRIVILEGES = 35
VIRTUALIZED_INSUFFICIENT_PRIVILEGES = 40

PM_SAMPLING = 1  # CUpti_ProfilerType
GPU_TIME_INTERVAL = 1  # CUpti_PmSampling_TriggerMode: the interval is in ns
KEEP_OLDEST = 0  # CUpti_PmSampling_HardwareBuffer_AppendMode: an overflow is reported
COUNTER_DATA_FULL = 1  # CUpti_PmSampling_DecodeStopReason


class Params(c.Structure):
    """What every parameter structure begins with."""

    _fields_ = [("structSize", c.c_size_t), ("pPriv", c.c_void_p)]


class ProfilerInitialize(Params):
    """Of cuptiProfilerInitialize and cuptiProfilerDeInitialize."""

    _fields_ = []


class GetChipName(Params):
    """Of cuptiDeviceGetChipName."""

    _fields_ = [("deviceIndex", c.c_size_t), ("pChipName", c.c_char_p)]


class Enable(Params):
    """Of cuptiPmSamplingEnable."""

    _fields_ = [("deviceIndex", c.c_size_t), ("pPmSamplingObject", c.c_void_p)]


class PmSampling(Params):
    """Of cuptiPmSamplingStart, Stop and Disable."""

    _fields_ = [("pPmSamplingObject", c.c_void_p)]


class SetConfig(Params):
    """Of cuptiPmSamplingSetConfig; sizes in bytes, the interval in ns."""

    _fields_ = [
        ("pPmSamplingObject", c.c_void_p),
        ("configSize", c.c_size_t),
        ("pConfig", c.c_void_p),
        ("hardwareBufferSize", c.c_size_t),
        ("samplingInterval", c.c_uint64),
        ("triggerMode", c.c_int),
        ("hwBufferAppendMode", c.c_int),
    ]


class DecodeData(Params):
    """Of cuptiPmSamplingDecodeData."""

    _fields_ = [
        ("pPmSamplingObject", c.c_void_p),
        ("pCounterDataImage", c.c_void_p),
        ("counterDataImageSize", c.c_size_t),
        ("decodeStopReason", c.c_int),
        ("overflow", c.c_uint8),
    ]


class GetCounterDataSize(Params):
    """Of cuptiPmSamplingGetCounterDataSize."""

    _fields_ = [
        ("pPmSamplingObject", c.c_void_p),
        ("pMetricNames", c.c_void_p),
        ("numMetrics", c.c_size_t),
        ("maxSamples", c.c_uint32),
        ("counterDataSize", c.c_size_t),
    ]


class ImageInitialize(Params):
    """Of cuptiPmSamplingCounterDataImageInitialize."""

    _fields_ = [
        ("pPmSamplingObject", c.c_void_p),
        ("counterDataSize", c.c_size_t),
        ("pCounterData", c.c_void_p),
    ]


class GetCounterDataInfo(Params):
    """Of cuptiPmSamplingGetCounterDataInfo."""

    _fields_ = [
        ("pCounterDataImage", c.c_void_p),
        ("counterDataImageSize", c.c_size_t),
        ("numTotalSamples", c.c_size_t),
        ("numPopulatedSamples", c.c_size_t),
        ("numCompletedSamples", c.c_size_t),
    ]


class GetSampleInfo(Params):
    """Of cuptiPmSamplingCounterDataGetSampleInfo; times in ns of the GPU's clock."""

    _fields_ = [
        ("pPmSamplingObject", c.c_void_p),
        ("pCounterDataImage", c.c_void_p),
        ("counterDataImageSize", c.c_size_t),
        ("sampleIndex", c.c_size_t),
        ("startTimestamp", c.c_uint64),
        ("endTimestamp", c.c_uint64),
    ]


class HostInitialize(Params):
    """Of cuptiProfilerHostInitialize; 13.5 appends a field, and takes this size too."""

    _fields_ = [
        ("profilerType", c.c_int),
        ("pChipName", c.c_char_p),
        ("pCounterAvailabilityImage", c.c_void_p),
        ("pHostObject", c.c_void_p),
    ]


class HostAddMetrics(Params):
    """Of cuptiProfilerHostConfigAddMetrics."""

    _fields_ = [
        ("pHostObject", c.c_void_p),
        ("ppMetricNames", c.c_void_p),
        ("numMetrics", c.c_size_t),
    ]


class HostConfigSize(Params):
    """Of cuptiProfilerHostGetConfigImageSize."""

    _fields_ = [("pHostObject", c.c_void_p), ("configImageSize", c.c_size_t)]


class HostConfig(Params):
    """Of cuptiProfilerHostGetConfigImage."""

    _fields_ = [
        ("pHostObject", c.c_void_p),
        ("configImageSize", c.c_size_t),
        ("pConfigImage", c.c_void_p),
    ]


class HostEvaluate(Params):
    """Of cuptiProfilerHostEvaluateToGpuValues: one double for each metric."""

    _fields_ = [
        ("pHostObject", c.c_void_p),
        ("pCounterDataImage", c.c_void_p),
        ("counterDataImageSize", c.c_size_t),
        ("rangeIndex", c.c_size_t),
        ("ppMetricNames", c.c_void_p),
        ("numMetrics", c.c_size_t),
        ("pMetricValues", c.c_void_p),
    ]


class HostDeinitialize(Params):
    """Of cuptiProfilerHostDeinitialize."""

    _fields_ = [("pHostObject", c.c_void_p)]


P = TypeVar("P", bound=Params)


def struct_size(kind: type[Params]) -> int:
    """What CUPTI expects in ``structSize``: the end of the last field, without padding."""
    own = kind.__dict__.get("_fields_") or Params._fields_
    last = getattr(kind, own[-1][0])
    return int(last.offset + last.size)


def params(kind: type[P], **fields: Any) -> P:
    """A structure with its size filled in and these fields set, the others zero."""
    made = kind()
    made.structSize = struct_size(kind)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
