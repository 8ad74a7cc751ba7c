# python -m pytest tests/unit/test_preparation.py
"""Duplicates, groups, split, mining, unrolling and the audit, on a corpus small enough to check by hand."""

import json
import zlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils import (
    beir_files,
    corpus,
    duplicates,
    free_questions,
    given_questions,
    inputs,
    mining,
    preparation,
    records,
    run,
)
from utils.duplicates import near_duplicates, normalised, same_codes
from utils.records import Chunk, QAPair
from utils.run import CourseError

WORDS = ["pump", "valve", "bilge", "engine", "deck", "alarm", "cable", "rudder", "hatch", "anchor", "winch"]


def sentence(seed, n=40):
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def chunk(chunk_id, text, doc_id=None, title=""):
    return Chunk(chunk_id=chunk_id, doc_id=doc_id or f"{chunk_id}.md", title=title, text=text)


def pair(question_id, *chunk_ids, question=None, generator="llm"):
    return QAPair(
        question_id=question_id,
        question=question or f"What about {sentence(zlib.crc32(question_id.encode()), 6)} {question_id}?",
        chunk_ids=list(chunk_ids),
        generator=generator,
    )


# ---------------------------------------------------------------- near-duplicates


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I open a file in C++?", "How do I open a file in C#?"),
        ("Which hose is rated for -40 °C?", "Which hose is rated for 40 °C?"),
        ("What if the line is > 5 bar?", "What if the line is < 5 bar?"),
    ],
)
def test_a_sign_tells_questions_apart(one, other):
    assert not same_codes(one, other)
    assert list(near_duplicates([one, other], unit="char")) == [0, 1]
    asked = [pair("q1", "a", question=one), pair("q2", "b", question=other)]
    assert len(inputs.merge_equal(asked, 9)[0]) == 2
    assert same_codes("pump -5", "pump -5") and same_codes("from 10-40", "from 10–40")


def test_passages_that_share_a_boilerplate_are_not_compared_word_by_word(monkeypatch):
    compared = []
    monkeypatch.setattr(duplicates, "_jaccard", lambda *_: compared.append(1) or 0.0)
    letters = np.random.default_rng(1).choice([*"abcdefgh"], (31 * 40, 8))
    words = ["".join(word) for word in letters]
    frame = " ".join(words[:36])
    near_duplicates([f"{frame} {' '.join(words[40 * i : 40 * i + 24])}" for i in range(1, 31)])
    assert len(compared) < 20, "of 435 pairs, whose similarity is 0.42"


def test_a_few_changed_words_are_a_near_duplicate_and_another_text_is_not():
    text = sentence(1)
    edited = text.replace(text.split()[20], "gangway", 1)
    labels = near_duplicates([text, edited, sentence(2), text.upper() + "!"])
    assert labels[0] == labels[1] == labels[3] != labels[2]


