"""``python -m nexusbench.testing scheduler NAME``: check a plug-in from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.devices.base import Device, DeviceOptions, devices
from nexusbench.testing import (
    check_cost_model,
    check_device,
    check_gpu,
    check_metric,
    check_model_family,
    check_partitioner,
    check_scheduler,
    check_trace_format,
    tiny_model,
)
from nexusbench.testing._harness import LIMITS

FAMILIES = {
    "scheduler": lambda name, seed, examples: check_scheduler(name, seed=seed, examples=examples),
    "partitioner": lambda name, seed, examples: check_partitioner(
        name, seed=seed, examples=examples
    ),
    "device": lambda name, seed, examples: check_device(device_factory(name, seed)),
    "cost-model": lambda name, seed, examples: check_cost_model(name),
    "metric": lambda name, seed, examples: check_metric(name),
    "gpu": lambda name, seed, examples: check_gpu(name),
    "model-family": lambda name, seed, examples: check_model_family(name),
    "trace-format": lambda name, seed, examples: check_trace_format(name),
}


def device_factory(name: str, seed: int) -> Callable[[], Device]:
    """Opens ``KIND:argument`` with a small model. Raises UsageError if there is no such device."""
    kind, _, argument = name.partition(":")
    cls: type[Device] = devices.load(kind)
    options = DeviceOptions(LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens, seed=seed)
    cls.describe(argument)
    return lambda: cls.open(argument, tiny_model(), options)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: it keeps the contract; 1: it does not; 2: there is no such plug-in."""
    parser = argparse.ArgumentParser(
        prog="python -m nexusbench.testing",
        description="Check that a plug-in keeps the contract (docs/invariants.md). The runs are "
        "simulated on a made-up GPU: they show whether a policy is correct, not how good it is.",
    )
    parser.add_argument("family", choices=tuple(FAMILIES))
    parser.add_argument("name", help="as in nexusbench list, with options: vllm:order=spf, sim:l20")
    parser.add_argument("--seed", type=int, default=0, help="of the random workloads (0)")
    parser.add_argument("--examples", type=int, default=12, help="how many random workloads (12)")
    arguments = parser.parse_args(argv)
    name, seed, examples = arguments.name, arguments.seed, arguments.examples
    try:
        FAMILIES[arguments.family](name, seed, examples)
    except NexusbenchError as error:
        kind = "usage" if isinstance(error, UsageError) else f"{arguments.family} '{name}' fails"
        print(f"{kind}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.family} '{name}' keeps the contract")
    return 0


if __name__ == "__main__":
    sys.exit(main())
