"""How hard the gold questions are before any tuning: BM25 and the base model per need.

    python data/difficulty.py [dev|test]

Prints nDCG@10 and the share of questions whose first passage answers them. The dev part is for choosing
rules and defaults, the test part for reporting.
"""

import sys

import pandas as pd

from utils import corpus, evaluation, retrieval, run
from utils.records import passage_text

CHUNK_TOKENS = 160  # as notebook 1 cuts by default


def main() -> None:
    """Search the sample domain with the gold questions and print the table."""
    split = sys.argv[1] if len(sys.argv) > 1 else "test"
    model = retrieval.load_encoder("embedded", run.detect_device(), 256)
    gold = evaluation.load_gold(corpus.read_chunks("", model.tokenizer, CHUNK_TOKENS), split)
    texts = [passage_text(passage) for passage in gold.corpus.values()]
    passages = retrieval.encode(model, texts, "passage", cache=run.cache_dir())
    queries = retrieval.encode(model, list(gold.queries.values()), "query")
    runs = {
        "BM25": retrieval.bm25_search(gold.queries, gold.corpus, 100),
        "base": retrieval.dense_search(queries, passages, 100, list(gold.queries), list(gold.corpus)),
    }
    table = pd.DataFrame(
        {"need": [gold.metadata[query]["need"] for query in gold.queries]}, index=list(gold.queries)
    )
    for name, found in runs.items():
        scores = evaluation.metrics(found, gold.qrels).loc[table.index]
        table[f"{name} nDCG@10"] = scores["nDCG@10"]
        table[f"{name} first"] = scores["Precision@1"]
    by_need = table.groupby("need").mean().assign(queries=table.groupby("need").size())
    by_need.loc["all"] = table.drop(columns="need").mean().to_dict() | {"queries": len(table)}
    print(f"gold, {split} part, {len(gold.corpus)} passages")
    print(by_need.round(3).to_string())


if __name__ == "__main__":
    main()
