"""Requests in flight: workers that retry, back off, slow down at 429, and stop at a limit or dead end."""

from __future__ import annotations

import asyncio
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

from utils.chat_hosts import Dialect
from utils.llm import Provider, client
from utils.records import whole_characters
from utils.replies import UNREADABLE, Answer, read_reply, seconds_of
from utils.run import CourseError

TRIES = 6  # attempts per request
OTHER_FORM = "other form"  # refused as it was sent; the host may take it as a chat, or with less
BREAK_AFTER = 12  # equal failures in a row, with no success between them, end the run if they are of
BREAK_REQUESTS = 4  # so many requests: a document or two that no model answers are no dead end
FATAL = {400: 8, 401: 1, 403: 1, 404: 1, 405: 1, 422: 8}  # the same for failures that no retry can mend
REMEDY = {
    401: "The API key is wrong or missing: set LLM_API_KEY (or NVIDIA_API_KEY, OPENAI_API_KEY).",
    403: "The API key may not use this model: check the key and LLM.",
    404: "There is no such model or path: check LLM and LLM_BASE_URL (it usually ends in /v1).",
    "empty": "The model writes nothing: set LLM to another one.",
    429: "The host keeps refusing for rate or quota: lower IN_FLIGHT or wait.",
}


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
        self.allowed = float(limits.in_flight)  # requests in flight; halves at 429, creeps back
        self.resume_at = 0.0
        self.same: list[int] = []  # the requests behind the latest failures, all alike
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
                asyncio.create_task(self._work(apis[number % len(apis)], number, waiting))
                for number in range(min(self.limits.in_flight, len(waiting)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.stopped

    async def _work(self, api: openai.AsyncOpenAI, number: int, waiting: deque) -> None:
        while waiting and not self._limit():
            pause = self.resume_at - time.monotonic()
            if pause > 0 or number >= max(self.allowed, 1):
                await asyncio.sleep(max(pause, 0.02))
                continue
            for index in waiting.popleft():
                if not self._limit():
                    await self._serve(api, index)

    async def _serve(self, api: openai.AsyncOpenAI, index: int) -> None:
        attempt = 0
        while not self._limit():
            answer, status, retry_after = await self._call(api, self.requests[index])
            if not answer.error:
                self.same, self.last = [], ""
                self.allowed = min(self.limits.in_flight, self.allowed + 1 / self.allowed)
                self.spent.cost += self.limits.cost(answer.tokens_in, answer.tokens_out)
                self.land(index, answer, True)
                return
            if status == OTHER_FORM:
                self.land(index, answer, False)
                continue
            attempt += 1
            final = status in FATAL or attempt == TRIES or bool(self._limit())
            self.land(index, answer, final)
            self._count_failure(index, status, answer.error)
            if final:
                return
            if status == 429:
                self.allowed = max(1.0, self.allowed / 2)
            backoff = self.limits.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            pause = min(retry_after if retry_after is not None else backoff, 120)
            if status in (429, 503):
                self.resume_at = max(self.resume_at, time.monotonic() + pause)
            await asyncio.sleep(pause)

    async def _call(
        self, api: openai.AsyncOpenAI, request: Request
    ) -> tuple[Answer, int | str, float | None]:
        """(answer, HTTP status or kind of failure, seconds of Retry-After)"""
        self.spent.calls += 1
        began = time.monotonic()
        sent = self.dialect.phrase(request.body)
        create = api.chat.completions.create if "messages" in sent else api.completions.create
        try:
            async with asyncio.timeout(self.limits.timeout):
                reply = await create(model=self.provider.model, **sent)
            self.dialect.answered(sent)
            answer = read_reply(reply, request.body.get("prompt", ""))
            answer.seconds = round(time.monotonic() - began, 3)
            return answer, 200 if not answer.error else "empty", None
        except openai.APIStatusError as error:
            status, header = error.status_code, error.response.headers.get("retry-after")
            failed = self._failed(f"HTTP {status}: {error.message}", began)
            if self.dialect.learn(request.body, sent, status, error.message):
                status = OTHER_FORM
            return failed, status, seconds_of(header)
        except (TimeoutError, openai.APITimeoutError):
            return self._failed(f"no answer in {self.limits.timeout:.0f} s", began), "timeout", None
        except (openai.APIError, httpx.HTTPError, *UNREADABLE) as error:
            cause = error.__cause__ or error
            return self._failed(f"{type(error).__name__}: {cause}", began), type(error).__name__, None

    def _failed(self, reason: str, began: float) -> Answer:
        plain = whole_characters(self.provider.scrub(re.sub(r"\s+", " ", reason)))[:200]
        return Answer(error=plain, seconds=round(time.monotonic() - began, 3))

    def _count_failure(self, index: int, status: int | str, reason: str) -> None:
        self.same = [*self.same, index] if str(status) == self.last else [index]
        self.last = str(status)
        enough = len(self.same) >= FATAL.get(status, BREAK_AFTER)
        if enough and (status in FATAL or len(set(self.same)) >= BREAK_REQUESTS):
            where = f"model {self.provider.model!r} at {self.provider.base_url or 'the embedded server'}"
            remedy = REMEDY.get(status, "Is the server running, and LLM_BASE_URL right?")
            raise CourseError(
                f"{len(self.same)} call(s) in a row failed alike, {where}: {reason}. {remedy} "
                f"What was answered is kept; run again to go on from there."
            )

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
