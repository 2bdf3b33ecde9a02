"""A skip-join multi-level feedback queue (FastServe, arXiv 2305.05920), without its memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from nexusbench.core.request import RequestView


class MlfqJob:
    """A request's place: its level, the ns that it has run there (``used``), and when it ran last.

    ``place`` orders the jobs of one level that have ``begun`` to run, smaller first; ``earned`` is
    the level whose quantum it has: its own, or that from which it was promoted. ``lost``: it was
    preempted without a copy of its KV.
    """

    __slots__ = ("begun", "earned", "idle_since", "level", "lost", "place", "request", "used")

    def __init__(self, request: RequestView, level: int) -> None:
        self.request = request
        self.level = self.earned = level
        self.begun = self.lost = False
        self.place = self.used = 0
        self.idle_since = request.arrival_ns


class _Level:
    """Jobs that have run here, were demoted or promoted to here; and jobs that never ran."""

    __slots__ = ("begun", "fresh")

    def __init__(self) -> None:
        self.begun: OrderedDict[int, MlfqJob] = OrderedDict()
        self.fresh: dict[int, MlfqJob] = {}


def _sorted(
    jobs: Iterable[MlfqJob], key: Callable[[RequestView], float] | None
) -> Iterator[MlfqJob]:
    """``jobs`` in order of ``key``, sorted only when the first is taken."""
    if key is None:
        yield from jobs
    else:
        yield from sorted(jobs, key=lambda job: (key(job.request), job.request.index))


class Mlfq:
    """Levels of falling priority; the quantum of level i is ``quantum_ns`` x 2^i.

    A job joins the first level whose quantum its first iteration fits into, at the end; is demoted
    one level, to the front, when it has run for longer than its quantum there; is promoted to level
    0 when it has been idle too long. There is no lowest level: quanta go on doubling. With
    ``keeps`` a promoted job keeps the quantum of its level before, and is then demoted below that.
    One that lost its KV keeps it in any case: with a first quantum that ends before its next token
    it would recompute for ever, while quanta that double reach that token.
    """

    def __init__(self, quantum_ns: int, *, keeps: bool = False) -> None:
        self._quantum, self._keeps = quantum_ns, keeps
        self._levels: dict[int, _Level] = {}
        self._front = self._back = 0
        self.jobs: dict[int, MlfqJob] = {}  # by index of the request

    def join(self, request: RequestView, first_ns: float) -> None:
        """A new request, whose first iteration is expected to take ``first_ns``."""
        level = 0
        while self._quantum << level < first_ns:
            level += 1
        job = self.jobs[request.index] = MlfqJob(request, level)
        self._level(level).fresh[request.index] = job

    def leave(self, request: RequestView) -> None:
        """It has ended."""
        job = self.jobs.pop(request.index, None)
        if job is not None:
            self._take(job)

    def begin(self, request: RequestView) -> None:
        """It is about to run, and from now on is before the jobs of its level that never ran."""
        job = self.jobs[request.index]
        if not job.begun:
            self._move(job, job.level)

    def ran(self, requests: Sequence[RequestView], took_ns: int, now: int) -> None:
        """An iteration of these has ended after ``took_ns``; demote those with no quantum left."""
        spent = []
        for request in requests:
            job = self.jobs[request.index]
            job.idle_since = now
            job.used += took_ns
            if job.used > self._quantum << job.earned:
                spent.append(job)
        for job in reversed(spent):  # so that they keep their order at the front
            job.earned += 1
            self._move(job, job.earned, front=True)

    def promote(self, idle_ns: float, now: int) -> None:
        """Promote all jobs that have been idle for ``idle_ns`` to level 0."""
        starved = [job for job in self.jobs.values() if job.level]
        for job in starved:
            if now - job.idle_since >= idle_ns:
                job.earned = job.earned if self._keeps or job.lost else 0
                self._move(job, 0)

    def levels(
        self, fresh_key: Callable[[RequestView], float] | None
    ) -> Iterator[tuple[Iterable[MlfqJob], Iterable[MlfqJob]]]:
        """By level, highest first: jobs that have begun; jobs that never ran, in order of
        ``fresh_key`` (None: of arrival).
        """
        for number in sorted(self._levels):
            level = self._levels[number]
            yield level.begun.values(), _sorted(level.fresh.values(), fresh_key)

    def _level(self, number: int) -> _Level:
        if number not in self._levels:
            self._levels[number] = _Level()
        return self._levels[number]

    def _take(self, job: MlfqJob) -> None:
        level = self._levels[job.level]
        level.begun.pop(job.request.index, None)
        level.fresh.pop(job.request.index, None)

    def _move(self, job: MlfqJob, number: int, *, front: bool = False) -> None:
        self._take(job)
        job.begun = True
        if number != job.level:
            job.level, job.used = number, 0
        begun = self._level(number).begun
        begun[job.request.index] = job
        if front:
            self._front -= 1
            job.place = self._front
            begun.move_to_end(job.request.index, last=False)
        else:
            self._back += 1
            job.place = self._back
