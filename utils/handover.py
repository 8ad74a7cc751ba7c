"""What the course hands over to other tools, in their own formats: NeMo Automodel's training file."""

from __future__ import annotations

import json
from pathlib import Path

from utils.records import TrainingRow, passage_text
from utils.run import write_text


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
