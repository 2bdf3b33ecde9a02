"""The head of a run that a client measured: what was sent, and what the server made of it."""

from __future__ import annotations

from typing import Any

from nexusbench.comparison.view import RunView
from nexusbench.core.units import counted

CLIENT_DEFINITIONS = (
    "TTFT: scheduled arrival to first token, the send lag included.",
    "TBT: time between deliveries of a request's tokens. TPOT: first to last token / (tokens - 1).",
)
# A lag beyond this share of the mean TTFT is told.
_LATE_SHARE = 0.01


def endpoint_lines(
    view: RunView, resolved: dict[str, Any], trace_line: str
) -> list[tuple[str, str]]:
    """Name and text of each header line."""
    endpoint, client = resolved["endpoint"], resolved.get("client")
    length = resolved["limits"]["max_model_len"]
    context = f", context {length:,} tokens" if length else ""
    lines = [
        ("server", f"{endpoint['url']}, {endpoint['api']} API, streaming; measured by this client"),
        ("model", f"{resolved['model']['name']}{context}"),
        ("trace", trace_line),
    ]
    if client is not None:
        lines += [
            ("prompts", _prompts(endpoint, client)),
            ("outputs", _outputs(endpoint, client)),
            ("tokens", _tokens(client)),
            ("client", _client(view, client)),
        ]
    lines += [("note", note) for note in endpoint["notes"]]
    return lines + [("WARNING", text) for text in (client or {}).get("warnings", ())]


def _prompts(endpoint: dict[str, Any], client: dict[str, Any]) -> str:
    text = "token ids" if endpoint["prompt"] == "ids" else "text"
    count = client["prompts_counted"]
    if not count:
        return f"{text}; the server did not count them"
    asked, found = client["prompt_tokens_asked"], client["prompt_tokens_counted"]
    text += f"; {asked:,} tokens asked, {found:,} counted by the server"
    exact = client["prompts_exact"]
    if exact == count:
        return f"{text}, each as asked"
    return f"{text}; {exact:,} of {count:,} as asked, {client['prompt_worst']:,} off at worst"


def _outputs(endpoint: dict[str, Any], client: dict[str, Any]) -> str:
    how = "max_tokens, min_tokens and ignore_eos" if endpoint["pinned"] else "max_tokens alone"
    short, long = client["short"], client["long"]
    text = f"lengths set by {how}; "
    if not (short or long):
        return text + "all finished ones have the trace's length"
    return text + f"{short:,} ended short of the trace's length, {long:,} went beyond it"


def _tokens(client: dict[str, Any]) -> str:
    ways = [f"{words} ({count:,})" for words, count in client["counting"].items()]
    text = "counted " + ", ".join(ways) if ways else "none came"
    if client["several"]:
        text += (
            f"; {client['several']:,} of {client['deliveries']:,} deliveries held several tokens: "
            "TBT is the time between deliveries"
        )
    return text


def _client(view: RunView, client: dict[str, Any]) -> str:
    """How well the load generator itself did."""
    lag, ttft = (view.summary["metrics"].get(tag, {}) for tag in ("send_lag", "ttft"))
    text = f"{counted(client['connections_opened'], 'connection')} opened"
    if client["sent_on_a_late_connection"]:
        waited = counted(client["sent_on_a_late_connection"], "request")
        text += f", {waited} waited for one to open"
    if lag.get("n"):
        text += f"; sent late by {lag['p50']:.3f} ms (p50), {lag['p99']:.3f} (p99)"
        if ttft.get("n") and lag["p99"] > _LATE_SHARE * ttft["mean"]:
            text += ": more than 1 % of the mean TTFT"
    return text