def test_a_differing_number_or_code_is_no_near_duplicate():
    text = sentence(1)
    labels = near_duplicates([f"{text} limit 40 bar", f"{text} limit 45 bar", f"{text} limit 40 bar."])
    assert labels[0] == labels[2] != labels[1]
    for place in ("on unit {}", "в блоке {}", "Gerät {}", "on unit {}, deck"):
        for one, other in ("AB", "АБ", "ÄÖ", "cb"):
            labels = near_duplicates([f"{text} {place.format(letter)}" for letter in (one, other)])
            assert labels[0] != labels[1], (place, one, other)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("from 5 to 7", "from 7 to 5", False),
        ("alarm ABS raised", "alarm EBS raised", False),
        ("WARNING: hot", "Warning: hot", True),
        ("model X-20b", "model X-20c", False),
        ("close the valve", "shut the valve", True),
        ("A pump leaks", "The pump leaks", True),
        ("see unit A", "see unit C", False),
        ("unit c is hot", "unit b is hot", False),
        ("U bolts fit", "V bolts fit", False),
        ("A-side fuse", "the side fuse", False),
        ("unit A is hot", "the unit is hot", False),
        ("type-b of U.S. make", "type-b of U.K. make", False),
        ("unit B's pump", "unit C's pump", False),
        ("the pump's oil, e.g. grease", "the oil of the pump, grease", True),
        ("a pump, which I own", "the pump which they own", True),
        ("il faut de l'eau à la pompe", "il faut vider une pompe", True),
        ("в блоке А", "в блоке Б", False),
        ("блок А закрыт", "блок В закрыт", False),
        ("блок б", "блок г", False),
        ("В насосной я и он", "Насосная", True),
        ("сигнал АВС", "сигнал АВД", False),
        ("Это понима́ет он", "Это знает он", True),
        ("Gerät Ä läuft", "Gerät Ö läuft", False),
        ("Größe ÖLF", "Größe ÖLM", False),
        ("μονάδα Α", "μονάδα Β", False),
        ("ο σταθμός ή η αντλία", "σταθμός και αντλία", True),
        ("İ birimi", "İ birimi", True),
        ("المضخة و الصمام", "المضخة، الصمام", True),
        ("المضخة ٣", "المضخة ٤", False),
        ("पम्प व टंकी में पानी", "पम्प में पानी", True),
        ("打开A区的泵", "打开B区的泵", False),
        ("PLC控制柜", "DCS控制柜", False),
        ("打开PLC控制柜", "请打开PLC控制柜", True),
        ("时时检查人々", "检查人们", True),
        ("A동 PLC는 이 방에", "A동의 PLC가 그 방에", True),
        ("A동의 펌프", "B동의 펌프", False),
        ("Block E\u0301", "Block \u00c9", True),  # the same letter, decomposed
        ("Block E\u0301", "Block O\u0301", False),
    ],
)
def test_codes(a, b, same):
    assert same_codes(a, b) is same_codes(b, a) is same


@given(st.text())
@example("A\u0300")  # decomposed
@example("Q\u0300 b")  # has no composed form
def test_a_text_has_its_own_codes(text):
    assert same_codes(text, text)


def test_languages_without_spaces_have_near_duplicates_and_numbers():
    asked = "3号风机的最大输出功率是多少千瓦？"
    more = f"{asked}请在回答之前检查控制柜里的温度传感器和所有电缆，然后记录读数。"
    labels = near_duplicates(
        [more, f"请问{more}", more.replace("3号", "4号"), "完全不同的一句话，关于天气。"]
    )
    assert labels[0] == labels[1] and len(set(labels)) == 3
    assert same_codes(asked, f"请问{asked}") and not same_codes(asked, asked.replace("3", "4"))
    assert normalised("दिन में") == "दिन में", "vowel signs belong to their word"


def test_empty_texts_are_nobodys_duplicate():
    assert len(set(near_duplicates(["", " ", "…", sentence(1)]))) == 4
    assert near_duplicates([]).shape == (0,)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_equal_texts_always_share_a_cluster(seeds):
    labels = near_duplicates([sentence(seed) for seed in seeds])
    assert [[a == b for b in seeds] for a in seeds] == [[a == b for b in labels] for a in labels]


def test_repeats_by_text_by_vector_and_never_across_codes():
    questions = [
        "How often is the bilge pump tested?",
        "When do we check pump 1?",
        "When do we check pump 2?",
    ]
    others = ["How often is the bilge pump tested ?", "When is pump 1 checked?"]
    vectors = {text: np.eye(8, dtype=np.float32)[i] for i, text in enumerate([*questions, *others])}
    vectors[questions[1]] = vectors[questions[2]] = vectors[others[1]]
    assert preparation.repeats(questions, others, vectors) == {0: 0, 1: 1}
    assert preparation.repeats(questions, [], vectors) == {}


# ---------------------------------------------------------------- inputs


def test_equal_questions_become_one_and_too_general_ones_go():
    pairs = [pair("1", "a", question="Who?"), pair("2", "b", "a", question="who")]
    pairs += [pair(str(i), f"c{i}", question="Introduction", generator="embedded") for i in range(3, 9)]
    kept, gone = inputs.merge_equal(pairs, most=5)
    assert [(p.question_id, p.chunk_ids) for p in kept] == [("1", ["a", "b"])]
    assert gone == {"equal to another, merged": 6, "too general": 1}


def test_own_questions_may_have_many_answers_and_free_ones_beside_them_may_not():
    many = [f"c{i}" for i in range(6)]
    own = pair("1", *many, question="Who?", generator="")
    free = pair("2", *many, question="Scope", generator="heading")
    kept, gone = inputs.merge_equal([own, free], most=5, own=True)
    assert [p.question_id for p in kept] == ["1"] and gone["too general"] == 1
    kept, _ = inputs.merge_equal([own, free], most=5)  # notebook 1 has read them, notebook 2 was not told
    assert [p.question_id for p in kept] == ["1"]


