"""The same on a Ray cluster: nodes join and leave, every cell is run once or says why not."""

from __future__ import annotations

import hashlib
import logging
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nexusbench.core.config import RunConfig
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.experiments.keys import code_version
from nexusbench.experiments.pool import MOST_DEATHS, Lost, Task
from nexusbench.workloads.source import stored_sha256, write_atomic

ResultT = TypeVar("ResultT")
# Tasks in flight per core of the cluster: the next one waits where the last one ends.
_AHEAD = 2
_PATIENCE_S = 5.0


def run_on_ray(
    function: Callable[[RunConfig], ResultT], configs: Sequence[RunConfig], address: str
) -> Iterator[tuple[int, ResultT | Lost]]:
    """``(position, function(config))`` as each ends, each on one core of the cluster at ``address``
    (``auto``: the one that this machine belongs to).

    Traces travel with the cells; other files must be where the config says, on every node. Nodes
    need the same nexusbench. A cell whose worker dies is sent again. Raises UsageError if there is
    no Ray or no such cluster.
    """
    ray = _connect(address)
    remote = ray.remote(_on_node).options(num_cpus=1, max_retries=0)
    try:
        traces = {trace: _shipped(ray, trace) for trace in {c.trace for c in configs}}
        todo = deque(Task(index, config) for index, config in enumerate(configs))
        running: dict[Any, Task[RunConfig]] = {}
        while todo or running:
            most = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while todo and len(running) < most:
                task = todo.popleft()
                trace, sha256 = traces[task.item.trace]
                call = (function, task.item, trace, sha256, code_version())
                running[remote.remote(*call)] = task
            for done in ray.wait(list(running), num_returns=1)[0]:
                task = running.pop(done)
                try:
                    yield task.index, ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise NexusbenchError(f"on a Ray node: {error.cause}") from None
                except ray.exceptions.RayError as error:
                    # The worker or its node is gone; the cell itself is innocent until it repeats.
                    task.deaths += 1
                    if task.deaths < MOST_DEATHS:
                        todo.append(task)
                    else:
                        yield task.index, Lost(f"{type(error).__name__}, {MOST_DEATHS} times")
    finally:
        ray.shutdown()


def _shipped(ray: Any, trace: str) -> tuple[Any, str]:
    """A trace as the cluster holds it, and its hash, by which every node identifies it."""
    content = Path(trace).read_bytes()
    return ray.put(content), hashlib.sha256(content).hexdigest()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--ray needs Ray, which is not installed. Run pip install 'nexusbench[ray]', or leave "
            "--ray out to use this machine's cores"
        ) from None
    _check_address(address)
    ending = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--ray {address}: {reason}. Start one with: ray start --head") from None
    finally:
        # Ray's own way to end on SIGTERM would drop what the command still has to write.
        if ending is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ending)
    return ray


def _check_address(address: str) -> None:
    """Ray tries a dead address for minutes before it says so; one connection tells at once."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=_PATIENCE_S):
            pass
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--ray {address}: nothing answers there ({error}). Start one with: ray start --head"
        ) from None


def _on_node(
    function: Callable[[RunConfig], ResultT],
    config: RunConfig,
    trace: bytes,
    sha256: str,
    code: str,
) -> ResultT:
    """Runs on a node of the cluster: on the trace with the hash that was sent, or not at all."""
    if code_version() != code:
        raise NexusbenchError(
            f"{socket.gethostname()} has another nexusbench than the one that sends the cells. "
            "Install the same"
        )
    here = _local_trace(config.trace, trace, sha256)
    return function(msgspec.structs.replace(config, trace=str(here)))


def _local_trace(asked: str, trace: bytes, sha256: str) -> Path:
    """Where this node has the trace with that hash: at the same path, else in a copy.

    Raises NexusbenchError if what was received is another trace, or what lies in place of the copy.
    """
    came = hashlib.sha256(trace).hexdigest()
    if came != sha256:
        raise _other_trace(f"the trace {asked} came", came, sha256, "Send the sweep again")
    here = Path(asked)
    if here.is_file() and stored_sha256(here) == sha256:
        return here
    folder = Path(tempfile.gettempdir()) / "nexusbench-traces" / sha256[:16]
    # The name stays: notes and errors show it.
    copy = folder / here.name
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(copy, trace)
    found = stored_sha256(copy) if copy.is_file() else "of no file"
    if found != sha256:
        raise _other_trace(f"{copy} is there", found, sha256, "Remove it")
    return copy


def _other_trace(what: str, found: str, sha256: str, remedy: str) -> NexusbenchError:
    return NexusbenchError(
        f"on {socket.gethostname()} {what} with sha256 {found}, not {sha256}. {remedy}"
    )
