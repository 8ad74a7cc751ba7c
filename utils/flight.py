"""Requests in flight: workers that retry, back off, slow down at 429, and stop at a limit or dead end."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import httpx
import openai

from utils.chat_hosts import REACH, REMEDY, Dialect
from utils.llm import Provider, client
from utils.records import whole_characters
from utils.replies import UNREADABLE, Answer, read_reply, seconds_of
from utils.run import CourseError

TRIES = 6  # attempts per request
BUSY = {429, 503}  # the host asks for patience: everybody waits, and fewer are sent
REFUSALS = 24  # a request may meet so many of those, while others are answered
BURSTS = 8  # so many bursts of them with no answer between them end the run; two minutes without Retry-After
OTHER_FORM = "other form"  # refused as it was sent; the host may take it as a chat, or with less
BREAK_AFTER = 12  # equal failures in a row, with no success between them, end the run if they are of
BREAK_REQUESTS = 4  # so many requests: a document or two that no model answers are no dead end
FATAL = {400: 8, 401: 1, 402: 1, 403: 1, 404: 1, 405: 1, 422: 8}  # the same where no retry can mend it
OF_ONE_TEXT = {400, 403, 404, 405, 422}  # once the host has answered, these may be their texts' fault


@dataclass(frozen=True)
class Request:
    """One call: the body of `/completions` or `/chat/completions`, without the model; the ledger's tag."""

    body: dict
    tag: str = ""
    group: str = ""  # requests of one group run one after the other: the server still has their common prompt


@dataclass(frozen=True)
class Limits:
    """When to stop with what is done (0: no limit). Prices: per million tokens. timeout: seconds a call."""

    max_cost: float = 0.0
    max_calls: int = 0
    max_minutes: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    in_flight: int = 16
    timeout: float = 120.0
    backoff: float = 1.0  # seconds before the first retry; doubles with each

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6


@dataclass
class Spent:
    """What has counted against the limits so far: calls with all retries, cost, seconds of waiting."""

    calls: int = 0
    cost: float = 0.0
    seconds: float = 0.0


