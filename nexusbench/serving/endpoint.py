"""Replay a trace against a server: probe, send, record, summarise. ``nexusbench.run`` calls it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nexusbench.core.clock import now_ns, utc_now
from nexusbench.core.config import EndpointConfig, check_config
from nexusbench.core.errors import Interrupted, NexusbenchError, UsageError
from nexusbench.core.request import Request
from nexusbench.core.units import NS_PER_S
from nexusbench.endpoint.address import Address, parse_address
from nexusbench.endpoint.dialect import Letterhead
from nexusbench.endpoint.probing import Findings, Wish, probe
from nexusbench.endpoint.prompts import Prompts
from nexusbench.endpoint.replay import Plan, Replay
from nexusbench.endpoint.status import Status
from nexusbench.endpoint.words import Words
from nexusbench.engine.arrivals import ORPHANED, Arrivals, Patience
from nexusbench.results.machine import machine_facts
from nexusbench.serving.assembly import make_requests, shape_traffic, trace_facts
from nexusbench.serving.recorder import PROGRESS_NS, StopFlag, stop_flag
from nexusbench.serving.runner import (
    RESOLVED_FACTS,
    RunResult,
    _joined,
    _request_columns,
)
from nexusbench.workloads import transform
from nexusbench.workloads.base import Trace

if TYPE_CHECKING:
    from nexusbench.metrics.run_events import RunEvents
    from nexusbench.results.store import RunWriter

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# How much of a replay a kill may cost: two seconds, less what a flush takes.
FLUSH_NS = 3 * NS_PER_S // 2
_A_SECRET = 8  # signs; what is shorter may stand anywhere
_SHOWN_NAME = 200  # characters of a model's name
_LONGEST_DEVICE = 80  # of a folder's name
_CLIENT_FACTS = ("observed", "num_sms", "kv_blocks", "block_size")


class Connected(msgspec.Struct):
    """A server that was probed, and what it is to be sent; ``facts`` is for the manifest."""

    config: EndpointConfig
    trace: Trace
    requests: list[Request]
    replay: Replay
    facts: dict[str, Any]


def connect(config: EndpointConfig) -> Connected:
    """Read the trace, find the server, ask what it takes. Raises UsageError or InputError for what
    cannot be, NexusbenchError for a server that is not there.
    """
    config = check_config(config)
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
    facts = _facts(config, trace, address, findings, max_model_len, words)
    return Connected(config, msgspec.structs.replace(trace, requests=[]), requests, replay, facts)


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
    prompts = Prompts(config.seed, trace.hash_block, config.vocab_size, findings.measure, given)
    return Replay(
        Plan(
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


def _facts(
    config: EndpointConfig,
    trace: Trace,
    address: Address,
    findings: Findings,
    max_model_len: int | None,
    words: Words,
) -> dict[str, Any]:
    """What was resolved, for the manifest; what a client cannot know of a GPU is 0 or unknown."""
    dialect = findings.dialect
    name = words.of(findings.model, _SHOWN_NAME)
    return {
        "observed": "client",
        "device": f"endpoint:{address.netloc}/{name}",
        "gpu": {"name": "unknown, behind an endpoint"},
        "num_sms": 0,
        "kv_blocks": 0,
        "block_size": 0,
        "model": {"name": name},
        "scheduler": None,
        "partitioner": None,
        "belief": None,
        "limits": {"max_model_len": max_model_len},
        "endpoint": {
            "url": address.url,
            **msgspec.to_builtins(dialect),
            "measure": msgspec.to_builtins(findings.measure),
            "notes": findings.notes,
            "timeout_s": config.timeout_s,
        },
        "trace": trace_facts(trace),
        "machine": machine_facts(),  # of the client
        "seed": config.seed,
        "slo": dict(config.goodput),
        "warmup_ns": round(config.warmup_s * NS_PER_S),
        "gpus": 1,
        "price_per_hour": config.price_per_hour,
        "watts": config.watts,
    }


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
    from nexusbench.metrics.summary import summarise

    connected = connect(config)
    replay, log = connected.replay, connected.replay.recording.log
    fault = ""
    with stop_flag(lambda: None) as interrupted:
        writer = _open_writer(connected, results) if results is not None else None
        onlooker = Onlooker(replay, interrupted, progress, writer)
        try:
            replay.run(onlooker.look)
        except BaseException as error:
            onlooker.give_up(error)
            raise
        replay.recording.write()
        digest, facts = log.digest(), client_facts(replay)
        if progress is not None:
            progress(replay.status())
        if writer is not None:
            fault = _attempt(lambda: writer.flush(log))
        events = _events(connected, writer)
        summary = summarise(events)
        if writer is not None:
            fault = _finish(writer, summary, digest, facts, fault)
    folder = writer.path if writer is not None else None
    resolved = {**connected.facts, "client": facts}
    notes = [*connected.trace.notes, *connected.facts["endpoint"]["notes"], *facts["warnings"]]
    return RunResult(connected.config, summary, events, digest, folder, notes, resolved, fault)


def _attempt(store: Callable[[], None]) -> str:
    """Have something stored. What a full disk refuses is returned, not raised: the requests were
    answered, and what was measured can still be shown.
    """
    try:
        store()
    except NexusbenchError as error:
        return str(error)
    return ""


def _events(connected: Connected, writer: RunWriter | None) -> RunEvents:
    """What happened: from the folder, and from the log what could not be written."""
    from nexusbench.metrics.run_events import Facts, RunEvents
    from nexusbench.results.reader import RunReader

    log = connected.replay.recording.log
    if writer is not None and not len(log):
        return RunEvents.from_reader(RunReader(writer.path))
    known: dict[str, Any] = {"simulated": False, "partitions": [], "splits": []}
    kept = (*RESOLVED_FACTS, *_CLIENT_FACTS)
    known |= {key: value for key, value in connected.facts.items() if key in kept}
    if writer is None or not writer.sealed:
        return RunEvents.from_log(log, _request_columns(connected), known)
    sealed = RunReader(writer.path).first_parts(len(writer.sealed))
    facts = msgspec.convert(known | {"strings": log.strings}, Facts)
    return RunEvents(_joined(sealed, log), sealed.requests(), facts)


def _finish(
    writer: RunWriter, summary: dict[str, Any], digest: str, client: dict[str, Any], fault: str
) -> str:
    """The replay came to its own end. Returns what could not be written, now or before."""
    resolved = {"client": client}
    if fault:
        # Whatever this says: the first fault is the one to tell.
        _attempt(lambda: writer.finish("failed", None, fault, resolved=resolved))
        return fault
    return _attempt(
        lambda: writer.finish("complete", summary, event_digest=digest, resolved=resolved)
    )


class Onlooker:
    """Looks on while a replay runs: stops it on Ctrl-C, shows progress, stores rows in time."""

    def __init__(
        self,
        replay: Replay,
        interrupted: StopFlag,
        progress: Callable[[Status], object] | None,
        writer: RunWriter | None,
    ) -> None:
        self._replay, self._interrupted = replay, interrupted
        self._progress, self._writer = progress, writer
        self._next_flush = now_ns() + FLUSH_NS
        self._next_progress = 0

    def look(self) -> None:
        """Called some twenty times a second; raises Interrupted to stop the replay."""
        replay, now = self._replay, now_ns()
        if self._interrupted.is_set():
            status = replay.status()
            raise Interrupted(
                f"{self._interrupted.cause} at {status.now_ns / NS_PER_S:.1f} s of the run, "
                f"{status.ended} of {status.requests} requests ended"
            )
        if self._progress is not None and now >= self._next_progress:
            self._progress(replay.status())
            self._next_progress = now + PROGRESS_NS
        if self._writer is not None and now >= self._next_flush:
            self._next_flush = now + FLUSH_NS
            self._flush(self._writer)

    def _flush(self, writer: RunWriter) -> None:
        """Store what is known: for good what nothing can come before any more, the rest until the
        next time. What a full disk refuses stays in the log for the next time: the server goes on
        answering, and what it does cannot be asked again.
        """
        replay, recording = self._replay, self._replay.recording
        horizon = replay.horizon()
        recording.gather()
        recording.write(horizon)
        tail = recording.tail(replay.under_way())
        with suppress(NexusbenchError):  # told at the end, if it is still full then
            writer.flush(recording.log, tail=tail)

    def give_up(self, error: BaseException) -> None:
        """Keep what there is, and say in the manifest why it ends."""
        writer, recording = self._writer, self._replay.recording
        if writer is None:
            return
        recording.write()
        digest = recording.log.digest()
        try:
            writer.flush(recording.log)
        except NexusbenchError:  # e.g. a full disk: the first error is the one to tell
            digest = ""  # of more than is stored
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        with suppress(NexusbenchError):
            writer.finish(
                "interrupted" if stopped else "failed",
                None,
                str(error) or type(error).__name__,
                event_digest=digest,
                resolved={"client": client_facts(self._replay)},
            )
        if isinstance(error, NexusbenchError):
            error.args = (f"{error}. Kept: {writer.path}",)


def client_facts(replay: Replay) -> dict[str, Any]:
    """What was noticed during a replay, for the manifest."""
    receiver = replay.receiver
    return {
        **replay.recording.summary(),
        "connections_opened": receiver.opened,
        "sent_on_a_late_connection": receiver.sent_late,
        "made_when_due": replay.preparer.unprepared,
    }


def _open_writer(connected: Connected, results: Path) -> RunWriter:
    from nexusbench.results.manifest import new_manifest
    from nexusbench.results.store import RunWriter

    created, config = utc_now(), connected.config
    device = "".join(c if c.isalnum() or c in "-_." else "-" for c in connected.facts["device"])
    device = device[:_LONGEST_DEVICE]
    name = f"{created:%Y%m%d-%H%M%S}-{connected.trace.name}-{device}-s{config.seed}"
    manifest = new_manifest(
        name,
        created.isoformat(timespec="seconds"),
        simulated=False,
        config=msgspec.to_builtins(config),
        resolved=connected.facts,
        partitions=[],
    )
    return RunWriter(results, manifest, _request_columns(connected))
