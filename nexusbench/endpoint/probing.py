"""Before a replay: what does this server take, what does it call its model, how does it count?"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.request import Request
from nexusbench.endpoint._clock import now_ns, sleep
from nexusbench.endpoint.address import Address
from nexusbench.endpoint.dialect import Api, Dialect, Letterhead, dialects
from nexusbench.endpoint.prompts import Prompts, TextMeasure
from nexusbench.endpoint.stream import Answer, StreamError, error_reason

PROBE_TOKENS = 4  # asked for in each probe
_PROMPT = 24
# Two lengths of text, in words, from which tokens per word follow.
_SHORT, _LONG = 32, 160
# A first token of the server's own, a last one.
_MOST_ADDED = 2
_TRIALS, _PAUSE_S, _TIMEOUT_S = 3, 0.5, 60.0
# The words of a request were not understood: others may be.
_NOT_UNDERSTOOD = (400, 404, 405, 415, 422, 501)
_NO_SUCH_PATH = (404, 405, 501)


class Findings(msgspec.Struct):
    """What a server was found to take; ``notes`` are sentences for people."""

    model: str
    max_model_len: int | None
    dialect: Dialect
    measure: TextMeasure | None  # for text
    notes: list[str]


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class Wish(msgspec.Struct, frozen=True):
    """What the user said; None leaves it to the server."""

    model: str | None
    api: Api | None
    prompt: Literal["auto", "ids", "text"]
    vocab_size: int
    timeout_s: float
    key: str = ""


class _Refused(Exception):
    """A probe was answered with an error; its text is the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def probe(address: Address, wish: Wish) -> Findings:
    """Ask the server. Raises UsageError where the user has to choose, NexusbenchError for a server
    that is not there or answers nothing that a replay could use.
    """
    return _Probe(address, wish).run()


