"""A host's reply as an `Answer`: its texts, tokens and finish, whatever a host leaves out or makes up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from utils.chat_hosts import rest_of_line, without_thoughts
from utils.records import whole_characters

KINDS = ("prompt", "completion")  # of tokens
UNREADABLE = (ValueError, LookupError, AttributeError, TypeError, RecursionError)  # what odd replies raise


@dataclass
class Answer:
    """What came back: one text per choice, its tokens as (id, natural log-probability), and how it ended
    ("stop", "length" where max_tokens cut it off, …); or an error."""

    texts: list[str] = field(default_factory=list)
    tokens: list[list[tuple[int, float]]] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cached: bool = False
    error: str = ""


def read_reply(reply: object, prompt: str = "") -> Answer:
    """An openai completion or chat completion as an `Answer`; without any text it is an error.

    prompt: the text that a chat was asked to continue. Its answer is one line, with tokens if it was no more.
    """
    answer = Answer()
    for choice in reply.choices or []:
        message = getattr(choice, "message", None)
        given = choice.text if message is None else message.content
        if given is None and not prompt:  # some hosts tell a refusal in a field of its own
            given = getattr(message, "refusal", None)
        given = given if given is None else whole_characters(given)
        text = without_thoughts(given)
        finish = choice.finish_reason or ""
        if message is not None and prompt:
            finish = "stop" if "\n" in text.lstrip() else finish  # a line that has ended is whole
            text = rest_of_line(text, prompt)
        answer.texts.append(text)
        answer.tokens.append([*_tokens(choice.logprobs)] if text == given else [])
        answer.finish.append(finish)
    answer.tokens_in, answer.tokens_out = (
        _count(getattr(reply, "usage", None), f"{kind}_tokens") for kind in KINDS
    )
    if not any(text.strip() for text in answer.texts):
        answer.error = "empty answer"
    return answer


def _count(usage: object, name: str) -> int:
    """A number of tokens; 0 where the host tells none, or nonsense."""
    told = getattr(usage, name, None)
    return told if isinstance(told, int) and 0 <= told < 2**40 else 0


def _tokens(logprobs: object) -> Iterator[tuple[int, float]]:
    for token in getattr(logprobs, "content", None) or []:
        row = token if isinstance(token, dict) else token.model_dump()
        yield int(row.get("id", -1)), float(row["logprob"])


def seconds_of(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for: a number, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
        except (TypeError, ValueError):
            return None
