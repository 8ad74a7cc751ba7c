"""Answers of a given shape: the JSON schema is asked for, the answer checked here, repaired at most once.

Whatever a document talks a model into, an answer of another shape is no answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from utils.calls import Ledger, ask
from utils.flight import Limits, Request
from utils.llm import Provider
from utils.replies import Answer

Shape = TypeVar("Shape", bound=BaseModel)
Messages = list[dict[str, str]]
REPAIR = "That was not accepted: {problem}. Answer again: the whole JSON object, mended, and nothing else."
SHOWN = 6000  # characters of a wrong answer that its repair quotes


@dataclass
class Replies(Generic[Shape]):
    """What came back, each under its prompt's key. `faulty`: (key, item, why) of list items left out."""

    good: dict[str, Shape] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # key → why there is no answer
    faulty: list[tuple[str, dict, str]] = field(default_factory=list)
    repaired: int = 0


def collect(
    shape: type[Shape],
    prompts: Mapping[str, Messages],
    provider: Provider,
    ledger: Ledger,
    limits: Limits,
    tag: str,
    **sampling: float,
) -> Replies[Shape]:
    """Ask all prompts for answers of `shape`; a wrong one gets a single request to mend it.

    After that the valid items of its list are kept and the others told in `faulty`; an answer without any
    stands in `failed`, as does one that never came: every key is in `good` or in `failed`. `sampling`:
    fields of the request's body, such as max_tokens and temperature.
    """
    body = sampling | {"response_format": response_format(shape)}
    asked = [Request({"messages": messages, **body}, tag) for messages in prompts.values()]
    first = dict(zip(prompts, ask(provider, asked, ledger, limits), strict=True))
    replies = Replies()
    wrong = {}
    for key, answer in first.items():
        found, problem = read(answer, shape)
        if found:
            replies.good[key] = found
        elif answer.error:
            replies.failed[key] = f"no answer: {answer.error}"
        else:
            wrong[key] = problem
    mends = [
        Request({"messages": _mending(prompts[key], first[key], problem), **body}, f"{tag}, mended")
        for key, problem in wrong.items()
    ]
    for key, answer in zip(wrong, ask(provider, mends, ledger, limits), strict=True):
        found, problem = read(answer, shape)
        if found:
            replies.repaired += 1
        else:
            mended = answer if _items(answer, shape) else first[key]  # a repair may come back cut off
            found = _salvage(key, mended, shape, replies.faulty)
        if found:
            replies.good[key] = found
        else:
            unanswered = f"; its repair: {answer.error}" if answer.error else ""
            replies.failed[key] = f"schema: {wrong[key] if answer.error else problem}{unanswered}"
    return replies


def response_format(shape: type[BaseModel]) -> dict:
    """The request's `response_format` for a pydantic model: every field required, no other allowed."""
    schema = _strict(shape.model_json_schema())
    return {"type": "json_schema", "json_schema": {"name": shape.__name__, "schema": schema, "strict": True}}


def read(answer: Answer, shape: type[Shape]) -> tuple[Shape | None, str]:
    """(the answer as `shape`, "") or (None, what is wrong). Fences and words around it are ignored."""
    plain, problem = _json(answer)
    if problem:
        return None, problem
    try:
        return shape.model_validate(plain), ""
    except ValidationError as error:
        return None, _told(error)


def fenced(name: str, rows: Sequence[Mapping]) -> str:
    """Rows as JSON lines between two marks. The marks' number comes from the content: no text can close them.

    Inside, a text is a JSON string: its line breaks and quotation marks are escaped.
    """
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    number = hashlib.sha256(lines.encode("utf8", "surrogatepass")).hexdigest()[:12]
    return f"<{name} {number}>\n{lines}\n</{name} {number}>"


def _json(answer: Answer) -> tuple[dict | None, str]:
    if answer.error:
        return None, answer.error
    text = answer.texts[0]
    start = text.find("{")
    if start < 0:
        return None, f"no JSON object, but {text.strip()[:60]!r}"
    try:
        return json.JSONDecoder().raw_decode(text[start:])[0], ""
    except json.JSONDecodeError as error:
        cut = ", the answer was cut off (max_tokens)" if "length" in answer.finish else ""
        return None, f"not JSON ({error.msg} at character {start + error.pos}{cut})"
    except (ValueError, RecursionError):
        return None, "not JSON that can be read (a number of thousands of digits, or brackets without end)"


def _items(answer: Answer, shape: type[Shape]) -> list:
    """The items of an answer's list, valid or not; none if it is not JSON or has no list."""
    (name,) = shape.model_fields
    plain, problem = _json(answer)
    items = [] if problem else plain.get(name)
    return items if isinstance(items, list) else []


def _salvage(key: str, answer: Answer, shape: type[Shape], faulty: list) -> Shape | None:
    """An answer without the items of its list that are not valid; None if no item is."""
    (name,) = shape.model_fields
    good = []
    for item in _items(answer, shape):
        try:
            good += getattr(shape.model_validate({name: [item]}), name)
        except ValidationError as error:
            faulty.append((key, item if isinstance(item, dict) else {}, f"schema: {_told(error)}"))
    return shape.model_validate({name: good}) if good else None


def _mending(messages: Messages, answer: Answer, problem: str) -> Messages:
    said = {"role": "assistant", "content": answer.texts[0][:SHOWN]}
    return [*messages, said, {"role": "user", "content": REPAIR.format(problem=problem)}]


def _told(error: ValidationError) -> str:
    problems = [f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors()[:3]]
    return "; ".join(problems)


def _strict(schema: object) -> object:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    named = {name: part for name, part in schema.items() if name != "title" or not isinstance(part, str)}
    plain = {name: _strict(part) for name, part in named.items() if name != "default"}
    if plain.get("type") == "object" and "properties" in plain:
        plain |= {"required": [*plain["properties"]], "additionalProperties": False}
    return plain
