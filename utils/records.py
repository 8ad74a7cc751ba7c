"""What crosses a stage: pydantic models of its rows, reading and writing them as JSONL.

A reader names the file and the line of a bad row. A writer replaces the old file only with a whole new one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.run import CourseError, expect, write_text

Row = TypeVar("Row", bound=BaseModel)


class Chunk(BaseModel):
    """A passage: `text` is `document[start:end]`; `title` is the document's title and the heading path."""

    chunk_id: str
    doc_id: str
    title: str = ""
    text: str
    start: int = 0
    end: int = 0
    n_tokens: int = 0


class Evidence(BaseModel):
    """A verbatim quote from a document; `grade` 2 answers the question, 1 helps."""

    doc_id: str
    quote: str = Field(min_length=1)
    grade: int = 2


class Scores(BaseModel):
    """A judge's marks, 1 to 10; None where nobody judged."""

    relevance: float | None = None
    accuracy: float | None = None
    context_support: float | None = None
    clarity: float | None = None
    overall: float | None = None


class QAPair(BaseModel):
    """A question and the chunks that answer it. Of a user's own pairs only the first two keys are needed."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)

    question: str = Field(min_length=1)
    chunk_ids: list[str] = []
    question_id: str = ""
    answer: str = ""
    evidence: list[Evidence] = []
    positives: list[str] = []  # literal positive texts, for pairs that belong to no chunk
    doc_id: str = ""
    query_type: str = ""
    reasoning_type: str = ""
    hops: int = 1
    complexity: int | None = None
    scores: Scores = Scores()
    round_trip_rank: int | None = None
    gain: float = 0.0  # ln p a token that the passage contributed; 0: not measured (notebook 1)
    generator: str = ""


WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
FREE = ("heading", "terms")  # generators of questions that nobody had to write


class TrainingRow(BaseModel):
    """One (query, positive) with its mined hard negatives, most similar first; scores are cosines."""

    model_config = ConfigDict(extra="allow")

    query_id: str
    query: str
    positive_id: str
    positive: str
    negative_ids: list[str] = []
    negatives: list[str] = []
    positive_score: float | None = None
    negative_scores: list[float] = []
    generator: str = ""

    def flat(self) -> dict:
        """The row as JSON has it: `negative_1 … negative_n` instead of the list `negatives`."""
        row = self.model_dump(exclude={"negatives"})
        return row | {f"negative_{i}": text for i, text in enumerate(self.negatives, start=1)}

    @classmethod
    def from_flat(cls, row: dict) -> TrainingRow:
        """The inverse of `flat`."""
        numbered = sorted((k for k in row if re.fullmatch(r"negative_\d+", k)), key=lambda k: int(k[9:]))
        rest = {key: value for key, value in row.items() if key not in numbered}
        return cls(**rest, negatives=[row[key] for key in numbered])


def word_count(text: str) -> int:
    """Words of a text; of characters that no spaces set apart (Chinese, Japanese, Thai, …), two are one."""
    rest, unspaced = WITHOUT_SPACES.subn(" ", text)
    return len(rest.split()) + unspaced // 2


def cut(text: str, length: int) -> str:
    """The text on one line in at most `length` characters, to be shown: a cut is marked, and it is made
    behind a word, or anywhere in words that no spaces set apart."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    whole, _, word = text[: length - 1].rpartition(" ")
    return f"{whole} …" if whole and not WITHOUT_SPACES.search(word) else f"{text[: length - 1]}…"


def whole_characters(text: str) -> str:
    """The text with � for every half of a surrogate pair: that is no character, and no file takes it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Each text once, in order, and for every given text its place there: equal texts get one vector.

    Batches differ in their roundings, so that copies encoded apart would be ranked by chance.
    """
    places: dict[str, int] = {}
    place_of = [places.setdefault(text, len(places)) for text in texts]
    return list(places), place_of


def passage_text(passage: Chunk | dict) -> str:
    """What is embedded and indexed for a passage: its title on a line of its own, then its text."""
    row = passage.model_dump() if isinstance(passage, Chunk) else passage
    return f"{row.get('title') or ''}\n{row.get('text') or ''}".strip()


# ---------------------------------------------------------------- JSONL


def read_jsonl(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file, blank lines skipped; a bad line is named by file and number."""
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """As `read_jsonl`, each object behind the number of its line, from 1."""
    try:
        with path.open(encoding="utf-8-sig") as stream:  # Windows programs put a mark in front
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    row = json.loads(line)
                    if "\\ud" in line.lower():
                        row = json.loads(whole_characters(json.dumps(row, ensure_ascii=False)))
                    expect(isinstance(row, dict), f"{path}, line {number}: not a JSON object. Mend the line.")
                    yield number, row
    except json.JSONDecodeError as error:
        raise CourseError(
            f"{path}, line {number}: not JSON ({error.msg}). Mend or remove the line."
        ) from None
    except UnicodeDecodeError:
        raise CourseError(f"{path} is not UTF-8 text. Save it as UTF-8 JSONL.") from None
    except (FileNotFoundError, IsADirectoryError):
        raise CourseError(f"{path} does not exist, or is a folder. Give the path of a JSONL file.") from None


def read_rows(path: Path, model: type[Row]) -> list[Row]:
    """The rows of a JSONL file as `model`; the error names the file, the line and the field."""
    rows = []
    for number, row in numbered_rows(path):
        try:
            rows.append(model.from_flat(row) if model is TrainingRow else model(**row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CourseError(f"{path}, line {number}: {where}: {first['msg']}. Mend the line.") from None
    return rows


def write_rows(path: Path, rows: Iterable[BaseModel | dict]) -> None:
    """Write rows as JSONL (whole file or nothing)."""

    def line(row: BaseModel | dict) -> str:
        plain = row.flat() if isinstance(row, TrainingRow) else row
        plain = plain if isinstance(plain, dict) else plain.model_dump()
        return json.dumps(plain, ensure_ascii=False)

    write_text(path, "".join(f"{line(row)}\n" for row in rows))


# ---------------------------------------------------------------- quotes → chunks


def locate(evidence: Evidence, chunks: Iterable[Chunk], document: str = "") -> str | None:
    """The id of the chunk that covers most of a quote; None if no chunk of the document holds any of it.

    With the `document` text, and chunks that know their place in it, the overlap is counted in characters;
    otherwise the quote is looked for in the chunks' own text.
    """
    own = [chunk for chunk in chunks if chunk.doc_id == evidence.doc_id]
    placed = document and any(chunk.end for chunk in own)
    start = document.find(evidence.quote) if placed else -1
    if start >= 0:
        end = start + len(evidence.quote)
        covered = {c.chunk_id: min(end, c.end) - max(start, c.start) for c in own}
    else:
        words = _words(evidence.quote)
        covered = {c.chunk_id: _longest_common_run(words, _words(c.text)) for c in own}
    best = max(covered, key=covered.get, default=None)
    return best if best is not None and covered[best] > 0 else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _longest_common_run(quote: list[str], text: list[str]) -> int:
    from difflib import SequenceMatcher

    return SequenceMatcher(None, quote, text, autojunk=False).find_longest_match().size
