# python -m pytest tests/contracts/test_prepared_data.py
"""What notebook 2 hands on, made by its own cells from a corpus with all the oddities."""

import ast
import functools
import json

import numpy as np
import pytest

from utils import beir_files, mining, records, retrieval, run
from utils.records import TrainingRow
from utils.run import CourseError

LOAD = retrieval.load_encoder
NOTEBOOK = run.ROOT / "notebooks" / "02_prepare_training_data.ipynb"
THINGS = ["pump", "valve", "winch", "boiler", "rudder", "anchor", "filter", "sensor", "hatch", "cable"]
PARTS = ["seal", "bolt", "shaft", "gauge", "lever", "drum", "plate", "spring", "switch", "nozzle"]


def text_of(n):
    words = np.random.default_rng(n).permutation(THINGS + PARTS)
    return f"The {THINGS[n % 10]} {PARTS[n // 10]} is kept by {' and '.join(words[:12])}, as sheet {n} says."


@functools.cache
def encoder():
    return LOAD("embedded", "cpu", 64)


def run_notebook(monkeypatch, tmp_path, **parameters):
    """Execute the notebook's code cells in this process; returns their names."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retrieval, "load_encoder", lambda *_: encoder())
    names = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile(ast.parse("".join(cell["source"])), cell["id"], "exec"), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names.update({"RUN": "contract", "PROFILE": "smoke", **parameters})
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vector store's export with an empty row and a twin; questions whose ids equal passage ids; a test."""
    root = tmp_path_factory.mktemp("own")
    corpus = {str(n): {"title": f"Sheet {n}", "text": text_of(n)} for n in range(60)}
    corpus["empty"] = {"title": "", "text": ""}
    corpus["twin"] = {"title": "A copy", "text": text_of(3)}
    beir_files.write_corpus(root / "corpus.jsonl", corpus)
    pairs = [
        {
            "question_id": str(n),
            "question": f"Who keeps the {THINGS[n % 10]} {PARTS[n // 10]}?",
            "chunk_ids": [str(n)],
        }
        for n in range(60)
    ]
    pairs.append({"question_id": "hop", "question": "Which two sheets agree?", "chunk_ids": ["11", "12"]})
    pairs.append({"question_id": "hollow", "question": "Nothing at all?", "chunk_ids": ["empty"]})
    pairs.append({"question_id": "own", "question": "Who cooks on board?", "positives": ["The cook cooks."]})
    records.write_rows(root / "pairs.jsonl", pairs)
    test = root / "judged"
    beir_files.write_queries(test / "queries.jsonl", {"20": "WHO keeps the pump shaft", "u": "unjudged"})
    beir_files.write_qrels(test / "qrels" / "test.tsv", {"20": {"20": 1}})
    (test / "qrels" / "train.tsv").write_text("not to be read\n")
    return root


@pytest.fixture(scope="module")
def stage(folder, tmp_path_factory):
    """The finished stage folder, and what the notebook's cells left."""
    with pytest.MonkeyPatch.context() as patch:
        names = run_notebook(
            patch,
            tmp_path_factory.mktemp("out"),
            CORPUS=str(folder / "corpus.jsonl"),
            QA_PAIRS=str(folder / "pairs.jsonl"),
            TEST_SET=str(folder / "judged"),
        )
    return names["stage"].path, names


def training_rows(path):
    return records.read_rows(path / "train.jsonl", TrainingRow)


def test_the_corpus_keeps_ids_order_and_empty_rows(stage, folder):
    given = beir_files.read_corpus(folder / "corpus.jsonl")
    written = beir_files.read_corpus(stage[0] / "beir" / "corpus.jsonl")
    assert list(written.items()) == list(given.items())


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_is_a_beir_collection_with_its_questions(stage, split):
    collection = beir_files.read_beir(stage[0] / "beir", split)
    assert collection.queries and all(collection.qrels[q] for q in collection.queries)
    judged = beir_files.read_qrels(stage[0] / "beir" / "qrels" / f"{split}.tsv")
    if split != "train":
        assert set(judged) == set(collection.queries), "no query is dropped, whatever its id"
        assert any(q in collection.corpus for q in collection.queries), "ids of queries and passages meet"