def test_notebook_1_adds_free_questions_to_own_ones_unless_it_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    own = tmp_path / "own.jsonl"
    records.write_rows(own, [{"question": "Where?", "chunk_ids": ["a"]}])
    table = pd.DataFrame([{"question_id": "q000001", "question": "Where?", "chunk_ids": ["a"]}])
    heading = {"question": "Where it is", "chunk_ids": ["a"], "generator": "heading"}
    mixed = given_questions.to_pairs(free_questions.mix(table, pd.DataFrame([heading]), 0.5, seed=1))
    assert len({p.question_id for p in mixed}) == 2, "a free question takes no id of the user's"
    first = run.begin("r", run.STAGES[0], {"CORPUS": "", "QA_PAIRS": str(own)})
    first.add_input(own)
    records.write_rows(first.path / "chunks.jsonl", [chunk("a", "here")])
    records.write_rows(first.path / "qa_pairs.jsonl", mixed)
    first.finish({})
    stage = run.begin("r", run.STAGES[1], {}, needs=(run.STAGES[0],))
    read = inputs.read_inputs(stage, "", str(own), None, 100)
    assert [p.question for p in read.pairs] == ["Where?", "Where it is"]
    records.write_rows(own, [{"question": "Why?", "chunk_ids": ["a"]}])  # not what notebook 1 has read
    assert [p.question for p in inputs.read_inputs(stage, "", str(own), None, 100).pairs] == ["Why?"]


def test_with_few_documents_groups_are_passages_so_that_most_questions_are_trained_on():
    chunks = [chunk(f"d{d}#{i}", sentence(100 * d + i), doc_id=f"d{d}") for d in range(4) for i in range(25)]
    pairs = [pair(c.chunk_id, c.chunk_id) for c in chunks]
    split = preparation.split_groups(chunks, pairs, np.arange(100), {"val": 0.1, "test": 0.05}, seed=1)
    trained = sum(where == "train" for where in split.passages.values())
    assert split.unit == "passage" and "instead of documents" in split.fallback and trained >= 85


@pytest.mark.parametrize("documents", [1, 2, 4])
def test_an_exported_corpus_of_few_documents_is_split_by_passages(tmp_path, documents):
    rows = {
        f"m{d}.md#{i}": {"title": "", "text": sentence(100 * d + i)}
        for d in range(documents)
        for i in range(40)
    }
    beir_files.write_corpus(tmp_path / "corpus.jsonl", rows)
    chunks = corpus.read_chunks(tmp_path / "corpus.jsonl", lambda text, **_: {"input_ids": text.split()}, 100)
    pairs = [pair(c.chunk_id, c.chunk_id) for c in chunks]
    clusters = np.arange(len(chunks))
    split = preparation.split_groups(chunks, pairs, clusters, {"val": 0.1, "test": 0.05}, seed=1)
    assert split.unit == "passage" and split.groups == len(chunks)


def test_where_not_all_fit_written_questions_go_before_free_ones():
    pairs = [pair(str(i), "a", generator="heading" if i % 2 else "embedded") for i in range(40)]
    drawn = preparation.draw(pairs, 25, seed=1)
    assert sum(p.generator == "embedded" for p in drawn) == 20 and len(drawn) == 25
    assert [int(p.question_id) for p in drawn] == sorted(int(p.question_id) for p in drawn)
    assert preparation.draw(pairs, 100, seed=1) == pairs


def test_own_pairs_with_ids_quotes_and_literal_texts(tmp_path):
    rows = [
        {"question": "Where?", "chunk_ids": ["a"]},
        {"question": "Why?", "evidence": [{"doc_id": "b.md", "quote": "because of rust"}]},
        {"question": "Who?", "positives": ["The night shift."]},
    ]
    records.write_rows(tmp_path / "own.jsonl", rows)
    chunks = [chunk("a", "here"), chunk("b", "it stops because of rust in the pipe")]
    pairs = inputs.read_pairs(tmp_path / "own.jsonl", chunks)
    assert [p.chunk_ids for p in pairs] == [["a"], ["b"], []]
    assert len({p.question_id for p in pairs}) == 3
    named, extra = inputs.literal_passages(pairs)
    assert extra[0].text == "The night shift." and named[2].chunk_ids == [extra[0].chunk_id]


