"""What identifies a device and a model: everything that decides times, nothing that does not."""

from __future__ import annotations

import msgspec

from nexusbench.core.specs import ModelSpec
from nexusbench.costs._profile import Fingerprint, model_fingerprint, sha256_of
from nexusbench.devices.base import Device


def fingerprint(device: Device, model: ModelSpec) -> Fingerprint:
    """Of an open device that runs ``model``.

    The device's hash covers the GPU's description with its simulator constants (sources, which are
    texts, apart), the measured tables it uses and the profile it is made of, if any. The
    environment (driver, versions) is told and never compared.
    """
    spec, gpu = device.spec, msgspec.to_builtins(device.gpu)
    del gpu["sources"]
    decides = {
        "kind": spec.kind,
        "gpu": gpu,
        "kernel_table": device.kernel_table_sha256,
        "made_of_profile": device.made_of_profile,
        "tensor_parallel": spec.tensor_parallel,
    }
    return Fingerprint(
        device=spec.name,
        simulated=spec.simulated,
        num_sms=spec.num_sms,
        tensor_parallel=spec.tensor_parallel,
        device_sha256=sha256_of(decides),
        model=model.name,
        model_sha256=model_fingerprint(model),
        environment=device.environment(),
    )