def test_rows_have_texts_for_ids_and_distinct_negatives(stage):
    corpus = beir_files.read_corpus(stage[0] / "beir" / "corpus.jsonl")
    rows = training_rows(stage[0])
    assert len({(r.query_id, r.positive_id) for r in rows}) == len(rows) > 20
    for row in rows:
        assert row.query.strip() and row.positive.strip() and 0 < len(row.negatives) <= 4
        assert (
            len(set(row.negative_ids))
            == len(row.negative_ids)
            == len(row.negatives)
            == len(row.negative_scores)
        )
        assert row.positive_id not in row.negative_ids
        for passage_id, text in zip(row.negative_ids, row.negatives, strict=True):
            assert text == records.passage_text(corpus[passage_id])
        assert row.negative_scores == sorted(row.negative_scores, reverse=True)


def test_negatives_stay_below_the_margin(stage):
    lowest = {}
    for row in training_rows(stage[0]):
        lowest[row.query_id] = min(row.positive_score, lowest.get(row.query_id, 9))
    for row in training_rows(stage[0]):
        assert all(score <= 0.95 * lowest[row.query_id] + 1e-3 for score in row.negative_scores)


def test_suspects_are_kept_and_no_row_has_one_as_negative(stage):
    excluded = mining.read_suspects(stage[0] / "suspects.json")
    rows = training_rows(stage[0])
    assert set(excluded) == {row.query_id for row in rows}
    assert sum(map(len, excluded.values())) == stage[1]["report"]["mining"]["suspects"] > 0
    assert not any(set(row.negative_ids) & set(excluded[row.query_id]) for row in rows)


def test_nothing_of_the_held_out_side_is_in_training(stage):
    held_out = set(json.loads((stage[0] / "audit.json").read_text())["held_out_passages"])
    rows = training_rows(stage[0])
    assert held_out and not held_out & {i for r in rows for i in (r.positive_id, *r.negative_ids)}
    judged = [
        set(beir_files.read_qrels(stage[0] / "beir" / "qrels" / f"{s}.tsv")) for s in ("train", "val", "test")
    ]
    assert not judged[0] & judged[1] and not judged[0] & judged[2] and not judged[1] & judged[2]
    for name in ("val", "test"):
        qrels = beir_files.read_qrels(stage[0] / "beir" / "qrels" / f"{name}.tsv")
        assert {p for rel in qrels.values() for p in rel} <= held_out
    assert ("3" in held_out) == ("twin" in held_out), "a twin goes with its sibling"


def test_a_question_of_the_human_test_is_dropped_and_counted(stage):
    assert "20" not in {row.query_id for row in training_rows(stage[0])}
    report = json.loads((stage[0] / "audit.json").read_text())
    assert sum(n for why, n in report["dropped"].items() if "human" in why) >= 1
    assert set(report["leaks"].values()) == {0}
    assert stage[1]["human"] == {"judged": ["WHO keeps the pump shaft"]}


def test_an_own_literal_positive_trains_but_is_no_passage(stage):
    (row,) = [row for row in training_rows(stage[0]) if row.query_id == "own"]
    assert row.positive == "The cook cooks."
    assert row.positive_id not in beir_files.read_corpus(stage[0] / "beir" / "corpus.jsonl")


def test_a_question_about_an_empty_passage_is_counted_and_left_out(stage):
    queries = {row["_id"] for row in records.read_jsonl(stage[0] / "beir" / "queries.jsonl")}
    assert "hollow" not in queries
    assert json.loads((stage[0] / "audit.json").read_text())["dropped"]["its passage is empty"] == 1


def test_validation_rows_are_the_validation_questions(stage):
    rows = records.read_rows(stage[0] / "val.jsonl", TrainingRow)
    qrels = beir_files.read_qrels(stage[0] / "beir" / "qrels" / "val.tsv")
    assert {(r.query_id, r.positive_id) for r in rows} == {(q, p) for q, rel in qrels.items() for p in rel}


def test_the_manifest_comes_last_and_names_its_inputs(stage, folder):
    manifest = json.loads((stage[0] / "manifest.json").read_text())
    assert {str(folder / "corpus.jsonl"), str(folder / "pairs.jsonl"), str(folder / "judged")} <= set(
        manifest["inputs"]
    )
    assert manifest["headline"]["leaks"] == 0
    assert {
        "train.jsonl",
        "val.jsonl",
        "audit.json",
        "suspects.json",
        "beir/qrels/val.tsv",
        "automodel/train.json",
    } <= set(manifest["outputs"])


