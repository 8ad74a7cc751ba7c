# COURSE_REAL_DATA=../shared/real python -m pytest -m heavy tests/contracts/test_published_scores.py -s
"""The course's retrieval and metrics reproduce what is published for BEIR's scifact (nDCG@10).

COURSE_REAL_DATA names the folder that holds `scifact/` as a BEIR folder; its queries are only ever used to
measure. The base model's score is that of tests/benchmarks/published_scores.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import beir_files, retrieval, run
from utils.evaluation import metrics

FOLDER = Path(os.environ.get("COURSE_REAL_DATA") or run.ROOT.parent / "shared" / "real").expanduser()

pytestmark = [
    pytest.mark.skipif(
        not (FOLDER / "scifact").is_dir(),
        reason=f"NOT MEASURED: {FOLDER / 'scifact'} is missing; set COURSE_REAL_DATA.",
    ),
]


@pytest.fixture(scope="module")
def scifact():
    return beir_files.read_beir(FOLDER / "scifact", "test")


def ndcg(found, collection):
    return metrics(found, collection.qrels)["nDCG@10"].mean()


@pytest.mark.heavy
def test_bm25_is_within_the_published_range(scifact):
    score = ndcg(retrieval.bm25_search(scifact.queries, scifact.corpus, 100), scifact)
    print(f"\nscifact, BM25: nDCG@10 {score:.4f}")
    assert 0.66 <= score <= 0.69


@pytest.mark.heavy
def test_base_model_is_within_half_a_point_of_the_published_score():
    script = run.ROOT / "tests" / "benchmarks" / "published_scores.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
