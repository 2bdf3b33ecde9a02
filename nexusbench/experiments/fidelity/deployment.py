"""On how many GPUs a measured closed-loop point ran, and how its model was spread over them.

A server of N GPUs whose experts were spread over all of them stands in aiconfigurator's tables
under degrees multiplied once too often: (tp N N, moe_tp N, moe_ep N), (dp N N, moe_tp N, moe_ep N),
or (tp N, dp N, moe_ep N N). Of ``serving/measured-closed-loop.csv`` such points take the TPOT of N
GPUs at as many requests within about 1 %, and two points stand there under both writings. The users
of a point are those of each attention rank (docs/fidelity.md).
"""

from __future__ import annotations

import msgspec

from nexusbench.experiments.fidelity.serving_table import ServingPoint


class Refused(Exception):
    """A point that cannot be simulated, with the reason."""


class Deployment(msgspec.Struct, frozen=True):
    """``data`` engines of ``pipeline`` stages of ``tensor`` GPUs each, with whole ``experts`` on a
    GPU or not, and all ``requests`` in flight.
    """

    tensor: int
    data: int
    experts: bool
    requests: int
    pipeline: int = 1


def requests_of(point: ServingPoint) -> int:
    """Requests in flight, on all engines together."""
    return point.users * point.dp


def deployment_of(point: ServingPoint) -> Deployment:
    """How ``point`` ran. Raises Refused for experts that are both dealt out and divided."""
    tensor, data, requests = point.tp, point.dp, requests_of(point)
    root = point.moe_ep
    if root > 1 and point.moe_tp == root and point.tp * point.dp == root * root:
        return Deployment(
            root if data == 1 else 1, 1 if data == 1 else root, True, requests, point.pp
        )
    if point.moe_tp == 1 and root == tensor * data and tensor == data > 1:
        return Deployment(1, data, True, requests, point.pp)
    if root > 1 and (point.moe_tp > 1 or root != tensor * data):
        raise Refused(
            f"experts dealt out to {root} GPUs and divided by {point.moe_tp}, on "
            f"{tensor * data}: not simulated"
        )
    return Deployment(tensor, data, root > 1, requests, point.pp)
