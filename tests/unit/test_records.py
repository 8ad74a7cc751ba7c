# python -m pytest tests/unit/test_records.py
"""Rows in, rows out; and a bad row is named by file and line."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import beir_files, handover, records
from utils.records import Chunk, Evidence, QAPair, TrainingRow
from utils.run import CourseError

TEXT = "Oil is changed at 95 bar. The red key is turned first. Then five minutes pass."


def beir(folder, corpus, queries, qrels):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


@given(st.lists(st.text(), max_size=4), st.text(min_size=1))
def test_training_row_survives_its_flat_form(negatives, query):
    row = TrainingRow(
        query_id="q", query=query, positive_id="p", positive="text", negatives=negatives,
        negative_ids=[str(i) for i in range(len(negatives))],
    )  # fmt: skip
    flat = json.loads(json.dumps(row.flat()))
    assert {f"negative_{i + 1}": text for i, text in enumerate(negatives)}.items() <= flat.items()
    assert TrainingRow.from_flat(flat) == row


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "chunk_ids": ["x"]}\n{"question": }\n')
    with pytest.raises(CourseError, match=r"rows\.jsonl, line 2: not JSON"):
        records.read_rows(path, QAPair)
    path.write_text('\n\n{"question": "a", "chunk_ids": "x"}\n')
    with pytest.raises(CourseError, match=r"rows\.jsonl, line 3: chunk_ids"):
        records.read_rows(path, QAPair)


def test_rows_keep_line_separators_inside_strings(tmp_path):
    rows = [{"text": "one\u2028two\x85three"}, {"text": "next"}]
    records.write_rows(tmp_path / "r.jsonl", rows)
    assert list(records.read_jsonl(tmp_path / "r.jsonl")) == rows


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Oil is\nchanged", "Oil is changed"),
        ("Oil is changed at 95 bar", "Oil is changed …"),
        ("Oil is  changed daily by", "Oil is changed …"),
        ("维护前必须停机并检查所有温度传感器和电缆", "维护前必须停机并检查所有温度传…"),
        ("1. 维护前必须停机并检查所有温度传感器", "1. 维护前必须停机并检查所有…"),
        ("ตรวจสอบปั๊มน้ำก่อนเริ่มงาน", "ตรวจสอบปั๊มน้ำก…"),
        ("https://example.org/a/b", "https://example…"),
    ],
)
def test_a_text_is_cut_behind_a_word_where_there_are_spaces(text, shown):
    assert records.cut(text, 16) == shown and len(shown) <= 16


def chunks():
    cut = TEXT.index("The red")
    middle = TEXT.index("Then")
    parts = [(0, cut), (cut, middle), (middle, len(TEXT))]
    return [
        Chunk(chunk_id=f"c{i}", doc_id="d", text=TEXT[a:b], start=a, end=b) for i, (a, b) in enumerate(parts)
    ]


@pytest.mark.parametrize("document", [TEXT, ""])
def test_a_quote_belongs_to_the_chunk_that_covers_most_of_it(document):
    assert (
        records.locate(Evidence(doc_id="d", quote="red key is turned first. Then"), chunks(), document)
        == "c1"
    )
    assert records.locate(Evidence(doc_id="d", quote="Then five minutes"), chunks(), document) == "c2"
    assert records.locate(Evidence(doc_id="other", quote="Then five"), chunks(), document) is None


def test_beir_keeps_order_empty_rows_and_equal_ids(tmp_path):
    corpus = [{"_id": "b", "title": "", "text": ""}, {"_id": "a", "title": "T", "text": "x"}]
    queries = [{"_id": "a", "text": "same id as a passage"}, {"_id": "n", "text": "nothing relevant"}]
    folder = beir(
        tmp_path / "set", corpus, queries, "query-id\tcorpus-id\tscore\na\ta\t1\na\tb\t0\nn\ta\t0\n"
    )
    found = beir_files.read_beir(folder)
    assert list(found.corpus) == ["b", "a"] and list(found.queries) == ["a"]
    assert found.qrels == {"a": {"a": 1, "b": 0}} and found.name == "set"
    beir_files.write_corpus(tmp_path / "again.jsonl", found.corpus)
    assert beir_files.read_corpus(tmp_path / "again.jsonl") == found.corpus


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("a\tzzz\t1\n", "not in the corpus"),
        ("zzz\ta\t1\n", "unknown queries"),
        ("a\ta\n", "line 1: expected query-id"),
        ("a\ta\t1\na\ta\t2\n", "judged twice"),
        ("a\ta\tgood\n", "whole-number score"),
    ],
)
def test_bad_qrels_say_where(tmp_path, qrels, message):
    folder = beir(tmp_path / "s", [{"_id": "a", "text": "x"}], [{"_id": "a", "text": "q"}], qrels)
    with pytest.raises(CourseError, match=message):
        beir_files.read_beir(folder)


def test_duplicate_passage_ids_are_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "x"}\n' * 2)
    with pytest.raises(CourseError, match=r"row 2: _id 'a' appears twice"):
        beir_files.read_corpus(tmp_path / "corpus.jsonl")


def test_one_id_for_two_queries_is_refused(tmp_path):
    queries = [{"_id": "q", "text": "one"}, {"_id": "q", "text": "another"}]
    folder = beir(tmp_path / "s", [{"_id": "a", "text": "x"}], queries, "q\ta\t1\n")
    with pytest.raises(CourseError, match=r"row 2: _id 'q' appears twice"):
        beir_files.read_beir(folder)


def test_words_are_counted_where_no_spaces_set_them_apart():
    assert records.word_count("The pump is dry") == 4
    assert records.word_count("海上风电场的维护手册") == 5


def test_automodel_file_and_corpus_agree(tmp_path):
    corpus = {"p": {"title": "T", "text": "x"}, "n": {"title": "", "text": "y"}}
    row = TrainingRow(
        query_id="q", query="what", positive_id="p", positive="x", negative_ids=["n"], negatives=["y"]
    )
    handover.write_automodel(tmp_path, [row, row], corpus)
    written = json.loads((tmp_path / "train.json").read_text())
    table = pd.read_parquet(tmp_path / written["corpus"]["path"] / "train.parquet").set_index("id")["text"]
    metadata = json.loads((tmp_path / "corpus" / "merlin_metadata.json").read_text())
    assert table.to_dict() == {"p": "T\nx", "n": "y"}
    assert len({item["question_id"] for item in written["data"]}) == 2
    for item in written["data"]:
        assert item["corpus_id"] == metadata["corpus_id"]
        assert {d["id"] for d in item["pos_doc"] + item["neg_doc"]} <= set(table.index)