def test_a_literal_answer_that_is_a_passage_is_known_by_its_id(tmp_path):
    chunks = [chunk("a#1", "The valve  opens at five bar.", title="Valves"), chunk("b#1", "No answer.")]
    rows = [
        {"question": "When does it open?", "positives": ["The valve opens\nat five bar.", "Something else."]},
        {"question": "And with its title?", "positives": [records.passage_text(chunks[0])]},
    ]
    records.write_rows(tmp_path / "pairs.jsonl", rows)
    first, second = inputs.read_pairs(tmp_path / "pairs.jsonl", chunks)
    assert first.chunk_ids == second.chunk_ids == ["a#1"]
    assert first.positives == ["Something else."] and second.positives == []


def test_own_pairs_from_a_windows_program_with_numbers_as_ids(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "Where?", "chunk_ids": [12]}\r\n')
    assert inputs.read_pairs(path, [chunk("12", "here")])[0].chunk_ids == ["12"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Where?", "chunk_ids": ["zz"]}], r"own\.jsonl, row 1: chunk_ids \['zz'\] are not in"),
        ([{"question": "Where?"}], "row 1: no passage"),
        ([{"question": "A?", "chunk_ids": ["a"], "question_id": "1"}] * 2, r"question_id \['1'\] appears"),
        ([], "holds no question"),
        ([{"question": "", "chunk_ids": ["a"]}], "line 1: question"),
    ],
)
def test_bad_own_pairs_are_named(tmp_path, rows, message):
    records.write_rows(tmp_path / "own.jsonl", rows)
    with pytest.raises(CourseError, match=message):
        inputs.read_pairs(tmp_path / "own.jsonl", [chunk("a", "here")])


def test_notebook_1_counts_only_for_the_corpus_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    assert not inputs.generated("mine", "")
    (tmp_path / "docs").mkdir()
    folder = tmp_path / "mine" / run.STAGES[0]
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"parameters": {"CORPUS": str(tmp_path / "docs")}}))
    assert inputs.generated("mine", "") and inputs.generated("mine", str(tmp_path / "docs"))
    assert not inputs.generated("mine", str(tmp_path))


# ---------------------------------------------------------------- split


def corpus_of(documents, per_document=2):
    return [
        chunk(f"{d}-{i}", sentence(100 * d + i), doc_id=f"{d}.md")
        for d in range(documents)
        for i in range(per_document)
    ]


def split_of(chunks, pairs, **options):
    clusters = near_duplicates([c.text for c in chunks])
    shares = options.pop("shares", {"val": 0.1, "test": 0.2})
    split = preparation.split_groups(chunks, pairs, clusters, shares, seed=options.pop("seed", 1), **options)
    return split, preparation.copies([c.chunk_id for c in chunks], clusters)


def test_shares_hold_and_every_document_is_in_one_split():
    chunks = corpus_of(50)
    split, _ = split_of(chunks, [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks])
    homes = {}
    for c in chunks:
        homes.setdefault(c.doc_id, set()).add(split.passages[c.chunk_id])
    assert all(len(home) == 1 for home in homes.values())
    counts = {name: sum(v == name for v in split.passages.values()) for name in preparation.SPLITS}
    assert counts == {"train": 70, "val": 10, "test": 20} and split.unit == "document"


