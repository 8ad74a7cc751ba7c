"""What the course hands over to other tools, in their own formats.

NeMo Automodel's training file, and the rows that the reference recipe's generation writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.records import Chunk, QAPair, TrainingRow, locate, passage_text
from utils.run import expect, write_text

CRITERIA = ("relevance", "accuracy", "context_support", "clarity")
UNJUDGED = "not judged; kept by the filters"


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


# ---------------------------------------------------------------- the reference's generated rows


def write_sdg(path: Path, pairs: Iterable[QAPair], chunks: Sequence[Chunk], unjudged: float = 7.0) -> int:
    """Write questions and passages as the reference recipe's generation does; returns how many questions.

    One JSON list; a row for each document, and one for each set of documents that a question spans. A passage
    is numbered within its row, from 1, and its text begins with its title. `unjudged`: the mark (1 to 10) of
    a question that no judge has seen; the recipe's next stage keeps those from its threshold of 7 on.
    Questions that name no chunk have no place in the format and are left out.
    """
    of_document: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        of_document.setdefault(chunk.doc_id, []).append(chunk)
    home = {chunk.chunk_id: chunk.doc_id for chunk in chunks}
    of_row: dict[tuple[str, ...], list[QAPair]] = {(doc_id,): [] for doc_id in of_document}
    for pair in pairs:
        unknown = [i for i in pair.chunk_ids if i not in home]
        expect(not unknown, f"Question {pair.question!r} names unknown chunks {unknown}. Give all chunks.")
        if pair.chunk_ids:
            of_row.setdefault(tuple(sorted({home[i] for i in pair.chunk_ids})), []).append(pair)
    rows = [
        _sdg_row(documents, [chunk for doc_id in documents for chunk in of_document[doc_id]], own, unjudged)
        for documents, own in of_row.items()
    ]
    write_text(path, json.dumps(rows, ensure_ascii=False, indent=1))
    return sum(len(own) for own in of_row.values())


def _sdg_row(documents: Sequence[str], chunks: list[Chunk], pairs: list[QAPair], unjudged: float) -> dict:
    number = {chunk.chunk_id: i for i, chunk in enumerate(chunks, start=1)}
    by_id = {chunk.chunk_id: chunk for chunk in chunks}
    return {
        "file_name": list(documents),
        "chunks": [_sdg_chunk(number[chunk.chunk_id], chunk) for chunk in chunks],
        "deduplicated_qa_pairs": [_sdg_pair(pair, number, by_id) for pair in pairs],
        "qa_evaluations": {"evaluations": [_sdg_marks(pair, unjudged) for pair in pairs]},
    }


def _sdg_chunk(number: int, chunk: Chunk) -> dict:
    where = {"doc_id": chunk.doc_id, "start": chunk.start, "end": chunk.end}
    return {"chunk_id": number, "text": passage_text(chunk), **where}


def _sdg_pair(pair: QAPair, number: dict[str, int], chunks: dict[str, Chunk]) -> dict:
    own = [chunks[i] for i in pair.chunk_ids]
    quotes: dict[str, list[str]] = {chunk.chunk_id: [] for chunk in own}
    for evidence in pair.evidence:
        where = locate(evidence, own)
        if where:
            quotes[where].append(evidence.quote)
    hops = [
        {"hop_number": hop, "segment_ids": [number[chunk_id]], "summary": " … ".join(said)}
        for hop, (chunk_id, said) in enumerate(quotes.items(), start=1)
    ]
    return {
        "question": pair.question,
        "answer": pair.answer,
        "question_complexity": pair.complexity,
        "query_type": pair.query_type,
        "reasoning_type": pair.reasoning_type,
        "segment_ids": [number[chunk_id] for chunk_id in pair.chunk_ids],
        "hop_count": pair.hops,
        "hop_contexts": hops,
    }


def _sdg_marks(pair: QAPair, unjudged: float) -> dict:
    """A mark for each criterion; what was not marked on its own carries the overall mark."""
    marks = pair.scores.model_dump()
    overall, said = (unjudged, UNJUDGED) if pair.scores.overall is None else (pair.scores.overall, "")
    single = {
        name: {"score": overall if marks[name] is None else marks[name], "justification": said}
        for name in CRITERIA
    }
    return single | {"overall": {"score": overall, "assessment": said}, "improvements": ""}
