"""The host of a serving engine: what it adds to a step and to a request, in place of nothing but
a GPU's constant. Read from ``data/engines`` by ``physics/host.py``.

Like the physics it uses + - * / and comparisons only (invariant I6).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

US = 1e3  # ns

HostMicros = Annotated[float, Meta(ge=0, le=1e6)]  # up to a second, as in a GPU's file


class EngineHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The host of one version of a serving engine; times in microseconds.

    Of a step: ``step_us``, ``sequence_us`` (for each sequence of the batch) and ``prompt_layer_us``
    (for each layer of a step with prompt tokens, which no CUDA graph holds) are host work, which
    ``asynchronous`` scheduling does while the GPU computes the step before; ``gap_us`` is what the
    GPU waits for between two steps in any case (launch, sampled tokens). Of a request: one process
    takes ``request_us`` and ``prompt_token_us`` for each of its tokens, one request after the other
    (HTTP, tokenizing), and ``reply_us`` pass besides (to the scheduler, and the first token back).
    The same process streams every token that a step makes: a request waits ``stream_us`` for each
    request that is served when it arrives, on its way in and out together. With ``asynchronous``
    scheduling the next step is planned when the one before begins, so a request that arrives while
    the GPU is busy waits for one step more; so it is where steps are ``overlapped``, though not all
    of their host work is hidden.

    ``scheduler`` names the policy here whose rules are nearest to the engine's: what replays
    of it run under where nothing else is asked.
    """

    name: str
    about: Annotated[str, Meta(min_length=1)]
    scheduler: Annotated[str, Meta(min_length=1, max_length=200)]
    asynchronous: bool
    gap_us: HostMicros
    step_us: HostMicros
    sequence_us: HostMicros
    request_us: HostMicros
    prompt_token_us: HostMicros
    reply_us: HostMicros
    stream_us: HostMicros = 0.0
    prompt_layer_us: HostMicros = 0.0
    overlapped: bool = False

    @property
    def plans_ahead(self) -> bool:
        """Whether the next step is planned when the one before begins."""
        return self.asynchronous or self.overlapped

    def work_ns(self, sequences: int, prompt_layers: int) -> float:
        """Ns of host work for a step of so many ``sequences``, with prompt tokens in so many
        layers (0: it has none).
        """
        made = self.step_us + self.sequence_us * sequences + self.prompt_layer_us * prompt_layers
        return made * US

    def step_ns(self, gpu_ns: float, sequences: int, prompt_layers: int = 0) -> float:
        """Ns from one step to the next: of ``gpu_ns`` of kernels, of such a step."""
        host = self.work_ns(sequences, prompt_layers)
        gpu = gpu_ns + self.gap_us * US
        if self.asynchronous:
            return gpu if gpu > host else host
        return gpu + host

    def desk_ns(self, prompt_tokens: int) -> int:
        """Ns that a request keeps the server's one front-end process busy."""
        return int((self.request_us + self.prompt_token_us * prompt_tokens) * US)

    def reply_ns(self, served: int) -> int:
        """Ns that a request and its first token are under way besides, among ``served`` others."""
        return int((self.reply_us + self.stream_us * served) * US)


def constants_of(host: EngineHost) -> dict[str, object]:
    """What decides times, without words: for fingerprints."""
    return {
        key: value
        for key, value in msgspec.structs.asdict(host).items()
        if key not in ("name", "about", "scheduler")
    }