def test_the_seed_decides():
    chunks = corpus_of(30)
    pairs = [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks]
    one, same, other = (split_of(chunks, pairs, seed=seed)[0].passages for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("seed", range(8))
def test_near_copies_and_multi_hop_questions_tie_documents(seed):
    chunks = corpus_of(20)
    copy = chunks[0].text.replace(chunks[0].text.split()[5], "gangway", 1)
    chunks.append(chunk("copy", copy))
    pairs = [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks]
    pairs.append(pair("hop", "3-0", "7-1"))
    split, _ = split_of(chunks, pairs, seed=seed)
    assert split.passages["0-0"] == split.passages["0-1"] == split.passages["copy"]
    assert split.passages["3-0"] == split.passages["7-1"]


def test_one_document_falls_back_to_passages():
    chunks = [chunk(f"c{i}", sentence(i), doc_id="only.md") for i in range(20)]
    split, _ = split_of(chunks, [pair(f"q{i}", f"c{i}") for i in range(20)])
    assert split.unit == "passage" and "passages" in split.fallback
    assert set(split.passages.values()) == set(preparation.SPLITS)


def test_passages_that_share_a_part_of_their_text_stay_together():
    chunks = [
        Chunk(chunk_id=f"one#{i}", doc_id="one", text=f"t{i}", start=80 * i, end=80 * i + 100)
        for i in range(40)
    ]
    for piece in chunks[::4]:  # a border without an overlap before every fourth
        piece.start += 20
    pairs = [
        QAPair(question_id=f"q{i}", question=f"q {i}?", chunk_ids=[c.chunk_id]) for i, c in enumerate(chunks)
    ]
    split = preparation.split_groups(chunks, pairs, np.arange(40), {"val": 0.2, "test": 0.2}, seed=13)
    for start in range(0, 40, 4):
        assert len({split.passages[c.chunk_id] for c in chunks[start : start + 4]}) == 1
    assert set(split.passages.values()) == {"train", "val", "test"}


@pytest.mark.parametrize("per_document", [1, 3])
def test_a_group_that_swallows_the_corpus_is_cut_and_crossing_questions_go(per_document):
    chunks = corpus_of(12, per_document)
    pairs = [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks]
    pairs += [pair(f"hop{d}", f"{d}-0", f"{d + 1}-0") for d in range(11)]
    split, twins = split_of(chunks, pairs)
    assert "multi-hop" in split.fallback and split.unit == "document"
    assert set(split.passages.values()) == set(preparation.SPLITS)
    allowed = preparation.usable({c.chunk_id: c for c in chunks}, split, twins)
    placed, gone = preparation.assign(pairs, split, allowed, twins)
    for name, own in placed.items():
        assert all(split.passages[c] == name for p in own for c in p.chunk_ids)
    assert gone["its passages lie in two splits"] == len(pairs) - sum(map(len, placed.values())) > 0


def test_documents_that_are_all_copies_of_each_other_fall_back_to_passages():
    chunks = [chunk(f"{d}-{i}", sentence(i), doc_id=f"{d}.md") for d in range(4) for i in range(30)]
    split, _ = split_of(chunks, [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks])
    assert split.unit == "passage" and split.largest < 0.1
    assert all(len({split.passages[f"{d}-{i}"] for d in range(4)}) == 1 for i in range(30))


def test_versions_of_a_text_stay_together_however_many_they_are():
    chunks = [
        chunk(f"{manual}-{version}-{i}", sentence(100 * manual + i), doc_id=f"{manual}-{version}.md")
        for manual in range(5)
        for version in range(8)
        for i in range(4)
    ]
    pairs = [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks]
    split, twins = split_of(chunks, pairs)
    assert split.groups == 5 and split.unit == "document"
    placed, gone = preparation.assign(
        pairs, split, preparation.usable({c.chunk_id: c for c in chunks}, split, twins), twins
    )
    assert not any(gone.values()) and len(placed["train"]) >= len(pairs) / 2


@pytest.mark.parametrize("seed", range(4))
def test_where_every_question_needs_two_documents_some_lie_wholly_in_each_split(seed):
    chunks = corpus_of(50)
    ends = np.random.default_rng(seed).integers(0, 50, (200, 2))
    pairs = [pair(f"q{i}", f"{a}-0", f"{b}-1") for i, (a, b) in enumerate(ends) if a != b]
    split, twins = split_of(chunks, pairs, seed=seed, shares={"val": 0.05, "test": 0.05})
    assert "multi-hop" in split.fallback
    placed, _ = preparation.assign(
        pairs, split, preparation.usable({c.chunk_id: c for c in chunks}, split, twins), twins
    )
    for name in ("val", "test"):
        assert 0.05 * len(pairs) <= len(placed[name]) <= 0.1 * len(pairs)
    assert len(placed["train"]) >= len(pairs) / 4


def test_boilerplate_in_every_document_ties_nothing_and_its_copies_stay_out_of_training():
    chunks = corpus_of(30)
    chunks += [chunk(f"safety-{d}", sentence(9999), doc_id=f"{d}.md") for d in range(30)]
    pairs = [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks]
    split, twins = split_of(chunks, pairs)
    assert split.unit == "document" and split.groups == 30
    allowed = preparation.usable({c.chunk_id: c for c in chunks}, split, twins)
    assert not any(i.startswith("safety") for i in allowed)
    placed, gone = preparation.assign(pairs, split, allowed, twins)
    assert gone["its passage has a twin held out"] > 0
    assert gone["val: its passage has a twin in test"] > 0 and placed["val"]
    asked = {name: {p.chunk_ids[0].split("-")[0] for p in own} for name, own in placed.items()}
    assert "safety" in asked["test"] and "safety" not in asked["train"] | asked["val"]


def test_too_few_groups_say_so():
    with pytest.raises(CourseError, match="need at least 3"):
        split_of([chunk("a", sentence(1)), chunk("b", sentence(2))], [pair("1", "a"), pair("2", "b")])


def test_literal_positives_alone_cannot_be_held_out():
    given = [QAPair(question_id=f"{i}", question=f"Who {i}?", positives=[sentence(i)]) for i in range(9)]
    named, extra = inputs.literal_passages(given)
    with pytest.raises(CourseError, match=r"Of 9 questions, none names passages.*Give chunk_ids"):
        split_of([*corpus_of(4), *extra], named)


def test_headings_and_literal_positives_are_for_training():
    chunks = corpus_of(20, per_document=1)
    pairs = [pair(f"q{c.chunk_id}", c.chunk_id) for c in chunks]
    pairs += [pair(f"h{c.chunk_id}", c.chunk_id, generator="heading") for c in chunks]
    literal = QAPair(question_id="own", question="Who cooks?", positives=["The cook cooks every day."])
    named, extra = inputs.literal_passages([*pairs, literal])
    chunks += extra
    split, twins = split_of(chunks, named)
    placed, gone = preparation.assign(
        named, split, preparation.usable({c.chunk_id: c for c in chunks}, split, twins), twins
    )
    assert "own" in {p.question_id for p in placed["train"]}
    assert {p.generator for p in placed["val"] + placed["test"]} == {"llm"}
    assert "heading" in {p.generator for p in placed["train"]}
    assert sum(n for why, n in gone.items() if "free" in why) == len(placed["val"]) + len(placed["test"])


# ---------------------------------------------------------------- mining


def rule(candidates, positive_scores, masked):
    return mining.choose_negatives(candidates, positive_scores, masked, margin=0.95)


def test_the_rule_masks_excludes_and_never_refills():
    candidates = [("pos", 0.9), ("suspect", 0.8), ("edge", 0.76), ("good", 0.5), ("far", 0.1)]
    kept, suspects = rule(candidates, [0.9, 0.8], {"pos"})
    assert kept == [("edge", 0.76), ("good", 0.5), ("far", 0.1)] and suspects == [("suspect", 0.8)]
    assert rule(candidates, [0.05], set())[0] == [], "nothing comes back when everything is suspect"


def vectors_at(cosines):
    """Unit vectors whose cosine to (1, 0) is given. float32 (n, 2)"""
    cosines = np.asarray(cosines, dtype=np.float32)
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


def mined_with(chunks, cosines, one, twins=None, **options):
    passages = {c.chunk_id: c for c in chunks}
    cosine_of = dict(zip((records.passage_text(c) for c in chunks), cosines, strict=True))
    cosine_of |= dict(zip((c.text for c in chunks), cosines, strict=True))
    return mining.mine(
        [one],
        passages,
        vectors_at(cosines),
        np.array([[1, 0]], dtype=np.float32),
        lambda texts: vectors_at([cosine_of.get(text, 0.6) for text in texts]),
        twins or {},
        rule,
        **({"negatives": 2, "bm25_share": 0} | options),
    )[0]


def test_mining_masks_twins_and_takes_the_most_similar_of_the_rest():
    chunks = [chunk(i, sentence(n)) for n, i in enumerate(["pos", "twin", "near", "mid", "far"])]
    one = mined_with(chunks, [0.8, 0.75, 0.79, 0.5, 0.2], pair("q", "pos"), {"pos": {"twin"}})
    assert [p for p, _ in one.negatives] == ["mid", "far"]
    assert [p for p, _ in one.suspects] == ["near"]


def test_a_free_question_is_compared_with_the_texts_that_it_is_trained_on():
    """Without titles "twin" is as near as the answer, and "far" far; with them it was the other way round."""
    chunks = [chunk(i, sentence(n), title="Pumps") for n, i in enumerate(["pos", "twin", "far"])]
    titled = {records.passage_text(c): score for c, score in zip(chunks, [0.9, 0.1, 0.89], strict=True)}
    untitled = {c.text: score for c, score in zip(chunks, [0.5, 0.49, 0.2], strict=True)}
    found = {}
    for kind in ("llm", "heading"):
        found[kind] = mining.mine(
            [pair("q", "pos", generator=kind)],
            {c.chunk_id: c for c in chunks},
            vectors_at(list(titled.values())),
            np.array([[1, 0]], dtype=np.float32),
            lambda texts: vectors_at([(titled | untitled)[text] for text in texts]),
            {},
            rule,
            bm25_share=0,
        )[0]
    assert [p for p, _ in found["llm"].negatives] == ["twin"]
    assert [p for p, _ in found["heading"].negatives] == ["far"]
    row = mining.unroll([found["heading"]], {c.chunk_id: c for c in chunks})[0]
    assert row.negatives == [chunks[2].text] and row.negative_scores == [0.2] and row.positive_score == 0.5


def test_too_few_survivors_are_not_topped_up():
    chunks = [chunk(i, sentence(n)) for n, i in enumerate(["pos", "s1", "s2", "far"])]
    one = mined_with(chunks, [0.5, 0.9, 0.85, 0.1], pair("q", "pos"), negatives=3)
    assert [p for p, _ in one.negatives] == ["far"] and len(one.suspects) == 2


def test_the_search_goes_deeper_where_the_first_candidates_are_all_suspects():
    chunks = [chunk(i, sentence(n)) for n, i in enumerate(["pos", "s1", "s2", "s3", "far", "farther"])]
    one = mined_with(chunks, [0.3, 0.9, 0.85, 0.8, 0.2, 0.1], pair("q", "pos"), depth=2)
    assert [p for p, _ in one.negatives] == ["far", "farther"] and len(one.excluded) == 3


def test_the_lowest_of_several_positives_sets_the_ceiling():
    chunks = [chunk(i, sentence(n)) for n, i in enumerate(["p1", "p2", "x", "far"])]
    one = mined_with(chunks, [0.9, 0.4, 0.6, 0.1], pair("q", "p1", "p2"))
    assert [p for p, _ in one.negatives] == ["far"]


def test_bm25_has_its_share():
    texts = ["the grommet", "deck", "deck hatch", "a grommet unlike the other", "cable"]
    chunks = [chunk(i, t) for i, t in zip(["pos", "d1", "d2", "words", "d3"], texts, strict=True)]
    cosines, one = [0.9, 0.7, 0.6, 0.1, 0.5], pair("q", "pos", question="grommet")
    assert [p for p, _ in mined_with(chunks, cosines, one).negatives] == ["d1", "d2"]
    half = mined_with(chunks, cosines, one, bm25_share=0.5)
    assert [p for p, _ in half.negatives] == ["d1", "words"]


def test_empty_and_literal_passages_are_never_negatives():
    chunks = [
        chunk("pos", "deck"),
        chunk("empty", " "),
        chunk(f"{inputs.LITERAL}x/1", "rudder"),
        chunk("far", "hatch"),
    ]
    one = mined_with(chunks, [0.9, 0.5, 0.5, 0.1], pair("q", "pos"))
    assert [p for p, _ in one.negatives] == ["far"]


def test_a_second_opinion_clears_only_what_it_finds_wrong():
    chunks = [chunk(i, sentence(n)) for n, i in enumerate(["pos", "right", "wrong", "far"])]
    one = mined_with(chunks, [0.8, 0.79, 0.78, 0.1], pair("q", "pos"))
    judged = {chunks[0].text: 0.9, chunks[1].text: 0.8, chunks[2].text: 0.1}
    passages = {c.chunk_id: c for c in chunks}
    cleared = mining.second_opinion([one], passages, lambda ab: np.array([judged[b] for _, b in ab]), 2)
    assert cleared == 1 and [p for p, _ in one.negatives] == ["wrong", "far"]
    assert [p for p, _ in one.suspects] == one.excluded == ["right"]
    full = mined_with(chunks, [0.8, 0.79, 0.78, 0.1], pair("q", "pos"))  # has all that it may have
    assert mining.second_opinion([full], passages, lambda ab: np.array([judged[b] for _, b in ab]), 1) == 1
    assert [p for p, _ in full.negatives] == ["wrong"]


def test_all_suspects_are_written_down_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "SHOWN", 1)
    chunks = [chunk(i, sentence(n)) for n, i in enumerate(["pos", "s1", "s2", "far"])]
    one = mined_with(chunks, [0.5, 0.9, 0.85, 0.1], pair("q", "pos"))
    assert len(one.suspects) == 1
    mining.write_suspects(tmp_path / "suspects.json", [one])
    assert mining.read_suspects(tmp_path / "suspects.json") == {"q": ["s1", "s2"]}
    with pytest.raises(CourseError, match="is missing: what must stay excluded"):
        mining.read_suspects(tmp_path / "lost.json")


