"""Test collections: passages, queries and judgments, read from and written to BEIR folders."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

from utils.records import read_jsonl, write_rows
from utils.run import expect, resolve_path, write_text

Qrels = dict[str, dict[str, int]]
OWN_TESTS = ("synthetic", "general", "gold")  # what the course calls its own


@dataclass
class Collection:
    """A test collection. `corpus` keeps its order; `metadata` holds what else a query carries."""

    corpus: dict[str, dict] = field(default_factory=dict)  # passage id → {"title", "text"}
    queries: dict[str, str] = field(default_factory=dict)
    qrels: Qrels = field(default_factory=dict)
    metadata: dict[str, dict] = field(default_factory=dict)
    name: str = ""


def read_corpus(path: Path) -> dict[str, dict]:
    """A BEIR `corpus.jsonl`: {id: {"title", "text"}} in file order, empty rows kept."""
    corpus: dict[str, dict] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        expect("_id" in row, f"{path}, row {number}: no '_id'. A BEIR corpus row has _id, title and text.")
        passage_id = str(row["_id"])
        expect(
            passage_id not in corpus, f"{path}, row {number}: _id {passage_id!r} appears twice. Remove one."
        )
        title, text = (row.get(name) if row.get(name) is not None else "" for name in ("title", "text"))
        expect(
            isinstance(title, str | int | float) and isinstance(text, str | int | float),
            f"{path}, row {number}: title and text must be text.",
        )
        corpus[passage_id] = {"title": str(title), "text": str(text)}
    expect(corpus, f"{path} has no rows. Give a corpus.jsonl with at least one passage.")
    return corpus


def read_qrels(path: Path) -> Qrels:
    """A BEIR qrels file (query-id, corpus-id, score; tab-separated, with or without a header line)."""
    qrels: Qrels = {}
    expect(path.exists(), f"{path} does not exist. A BEIR folder has qrels/<split>.tsv.")
    with path.open(encoding="utf-8-sig", newline="") as stream:
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
        known = texts.setdefault(str(row["_id"]), row["text"])
        expect(
            known == row["text"],
            f"{folder / 'queries.jsonl'}, row {number}: _id {row['_id']!r} appears twice, with other words. "
            f"Keep one.",
        )
        metadata[str(row["_id"])] = own = row.get("metadata") or {}
        expect(
            isinstance(own, dict),
            f"{folder / 'queries.jsonl'}, row {number}: metadata is an object, such as {{'need': 'repair'}}.",
        )
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


def read_test_set(folder: str, corpus: dict[str, dict]) -> Collection:
    """The user's own human test: a BEIR folder over the ids of `corpus`, named after its folder."""
    test = read_beir(resolve_path(folder, "TEST_SET"), "test", corpus)
    expect(
        test.name not in OWN_TESTS,
        f"TEST_SET = {folder!r}: a test set of this course is called {test.name!r} too. Rename the folder.",
    )
    expect(
        test.queries, f"TEST_SET = {folder!r}: no query has a relevant passage in qrels/test.tsv. Add some."
    )
    return test


def part_of_corpus(corpus: dict[str, dict], qrels: Qrels, passages: int) -> dict[str, dict]:
    """About `passages` of a corpus (0: all) in its order: every judged one, others at equal distances."""
    judged = {p for found in qrels.values() for p in found}
    rest = [p for p in corpus if p not in judged]
    kept = judged | set(spread(rest, max(passages - len(judged), 1)) if passages else rest)
    return {p: passage for p, passage in corpus.items() if p in kept}


def spread(items: list, n: int) -> list:
    """n items at equal distances (all of them for n = 0)."""
    return items if not n or n >= len(items) else [items[i * len(items) // n] for i in range(n)]


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