class Flight:
    """All requests of one `ask`. `land(i, answer, final)` is called for every attempt's outcome."""

    def __init__(
        self,
        provider: Provider,
        requests: Sequence[Request],
        limits: Limits,
        land: Callable,
        spent: Spent,
        dialect: Dialect,
    ) -> None:
        self.provider, self.requests, self.limits, self.land = provider, requests, limits, land
        self.spent, self.dialect = spent, dialect
        self.allowed = float(limits.in_flight)  # requests in flight; halves at a burst of 429, creeps back
        self.flying = 0
        self.refused_at = self.resume_at = 0.0
        self.same: list[int] = []  # the requests behind the latest failures, all alike
        self.failures = 0  # how many those were; a burst of 429 is one
        self.last = self.stopped = ""
        self.started = time.monotonic() - spent.seconds

    async def run(self, urls: Sequence[str], indices: Sequence[int]) -> str:
        """Answer the requests at `indices`, the workers spread over the base URLs; returns why it stopped
        early, or an empty text."""
        groups: dict[object, list[int]] = {}
        for i in indices:
            groups.setdefault(self.requests[i].group or i, []).append(i)
        waiting = deque(groups.values())
        slow = self.limits.timeout
        async with AsyncExitStack() as stack:
            open_client = partial(client, self.provider, asynchronous=True, timeout=slow)
            apis = [await stack.enter_async_context(open_client(url)) for url in urls]
            workers = [
                asyncio.create_task(self._work(apis[number % len(apis)], waiting))
                for number in range(min(self.limits.in_flight, len(waiting)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.stopped

    async def _work(self, api: openai.AsyncOpenAI, waiting: deque) -> None:
        while waiting and await self._turn():
            for index in waiting.popleft() if waiting else ():
                await self._serve(api, index)

    async def _turn(self) -> bool:
        """Wait until a call may be sent: nobody has asked for a pause, and fewer are under way than allowed.
        False: a limit was reached."""
        while not self._limit():
            pause = self.resume_at - time.monotonic()
            if pause <= 0 and self.flying < max(self.allowed, 1):
                return True
            await asyncio.sleep(min(max(pause, 0), self._seconds_left()) + random.uniform(0.005, 0.02))
        return False

    async def _serve(self, api: openai.AsyncOpenAI, index: int) -> None:
        failed = refused = 0
        while await self._turn():
            sent = time.monotonic()
            answer, status, retry_after = await self._call(api, self.requests[index])
            self.spent.cost += self.limits.cost(answer.tokens_in, answer.tokens_out)  # also if it is empty
            if not answer.error:
                self.same, self.failures, self.last = [], 0, ""
                self.allowed = min(self.limits.in_flight, self.allowed + 1 / self.allowed)
                self.land(index, answer, True)
                return
            if status == OTHER_FORM:
                self.land(index, answer, False)
                continue
            await self._others_may_succeed(status)
            burst = status in BUSY and sent < self.refused_at  # sent before anybody knew: counted already
            self._count_failure(index, status, burst)
            failed, refused = failed + (status not in BUSY), refused + (status in BUSY)
            enough = refused >= REFUSALS or self.failures >= BURSTS if status in BUSY else failed >= TRIES
            over = self._limit()
            final = enough or status in FATAL or bool(over)
            self.land(index, answer, final)
            if not (over and status == "timeout"):  # the end of the run cut it off
                self._end_if_dead(status, answer.error)
            if final:
                return
            pause = self._pause(status, failed, retry_after)
            if status in BUSY:
                self._slow_down(pause, burst)
            else:
                await asyncio.sleep(min(pause, self._seconds_left()))

    def _slow_down(self, pause: float, burst: bool) -> None:
        now = time.monotonic()
        self.resume_at = max(self.resume_at, now + pause)
        if not burst:
            self.refused_at, self.allowed = now, max(1.0, self.allowed / 2)

    def _pause(self, status: int | str, failed: int, retry_after: float | None) -> float:
        """Seconds to wait: as the host asks; if it refuses again after that, a growing while at least."""
        times = self.failures if status in BUSY else failed
        backoff = self.limits.backoff * 2 ** max(times - 1, 0) * random.uniform(0.75, 1.25)
        if retry_after is not None:
            backoff = max(retry_after, backoff if status in BUSY and times > 1 else 0)
        return min(backoff, 120)

    async def _call(
        self, api: openai.AsyncOpenAI, request: Request
    ) -> tuple[Answer, int | str, float | None]:
        """(answer, HTTP status or kind of failure, seconds of Retry-After)"""
        self.spent.calls += 1
        self.flying += 1
        began, patience = time.monotonic(), min(self.limits.timeout, self._seconds_left())
        sent = self.dialect.phrase(request.body)
        create = api.chat.completions.create if "messages" in sent else api.completions.create
        try:
            async with asyncio.timeout(patience):
                reply = await create(model=self.provider.model, **sent)
            self.dialect.answered(sent)
            answer = read_reply(reply, request.body.get("prompt", ""))
            answer.seconds = round(time.monotonic() - began, 3)
            return answer, 200 if not answer.error else "empty", None
        except openai.APIStatusError as error:
            status, header = error.status_code, error.response.headers.get("retry-after")
            failed = self._failed(f"HTTP {status}: {error.message}", began)
            if getattr(error, "code", None) == "insufficient_quota":  # OpenAI's 429 for an empty account
                return failed, 402, None
            if "empty grammar stack" in error.message:  # llama.cpp cannot replay half a character's token
                return failed, 422, None
            if self.dialect.learn(request.body, sent, status, error.message):
                status = OTHER_FORM
            return failed, status, seconds_of(header)
        except (TimeoutError, openai.APITimeoutError):
            reason = f"not answered: {self.stopped} was reached" if self._limit() else ""
            return self._failed(reason or f"no answer in {patience:.0f} s", began), "timeout", None
        except (openai.APIError, httpx.HTTPError, *UNREADABLE) as error:
            cause = error.__cause__ or error
            return self._failed(f"{type(error).__name__}: {cause}", began), type(error).__name__, None
        finally:
            self.flying -= 1

    def _failed(self, reason: str, began: float) -> Answer:
        plain = whole_characters(self.provider.scrub(re.sub(r"\s+", " ", reason)))[:200]
        return Answer(error=plain, seconds=round(time.monotonic() - began, 3))

    async def _others_may_succeed(self, status: int | str) -> None:
        """Refused before the first answer: what else is under way shows whether it is this text alone."""
        while status in OF_ONE_TEXT and self.flying and not self.dialect.worked:
            await asyncio.sleep(0.02)

    def _count_failure(self, index: int, status: int | str, burst: bool) -> None:
        alike = str(status) == self.last
        self.same = [*self.same, index] if alike else [index]
        self.failures = (self.failures if alike else 0) + (not burst or not alike)
        self.last = str(status)

    def _end_if_dead(self, status: int | str, reason: str) -> None:
        if self.dialect.worked and status in OF_ONE_TEXT:
            return  # they are listed, each after one call
        fatal = FATAL.get(status)
        most = fatal or (BURSTS if status in BUSY else BREAK_AFTER)
        if self.failures >= most and (fatal or len(set(self.same)) >= BREAK_REQUESTS):
            where = f"model {self.provider.model!r} at {self.provider.base_url or 'the embedded server'}"
            remedy = REMEDY.get(status, REACH)
            raise CourseError(
                f"{len(self.same)} call(s) in a row failed alike, {where}: {reason}. {remedy} "
                f"What was answered is kept; run again to go on from there."
            )

    def _seconds_left(self) -> float:
        most = self.limits.max_minutes
        return max(self.started + 60 * most - time.monotonic(), 0.0) if most else math.inf

    def _limit(self) -> str:
        limits, spent = self.limits, self.spent
        spent.seconds = time.monotonic() - self.started
        minutes = spent.seconds / 60
        reached = {
            f"MAX_CALLS = {limits.max_calls}": limits.max_calls and spent.calls >= limits.max_calls,
            f"MAX_MINUTES = {limits.max_minutes}": limits.max_minutes and minutes >= limits.max_minutes,
            f"MAX_COST = {limits.max_cost}": limits.max_cost and spent.cost >= limits.max_cost,
        }
        self.stopped = next((name for name, over in reached.items() if over), "")
        return self.stopped
