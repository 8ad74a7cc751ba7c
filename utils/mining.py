"""Hard negatives: candidates from dense and lexical search, a rule that chooses, one row per positive.

The rule itself stands in notebook 2; `choose_negatives` is the same rule for re-mining in notebook 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.files import read_json
from utils.handover import write_automodel
from utils.inputs import LITERAL
from utils.records import FREE, Chunk, QAPair, TrainingRow, passage_text
from utils.retrieval import bm25_search, nearest
from utils.run import expect, write_text

SHOWN = 50  # of a question's candidates and suspects, the best so many are remembered
DEEPEST = 10_000  # the search goes no further down a ranking
Scored = list[tuple[str, float]]  # (passage id, cosine to the query), best first


@dataclass
class Mined:
    """A training question with its positives, negatives and suspects; scores are cosines to the query."""

    pair: QAPair
    positives: dict[str, str]  # id → text trained on
    positive_scores: list[float | None]
    negatives: Scored
    suspects: Scored
    candidates: Scored
    excluded: list[str] = field(default_factory=list)  # ids of all suspects, the remembered ones among them


def choose_negatives(
    candidates: Scored, positive_scores: list[float], masked: set[str], margin: float
) -> tuple[Scored, Scored]:
    """(kept, suspects): what is masked goes; above margin × the lowest positive score is suspect for good."""
    lowest = min(positive_scores)
    ceiling = lowest - (1 - margin) * abs(lowest)  # also below it where the score is negative
    others = [(passage, score) for passage, score in candidates if passage not in masked]
    kept = [(passage, score) for passage, score in others if score <= ceiling]
    return kept, [(passage, score) for passage, score in others if score > ceiling]


def counts(mined: Sequence[Mined], wanted: int) -> dict[str, int]:
    """How many questions there are, suspects among their candidates, and questions short of negatives."""
    short = sum(len(one.negatives) < wanted for one in mined)
    return {
        "questions": len(mined),
        "suspects": sum(len(m.excluded) for m in mined),
        "fewer_negatives": short,
    }


def trained_text(pair: QAPair, passage: Chunk) -> str:
    """A passage as the rows of a question have it: a free one (a heading, search terms) must find the text
    itself, so its passages come without their title."""
    return passage.text if pair.generator in FREE else passage_text(passage)


def positive_texts(pair: QAPair, passages: dict[str, Chunk]) -> dict[str, str]:
    """{id: text} that a question is trained towards."""
    return {c: trained_text(pair, passages[c]) for c in pair.chunk_ids}


def mine(
    pairs: Sequence[QAPair],
    passages: dict[str, Chunk],
    matrix: np.ndarray,
    query_vectors: np.ndarray,
    encode: Callable[[list[str]], np.ndarray],
    twins: dict[str, set[str]],
    rule: Callable[[Scored, list[float], set[str]], tuple[Scored, Scored]],
    negatives: int = 4,
    bm25_share: float = 0.25,
    depth: int = 100,
    search: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]] = nearest,
) -> list[Mined]:
    """Hard negatives for every question, from dense and BM25 candidates.

    passages: those that training may use (no held-out ones); matrix (len(passages), d): their vectors, with
    titles; free questions are trained on texts without (`trained_text`), so they search among those.
    query_vectors (len(pairs), d); encode: texts trained on → vectors. twins: {id: ids of equal or near-equal
    passages}. rule: (candidates, positive scores, masked ids) → (kept, suspects). Suspects never come back,
    so a question may end with fewer negatives. bm25_share: part of the negatives taken from BM25's ranking.
    depth: candidates per question; where the rule leaves too few of them, ten times as many are looked at.
    search: `retrieval.nearest`, or `retrieval.Approximate` by choice.
    """
    ids = [i for i, p in passages.items() if p.text.strip() and not i.startswith(LITERAL)]
    expect(ids, "No passage is left to mine negatives from: every training passage is empty.")
    place = {i: row for row, i in enumerate(passages)}
    texts = [positive_texts(pair, passages) for pair in pairs]
    flat = encode([text for own in texts for text in own.values()])  # (positives, d)
    ends = np.cumsum([len(own) for own in texts])
    positives = np.split(flat, ends[:-1])  # (its positives, d) of every pair
    from_words = math.ceil(bm25_share * negatives)
    mined: dict[int, Mined] = {}
    for plain in (False, True):
        waiting = [m for m, pair in enumerate(pairs) if (pair.generator in FREE) is plain]
        if not waiting:
            continue
        # As `trained_text` has them; (n, d).
        searched = encode([passages[i].text for i in ids]) if plain else matrix[[place[i] for i in ids]]
        vectors = dict(zip(ids, searched, strict=True))
        asked = {pairs[m].question_id: pairs[m].question for m in waiting}
        corpus = {i: {"title": "" if plain else passages[i].title, "text": passages[i].text} for i in ids}
        lexical = bm25_search(asked, corpus, depth) if bm25_share > 0 else {}
        reach = depth
        while waiting:
            short, deepest = [], reach >= min(len(ids), DEEPEST)
            for m, dense in _rankings(waiting, query_vectors, searched, ids, reach, search):
                pair, query = pairs[m], query_vectors[m]
                own = (positives[m] @ query).tolist()
                masked = set(pair.chunk_ids).union(*(twins.get(c, ()) for c in pair.chunk_ids))
                by_vector = rule(dense, own, masked)
                if len(by_vector[0]) < negatives and not deepest:
                    short.append(m)  # comes again with a longer ranking
                    continue
                words = [(p, float(vectors[p] @ query)) for p in lexical.get(pair.question_id, {})]
                by_word = rule(words, own, masked)
                chosen, suspects = _mixed(by_vector, by_word, negatives, from_words)
                shown = (chosen, suspects[:SHOWN], dense[:SHOWN], [passage for passage, _ in suspects])
                mined[m] = Mined(pair, texts[m], own, *shown)
            waiting, reach = short, 10 * reach
    return [mined[m] for m in range(len(pairs))]


def _rankings(
    of: Sequence[int],
    queries: np.ndarray,
    searched: np.ndarray,
    ids: list[str],
    depth: int,
    search: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[int, Scored]]:
    """(row of the query, its ranking of `depth` passages) for the queries in the rows `of`."""
    for start in range(0, len(of), 2000):  # rankings of 2,000 queries are held at a time
        block = of[start : start + 2000]
        scores, rows = search(queries[block], searched, depth)  # (block, depth)
        for m, own, best in zip(block, rows, scores, strict=True):
            found = zip(own, best.tolist(), strict=True)
            yield m, [(ids[row], s) for row, s in found if row >= 0]  # -1: an HNSW index's end


def _mixed(
    by_vector: tuple[Scored, Scored], by_word: tuple[Scored, Scored], n: int, from_words: int
) -> tuple[Scored, Scored]:
    """(n negatives, `from_words` of them by words, all suspects), most similar first, of what the rule said
    of the two searches: (kept, suspects) each."""
    (dense, near), (lexical, near_by_word) = by_vector, by_word
    first = dict(dense[: n - from_words])
    second = [item for item in lexical if item[0] not in first][:from_words]
    rest = [item for item in dense if item[0] not in first | dict(second)]
    chosen = [*first.items(), *second, *rest][:n]
    suspects = (dict(near) | dict(near_by_word)).items()
    return tuple(sorted(found, key=lambda item: -item[1]) for found in (chosen, suspects))


def second_opinion(
    mined: Sequence[Mined],
    passages: dict[str, Chunk],
    relevance: Callable[[list[tuple[str, str]]], np.ndarray],
    negatives: int,
    ratio: float = 0.5,
    most: int = 10,
) -> int:
    """Let a stronger judge look at every question's `most` nearest suspects; how many became negatives.

    relevance: [(question, text)] → scores 0 to 1, e.g. a cross-encoder's `predict`. A suspect is cleared if
    it scores below `ratio` × the question's weakest positive. The cleared ones, which are the nearest, go
    before the other negatives, of which there are `negatives` in the end. Changes `mined`.
    """
    cleared = 0
    for one in mined:
        asked = one.suspects[:most]
        if not asked:
            continue
        texts = [*one.positives.values(), *(trained_text(one.pair, passages[p]) for p, _ in asked)]
        judged = relevance([(one.pair.question, text) for text in texts])
        n = len(one.positives)
        wrong = [s for s, r in zip(asked, judged[n:], strict=True) if r < ratio * min(judged[:n])]
        moved = dict(wrong[:negatives])
        one.negatives = [*moved.items(), *one.negatives][:negatives]
        one.suspects = [item for item in one.suspects if item not in one.negatives]
        one.excluded = [passage for passage in one.excluded if passage not in moved]
        cleared += len(moved)
    return cleared


def unmined(pair: QAPair, passages: dict[str, Chunk]) -> Mined:
    """A question with its positives alone, as validation rows have it."""
    texts = positive_texts(pair, passages)
    return Mined(pair, texts, [None] * len(texts), [], [], [])


def write_suspects(path: Path, mined: Sequence[Mined]) -> None:
    """All suspects that stay excluded: {"passages": [ids], "of": {query id: [rows of passages]}}."""
    passages: dict[str, int] = {}
    of = {m.pair.question_id: [passages.setdefault(p, len(passages)) for p in m.excluded] for m in mined}
    write_text(path, json.dumps({"passages": list(passages), "of": of}, ensure_ascii=False))


def read_suspects(path: Path) -> dict[str, list[str]]:
    """{query id: ids of its suspects} as `write_suspects` wrote them; CourseError where that is lost."""
    expect(path.exists(), f"{path} is missing: what must stay excluded is not known. Run notebook 2 again.")
    found = read_json(path)
    return {query: [found["passages"][i] for i in rows] for query, rows in found["of"].items()}


def write_handover(folder: Path, rows: Sequence[TrainingRow], passages: dict[str, Chunk]) -> int:
    """The rows as NeMo Automodel's training file and corpus folder; how many rows were written.

    There a row names passages by id alone, so a passage that rows use without its title is written a second
    time, under its id followed by `#text`. A row without negatives is left out: Automodel refuses it.
    """
    texts = {i: passage_text(passage) for i, passage in passages.items()}
    named = []
    for row in (row for row in rows if row.negatives):
        used = zip([row.positive_id, *row.negative_ids], [row.positive, *row.negatives], strict=True)
        ids = []
        for passage_id, text in used:
            ids.append(passage_id if texts[passage_id] == text else f"{passage_id}#text")
            texts[ids[-1]] = text
        named.append(row.model_copy(update={"positive_id": ids[0], "negative_ids": ids[1:]}))
    write_automodel(folder, named, {i: {"title": "", "text": text} for i, text in texts.items()})
    return len(named)


def unroll(mined: Iterable[Mined], passages: dict[str, Chunk]) -> list[TrainingRow]:
    """One row per question and positive, all with the question's negatives; a free one's come untitled."""
    rows = []
    for one in mined:
        texts = [trained_text(one.pair, passages[p]) for p, _ in one.negatives]
        for (positive_id, positive), score in zip(one.positives.items(), one.positive_scores, strict=True):
            rows.append(
                TrainingRow(
                    query_id=one.pair.question_id,
                    query=one.pair.question,
                    positive_id=positive_id,
                    positive=positive,
                    positive_score=None if score is None else round(score, 4),
                    negative_ids=[p for p, _ in one.negatives],
                    negatives=texts,
                    negative_scores=[round(s, 4) for _, s in one.negatives],
                    generator=one.pair.generator,
                )
            )
    return rows