@pytest.mark.parametrize("score", [0.8, -0.1])
def test_what_scores_nearly_as_high_as_the_positive_is_suspect(score):
    candidates = [("above", score + 0.1), ("equal", score), ("below", score - 0.1)]
    kept, suspects = mining.choose_negatives(candidates, [score], set(), 0.95)
    assert [p for p, _ in suspects] == ["above", "equal"] and [p for p, _ in kept] == ["below"]


def test_unrolling_repeats_the_negatives_and_headings_lose_their_title():
    chunks = [
        chunk("p1", sentence(1), title="T1"),
        chunk("p2", sentence(2)),
        chunk("n", sentence(3), title="N"),
    ]
    passages = {c.chunk_id: c for c in chunks}
    plain = mined_with(chunks, [0.9, 0.8, 0.2], pair("q", "p1", "p2"))
    rows = mining.unroll([plain], passages)
    assert [(r.positive_id, r.negative_ids) for r in rows] == [("p1", ["n"]), ("p2", ["n"])]
    assert rows[0].positive.startswith("T1\n") and rows[0].negatives[0].startswith("N\n")
    for free in records.FREE:
        mined = mined_with(chunks, [0.9, 0.8, 0.2], pair("h", "p1", generator=free))
        row = mining.unroll([mined], passages)[0]
        assert row.positive == sentence(1) and row.negatives == [sentence(2), sentence(3)]


