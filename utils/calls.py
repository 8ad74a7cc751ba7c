"""Calls to an LLM: each answer kept in SQLite, every call in a ledger, many in flight (`flight.py`).

An answer is stored under everything that shapes it; a killed run loses at most the calls in flight.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils.chat_hosts import Dialect
from utils.flight import Flight, Limits, Request, Spent
from utils.llm import Provider, at_a_time, fleet
from utils.replies import Answer
from utils.run import CourseError, expect, runs_dir

if TYPE_CHECKING:
    import pandas as pd


def ask(
    provider: Provider,
    requests: Sequence[Request],
    ledger: Ledger,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    label: str = "",
) -> list[Answer]:
    """The answers to all requests, in their order; failed or unasked ones carry an `error`.

    Cached answers come first and cost nothing. Ends early, with what is done, when a limit is reached: limits
    hold for all that is asked through one `Ledger` object. The embedded writer answers the same request with
    the same text, whatever else is asked, on the same kind of processor.
    Raises CourseError when the same failure repeats (wrong key, URL or model), naming it, and when document
    text would go to a host that is not loopback without the user's word.
    """
    expect(
        not provider.leaves_the_machine or provider.send_documents,
        f"The text of your documents would be sent to {provider.base_url}. Set SEND_DOCUMENTS = True "
        f"if they may leave this machine, or choose LLM = 'embedded'.",
    )
    keys = [_key(provider, request) for request in requests]
    kept = ledger.recall(keys, requests, provider.model)
    answers = [*kept]
    if provider.kind == "embedded":
        requests = [*_independent(requests)]
        begun = {r.group for r, answer in zip(requests, kept, strict=True) if r.group and not answer}
        answers = [None if r.group in begun else a for r, a in zip(requests, kept, strict=True)]
    missing = [i for i, answer in enumerate(answers) if answer is None]
    known = sum(len(answer.texts) for answer in answers if answer)
    total = sum(request.body.get("n", 1) for request in requests)
    bar = tqdm(total=total, initial=known, desc=label, unit="question", disable=not label, file=sys.stdout)

    def land(index: int, answer: Answer, final: bool) -> None:
        ledger.note(keys[index], requests[index], provider.model, answer)
        if final:
            answers[index] = answer
            bar.update(requests[index].body.get("n", 1))

    stopped = ""
    if missing:
        most = max(request.body.get("n", 1) for request in requests)
        groups = len({requests[i].group or i for i in missing})
        limits = replace(limits, in_flight=min(at_a_time(provider, limits.in_flight), groups))
        where = (provider.model, provider.base_url)
        dialect = ledger.dialects.setdefault(where, Dialect(provider.kind == "remote", provider.base_url))
        dialect.worked = dialect.worked or any(kept)
        flight = Flight(provider, requests, limits, land, ledger.spent, dialect)
        with bar, fleet(provider, limits.in_flight, most) as urls:
            stopped = _in_thread(flight.run(urls, missing))
    bar.close()
    unasked = Answer(error=f"not answered: {stopped} was reached")
    return [answer or old or unasked for answer, old in zip(answers, kept, strict=True)]


class Ledger:
    """The answers and the calls of all runs below COURSE_RUNS, in one SQLite file; `run` names this one's."""

    def __init__(self, run: str, path: Path | None = None) -> None:
        path = path or runs_dir() / "answers.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.run, self.began = run, time.time()
        self.spent, self.dialects = Spent(), {}
        try:
            self.db = sqlite3.connect(path, check_same_thread=False, timeout=30)
            self.db.execute("pragma journal_mode=wal")
            self.db.execute("pragma synchronous=normal")
            self.db.execute("create table if not exists answers (key text primary key, answer text)")
            self.db.execute(
                "create table if not exists calls (run text, key text, tag text, model text, at real, "
                "tokens_in integer, tokens_out integer, seconds real, cached integer, error text)"
            )
        except sqlite3.Error as error:
            raise CourseError(
                f"The answers kept in {path} cannot be used ({error}). Move the file away if it is damaged; "
                f"if its folder cannot be written to, point COURSE_RUNS to one that can."
            ) from error

    def recall(self, keys: Sequence[str], requests: Sequence[Request], model: str) -> list[Answer | None]:
        """The stored answers, None where there is none; each one found is noted as a cached call."""
        answers = []
        for key, request in zip(keys, requests, strict=True):
            row = self.db.execute("select answer from answers where key = ?", (key,)).fetchone()
            answers.append(Answer(**json.loads(row[0]) | {"cached": True}) if row else None)
            if row:
                self._insert(key, request, model, answers[-1])
        self.db.commit()
        return answers

    def note(self, key: str, request: Request, model: str, answer: Answer) -> None:
        """Write the call and, if it was answered, its answer: both or neither."""
        with self.db:
            if not answer.error:
                stored = json.dumps(asdict(answer), ensure_ascii=False)
                self.db.execute("insert or replace into answers values (?, ?)", (key, stored))
            self._insert(key, request, model, answer)

    def _insert(self, key: str, request: Request, model: str, answer: Answer) -> None:
        values = (self.run, key, request.tag, model, time.time(), answer.tokens_in, answer.tokens_out)
        values += (answer.seconds, int(answer.cached), answer.error)
        self.db.execute("insert into calls values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def frame(self) -> pd.DataFrame:
        """This run's calls, oldest first; `cached` ones cost nothing."""
        import pandas as pd

        return pd.read_sql("select * from calls where run = ? order by at, rowid", self.db, params=[self.run])

    def summary(self, limits: Limits = Limits()) -> list[dict]:  # noqa: B008 (frozen)
        """Totals of this run by model and tag: paid, cached and failed calls, tokens, cost.

        Tokens and cost are those of all calls that were not cached: hosts bill an empty answer too.
        Earlier runs of the same name count too: what the questions have cost in all.
        """
        rows = []
        for (model, tag), calls in self.frame().groupby(["model", "tag"]):
            asked = calls[calls.cached == 0]
            paid = asked[asked.error == ""]
            tokens = int(asked.tokens_in.sum()), int(asked.tokens_out.sum())
            rows.append(
                {
                    "model": model,
                    "tag": tag,
                    "requests": int(calls.key.nunique()),
                    "paid_calls": len(paid),
                    "cached_calls": int(calls.cached.sum()),
                    "failed_calls": int((calls.error != "").sum()),
                    "tokens_in": tokens[0],
                    "tokens_out": tokens[1],
                    "call_seconds": round(float(paid.seconds.sum()), 2),
                    "cost": round(limits.cost(*tokens), 6),
                }
            )
        return rows

    def plan(self, times: float, limits: Limits) -> pd.DataFrame:
        """What `times` as much as this run has asked so far will take: calls, tokens, minutes, cost; by tag.

        Answers that are kept already count as if they had to be paid; failed calls count with what they cost.
        """
        import pandas as pd

        calls = self.frame()
        calls = calls[calls["at"] >= self.began]  # of a run that was begun before: what is asked now
        answered = calls[calls.error == ""].drop_duplicates("key")
        by_tag = pd.concat([answered, calls[calls.error != ""]]).groupby("tag", sort=False)
        rows = by_tag[["tokens_in", "tokens_out"]].sum()
        rows.insert(0, "calls", by_tag.size())
        rows["minutes"] = by_tag.seconds.sum() / 60 / limits.in_flight
        rows = rows * float(times)
        rows.loc["together"] = rows.sum()
        rows["cost"] = limits.cost(rows.tokens_in, rows.tokens_out)
        whole = {name: rows[name].round().astype(int) for name in ("calls", "tokens_in", "tokens_out")}
        return rows.assign(**whole).round({"minutes": 1, "cost": 4}).reset_index(names="tag")


def _independent(requests: Sequence[Request]) -> Iterator[Request]:
    """The requests, each told to reuse what its llama.cpp server has read only within its group.

    What is reused was computed in other batches, which shows in the last digits. So a group that was begun
    is asked as a whole, and no answer depends on what the server was asked before.
    """
    seen = set()
    for request in requests:
        extra = request.body.get("extra_body", {}) | {"cache_prompt": request.group in seen}
        seen |= {request.group} - {""}
        yield replace(request, body=request.body | {"extra_body": extra})


def _key(provider: Provider, request: Request) -> str:
    content = json.dumps([provider.identity, request.body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf8", "surrogatepass")).hexdigest()


def _in_thread(coroutine: Coroutine) -> object:
    """A coroutine's result, run in a thread of its own (a notebook's thread has a loop); Ctrl-C ends it."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(loop.run_until_complete, task).result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            loop.close()
