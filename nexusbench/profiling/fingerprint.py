"""Which device and model a profile is of."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from nexusbench.core.host import constants_of
from nexusbench.core.specs import ModelSpec, with_used_kernels
from nexusbench.devices.base import Device
from nexusbench.profiles.profile import Fingerprint, model_fingerprint, sha256_of


def fingerprint_of(device: Device, model: ModelSpec) -> Fingerprint:
    """The device as it is now; ``sources``, ``ranges`` and ``caveats`` of a GPU file may change
    without consequence.

    A simulated device is what its description says. A real one is what it is called: its measured
    peaks are others at every opening.
    """
    spec = device.spec
    used = with_used_kernels(device.gpu, model, spec.tensor_parallel)
    gpu = msgspec.structs.replace(used, sources={}, ranges={}, caveats=UNSET)
    decisive: list[object] = [
        spec.kind,
        gpu if spec.simulated else gpu.name,
        device.kernel_table_sha256,
        device.made_of_profile,
    ]
    if device.host is not None:
        decisive.append(constants_of(device.host))
    return Fingerprint(
        device=spec.name,
        simulated=spec.simulated,
        num_sms=spec.num_sms,
        tensor_parallel=spec.tensor_parallel,
        device_sha256=sha256_of(decisive),
        model=model.name,
        model_sha256=model_fingerprint(model),
        environment=device.environment(),
    )