# ---------------------------------------------------------------- audit


def clean_case():
    passages = {c.chunk_id: c for c in [chunk(i, sentence(n)) for n, i in enumerate("abcd")]}
    split = {"a": "train", "b": "train", "c": "val", "d": "test"}
    rows = [
        records.TrainingRow(
            query_id="1",
            query="How is the anchor lowered?",
            positive_id="a",
            positive=passages["a"].text,
            negative_ids=["b"],
            negatives=[passages["b"].text],
        )
    ]
    held_out = {
        "val": [pair("v", "c", question="Who greases the winch?")],
        "test": [pair("t", "d", question="What starts the boiler?")],
    }
    return rows, held_out, ["Where do filters go?"], split, passages


def test_a_clean_split_has_no_leak():
    assert set(preparation.audit(*clean_case()).values()) == {0}


def leak(name):
    rows, held_out, human, split, passages = clean_case()
    if name == "question_in_two_splits":
        held_out["val"][0].question = "how is the ANCHOR lowered"
    elif name == "near_equal_question_in_two_splits":
        held_out["test"][0].question = "How is the anchors lowered?"
    elif name == "training_positive_from_held_out_group":
        rows[0].positive_id, rows[0].positive = "c", passages["c"].text
    elif name == "training_negative_from_held_out_group":
        rows[0].negative_ids, rows[0].negatives = ["d"], [passages["d"].text]
    elif name == "near_copy_of_held_out_passage_in_training":
        passages["b"] = chunk("b", passages["d"].text + " rudder")
    elif name == "near_equal_passage_asked_about_in_val_and_test":
        passages["d"] = chunk("d", passages["c"].text + " rudder")
    elif name == "human_test_question_in_training":
        human = ["How is the anchor lowered ?"]
    return preparation.audit(rows, held_out, human, split, passages)


@pytest.mark.parametrize("name", list(preparation.audit(*clean_case())))
def test_every_leak_is_found(name):
    assert leak(name)[name] > 0
