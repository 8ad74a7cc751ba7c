# COURSE_REAL_DATA=FOLDER python -m pytest -m "heavy or slow" tests/contracts/test_published_scores.py -s
"""The course's retrieval and metrics reproduce what is published for BEIR's scifact (nDCG@10).

COURSE_REAL_DATA names the folder that holds `scifact/` as a BEIR folder; its queries are only ever used to
measure. The base model's score is that of tests/benchmarks/published_scores.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from utils import beir_files, records, retrieval, run
from utils.evaluation import metrics

FOLDER = Path(os.environ.get("COURSE_REAL_DATA") or run.ROOT.parent / "shared" / "real").expanduser()

measured = pytest.mark.skipif(
    not (FOLDER / "scifact").is_dir(),
    reason=f"NOT MEASURED: {FOLDER / 'scifact'} is missing; set COURSE_REAL_DATA.",
)


@pytest.fixture(scope="module")
def scifact():
    return beir_files.read_beir(FOLDER / "scifact", "test")


def ndcg(found, collection):
    return metrics(found, collection.qrels)["nDCG@10"].mean()


@measured
@pytest.mark.heavy
def test_bm25_is_within_the_published_range(scifact):
    score = ndcg(retrieval.bm25_search(scifact.queries, scifact.corpus, 100), scifact)
    print(f"\nscifact, BM25: nDCG@10 {score:.4f}")
    assert 0.66 <= score <= 0.69


@pytest.mark.heavy
def test_retrieval_and_metrics_are_those_of_sentence_transformers():
    """Its own evaluator encodes, searches and measures by itself, on the general check."""
    test = beir_files.read_beir(run.ROOT / "data" / "general", "test")
    model = retrieval.load_encoder("embedded", "cpu", 256)
    texts = {i: records.passage_text(passage) for i, passage in test.corpus.items()}
    relevant = {
        query: {i for i, grade in grades.items() if grade > 0} for query, grades in test.qrels.items()
    }
    theirs = InformationRetrievalEvaluator(test.queries, texts, relevant, name="general")(model)
    passages = retrieval.encode(model, list(texts.values()), "passage")
    queries = retrieval.encode(model, list(test.queries.values()), "query")
    found = retrieval.dense_search(queries, passages, 100, list(test.queries), list(texts))
    ours = metrics(found, test.qrels).mean()
    for name in ("nDCG@10", "Recall@10", "MRR@10"):
        assert theirs[f"general_cosine_{name.lower()}"] == pytest.approx(ours[name], abs=1e-4), name


@measured
@pytest.mark.slow
def test_base_model_is_within_half_a_point_of_the_published_score():
    script = run.ROOT / "tests" / "benchmarks" / "published_scores.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
