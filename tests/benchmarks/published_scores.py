# COURSE_REAL_DATA=../shared/real python tests/benchmarks/published_scores.py
"""nDCG@10 of the embedded base model on BEIR's scifact, through the course's own retrieval and metrics.

The MTEB leaderboard has 0.645 for all-MiniLM-L6-v2; exits with 1 if the measured score is not within 0.005.
COURSE_REAL_DATA names the folder that holds `scifact/` as a BEIR folder.
"""

import os
import sys
from pathlib import Path

from utils import beir_files, records, retrieval, run
from utils.evaluation import metrics

PUBLISHED, TOLERANCE = 0.645, 0.005


def main() -> int:
    """Encode, search, measure; the exit code."""
    folder = Path(os.environ.get("COURSE_REAL_DATA") or run.ROOT.parent / "shared" / "real").expanduser()
    collection = beir_files.read_beir(folder / "scifact", "test")
    model = retrieval.load_encoder("embedded", run.detect_device(), 256)
    texts = [records.passage_text(passage) for passage in collection.corpus.values()]
    passages = retrieval.encode(model, texts, "passage", cache=run.cache_dir(), progress="passages")
    queries = retrieval.encode(model, list(collection.queries.values()), "query")
    found = retrieval.dense_search(queries, passages, 100, list(collection.queries), list(collection.corpus))
    score = metrics(found, collection.qrels)["nDCG@10"].mean()
    print(f"scifact, all-MiniLM-L6-v2: nDCG@10 {score:.4f}, published {PUBLISHED}")
    return 0 if abs(score - PUBLISHED) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
