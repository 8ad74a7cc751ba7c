"""Dynamic batching for the server: rows of all clients share one queue and one warm onnxruntime session.

Kept batching libraries (LitServe, batched) count requests or items; an encoder's cost is its padded tokens,
so batches are cut by a token budget here. There is no waiting time: while one batch computes, the next fills.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from utils.onnx_encoder import OnnxEncoder

log = logging.getLogger("uvicorn.error")
FAILURES = 5  # batches in a row after which the encoder counts as broken


class QueueFull(Exception):
    """The queue holds as many tokens as it may; `retry_after` says in how many seconds it should not."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Job:
    """One request: rows shortest first, the vectors that have come so far, and where to deliver them."""

    def __init__(self, rows: Sequence[list[int]], dimensions: int, loop: asyncio.AbstractEventLoop) -> None:
        self.rows = rows
        self.waiting = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        self.lengths = [len(rows[i]) for i in self.waiting]
        self.vectors = np.empty((len(rows), dimensions), dtype=np.float32)
        self.missing = len(rows)
        self.loop = loop
        self.done: asyncio.Future = loop.create_future()
        self.dropped = False


class Batcher:
    """A thread that runs the encoder on the rows of all jobs, job after job in turn, by token budget."""

    def __init__(
        self,
        encoder: OnnxEncoder,
        batch_tokens: int,
        queue_tokens: int,
        on_batch: Callable[[int, int, float], None] = lambda rows, tokens, seconds: None,
    ) -> None:
        """batch_tokens: of one batch, padding included. queue_tokens: waiting at most, else `QueueFull`.

        on_batch(rows, tokens, seconds) is called after every batch, in the thread.
        """
        self.encoder = encoder
        self.batch_tokens, self.queue_tokens = batch_tokens, queue_tokens
        self.on_batch = on_batch
        self.waiting_tokens = 0
        self.tokens_per_second = 2000.0
        self.failures = 0  # batches in a row that failed
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    @property
    def sound(self) -> bool:
        """Whether the thread lives and the latest batches did not all fail."""
        return self._thread.is_alive() and self.failures < FAILURES

    async def encode(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Token id lists → float32 (len(rows), d). Raises QueueFull. Cancelling drops rows not yet begun."""
        tokens = sum(map(len, rows))
        job = Job(rows, self.encoder.card.dimensions, asyncio.get_running_loop())
        with self._changed:
            if self._jobs and self.waiting_tokens + tokens > self.queue_tokens:
                raise QueueFull(self.retry_after())
            self.waiting_tokens += tokens
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await job.done
        finally:
            if job.missing:
                self._drop(job)

    def retry_after(self) -> int:
        """Whole seconds until half the queue should be done, at the speed of the latest batches."""
        return max(1, math.ceil(self.waiting_tokens / 2 / self.tokens_per_second))

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _drop(self, job: Job) -> None:
        with self._changed:
            job.dropped = True
            self.waiting_tokens -= sum(job.lengths)
            job.waiting, job.lengths = [], []
            if job in self._jobs:
                self._jobs.remove(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                batch = self._next_batch()
            self._run(batch)

    def _next_batch(self) -> list[tuple[Job, int]]:
        """The longest row of the job whose turn it is, then others of half its length up to it."""
        longest = self._jobs[0].lengths[-1]
        room = max(1, self.batch_tokens // max(1, longest))
        batch: list[tuple[Job, int]] = []
        for job in self._jobs:
            end = bisect.bisect_right(job.lengths, longest)
            start = max(bisect.bisect_left(job.lengths, longest // 2), end - (room - len(batch)))
            batch += [(job, i) for i in job.waiting[start:end]]
            self.waiting_tokens -= sum(job.lengths[start:end])
            del job.waiting[start:end], job.lengths[start:end]
            if len(batch) >= room:
                break
        self._jobs.rotate(-1)
        self._jobs = deque(job for job in self._jobs if job.waiting)
        return batch

    def _run(self, batch: list[tuple[Job, int]]) -> None:
        """Compute one batch. If it fails, each request's rows are tried alone; never does the thread end."""
        started = time.perf_counter()
        try:
            vectors = self.encoder.run([job.rows[i] for job, i in batch])
            for (job, i), vector in zip(batch, vectors, strict=True):
                job.vectors[i] = vector
                job.missing -= 1
        except Exception as error:
            jobs = _jobs(batch)
            if len(jobs) > 1:
                for job in jobs:
                    self._run([(own, i) for own, i in batch if own is job])
                return
            log.exception("a batch of %d rows failed", len(batch))
            self.failures += 1
            jobs[0].loop.call_soon_threadsafe(_deliver, jobs[0], error)
            return
        self.failures = 0 if np.isfinite(vectors).any() else self.failures + 1
        seconds = time.perf_counter() - started
        tokens = sum(len(job.rows[i]) for job, i in batch)
        self.tokens_per_second += 0.1 * (tokens / max(seconds, 1e-6) - self.tokens_per_second)
        for job in _jobs(batch):
            if not job.missing:
                job.loop.call_soon_threadsafe(_deliver, job, None)
        self.on_batch(len(batch), tokens, seconds)


def _jobs(batch: list[tuple[Job, int]]) -> list[Job]:
    return list({id(job): job for job, _ in batch}.values())


def _deliver(job: Job, error: Exception | None) -> None:
    if job.done.done():
        return
    if error:
        job.done.set_exception(error)
    else:
        job.done.set_result(job.vectors)
