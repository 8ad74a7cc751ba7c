"""The steps of generation with a capable LLM: artifacts, questions with a second request, the judge.

The notebook gives each step its prompt and its shape. A step returns what it got, and adds to `lost` a row
for whatever it did not get: no document and no question disappears without a reason.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from tqdm import tqdm

from utils.grounding import Bundle, attainable, missing, sound_artifacts, to_row
from utils.records import Chunk, whole_characters, word_count
from utils.structured import Messages, Replies

Ask = Callable[[Mapping[str, Messages]], Replies]  # prompts by key → what came back
COLUMNS = ["question", "answer", "query_type", "reasoning_type", "complexity", "hops", "evidence"]
COLUMNS += ["chunk_ids", "doc_id", "generator", "bundle", "fault", "scores", "overall"]
Step = Callable[[Sequence[Bundle]], list[dict]]


def in_waves(step: Step, parts: Sequence[Bundle], size: int) -> list[dict]:
    """The rows of all parts, `size` at a time: when a limit ends the run, the earlier ones are complete."""
    rows = []
    with tqdm(total=len(parts), desc="writing", unit="document", file=sys.stdout, disable=not parts) as bar:
        for start in range(0, len(parts), size):
            rows += step(parts[start : start + size])
            bar.update(len(parts[start : start + size]))
    return rows


def find_artifacts(
    ask: Ask, parts: Sequence[Bundle], prompt: Callable[[Bundle], Messages], lost: list[dict]
) -> dict[str, list[dict]]:
    """{bundle key: its artifacts}; the shape has a list `artifacts` of {kind, text, chunk_ids}."""
    replies = ask({part.key: prompt(part) for part in parts})
    _tell(lost, parts, replies.failed, "artifacts")
    return {
        part.key: sound_artifacts(replies.good[part.key].artifacts, part)
        for part in parts
        if part.key in replies.good
    }


def write_questions(
    ask: Ask,
    parts: Sequence[Bundle],
    prompt: Callable[[Bundle, Mapping, Sequence[str]], Messages],
    quotas: Mapping[str, Mapping],
    generator: str,
    lost: list[dict],
) -> list[dict]:
    """Rows of all questions, also of faulty ones; one more request for what the sound ones lack of `quotas`
    (how many of each kind from one part: a document, or twelve passages of a long one).

    prompt(part, quotas still open, questions already there) → messages. Each row says in `fault` what is
    wrong with it, or "".
    """
    replies = ask({part.key: prompt(part, quotas, []) for part in parts})
    _tell(lost, parts, replies.failed, "questions")
    rows = {part.key: _rows(replies, part, generator) for part in parts}
    again = {}
    for part in parts:
        sound = [row for row in rows[part.key] if not row["fault"]]
        lacking = missing(quotas, sound) if part.key in replies.good else {}
        lacking = attainable(lacking, part)
        if lacking:  # the faulty ones are named too: else the same request gets the same stored answer
            there = [row["question"] for row in rows[part.key] if row["question"]]
            again[part.key] = prompt(part, lacking, there)
    second = ask(again)
    _tell(lost, parts, second.failed, "what was missing")
    return [row for part in parts for row in (*rows[part.key], *_rows(second, part, generator))]


def judge(
    ask: Ask,
    parts: Sequence[Bundle],
    rows: Sequence[dict],
    prompt: Callable[[Bundle, Sequence[dict]], Messages],
    lost: list[dict],
) -> list[dict]:
    """The rows with the judge's `scores` and `overall`; faulty ones are not shown to it.

    The shape has a list `verdicts` of marks with the `number` (from 1) of the question in its prompt.
    """
    sound: dict[str, list[dict]] = {part.key: [] for part in parts}
    for row in rows:
        if not row["fault"]:
            sound[row["bundle"]].append(row)
    replies = ask({part.key: prompt(part, sound[part.key]) for part in parts if sound[part.key]})
    _tell(lost, parts, replies.failed, "judge")
    for key, reply in replies.good.items():
        for verdict in reply.verdicts:
            if 1 <= verdict.number <= len(sound[key]):
                marks = verdict.model_dump(exclude={"number"})
                sound[key][verdict.number - 1].update(scores=marks, overall=float(marks["overall"]))
    return [*rows]


def coverage(quotas: Mapping[str, Mapping], rows: Sequence[Mapping], parts: int) -> pd.DataFrame:
    """What was asked of that many parts of documents, and what came that is sound: a line a quota's value."""
    sound = [row for row in rows if not row["fault"]]
    lines = [
        (name, value, n * parts, sum(str(row[name]) == str(value) for row in sound))
        for name, wanted in quotas.items()
        for value, n in wanted.items()
    ]
    return pd.DataFrame(lines, columns=["quota", "value", "asked", "came"])


