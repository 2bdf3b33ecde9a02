"""Before a replay: what does this server take, what does it call its model, how does it count?"""

from __future__ import annotations

import ssl
from typing import Any, Literal

import msgspec

from nexusbench.core.clock import now_ns, sleep
from nexusbench.core.errors import NexusbenchError, UsageError
from nexusbench.core.registry import did_you_mean
from nexusbench.core.request import Request
from nexusbench.core.units import MIB, NS_PER_S
from nexusbench.endpoint.address import Address
from nexusbench.endpoint.connection import ERROR_BYTES, name_fault
from nexusbench.endpoint.dialect import Api, Dialect, Letterhead, dialects
from nexusbench.endpoint.fetching import fetch
from nexusbench.endpoint.prompts import ReplayPrompts, TextMeasure
from nexusbench.endpoint.sayings import UNREADABLE, error_reason
from nexusbench.endpoint.stream import Answer, BadEnd, Endless, StreamError
from nexusbench.endpoint.words import Words

PROBE_TOKENS = 4  # asked for in each probe
_PROMPT = 24
# Two lengths of text, in words, from which tokens per word follow.
_SHORT, _LONG = 32, 160
# A first token of the server's own, a last one.
_MOST_ADDED = 2
_TRIALS, _PAUSE_S = 3, 0.5
# How long one answer may take (or --timeout, if that is less), and all of them together.
ANSWER_S, TOGETHER_S = 60.0, 180.0
PROBE_BYTES = 4 * MIB  # of one answer; the list of models of a large provider has 1 MiB
_NAME = 200  # characters of a model's name that are shown
# The words of a request were not understood: others may be.
_NOT_UNDERSTOOD = (400, 404, 405, 415, 422, 501)
_NO_SUCH_PATH = (404, 405, 501)
_OK, _BROKEN = 200, 500
_LISTED = 1000  # models among which a near name is looked for
_MOST_CONTEXT = 2**40
_MOST_PER_WORD = 10  # tokens: the words of our prompts have nine letters at most


class Findings(msgspec.Struct):
    """What a server was found to take; ``notes`` are sentences for people."""

    model: str
    max_model_len: int | None
    dialect: Dialect
    measure: TextMeasure | None  # for text
    notes: list[str]


class _ListedModel(msgspec.Struct):
    id: str
    max_model_len: Any = None


class _Models(msgspec.Struct):
    data: list[_ListedModel]


