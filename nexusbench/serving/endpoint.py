"""Replay a trace against a server: probe, send, record, summarise. ``nexusbench.run`` calls it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.core.clock import now_ns
from nexusbench.core.config import EndpointConfig, check_config
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.request import Request
from nexusbench.core.units import NS_PER_S
from nexusbench.endpoint.address import Address, parse_address
from nexusbench.endpoint.dialect import Letterhead
from nexusbench.endpoint.probing import Findings, Wish, probe
from nexusbench.endpoint.prompts import ReplayPrompts
from nexusbench.endpoint.replay import Replay, ReplayPlan
from nexusbench.endpoint.status import Status
from nexusbench.endpoint.words import Words
from nexusbench.engine.arrivals import ORPHANED, Arrivals, Patience
from nexusbench.metrics.run_events import check_slo
from nexusbench.results.machine import machine_facts
from nexusbench.results.resolved import (
    ClientFacts,
    NamedThing,
    ResolvedReplay,
    ServerFacts,
    ServerLimits,
    slo_bounds,
)
from nexusbench.serving.assembly import make_requests, request_columns, shape_traffic, trace_facts
from nexusbench.serving.recorder import (
    Recorder,
    StopFlag,
    open_writer,
    stop_flag,
)
from nexusbench.serving.runner import RunResult, conclude
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace

if TYPE_CHECKING:
    from nexusbench.results.store import RunWriter

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# How much of a replay a kill may cost: two seconds, less what a flush takes.
FLUSH_NS = 3 * NS_PER_S // 2
_A_SECRET = 8  # signs; what is shorter may stand anywhere
_SHOWN_NAME = 200  # characters of a model's name
_LONGEST_DEVICE = 80  # of a folder's name


class Connected(msgspec.Struct):
    """A server that was probed, and what it is to be sent; ``resolved`` is for the manifest."""

    config: EndpointConfig
    trace: Trace
    requests: list[Request]
    replay: Replay
    resolved: ResolvedReplay

    def columns(self) -> dict[str, list[Any]]:
        """The requests, as they are stored."""
        return request_columns(self.requests, closed=self.trace.concurrency > 0)


def connect(config: EndpointConfig) -> Connected:
    """Read the trace, find the server, ask what it takes. Raises UsageError or InputError for what
    cannot be, NexusbenchError for a server that is not there.
    """
    config = check_config(config)
    check_slo(config.goodput)
    key = _api_key(config)
    trace = shape_traffic(config)
    words = Words(key)
    for flag, value in (("--endpoint", config.endpoint), ("--model", config.model or "")):
        if len(key) >= _A_SECRET and key in value:
            raise UsageError(f"{flag} holds the API key, which would be stored with the results")
    address = parse_address(config.endpoint)
    if config.api is not None and address.api not in (None, config.api):
        raise UsageError(f"--endpoint names the {address.api} API, --api {config.api}. Choose one")
    wish = Wish(
        model=config.model,
        api=config.api or address.api,  # type: ignore[arg-type]
        prompt=config.prompt,
        vocab_size=config.vocab_size,
        timeout_s=config.timeout_s,
        key=key,
    )
    if wish.api == "chat" and config.prompt == "ids":
        raise UsageError("--prompt ids: the chat API takes text alone. Choose --api completions")
    findings = probe(address, wish)
    max_model_len = config.max_model_len or findings.max_model_len
    if max_model_len is not None:
        trace = transform.fit_context(trace, max_model_len, config.too_long)
        notes = [note.replace("the engine rejects them", "not sent") for note in trace.notes]
        trace = msgspec.structs.replace(trace, notes=notes)
    else:
        note = "the server does not tell its context length: nothing was checked against it"
        trace = msgspec.structs.replace(trace, notes=[*trace.notes, note])
    requests = make_requests(trace, trace.hash_block)
    for request in requests:
        request.max_tokens = request.stop_len - request.num_prompt_tokens
    replay = _make_replay(config, trace, requests, address, findings, max_model_len, key)
    resolved = _resolved(config, trace, address, findings, max_model_len, words)
    trace = msgspec.structs.replace(trace, requests=[])
    return Connected(config, trace, requests, replay, resolved)


def _api_key(config: EndpointConfig) -> str:
    """The key, from the environment; empty where none is given and none was named."""
    name = config.api_key_env
    key = os.environ.get(name or DEFAULT_KEY_VARIABLE, "")
    if name is not None and not key:
        raise UsageError(f"--api-key-env: the environment variable {name} is not set")
    if not (key.isascii() and key.isprintable()):
        name = name or DEFAULT_KEY_VARIABLE
        raise UsageError(f"the key in {name} holds signs that no HTTP header can carry")
    return key


def _make_replay(
    config: EndpointConfig,
    trace: Trace,
    requests: list[Request],
    address: Address,
    findings: Findings,
    max_model_len: int | None,
    key: str,
) -> Replay:
    given = {i: r.token_ids for i, r in enumerate(trace.requests) if r.token_ids is not None}
    if given and findings.measure is not None:
        findings.notes.append(
            "the trace's token ids cannot be sent as text: its prompts are made up"
        )
    prompts = ReplayPrompts(
        config.seed, trace.hash_block, config.vocab_size, findings.measure, given
    )
    return Replay(
        ReplayPlan(
            requests=requests,
            schedule=Arrivals(requests, trace.concurrency),
            patience=Patience(requests),
            prompts=prompts,
            letterhead=Letterhead(address, findings.model, findings.dialect, key),
            concurrency=trace.concurrency,
            timeout_ns=round(config.timeout_s * NS_PER_S),
            max_model_len=max_model_len,
            orphaned=ORPHANED,
        )
    )


def _resolved(
    config: EndpointConfig,
    trace: Trace,
    address: Address,
    findings: Findings,
    max_model_len: int | None,
    words: Words,
) -> ResolvedReplay:
    """What was resolved, for the manifest; what a client cannot see of a GPU is 0 or unknown."""
    dialect, measure = findings.dialect, findings.measure
    name = words.of(findings.model, _SHOWN_NAME)
    return ResolvedReplay(
        observed="client",
        device=f"endpoint:{address.netloc}/{name}",
        gpu=NamedThing(name="unknown, behind an endpoint"),
        model=NamedThing(name=name),
        limits=ServerLimits(max_model_len=max_model_len),
        endpoint=ServerFacts(
            url=address.url,
            api=dialect.api,
            prompt=dialect.prompt,
            pinned=dialect.pinned,
            usage=dialect.usage,
            measure=None if measure is None else msgspec.to_builtins(measure),
            notes=findings.notes,
            timeout_s=config.timeout_s,
        ),
        trace=trace_facts(trace),
        machine={**machine_facts()},  # of the client
        seed=config.seed,
        slo=slo_bounds(config.goodput),
        warmup_ns=round(config.warmup_s * NS_PER_S),
        gpus=1,
        price_per_hour=config.price_per_hour,
        watts=config.watts,
    )


def run_endpoint(
    config: EndpointConfig,
    *,
    results: Path | None = None,
    progress: Callable[[Status], object] | None = None,
) -> RunResult:
    """Replay ``config.trace`` against its server; the rest is as in :func:`nexusbench.run`.

    Requests that fail are counted, they end nothing. ``progress`` is called about ten times a
    second.
    """
    connected = connect(config)
    writer = None
    with stop_flag(lambda: None) as interrupted:
        if results is not None:
            device = connected.resolved.device
            device = "".join(c if c.isalnum() or c in "-_." else "-" for c in device)
            names = [connected.trace.name, device[:_LONGEST_DEVICE]]
            columns = connected.columns()
            writer = open_writer(
                results, names, connected.config, connected.resolved, columns, simulated=False
            )
        recorder = ReplayRecorder(connected, writer, progress, interrupted)
        try:
            connected.replay.run(recorder.look)
        except BaseException as error:
            recorder.give_up(error)
            raise
        notes = [*connected.trace.notes, *connected.resolved.endpoint.notes]
        result = conclude(recorder, connected.config, notes)
    result.notes += connected.replay.recording.warnings()
    return result


class ReplayRecorder(Recorder):
    """Looks on while a replay runs."""

    def __init__(
        self,
        connected: Connected,
        writer: RunWriter | None,
        progress: Callable[[Status], object] | None,
        stop: StopFlag,
    ) -> None:
        super().__init__(connected.replay.recording.log, connected.resolved, writer, progress, stop)
        self._connected, self._replay = connected, connected.replay
        self._next_flush = now_ns() + FLUSH_NS

    def status(self) -> Status:
        """The replay's."""
        return self._replay.status()

    def position(self) -> tuple[int, int, int]:
        """On the replay's clock."""
        status = self._replay.status()
        return status.now_ns, status.ended, status.requests

    def columns(self) -> dict[str, list[Any]]:
        """Those that are sent."""
        return self._connected.columns()

    def at_the_end(self, *, whole: bool) -> ResolvedReplay:
        """With what the client noticed."""
        return with_client(self._connected.resolved, self._replay)

    def settle(self, error: BaseException | None = None) -> None:
        """The log gets what it does not have yet, in order of time."""
        self._replay.recording.write()

    def look(self) -> None:
        """Called some twenty times a second."""
        super().look()
        now = now_ns()
        if self._writer is not None and now >= self._next_flush:
            self._next_flush = now + FLUSH_NS
            self._flush(self._writer)

    def _flush(self, writer: RunWriter) -> None:
        """Store what is known: for good what nothing can precede any more, the rest until the next
        time. What a full disk refuses stays in the log for the next time: the server goes on
        answering, and its answers cannot be asked for again.
        """
        replay, recording = self._replay, self._replay.recording
        horizon = replay.horizon()
        recording.gather()
        recording.write(horizon)
        tail = recording.tail(replay.under_way())
        with suppress(NexusbenchError):  # told at the end, if it is still full then
            writer.flush(recording.log, tail=tail)


def with_client(resolved: ResolvedReplay, replay: Replay) -> ResolvedReplay:
    """``resolved`` with what was noticed during a replay."""
    receiver = replay.receiver
    noticed = {
        **replay.recording.summary(),
        "connections_opened": receiver.opened,
        "sent_on_a_late_connection": receiver.sent_late,
        "made_when_due": replay.preparer.unprepared,
    }
    return msgspec.structs.replace(resolved, client=msgspec.convert(noticed, ClientFacts))
