"""Questions written before: ready-made ones with evidence, and the way of given pairs to a table and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from utils.records import Chunk, QAPair, locate, read_rows
from utils.run import expect


def read_ready_made(path: Path, chunks: Sequence[Chunk], documents: Mapping[str, str]) -> list[QAPair]:
    """Questions with evidence quotes; each quote becomes the chunk that covers most of it.

    documents: {doc_id: text}. Pairs whose document or quote is not in the corpus have no chunk_ids.
    """
    by_document = defaultdict(list)
    for piece in chunks:
        by_document[piece.doc_id].append(piece)
    pairs = read_rows(path, QAPair)
    for pair in pairs:
        found = [
            locate(quote, by_document[quote.doc_id], documents.get(quote.doc_id, ""))
            for quote in pair.evidence
        ]
        pair.chunk_ids = list(dict.fromkeys(chunk_id for chunk_id in found if chunk_id))
        pair.doc_id = pair.doc_id or (pair.evidence[0].doc_id if pair.evidence else "")
        pair.generator = pair.generator or "ready-made"
    return pairs


def to_table(pairs: Sequence[QAPair], at_most: int = 0) -> pd.DataFrame:
    """Pairs with an answer as candidates; `at_most` passages are taken, in the pairs' order (0: all)."""
    chosen, seen = [], set()
    for pair in pairs:
        first = next(iter([*pair.chunk_ids, *pair.positives]), None)
        if first is not None and (first in seen or not at_most or len(seen) < at_most):
            seen.add(first)
            chosen.append(pair.model_dump())
    expect(chosen, "None of the given questions belongs to a passage of CORPUS. Give questions about CORPUS.")
    return pd.DataFrame(chosen)


def to_pairs(table: pd.DataFrame) -> list[QAPair]:
    """Rows of a table as QA pairs, numbered where they have no id; columns that no pair has are left out."""
    fields = [name for name in QAPair.model_fields if name in table.columns]
    taken = set(table.get("question_id", ()))
    pairs = []
    for number, row in enumerate(table[fields].to_dict("records")):
        plain = {k: v for k, v in row.items() if isinstance(v, list | dict) or not pd.isna(v)}
        new = f"q{number:06d}" if f"q{number:06d}" not in taken else f"q{number:06d}-{plain['generator']}"
        pairs.append(QAPair(**plain | {"question_id": plain.get("question_id") or new}))
    return pairs