class Wish(msgspec.Struct, frozen=True):
    """What the user said; None leaves it to the server."""

    model: str | None
    api: Api | None
    prompt: Literal["auto", "ids", "text"]
    vocab_size: int
    timeout_s: float
    key: str = ""

    def __repr__(self) -> str:
        return f"Wish({self.model}, {self.api}, {self.prompt})"


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
        self._words = Words(wish.key)
        self._context = ssl.create_default_context() if address.tls else None
        self._deadline = now_ns() + round(TOGETHER_S * NS_PER_S)

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
        reply = self._fetch(
            Letterhead(self.address, "", _PLAIN, self.wish.key).get("/models"), streamed=False
        )
        _check_admission(reply.status, self._words.of(error_reason(reply.status, reply.body)))
        known: list[_ListedModel] = []
        if reply.status == _OK:
            try:
                known = msgspec.json.decode(reply.body, type=_Models).data
            except UNREADABLE:
                self.notes.append("its list of models cannot be read")
        wanted = self.wish.model
        if wanted is None:
            if len(known) == 1:
                return known[0].id, self._length(known[0])
            names = ", ".join(self._words.of(model.id, _NAME) for model in known[:8])
            what = f"has {len(known)} models: {names}" if known else "names no model"
            raise UsageError(f"{self.address.url} {what}. Choose one with --model NAME")
        found = [model for model in known if model.id == wanted]
        if known and not found:
            near = did_you_mean(wanted, [self._words.of(m.id, _NAME) for m in known[:_LISTED]])
            raise UsageError(f"{self.address.url} has no model '{wanted}'. {near}")
        return wanted, self._length(found[0]) if found else None

    def _length(self, model: _ListedModel) -> int | None:
        """The context length that the server states, where that is one."""
        length = model.max_model_len
        if length is None or (type(length) is int and 0 < length <= _MOST_CONTEXT):
            return length
        self.notes.append("the context length that it states is no number of tokens: left out")
        return None

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
                    refusals[f"ids: counted {answer.usage.prompt} for {_PROMPT}"] = None
                    continue
                self._note_dialect(dialect, list(refusals))
                return dialect, answer.usage.prompt
        raise NexusbenchError(
            f"{self.address.url} takes no completion of '{self._words.of(model, _NAME)}': "
            f"{'; '.join(refusals)}"
        )

    def _misread(self, answer: Answer) -> bool:
        """Token ids were taken for something else."""
        counted = answer.usage.prompt
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
                self._ask(letterhead, words.of(count)).usage.prompt for count in (_SHORT, _LONG)
            )
        except _Refused as error:
            raise NexusbenchError(f"{self.address.url}: a text of {_LONG} words: {error}") from None
        if short < 0 or long <= short:
            self.notes.append("it does not count prompts: a word is taken for a token")
            return TextMeasure()
        per_word = (long - short) / (_LONG - _SHORT)
        if not 1 / _MOST_PER_WORD <= per_word <= _MOST_PER_WORD:
            self.notes.append(
                f"it counts {short:,} and {long:,} tokens for {_SHORT} and {_LONG} words, which "
                "cannot be: a word is taken for a token"
            )
            return TextMeasure()
        return TextMeasure(per_word, short - per_word * _SHORT)

    def _ask(self, letterhead: Letterhead, prompt: bytes) -> Answer:
        """One streamed answer. Raises _Refused for words it does not take."""
        reply = self._fetch(letterhead.request(prompt, PROBE_TOKENS), streamed=True)
        status, answer = reply.status, reply.answer
        reason = self._words.of(error_reason(status, reply.body))
        _check_admission(status, reason)
        if status in _NOT_UNDERSTOOD:
            raise _Refused(status, reason)
        if status != _OK:
            raise NexusbenchError(f"{self.address.url} answers {reason}")
        try:
            if reply.fault is not None:
                raise reply.fault
            answer.close(now_ns())
            answer.end()
        except BadEnd as error:  # it took the words; what becomes of requests is counted later
            self._note(f"a request of {PROBE_TOKENS} tokens {self._words.of(str(error))}")
        except StreamError as error:
            raise _Refused(status, self._words.of(str(error))) from None
        return answer

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _fetch(self, request: bytes, *, streamed: bool) -> _Reply:
        """The answer. What breaks or is answered with 5xx is tried again; what takes too long is
        not. Raises NexusbenchError if there is none, or the server is out of order.
        """
        fault = ""
        for trial in range(_TRIALS):
            if trial:
                sleep(_PAUSE_S)
            reply = _Reply(streamed=streamed)
            try:
                fetch(
                    self.address,
                    self._context,
                    request,
                    most_bytes=PROBE_BYTES,
                    deadline_ns=min(self._deadline, now_ns() + round(self._answer_s * NS_PER_S)),
                    take=reply.take,
                )
            except StreamError as error:
                said = self._words.of(str(error))
                raise NexusbenchError(f"{self.address.url} gives no answer: {said}") from None
            except OSError as error:
                if isinstance(error, TimeoutError) and error.errno is None:
                    fault = self._late()
                    break
                fault = name_fault(error)
                continue
            if reply.status < _BROKEN or reply.status in _NOT_UNDERSTOOD:
                return reply
            fault = self._words.of(error_reason(reply.status, reply.body))
        raise NexusbenchError(f"{self.address.url} gives no answer: {fault}. Is the server up?")

    def _late(self) -> str:
        if now_ns() >= self._deadline:
            return f"what it is asked first took more than {TOGETHER_S:g} s"
        return f"no end within {self._answer_s:g} s"

    @property
    def _answer_s(self) -> float:
        return min(self.wish.timeout_s, ANSWER_S)


class _Reply:
    """The answer to one request: the status, and the stream if one is asked for, else the body."""

    def __init__(self, *, streamed: bool) -> None:
        self._streamed = streamed
        self.status = 0
        self.answer = Answer()
        self.fault: StreamError | None = None  # of the stream
        self.body = b""

    def take(self, status: int, piece: bytes) -> bool:
        """Take in a piece of the body; True if no more is needed."""
        self.status = status
        if status != _OK or not self._streamed:
            self.body += piece
            return status != _OK and len(self.body) > ERROR_BYTES
        try:
            self.answer.feed(piece, now_ns())
        except Endless:
            raise  # to be asked otherwise does not help
        except StreamError as error:
            self.fault = error
        return self.answer.done or self.fault is not None


_PLAIN = Dialect("completions", "text", False, "none")


class _Text:
    """Prompts of a probe: of so many ids, or so many words."""

    def __init__(self, dialect: Dialect, vocab_size: int) -> None:
        measure = TextMeasure() if dialect.prompt == "text" else None
        self._prompts = ReplayPrompts(0, 512, vocab_size, measure)

    def of(self, length: int) -> bytes:
        request: Any = Request("probe", -1, 0, length, PROBE_TOKENS, length + PROBE_TOKENS)
        return self._prompts.of(request)


def _check_admission(status: int, reason: str) -> None:
    if status in (401, 403):
        raise NexusbenchError(
            f"the server accepts no request without the right key: {reason}. Put it into an "
            "environment variable and name that with --api-key-env"
        )
    if status == 429:
        raise NexusbenchError(f"the server takes no more requests: {reason}")
