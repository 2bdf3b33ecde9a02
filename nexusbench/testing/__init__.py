"""The contract of plug-ins as functions to call on a plug-in of one's own: no test framework
needed.

Each check returns None, or raises :class:`ConformanceError` whose text begins with the name of the
invariant (docs/invariants.md) that does not hold.
"""

from nexusbench.testing._errors import ConformanceError
from nexusbench.testing._harness import offer, serve, tiny_device, tiny_gpu, tiny_model
from nexusbench.testing.cost_model import check_cost_model
from nexusbench.testing.device import check_device
from nexusbench.testing.gpu import check_gpu
from nexusbench.testing.metric import check_metric
from nexusbench.testing.model_family import check_model_family
from nexusbench.testing.partitioner import check_partitioner
from nexusbench.testing.scheduler import check_scheduler
from nexusbench.testing.trace_format import check_trace_format

__all__ = [
    "ConformanceError",
    "check_cost_model",
    "check_device",
    "check_gpu",
    "check_metric",
    "check_model_family",
    "check_partitioner",
    "check_scheduler",
    "check_trace_format",
    "offer",
    "serve",
    "tiny_device",
    "tiny_gpu",
    "tiny_model",
]
