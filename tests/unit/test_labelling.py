# python -m pytest tests/unit/test_labelling.py
"""The reader's labels: kept at once, shown again, and compared with the judge's marks."""

import json

import ipywidgets
import pytest
from IPython.display import HTML

from utils import labelling
from utils.run import CourseError

PAIRS = [
    {"question": f"Who turns key {i}?", "passage": f"Key {i} is turned <first>.", "answer": f"Crew {i}"}
    for i in range(4)
]


@pytest.fixture
def labeller(tmp_path, monkeypatch):
    """open_it() → {"path", "box", "press", "shown", "editor"} of a labeller over the first three pairs."""
    monkeypatch.delenv("COURSE_HEADLESS", raising=False)

    def open_it():
        box = labelling.label_pairs(PAIRS, tmp_path / "labels.jsonl", n=3)
        head, body, editor, row = box.children
        buttons = {button._dom_classes[0].removeprefix("labeller-"): button for button in row.children}
        return {
            "path": tmp_path / "labels.jsonl", "box": box, "editor": editor,
            "press": lambda name: buttons[name].click(), "shown": lambda: head.value + body.value,
        }  # fmt: skip

    return open_it


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def test_a_label_is_on_disk_at_once_and_the_next_pair_is_shown(labeller):
    it = labeller()
    assert "1 of 3" in it["shown"]() and "Crew 0" in it["shown"]() and "turned &lt;first&gt;" in it["shown"]()
    it["press"]("accept")
    assert rows(it["path"]) == [{"question": "Who turns key 0?", "label": "accept"}]
    assert "2 of 3" in it["shown"]() and "Who turns key 1?" in it["shown"]()
    it["press"]("reject")
    it["press"]("reject")
    assert [row["label"] for row in rows(it["path"])] == ["accept", "reject", "reject"]
    assert "3 of 3" in it["shown"]() and "3 labelled" in it["shown"]()


def test_a_question_that_comes_twice_is_asked_once(tmp_path, monkeypatch):
    """Labels are kept by question: one label for two pairs would count twice."""
    monkeypatch.delenv("COURSE_HEADLESS", raising=False)
    box = labelling.label_pairs([PAIRS[0], PAIRS[0], PAIRS[1]], tmp_path / "labels.jsonl")
    assert "1 of 2" in box.children[0].value


def test_the_arrows_go_back_and_forth_and_a_label_can_be_changed(labeller):
    it = labeller()
    it["press"]("back")
    assert "1 of 3" in it["shown"]()
    it["press"]("accept")
    it["press"]("back")
    assert "accept" in it["shown"]()
    it["press"]("reject")
    assert rows(it["path"]) == [{"question": "Who turns key 0?", "label": "reject"}]
    for _ in range(5):
        it["press"]("next")
    assert "3 of 3" in it["shown"]()


def test_an_edit_is_kept_while_it_is_typed_even_what_arrives_after_done(labeller):
    it = labeller()
    it["press"]("edit")
    assert it["editor"].value == "Who turns key 0?" and it["editor"].layout.display is None
    it["editor"].value = "Who turns the red key"
    assert rows(it["path"])[0]["edited"] == "Who turns the red key"
    it["press"]("done")
    assert "2 of 3" in it["shown"]() and it["editor"].layout.display == "none"
    it["editor"].value = "Who turns the red key first?"
    assert rows(it["path"]) == [
        {"question": "Who turns key 0?", "label": "edit", "edited": "Who turns the red key first?"}
    ]
    it["press"]("back")
    it["press"]("edit")
    assert it["editor"].value == "Who turns the red key first?"


def test_opening_the_editor_is_no_edit(labeller):
    it = labeller()
    it["press"]("edit")
    it["press"]("done")
    assert not it["path"].exists() and "1 of 3" in it["shown"]()


def test_labels_are_there_again_and_the_first_open_pair_is_shown(labeller):
    it = labeller()
    it["press"]("accept")
    again = labeller()
    assert "2 of 3" in again["shown"]() and "1 labelled" in again["shown"]()
    again["press"]("reject")
    assert [row["label"] for row in rows(again["path"])] == ["accept", "reject"]


def test_a_question_that_was_written_anew_has_no_label(labeller, tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"question": "Another question?", "label": "reject"}\n')
    it = labeller()
    assert "1 of 3" in it["shown"]() and "0 labelled" in it["shown"]()
    it["press"]("accept")
    assert [row["question"] for row in rows(it["path"])] == ["Another question?", "Who turns key 0?"]


def test_a_broken_file_of_labels_is_named(labeller, tmp_path):
    (tmp_path / "labels.jsonl").write_text('{"question": \n')
    with pytest.raises(CourseError, match=r"labels\.jsonl, line 1"):
        labeller()


def test_headless_it_is_a_table_and_waits_for_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_HEADLESS", "1")
    found = labelling.label_pairs(PAIRS, tmp_path / "labels.jsonl", n=3)
    assert isinstance(found, HTML) and not isinstance(found, ipywidgets.Widget)
    assert found.data.count("<tr>") == 4 and "&lt;first&gt;" in found.data and "key 3" not in found.data
    assert not (tmp_path / "labels.jsonl").exists()


def labels_of(text):
    """ "aar" → accepted, accepted, rejected."""
    names = {"a": "accept", "r": "reject", "e": "edit"}
    return {f"q{i}": {"question": f"q{i}", "label": names[c]} for i, c in enumerate(text)}


def test_agreement_counts_equal_decisions_and_goes_beyond_chance():
    marks = {f"q{i}": 9.0 if i < 12 else 3.0 for i in range(20)}
    found = labelling.agreement(labels_of("a" * 10 + "r" * 2 + "a" * 2 + "e" * 6), marks)
    assert found["labels"] == 20 and found["agreement"] == pytest.approx(0.8)
    chance = 0.6 * 0.6 + 0.4 * 0.4
    assert found["kappa"] == pytest.approx((0.8 - chance) / (1 - chance))
    assert found["low"] == pytest.approx(0.584, abs=1e-3) and found["high"] == pytest.approx(0.919, abs=1e-3)
    assert found["note"] == ""


def test_agreement_moves_with_the_threshold_and_ignores_what_one_side_has_not_seen():
    marks = {"q0": 7.0, "q1": 6.9, "q2": None, "other": 9.0}
    found = labelling.agreement(labels_of("aaa"), marks)
    assert found["labels"] == 2 and found["agreement"] == 0.5 and "only 2 labels" in found["note"]
    assert labelling.agreement(labels_of("aaa"), marks, threshold=6)["agreement"] == 1


def test_agreement_says_when_it_can_say_nothing():
    assert labelling.agreement({}, {"q0": 8.0})["agreement"] is None
    assert "no label yet" in labelling.agreement({}, {"q0": 8.0})["note"]
    alike = labelling.agreement(labels_of("a" * 20), {f"q{i}": 8.0 for i in range(20)})
    assert alike["agreement"] == 1 and alike["kappa"] is None and "kappa says nothing" in alike["note"]
