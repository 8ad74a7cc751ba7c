"""Retrieval: exact dense search, BM25, and their fusion; the encoder and its vectors are found here too.

Every search returns a run: {query_id: {passage_id: score}}, best passage first. Nothing is dropped: a query
id may equal a passage id, and a passage may be empty.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

# What a search starts from is found here too.
from utils.encoder import all_gpus as all_gpus
from utils.encoder import encode as encode
from utils.encoder import load_cross_encoder as load_cross_encoder
from utils.encoder import load_encoder as load_encoder
from utils.hosted_encoder import HostedEncoder as HostedEncoder
from utils.language import main_language, word_rules
from utils.records import passage_text
from utils.run import expect
from utils.vector_cache import model_digest as model_digest

Run = dict[str, dict[str, float]]
BLOCK = 65_536  # passages that one block of a search holds at most: 100 MB of 384 dimensions


def nearest(
    queries: np.ndarray, passages: np.ndarray, k: int, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of the highest inner product for every query, exactly, in bounded memory.

    queries (m, d), passages (n, d), float32 (a numpy memory map will do) → scores float32 (m, k) and row
    numbers int64 (m, k), best first. With fewer than k passages the width is n. Passages are read in blocks;
    faiss multiplies and selects (faiss.knn), numpy merges the blocks' best.
    """
    import faiss

    k = min(k, len(passages))
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(passages), block):
        part = np.ascontiguousarray(passages[start : start + block], dtype=np.float32)
        best, where = faiss.knn(queries, part, min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        expect(
            (where >= 0).all(), "Vectors hold values that are not numbers: the model is damaged, or diverged."
        )
        scores, rows = np.hstack([scores, best]), np.hstack([rows, where + start])
        if scores.shape[1] > k:
            keep = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, keep, 1), np.take_along_axis(rows, keep, 1)
    return scores, rows


class Approximate:
    """Called like `nearest`; searches by an HNSW index: faster from about a million passages on, not exact.

    The index is built once for the passages it is first called with. For each k it prints its recall: the
    share of the exact k best that it finds, on up to 200 of the queries. Row -1: it found no more.
    """

    def __init__(self) -> None:
        self.passages, self.index, self.told = None, None, set()

    def __call__(self, queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        k = min(k, len(passages))
        if passages is not self.passages:
            self.passages, self.told = passages, set()
            self.index = faiss.IndexHNSWFlat(passages.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efConstruction = 200
            self.index.add(np.ascontiguousarray(passages, dtype=np.float32))
        self.index.hnsw.efSearch = max(2 * k, 64)
        scores, rows = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        if k not in self.told:
            self.told.add(k)
            sample = np.linspace(0, len(queries) - 1, min(200, len(queries))).astype(int)
            _, exact = nearest(queries[sample], passages, k)
            found = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact, rows[sample], strict=True)])
            print(f"HNSW search: recall of the exact {k} best {found:.1%} on {len(sample)} queries.")
        return scores, rows


def dense_search(
    query_vectors: np.ndarray,
    passage_vectors: np.ndarray,
    k: int,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
) -> Run:
    """Exact search by inner product: the k best passages of each query, best first."""
    expect(
        len(query_ids) == len(query_vectors) and len(passage_ids) == len(passage_vectors),
        f"{len(query_ids)} query ids for {len(query_vectors)} vectors, {len(passage_ids)} passage ids for "
        f"{len(passage_vectors)} vectors: one id a vector is needed.",
    )
    scores, rows = nearest(query_vectors, passage_vectors, k)
    return {
        query_id: {passage_ids[row]: score for row, score in zip(own, best, strict=True)}
        for query_id, own, best in zip(query_ids, rows.tolist(), scores.tolist(), strict=True)
    }


def bm25_search(queries: dict[str, str], corpus: dict[str, dict], k: int) -> Run:
    """BM25 (bm25s, Lucene's variant, k1 1.2, b 0.75) over title and text, stemmed in the corpus' language.

    Passages without a word in common with the query are left out, so that a row may have fewer than k.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    ids, texts = list(corpus), [passage_text(p) for p in corpus.values()]
    options = word_rules(main_language(texts))
    tokens = bm25s.tokenize(texts, **options)
    if not any(len(row) for row in tokens.ids) or not queries:
        return {query_id: {} for query_id in queries}
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(tokens, show_progress=False)
    asked = bm25s.tokenize(list(queries.values()), return_ids=False, **options)
    rows, scores = index.retrieve(asked, k=min(k, len(ids)), show_progress=False)
    return {
        query_id: {ids[row]: score for row, score in zip(own, best, strict=True) if score > 0}
        for query_id, own, best in zip(queries, rows.tolist(), scores.tolist(), strict=True)
    }


def fuse(runs: Sequence[Run], k: int = 60) -> Run:
    """Reciprocal rank fusion: score = Σ 1 / (k + rank), rank from 1 (Cormack, Clarke & Büttcher 2009)."""
    fused: Run = {query_id: {} for run in runs for query_id in run}
    for run in runs:
        for query_id, found in run.items():
            ranked = sorted(found, key=found.get, reverse=True)
            for rank, passage_id in enumerate(ranked, start=1):
                fused[query_id][passage_id] = fused[query_id].get(passage_id, 0.0) + 1 / (k + rank)
    return {q: dict(sorted(found.items(), key=lambda item: -item[1])) for q, found in fused.items()}
