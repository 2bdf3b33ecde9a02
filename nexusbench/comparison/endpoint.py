"""The head of a run that a client measured: what was sent, and what the server made of it."""

from __future__ import annotations

from msgspec import UNSET

from nexusbench.comparison.view import RunView
from nexusbench.core.units import counted
from nexusbench.results.resolved import ClientFacts, ResolvedReplay, ServerFacts

CLIENT_DEFINITIONS = (
    "TTFT: scheduled arrival to first token, the send lag included.",
    "TBT: time between deliveries of a request's tokens. TPOT: first to last token / (tokens - 1).",
)
# A lag beyond this share of the mean TTFT is reported.
_LATE_SHARE = 0.01


def endpoint_lines(
    view: RunView, resolved: ResolvedReplay, trace_line: str
) -> list[tuple[str, str]]:
    """Name and text of each header line."""
    server, client = resolved.endpoint, resolved.client
    length = resolved.limits.max_model_len
    context = f", context {length:,} tokens" if length else ""
    lines = [
        ("server", f"{server.url}, {server.api} API, streaming; measured by this client"),
        ("model", f"{resolved.model.name}{context}"),
        ("trace", trace_line),
    ]
    notes = [("note", note) for note in server.notes]
    if client is UNSET:
        return lines + notes
    lines += [
        ("prompts", _prompts(server, client)),
        ("outputs", _outputs(server, client)),
        ("tokens", _tokens(client)),
        ("client", _client(view, client)),
    ]
    return lines + notes + [("WARNING", text) for text in client.warnings]


def _prompts(server: ServerFacts, client: ClientFacts) -> str:
    text = "token ids" if server.prompt == "ids" else "text"
    count = client.prompts_counted
    if not count:
        return f"{text}; the server did not count them"
    asked, found = client.prompt_tokens_asked, client.prompt_tokens_counted
    text += f"; {asked:,} tokens asked, {found:,} counted by the server"
    exact = client.prompts_exact
    if exact == count:
        return f"{text}, each as asked"
    return f"{text}; {exact:,} of {count:,} as asked, {client.prompt_worst:,} off at worst"


def _outputs(server: ServerFacts, client: ClientFacts) -> str:
    how = "max_tokens, min_tokens and ignore_eos" if server.pinned else "max_tokens alone"
    short, long = client.short, client.long
    text = f"lengths set by {how}; "
    if not (short or long):
        return text + "all finished ones have the trace's length"
    return text + f"{short:,} ended short of the trace's length, {long:,} went beyond it"


def _tokens(client: ClientFacts) -> str:
    ways = [f"{words} ({count:,})" for words, count in client.counting.items()]
    text = "counted " + ", ".join(ways) if ways else "none came"
    if client.several:
        text += (
            f"; {client.several:,} of {client.deliveries:,} deliveries held several tokens: "
            "TBT is the time between deliveries"
        )
    return text


def _client(view: RunView, client: ClientFacts) -> str:
    """How well the load generator itself did."""
    median, worst = (view.summary.value("send_lag", name) for name in ("p50", "p99"))
    ttft = view.summary.value("ttft", "mean")
    text = f"{counted(client.connections_opened, 'connection')} opened"
    if client.sent_on_a_late_connection:
        waited = counted(client.sent_on_a_late_connection, "request")
        text += f", {waited} waited for one to open"
    if median is not None and worst is not None:
        text += f"; sent late by {median:.3f} ms (p50), {worst:.3f} (p99)"
        if ttft is not None and worst > _LATE_SHARE * ttft:
            text += ": more than 1 % of the mean TTFT"
    return text