def coverage_of(parts: Sequence[Bundle], chunks: Sequence[Chunk]) -> str:
    """How much of the corpus the parts hold, as a sentence."""
    shown = sum(len(part.chunks) for part in parts)
    documents = {document for part in parts for document in part.documents}
    of = f"{len(chunks)} passages, of {len(documents)} of {len({chunk.doc_id for chunk in chunks})} documents"
    return f"{shown} of {of}, in {len(parts)} parts of at most 12."


def left_out(chunks: Sequence[Chunk], parts: Sequence[Bundle], why: str, min_words: int = 12) -> list[dict]:
    """A row as in `lost` for every document of which no passage, or not every longer one, is in a part."""
    shown = {chunk.chunk_id for part in parts for chunk in part.chunks}
    own: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        own.setdefault(chunk.doc_id, []).append(chunk)
    rows = []
    for doc_id, pieces in own.items():
        long = [piece for piece in pieces if word_count(piece.text) >= min_words]
        missed = [piece.chunk_id for piece in long or pieces if piece.chunk_id not in shown]
        if missed:
            reason = why if long else f"no passage of {min_words} words"
            rows.append({"question": "", "chunk_ids": missed, "doc_id": doc_id, "reason": reason})
    return rows


def told(lost: Sequence[Mapping], most: int = 5) -> list[str]:
    """What was lost, in lines: the commonest reasons, each with its number and the first document."""
    counts = Counter(row["reason"] for row in lost)
    first = {row["reason"]: row["doc_id"] for row in reversed(lost)}
    lines = [f"{n} × {reason} ({first[reason]})" for reason, n in counts.most_common(most)]
    return lines + ([f"and {len(counts) - most} other reasons"] if len(counts) > most else [])


def to_table(rows: Sequence[dict]) -> pd.DataFrame:
    """Rows as candidates for `questions`, each with an id of its own."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["overall"] = table.overall.astype(float)
    table["question_id"] = [f"w{number:06d}" for number in range(len(table))]
    return table


def _rows(replies: Replies, part: Bundle, generator: str) -> list[dict]:
    found = replies.good[part.key].questions if part.key in replies.good else []
    rows = [to_row(question, part, generator) for question in found]
    home = {"chunk_ids": [], "doc_id": part.documents[0], "generator": generator, "bundle": part.key}
    rows += [
        {**home, "question": _told_question(item), "fault": why, "query_type": ""}
        for key, item, why in replies.faulty
        if key == part.key
    ]
    return rows


def _told_question(item: Mapping) -> str:
    question = item.get("question")
    return whole_characters(question)[:300] if isinstance(question, str) else ""


def _tell(lost: list[dict], parts: Sequence[Bundle], failed: Mapping[str, str], step: str) -> None:
    lost += [
        {
            "question": "",
            "chunk_ids": [chunk.chunk_id for chunk in part.chunks],
            "doc_id": " + ".join(part.documents),
            "reason": f"{step}: {failed[part.key]}",
        }
        for part in parts
        if part.key in failed
    ]