def without_synthetic_test(monkeypatch):
    """All questions of held-out documents need a passage of another split too."""
    from utils import preparation

    plain = preparation.assign

    def assign(*given):
        placed, dropped = plain(*given)
        dropped["its passages lie in two splits"] += 100
        return placed | {"test": []}, dropped

    monkeypatch.setattr(preparation, "assign", assign)


def test_only_a_human_test_that_can_decide_takes_the_synthetic_ones_place(
    stage, folder, tmp_path, monkeypatch
):
    """One judged question leaves it whole; with sixty it is kept small, and may even be empty."""
    assert stage[1]["shares"]["test"] == stage[1]["HELD_OUT"][1]
    judged = {f"h{n}": f"Where is sheet {n} of the {THINGS[n % 10]} said to lie?" for n in range(60)}
    beir_files.write_queries(tmp_path / "people" / "queries.jsonl", judged)
    qrels = {query: {query[1:]: 1} for query in judged}
    beir_files.write_qrels(tmp_path / "people" / "qrels" / "test.tsv", qrels)
    given = {"CORPUS": str(folder / "corpus.jsonl"), "QA_PAIRS": str(folder / "pairs.jsonl")}
    without_synthetic_test(monkeypatch)
    names = run_notebook(monkeypatch, tmp_path, **given, TEST_SET=str(tmp_path / "people"))
    assert names["shares"]["test"] == names["HELD_OUT"][1] / 4 and not names["questions"]["test"]
    assert (names["stage"].path / "manifest.json").exists()


def test_an_empty_split_says_what_took_its_questions(folder, tmp_path, monkeypatch):
    given = {"CORPUS": str(folder / "corpus.jsonl"), "QA_PAIRS": str(folder / "pairs.jsonl")}
    without_synthetic_test(monkeypatch)
    with pytest.raises(
        CourseError, match=r"left in \['test'\]. What took most: its passages lie in two splits"
    ):
        run_notebook(monkeypatch, tmp_path, **given)


def test_a_leak_fails_the_notebook_and_leaves_no_manifest(folder, tmp_path, monkeypatch):
    from utils import preparation

    monkeypatch.setattr(preparation, "usable", lambda passages, split, twins: passages)
    with pytest.raises(CourseError, match="Leaks between the splits"):
        run_notebook(
            monkeypatch, tmp_path, CORPUS=str(folder / "corpus.jsonl"), QA_PAIRS=str(folder / "pairs.jsonl")
        )
    assert not (tmp_path / "runs" / "contract" / "02_prepare_training_data" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"MARGIN": 2.0}, "MARGIN = 2.0: choose 0.1 to 1"),
        ({"HELD_OUT": 0.2}, "HELD_OUT = 0.2: give two shares"),
        (
            {"CORPUS": "corpus.jsonl", "QA_PAIRS": "pairs.jsonl", "SECOND_OPINION": "/nowhere/judge"},
            "SECOND_OPINION = '/nowhere/judge' could not be loaded",
        ),
        ({"SEARCH": "fast"}, "choose 'exact' or 'hnsw'"),
        ({"PROFILE": "tiny"}, "PROFILE = 'tiny' is unknown"),
        ({}, "Run notebooks/01_generate_synthetic_data.ipynb first"),
        ({"CORPUS": "corpus.jsonl"}, "QA_PAIRS is empty"),
        ({"CORPUS": "nowhere", "QA_PAIRS": "pairs.jsonl"}, "CORPUS = .* does not exist"),
        (
            {"CORPUS": "corpus.jsonl", "QA_PAIRS": "pairs.jsonl", "TEST_SET": "nowhere"},
            "TEST_SET = .* does not exist",
        ),
    ],
)
def test_user_errors_are_one_sentence(parameters, message, folder, tmp_path, monkeypatch):
    paths = {"CORPUS", "QA_PAIRS", "TEST_SET"}
    given = {k: str(folder / v) if k in paths else v for k, v in parameters.items()}
    with pytest.raises(CourseError, match=message):
        run_notebook(monkeypatch, tmp_path, **given)