class _Probe:
    def __init__(self, address: Address, wish: Wish) -> None:
        self.address, self.wish = address, wish
        self.notes: list[str] = []

    def run(self) -> Findings:
        model, length = self._model()
        dialect, counted = self._dialect(model)
        measure = None
        if dialect.prompt == "text":
            measure = self._measure(Letterhead(self.address, model, dialect, self.wish.key))
        elif counted > _PROMPT:
            self.notes.append(f"the server adds {counted - _PROMPT} to the token ids of a prompt")
        return Findings(model, length, dialect, measure, self.notes)

    def _model(self) -> tuple[str, int | None]:
        """The model's name and context length."""
        status, body = self._fetch("GET", "/models", b"")
        _check_admission(status, self._redact(error_reason(status, body)))
        known: list[_Model] = []
        if status == 200:
            try:
                known = msgspec.json.decode(body, type=_Models).data
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.notes.append("its list of models cannot be read")
        wanted = self.wish.model
        names = [model.id for model in known]
        if wanted is None:
            if len(known) == 1:
                return known[0].id, known[0].max_model_len
            what = f"has {len(known)} models: {', '.join(names[:8])}" if known else "names no model"
            raise UsageError(f"{self.address.url} {what}. Choose one with --model NAME")
        if known and wanted not in names:
            raise UsageError(
                f"{self.address.url} has no model '{wanted}'. {did_you_mean(wanted, names)}"
            )
        return wanted, next((m.max_model_len for m in known if m.id == wanted), None)

    def _dialect(self, model: str) -> tuple[Dialect, int]:
        """The first way to ask that is understood, and how many prompt tokens the server saw."""
        refusals: dict[str, None] = {}
        apis: list[Api] = [self.wish.api] if self.wish.api else ["completions", "chat"]
        for api in apis:
            for dialect in dialects(api, self.wish.prompt):
                letterhead = Letterhead(self.address, model, dialect, self.wish.key)
                words = _Text(dialect, self.wish.vocab_size)
                try:
                    answer = self._ask(letterhead, words.of(_PROMPT))
                except _Refused as error:
                    refusals[f"{dialect.prompt}: {error}"] = None
                    if error.status in _NO_SUCH_PATH and api == "completions":
                        break
                    continue
                if dialect.prompt == "ids" and self._misread(answer):
                    refusals[f"ids: counted {answer.prompt_tokens} for {_PROMPT}"] = None
                    continue
                self._note_dialect(dialect, list(refusals))
                return dialect, answer.prompt_tokens
        raise NexusbenchError(
            f"{self.address.url} takes no completion of '{model}': {'; '.join(refusals)}"
        )

    def _misread(self, answer: Answer) -> bool:
        """Token ids were taken for something else."""
        counted = answer.prompt_tokens
        return counted >= 0 and not _PROMPT <= counted <= _PROMPT + _MOST_ADDED

    def _note_dialect(self, dialect: Dialect, refusals: list[str]) -> None:
        if dialect.prompt == "text" and self.wish.prompt == "auto" and dialect.api != "chat":
            why = next((text for text in refusals if text.startswith("ids: ")), "")
            self.notes.append(f"token ids are refused ({why.removeprefix('ids: ')})")
        if not dialect.pinned:
            self.notes.append("it does not take min_tokens and ignore_eos: answers may be short")
        if dialect.usage == "none":
            self.notes.append("it does not take stream_options: nothing is counted by it")

    def _measure(self, letterhead: Letterhead) -> TextMeasure:
        """Tokens per word, from two texts."""
        words = _Text(letterhead.dialect, self.wish.vocab_size)
        try:
            short, long = (
                self._ask(letterhead, words.of(count)).prompt_tokens for count in (_SHORT, _LONG)
            )
        except _Refused as error:
            raise NexusbenchError(f"{self.address.url}: a text of {_LONG} words: {error}") from None
        if short < 0 or long <= short:
            self.notes.append("it does not count prompts: a word is taken for a token")
            return TextMeasure()
        per_word = (long - short) / (_LONG - _SHORT)
        return TextMeasure(per_word, short - per_word * _SHORT)

    def _ask(self, letterhead: Letterhead, prompt: bytes) -> Answer:
        """One streamed answer. Raises _Refused for words it does not take."""
        status, body = self._fetch(
            "POST", letterhead.dialect.path, letterhead.body(prompt, PROBE_TOKENS)
        )
        reason = self._redact(error_reason(status, body))
        _check_admission(status, reason)
        if status in _NOT_UNDERSTOOD:
            raise _Refused(status, reason)
        if status != 200:
            raise NexusbenchError(f"{self.address.url} answers {reason}")
        answer = Answer()
        try:
            answer.feed(body, now_ns())
            answer.close(now_ns())
        except StreamError as error:
            raise _Refused(status, self._redact(str(error))) from None
        if not (answer.done or answer.stopped):
            raise _Refused(status, "it answers without a stream of events")
        return answer

    def _fetch(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body. Raises NexusbenchError if none comes, or the server is out of order."""
        fault = ""
        for trial in range(_TRIALS):
            if trial:
                sleep(_PAUSE_S)
            try:
                with self._connection() as line:
                    headers = Letterhead(self.address, "", _PLAIN, self.wish.key).headers()
                    line.request(method, self.address.base + path, body or None, headers)
                    response = line.getresponse()
                    status, found = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                fault = _words(error)
                continue
            if status < 500 or status in _NOT_UNDERSTOOD:
                return status, found
            fault = self._redact(error_reason(status, found))
        raise NexusbenchError(f"{self.address.url} gives no answer: {fault}. Is the server up?")

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        address, timeout = self.address, min(self.wish.timeout_s, _TIMEOUT_S)
        line: http.client.HTTPConnection
        if address.tls:
            context = ssl.create_default_context()
            line = http.client.HTTPSConnection(
                address.host, address.port, timeout=timeout, context=context
            )
        else:
            line = http.client.HTTPConnection(address.host, address.port, timeout=timeout)
        try:
            yield line
        finally:
            line.close()

    def _redact(self, text: str) -> str:
        return text.replace(self.wish.key, "***") if self.wish.key else text


_PLAIN = Dialect("completions", "text", False, "none")


class _Text:
    """Prompts of a probe: of so many ids, or so many words."""

    def __init__(self, dialect: Dialect, vocab_size: int) -> None:
        measure = TextMeasure() if dialect.prompt == "text" else None
        self._prompts = Prompts(0, 512, vocab_size, measure)

    def of(self, length: int) -> bytes:
        request: Any = Request("probe", -1, 0, length, PROBE_TOKENS, length + PROBE_TOKENS)
        return self._prompts.of(request)


def _check_admission(status: int, reason: str) -> None:
    if status in (401, 403):
        raise NexusbenchError(
            f"the server lets nobody in without the right key: {reason}. Put it into an "
            "environment variable and name that with --api-key-env"
        )
    if status == 429:
        raise NexusbenchError(f"the server takes no more requests: {reason}")


def _words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "timed out"
    return " ".join(str(error).split()) or type(error).__name__
