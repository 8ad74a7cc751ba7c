# python -m pytest tests/contracts/test_sdg_rows.py
"""The hand-over to the reference recipe: rows as its generation writes them, read as its next stage reads."""

import json

import pytest

from utils import handover
from utils.records import Chunk, Evidence, QAPair, Scores
from utils.run import CourseError

CHUNKS = [
    Chunk(
        chunk_id="deck#0", doc_id="deck.md", title="Deck", text="The deck is washed at six.", start=8, end=34
    ),
    Chunk(
        chunk_id="deck#1",
        doc_id="deck.md",
        title="Deck > Salt",
        text="Salt is removed first.",
        start=44,
        end=66,
    ),
    Chunk(chunk_id="hull#0", doc_id="hull.md", text="The hull is painted after the deck is dry.", end=42),
    Chunk(chunk_id="mast#0", doc_id="mast.md", text="Nobody asks about the mast.", end=27),
]
MARKS = Scores(relevance=9, accuracy=8, context_support=10, clarity=6, overall=8.5)
PAIRS = [
    QAPair(
        question="When is the deck washed?",
        chunk_ids=["deck#0"],
        answer="At six.",
        query_type="structural",
        reasoning_type="factual",
        complexity=2,
        scores=MARKS,
        evidence=[Evidence(doc_id="deck.md", quote="washed at six")],
    ),
    QAPair(
        question="What precedes painting?",
        chunk_ids=["hull#0", "deck#1"],
        answer="Drying.",
        query_type="multi_hop",
        reasoning_type="temporal",
        hops=2,
        complexity=4,
        scores=Scores(overall=5),
        evidence=[
            Evidence(doc_id="deck.md", quote="Salt is removed"),
            Evidence(doc_id="hull.md", quote="after the deck is dry"),
        ],
    ),
    QAPair(question="Deck", chunk_ids=["deck#1", "deck#0"]),
    QAPair(question="Is it literal?", positives=["A text of its own."]),
]


@pytest.fixture
def rows(tmp_path):
    assert handover.write_sdg(tmp_path / "sdg.json", PAIRS, CHUNKS) == 3
    return json.loads((tmp_path / "sdg.json").read_text(encoding="utf8"))


def test_shape(rows):
    for row in rows:
        assert set(row) == {"file_name", "chunks", "deduplicated_qa_pairs", "qa_evaluations"}
        assert isinstance(row["file_name"], list) and all(isinstance(name, str) for name in row["file_name"])
        ids = [chunk["chunk_id"] for chunk in row["chunks"]]
        assert ids == list(range(1, len(ids) + 1))
        assert all({"chunk_id", "text", "start", "end"} <= set(chunk) for chunk in row["chunks"])
        pairs, marks = row["deduplicated_qa_pairs"], row["qa_evaluations"]["evaluations"]
        assert len(pairs) == len(marks), "its next stage drops a row whose lists differ in length"
        for pair, mark in zip(pairs, marks, strict=True):
            assert set(pair) == {
                *("question", "answer", "question_complexity", "query_type", "reasoning_type"),
                *("segment_ids", "hop_count", "hop_contexts"),
            }
            assert set(pair["segment_ids"]) <= set(ids)
            assert all(set(hop) == {"hop_number", "segment_ids", "summary"} for hop in pair["hop_contexts"])
            assert {"relevance", "accuracy", "context_support", "clarity", "overall"} <= set(mark)
            assert all(isinstance(mark[name]["score"], int | float) for name in handover.CRITERIA)


def test_every_passage_is_there_and_a_question_that_spans_documents_has_a_row_of_its_own(rows):
    assert [row["file_name"] for row in rows] == [
        ["deck.md"],
        ["hull.md"],
        ["mast.md"],
        ["deck.md", "hull.md"],
    ]
    assert [len(row["chunks"]) for row in rows] == [2, 1, 1, 3]
    assert [len(row["deduplicated_qa_pairs"]) for row in rows] == [2, 0, 0, 1]


def taken_over(rows, threshold):
    """What the recipe's next stage makes of the rows: {question: texts}, kept from a threshold on."""
    found = {}
    for row in rows:
        text = {chunk["chunk_id"]: chunk["text"] for chunk in row["chunks"]}
        marks = row["qa_evaluations"]["evaluations"]
        for pair, mark in zip(row["deduplicated_qa_pairs"], marks, strict=True):
            if mark["overall"]["score"] >= threshold:
                found[pair["question"]] = [text[i] for i in pair["segment_ids"]]
    return found


def test_pairs_and_passages_come_back(rows):
    assert taken_over(rows, 0) == {
        "When is the deck washed?": ["Deck\nThe deck is washed at six."],
        "Deck": ["Deck > Salt\nSalt is removed first.", "Deck\nThe deck is washed at six."],
        "What precedes painting?": [CHUNKS[2].text, "Deck > Salt\nSalt is removed first."],
    }
    assert set(taken_over(rows, 7)) == {"When is the deck washed?", "Deck"}, (
        "unjudged ones pass, bad ones do not"
    )
    first, second = rows[0]["deduplicated_qa_pairs"][0], rows[3]["deduplicated_qa_pairs"][0]
    assert (first["answer"], first["question_complexity"], first["hop_count"]) == ("At six.", 2, 1)
    assert (first["query_type"], first["reasoning_type"]) == ("structural", "factual")
    assert second["hop_count"] == 2 and [hop["hop_number"] for hop in second["hop_contexts"]] == [1, 2]
    assert [hop["summary"] for hop in second["hop_contexts"]] == ["after the deck is dry", "Salt is removed"]
    assert [(c["start"], c["end"]) for c in rows[0]["chunks"]] == [(8, 34), (44, 66)]


def test_marks_are_the_judges_and_an_unjudged_question_says_so(rows):
    judged, free = rows[0]["qa_evaluations"]["evaluations"]
    assert [judged[name]["score"] for name in handover.CRITERIA] == [9, 8, 10, 6]
    assert judged["overall"]["score"] == 8.5
    assert free["overall"]["score"] == 7 and "not judged" in free["overall"]["assessment"]
    overall_only = rows[3]["qa_evaluations"]["evaluations"][0]
    assert overall_only["relevance"]["score"] == overall_only["overall"]["score"] == 5


def test_a_question_about_an_unknown_passage_is_named(tmp_path):
    with pytest.raises(CourseError, match="names unknown chunks"):
        handover.write_sdg(tmp_path / "sdg.json", [QAPair(question="Where?", chunk_ids=["gone"])], CHUNKS)
    assert not (tmp_path / "sdg.json").exists()
