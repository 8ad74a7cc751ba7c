# python -m pytest tests/contracts/test_automodel.py            (with -m heavy: NeMo Automodel's own loader)
"""The hand-over to NeMo Automodel: its published schema, and loading by its own dataset code."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from utils import mining
from utils.records import Chunk, TrainingRow

# What its loader accepts, in its own environment: rows, corpus lookup and the transform for 1 + 4 passages.
LOADER = """
import json, sys
from nemo_automodel.components.datasets.llm.retrieval_dataset import _transform_func, load_datasets
dataset, corpora = load_datasets(sys.argv[1])
batch = _transform_func(dataset[:], 4, corpora)
print("LOADED " + json.dumps({key: batch[key] for key in ("doc_text", "question")}))
"""


@pytest.fixture
def handed(tmp_path):
    """A hand-over with titled, untitled and empty passages, and a row without negatives."""
    passages = {
        "a": Chunk(chunk_id="a", doc_id="d", title="Deck", text="The deck is washed."),
        "b": Chunk(chunk_id="b", doc_id="d", title="Hull", text="The hull is painted."),
        "e": Chunk(chunk_id="e", doc_id="e", text=""),
    }
    common = {"positive_id": "a", "positive": "Deck\nThe deck is washed."}
    other = {"negative_ids": ["b"], "negatives": ["Hull\nThe hull is painted."]}
    rows = [
        TrainingRow(query_id="1", query="Who washes?", **common, **other),
        TrainingRow(query_id="1", query="Who washes?", positive_id="b", positive="Hull\nThe hull is painted.",
                    negative_ids=["a"], negatives=["Deck\nThe deck is washed."]),
        TrainingRow(query_id="2", query="Deck", positive_id="a", positive="The deck is washed.",
                    negative_ids=["b"], negatives=["The hull is painted."]),
        TrainingRow(query_id="3", query="Alone?", **common),
    ]  # fmt: skip
    assert mining.write_handover(tmp_path, rows, passages) == 3
    return tmp_path


def test_schema(handed):
    train = json.loads((handed / "train.json").read_text())
    assert train["corpus"] == {"path": "./corpus"}
    metadata = json.loads((handed / "corpus" / "merlin_metadata.json").read_text())
    assert metadata["class"] == "TextQADataset"
    table = pd.read_parquet(handed / "corpus" / "train.parquet")
    assert list(table.columns) == ["id", "text"] and table["id"].is_unique
    text = dict(zip(table["id"], table["text"], strict=True))
    assert text["e"] == "" and text["a"] == "Deck\nThe deck is washed."
    assert len({row["question_id"] for row in train["data"]}) == 3
    for row in train["data"]:
        assert set(row) == {"question_id", "question", "corpus_id", "pos_doc", "neg_doc"}
        assert row["corpus_id"] == metadata["corpus_id"] and row["pos_doc"] and row["neg_doc"]
        assert all(set(doc) == {"id"} and doc["id"] in text for doc in row["pos_doc"] + row["neg_doc"])
    heading = train["data"][2]
    assert text[heading["pos_doc"][0]["id"]] == "The deck is washed.", "a heading's passage comes untitled"


@pytest.mark.heavy
def test_its_own_dataset_code_loads_it(handed, tmp_path_factory):
    place = tmp_path_factory.mktemp("automodel")
    wanted = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
    fetched = subprocess.run([*wanted, "nemo-automodel==0.7.0"], capture_output=True, text=True)
    if fetched.returncode:
        pytest.skip(
            f"nemo-automodel cannot be installed here, only the schema was checked: {fetched.stderr[-200:]}"
        )
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(handed / "train.json")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin", "HOME": str(place), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = json.loads(done.stdout.split("LOADED ")[1])
    assert loaded["question"] == ["Who washes?", "Who washes?", "Deck"]
    assert loaded["doc_text"][2] == ["The deck is washed."] + ["The hull is painted."] * 4
