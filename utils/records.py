"""What crosses a stage: pydantic models of its rows; reading and writing JSONL, BEIR and Automodel files.

A reader names the file and the line of a bad row. A writer replaces the old file only with a whole new one.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utils.run import CourseError, expect, write_text

Row = TypeVar("Row", bound=BaseModel)
Qrels = dict[str, dict[str, int]]


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

    model_config = ConfigDict(extra="allow")

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
    generator: str = ""


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


@dataclass
class Collection:
    """A test collection. `corpus` keeps its order; `metadata` holds what else a query carries."""

    corpus: dict[str, dict] = field(default_factory=dict)  # passage id → {"title", "text"}
    queries: dict[str, str] = field(default_factory=dict)
    qrels: Qrels = field(default_factory=dict)
    metadata: dict[str, dict] = field(default_factory=dict)
    name: str = ""


def passage_text(passage: Chunk | dict) -> str:
    """What is embedded and indexed for a passage: its title on a line of its own, then its text."""
    row = passage.model_dump() if isinstance(passage, Chunk) else passage
    return f"{row.get('title') or ''}\n{row.get('text') or ''}".strip()


# ---------------------------------------------------------------- JSONL


def read_jsonl(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file, blank lines skipped; a bad line is named by file and number."""
    try:
        with path.open(encoding="utf8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    row = json.loads(line)
                    expect(isinstance(row, dict), f"{path}, line {number}: not a JSON object. Mend the line.")
                    yield row
    except json.JSONDecodeError as error:
        raise CourseError(
            f"{path}, line {number}: not JSON ({error.msg}). Mend or remove the line."
        ) from None
    except UnicodeDecodeError:
        raise CourseError(f"{path} is not UTF-8 text. Save it as UTF-8 JSONL.") from None
    except FileNotFoundError:
        raise CourseError(f"{path} does not exist. Give the path of an existing JSONL file.") from None


def read_rows(path: Path, model: type[Row]) -> list[Row]:
    """The rows of a JSONL file as `model`; the error names the file, the line and the field."""
    rows = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            rows.append(model.from_flat(row) if model is TrainingRow else model(**row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CourseError(f"{path}, row {number}: {where}: {first['msg']}. Mend the row.") from None
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

    With the `document` text the overlap is counted in characters; without it the quote is looked for in
    the chunks' own text.
    """
    own = [chunk for chunk in chunks if chunk.doc_id == evidence.doc_id]
    start = document.find(evidence.quote) if document else -1
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


# ---------------------------------------------------------------- BEIR


def read_corpus(path: Path) -> dict[str, dict]:
    """A BEIR `corpus.jsonl`: {id: {"title", "text"}} in file order, empty rows kept."""
    corpus: dict[str, dict] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        expect("_id" in row, f"{path}, row {number}: no '_id'. A BEIR corpus row has _id, title and text.")
        passage_id = str(row["_id"])
        expect(
            passage_id not in corpus, f"{path}, row {number}: _id {passage_id!r} appears twice. Remove one."
        )
        corpus[passage_id] = {"title": row.get("title") or "", "text": row.get("text") or ""}
    expect(corpus, f"{path} has no rows. Give a corpus.jsonl with at least one passage.")
    return corpus


def read_qrels(path: Path) -> Qrels:
    """A BEIR qrels file (query-id, corpus-id, score; tab-separated, with or without a header line)."""
    qrels: Qrels = {}
    expect(path.exists(), f"{path} does not exist. A BEIR folder has qrels/<split>.tsv.")
    with path.open(encoding="utf8", newline="") as stream:
        for number, row in enumerate(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not row or (number == 1 and row[0] in {"query-id", "query_id", "qid"}):
                continue
            expect(
                len(row) == 3 and re.fullmatch(r"-?\d+", row[2].strip()),
                f"{path}, line {number}: expected query-id, corpus-id and a whole-number score, "
                f"separated by tabs.",
            )
            query_id, passage_id, grade = row[0], row[1], int(row[2])
            known = qrels.setdefault(query_id, {})
            expect(
                known.get(passage_id, grade) == grade,
                f"{path}, line {number}: query {query_id!r} and passage {passage_id!r} are judged twice, "
                f"with different scores. Keep one.",
            )
            known[passage_id] = grade
    return qrels


def read_beir(folder: Path, split: str = "test", corpus: dict[str, dict] | None = None) -> Collection:
    """A BEIR folder; only `qrels/<split>.tsv` is read. With `corpus` the folder's own is not read.

    Queries without a relevant passage are left out of the collection.
    """
    corpus = read_corpus(folder / "corpus.jsonl") if corpus is None else corpus
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv")
    texts, metadata = {}, {}
    for number, row in enumerate(read_jsonl(folder / "queries.jsonl"), start=1):
        expect(
            "_id" in row and isinstance(row.get("text"), str),
            f"{folder / 'queries.jsonl'}, row {number}: a BEIR query row has _id and text.",
        )
        texts[str(row["_id"])] = row["text"]
        metadata[str(row["_id"])] = row.get("metadata") or {}
    unknown = sorted({p for judged in qrels.values() for p in judged} - set(corpus))
    expect(
        not unknown,
        f"{folder}/qrels/{split}.tsv judges {len(unknown)} passages that are not in the corpus, "
        f"e.g. {unknown[:3]}. The test set must use the corpus' own chunk ids.",
    )
    lost = sorted(set(qrels) - set(texts))
    expect(not lost, f"{folder}/qrels/{split}.tsv judges unknown queries, e.g. {lost[:3]}. Add them.")
    judged = {q: rel for q, rel in qrels.items() if any(grade > 0 for grade in rel.values())}
    queries = {q: texts[q] for q in texts if q in judged}
    return Collection(corpus, queries, judged, {q: metadata[q] for q in queries}, folder.name)


def write_corpus(path: Path, corpus: dict[str, dict]) -> None:
    """Write a BEIR `corpus.jsonl`."""
    write_rows(path, ({"_id": i, "title": p["title"], "text": p["text"]} for i, p in corpus.items()))


def write_queries(path: Path, queries: dict[str, str], metadata: dict[str, dict] | None = None) -> None:
    """Write a BEIR `queries.jsonl`."""
    extra = metadata or {}
    write_rows(path, ({"_id": i, "text": t, "metadata": extra.get(i, {})} for i, t in queries.items()))


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write a BEIR qrels file, with its header line."""
    buffer = io.StringIO()
    writer = csv.writer(
        buffer, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None, escapechar=None
    )
    writer.writerow(["query-id", "corpus-id", "score"])
    for query_id, judged in qrels.items():
        for passage_id, grade in judged.items():
            expect(
                not re.search(r"[\t\r\n]", query_id + passage_id),
                f"id {query_id!r} or {passage_id!r} has a tab or line break, unfit for qrels. Rename it.",
            )
            writer.writerow([query_id, passage_id, grade])
    write_text(path, buffer.getvalue())


# ---------------------------------------------------------------- NeMo Automodel


def write_automodel(folder: Path, rows: list[TrainingRow], corpus: dict[str, dict]) -> None:
    """Write NeMo Automodel's training file and its corpus folder.

    `train.json`: {"corpus": {"path"}, "data": [{question_id, question, corpus_id, pos_doc, neg_doc}]};
    `corpus/`: one parquet file (id, text) and merlin_metadata.json.
    """
    import pandas as pd

    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"id": list(corpus), "text": [passage_text(p) for p in corpus.values()]})
    table.to_parquet(folder / "corpus" / "train.parquet", index=False)
    metadata = {"corpus_id": "course", "class": "TextQADataset"}
    write_text(folder / "corpus" / "merlin_metadata.json", json.dumps(metadata))
    data = [
        {
            "question_id": f"{row.query_id}-{number}",
            "question": row.query,
            "corpus_id": "course",
            "pos_doc": [{"id": row.positive_id}],
            "neg_doc": [{"id": negative} for negative in row.negative_ids],
        }
        for number, row in enumerate(rows)
    ]
    write_text(
        folder / "train.json",
        json.dumps({"corpus": {"path": "./corpus"}, "data": data}, ensure_ascii=False, indent=1),
    )
