# python -m pytest tests/unit/test_questions.py
"""Questions from headings and from a writer, what is measured on them, and which ones stay."""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from utils import free_questions, given_questions, inputs, publish, questions
from utils.records import Chunk
from utils.replies import Answer
from utils.run import CourseError

TEXT = "Close the valve before you start the pump and read the gauge."


class WordEncoder:
    """Counts words: texts with the same words have cosine 1, texts without a common word 0."""

    prompts = {}  # noqa: RUF012
    device = torch.device("cpu")

    def get_embedding_dimension(self):
        return 4096

    def encode(self, texts, **_):
        vectors = np.full((len(texts), 4096), 1e-6, dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in questions.normalised(text).split():
                vector[zlib.crc32(word.encode()) % 4096] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def chunk(chunk_id, title="", text=TEXT):
    return Chunk(chunk_id=chunk_id, doc_id=chunk_id.split("#")[0], title=title, text=text)


def asked(*rows):
    """Candidates: (question, chunk ids…)."""
    return pd.DataFrame([{"question": q, "chunk_ids": list(ids)} for q, *ids in rows])


def write_jsonl(path, *rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf8")
    return path


# ---------------------------------------------------------------- free questions


def test_a_heading_asks_for_the_first_passage_below_it():
    chunks = [chunk("a.md#0", "Pump care > Change the oil"), chunk("a.md#1", "Pump care > Change the oil")]
    table = free_questions.heading_questions(chunks)
    assert table.to_dict("records") == [
        {
            "question": "Change the oil",
            "chunk_ids": ["a.md#0"],
            "doc_id": "a.md",
            "generator": "heading",
            "dropped": "",
        }
    ]


def test_numbers_and_file_names_are_no_words_of_a_heading():
    names = [
        "abstract 00017",
        "doc 7",
        "3f2a9c1b 77de 4a10",
        "Contract > Article 12",
        "Step 3: Bleed the line",
    ]
    table = free_questions.heading_questions([chunk(f"{i}.txt#0", name) for i, name in enumerate(names)])
    assert table.dropped.tolist() == ["too short"] * 3 + ["", ""]
    assert table.question.tolist()[3:] == ["Contract: Article 12", "Step 3: Bleed the line"]
    chinese = free_questions.heading_questions(
        [chunk("a.md#0", "第3章水泵的日常维护与检查"), chunk("b.md#0", "2024年")]
    )
    assert chinese.dropped.tolist() == ["", "too short"]


def test_search_terms_are_drawn_around_codes_and_from_what_a_model_reads():
    filler = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300))
    texts = ["After 30-day tests of 100mg in the 1990s nothing else was found in any group"]
    texts += [f"{filler} TV-4105", "The valve TV-4105 sticks when the pump is cold and old"]
    chunks = [chunk(f"{i}.md#0", text=text) for i, text in enumerate(texts)]
    found = free_questions.search_terms(chunks, seed=1)
    assert found.chunk_ids.tolist() == [["2.md#0"]] and "tv-4105" in found.question[0]


def test_headings_that_ask_nothing_are_left_out_with_the_reason():
    chunks = [chunk(f"r{i}.md#0", "Incident report") for i in range(3)]
    chunks += [
        chunk("a.md#0", "Pumps"),
        chunk("b.md#0", "Rudder care", "See below."),
        chunk("c.md#0", "Anchor winch > Grease the chain"),
        chunk("d.md#0", "Deck crane > Grease the chain"),
        chunk("e.md#0"),
    ]
    chunks += [chunk(f"s.md#{i}", f"Sails > Part {i} > Mend a tear") for i in range(3)]
    for number, piece in enumerate(chunks):
        piece.text += f" {number}"  # the same in many documents would be boilerplate
    table = free_questions.heading_questions(chunks).set_index("doc_id")
    assert (table.dropped[["r0.md", "r1.md", "r2.md"]] == "generic").all()
    assert table.dropped["a.md"] == "too short"
    assert table.dropped["b.md"] == "hardly any text below it"
    assert table.dropped["c.md"] == "" and table.dropped["d.md"] == "repeated"
    assert table.chunk_ids["c.md"] == ["c.md#0", "d.md#0"], "both answer it, neither may be taken for wrong"
    assert (table.dropped[["s.md"]] == "generic").all()
    assert "e.md" not in table.index


def test_a_heading_found_everywhere_gets_its_document_in_front():
    chunks = [chunk(f"{name}.md#0", f"{name} > Daily checks") for name in ("Anchor", "Boiler", "Crane")]
    chunks.append(chunk("Boiler.md#1", "Boiler > Cleaning"))
    table = free_questions.heading_questions(chunks)
    assert list(table.question) == [
        "Anchor: Daily checks", "Boiler: Daily checks", "Crane: Daily checks", "Boiler: Cleaning",
    ]  # fmt: skip
    assert (table.dropped == "").all()


def test_a_heading_is_not_lost_to_a_namesake_that_is_itself_left_out():
    chunks = [chunk("a.md#0", "Oil pump > Change the seal", "See below."), chunk("b.md#0", "Change the seal")]
    assert list(free_questions.heading_questions(chunks).dropped) == ["hardly any text below it", ""]


def test_what_surrounds_the_texts_of_many_documents_asks_nothing():
    legal = "All rights reserved, and no liability is accepted for what stands here."
    chunks = [chunk(f"p{i}#0", f"Page {i} of the manual > Legal notes", legal) for i in range(12)]
    chunks += [
        chunk("x#0", "Pump > Spare parts", "[Seal](a/seal) [Bolt](a/bolt) [Shaft](a/shaft) [Drum](a/drum)")
    ]
    chunks += [chunk(f"api#{i}", "API > Return value", f"{TEXT} {i}") for i in (0, 2, 4)]
    chunks[-2:-2] = [chunk("api#1", "API > Close it"), chunk("api#3", "API > Open it")]
    chunks += [chunk("faq#0", "FAQ > Q1: How do I change it", TEXT + " at once")]
    found = free_questions.heading_questions(chunks).set_index("question").dropped
    assert set(found.filter(like="Legal")) == {"boilerplate"}
    assert found["Spare parts"] == "hardly any text below it", "links are no text"
    assert found["How do I change it"] == "", "its number is left out"
    terms = free_questions.search_terms(
        [chunk("l#0", "", f"{TEXT} see https://dl.example.com/v2/app7.tgz")], 1
    )
    assert terms.empty or "app7" not in terms.question[0]


def test_a_corpus_without_titles_has_no_free_questions():
    assert free_questions.heading_questions([chunk("a#0"), chunk("b#0")]).query("dropped == ''").empty


@pytest.mark.parametrize(
    ("share", "written", "free"), [(0, 10, 0), (0.5, 10, 10), (0.2, 8, 2), (0.75, 10, 20), (1, 0, 20)]
)
def test_free_questions_are_at_most_the_asked_share(share, written, free):
    ours = pd.DataFrame({"question": [f"w{i}" for i in range(10 if share != 0.2 else 8)]})
    theirs = pd.DataFrame({"question": [f"f{i}" for i in range(20)]})
    mixed = free_questions.mix(ours, theirs, share, seed=3)
    assert mixed.question.str[0].value_counts().to_dict() == {
        k: n for k, n in {"w": written, "f": free}.items() if n
    }
    assert mixed.question.is_unique and mixed.index.is_unique
    assert mixed.equals(free_questions.mix(ours, theirs, share, seed=3))


def test_without_written_questions_all_free_ones_stay_unless_none_is_wanted():
    free = pd.DataFrame({"question": ["f0", "f1"]})
    assert len(free_questions.mix(free[:0], free, 0.5, 3)) == 2
    assert len(free_questions.mix(free[:0], free, 0, 3)) == 0


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(CourseError, match="FREE_SHARE"):
        free_questions.mix(pd.DataFrame(), pd.DataFrame(), share, 3)


# ---------------------------------------------------------------- passages


def test_passages_are_spread_over_the_documents_and_the_same_every_time():
    chunks = [chunk(f"long#{i}") for i in range(50)] + [chunk(f"d{i}#0") for i in range(5)]
    chosen = questions.sample_passages(chunks, 8, seed=13)
    documents = [piece.doc_id for piece in chosen]
    assert len(set(documents[:6])) == 6 and documents[6:] == ["long", "long"]
    assert len({piece.chunk_id for piece in chosen}) == 8
    assert chosen == questions.sample_passages(chunks, 8, seed=13)
    assert chosen != questions.sample_passages(chunks, 8, seed=14)


def test_passages_of_a_few_words_are_not_asked_about_but_can_be_searched():
    chunks = [chunk("a#0", text="See below."), chunk("b#0"), chunk("c#0", text="")]
    assert [p.chunk_id for p in questions.sample_passages(chunks, 9, 13)] == ["b#0"]
    assert len(questions.sample_passages(chunks, 9, 13, min_words=0)) == 3


def test_the_writer_reads_the_heading_path_and_no_more_than_it_can():
    piece = chunk("a#0", "Pumps > Oil", "word " * 500)
    assert questions.cut(piece, words=10) == "Pumps > Oil" + " word" * 7


# ---------------------------------------------------------------- candidates


@pytest.mark.parametrize(
    "word", ["கடலில் ", "ქარხანა ", "Ανεμογεννήτρια ", "풍력발전기를정비하는", "维护前必须停机"]
)
def test_a_passage_in_any_script_fits_the_small_writers_context(word):
    """Up to three of its tokens a character of these; a thousand are there, for prompt and answer."""
    told = questions.cut(chunk("a#0", text=word * 400))
    assert 3 * sum(not c.isascii() for c in told) <= 1000 and len(told) > 250
    assert len(questions.cut(chunk("a#0", text="turbine " * 200)).split()) == 110


def test_a_candidate_keeps_its_passage_and_its_probability():
    answer = Answer(texts=[" Which valve?\nmore"], tokens=[[(11, -0.5), (12, -1.0), (2, -9.0)]])
    row = questions.candidates([(chunk("a#0"), "Question")], [answer], "embedded").iloc[0]
    assert row.question == "Which valve?" and row.chunk_ids == ["a#0"] and row.doc_id == "a"
    assert row.token_ids == [11, 12] and row.log_with == -1.5 and row.n_tokens == 2  # without end of text


def test_the_same_candidate_counts_once_for_a_passage_and_failed_or_empty_calls_give_none():
    same = Answer(texts=["Which valve?", "which valve", "\n"], tokens=[[], [], []])
    pairs = [(chunk("a#0"), "Question"), (chunk("b#0"), "Question"), (chunk("c#0"), "Question")]
    table = questions.candidates(pairs, [same, same, Answer(error="timeout")], "api")
    assert [(r.question, r.chunk_ids) for r in table.itertuples()] == [
        ("Which valve?", ["a#0"]), ("Which valve?", ["b#0"]),
    ]  # fmt: skip


def test_where_no_gain_orders_them_the_styles_take_turns():
    """Else "better ones there" would keep the first style alone."""
    asked = [(chunk(i), style) for i in ("a#0", "b#0") for style in ("Question", "Search")]
    answers = [
        Answer(texts=[f"{p.chunk_id} {style} {n}" for n in (1, 2)], tokens=[[], []]) for p, style in asked
    ]
    by_api = questions.candidates(asked, answers, "some model")
    assert list(by_api.question[:4]) == ["a#0 Question 1", "a#0 Search 1", "a#0 Question 2", "a#0 Search 2"]
    assert list(by_api.chunk_ids.str[0]) == ["a#0"] * 4 + ["b#0"] * 4
    ranked_later = questions.candidates(asked, answers, "embedded")
    assert list(ranked_later["style"][:4]) == ["Question", "Question", "Search", "Search"]


def test_a_question_that_was_cut_off_is_no_candidate():
    texts = [
        " Which valve is it that",
        " Which valve?",
        "\nWhich pump?\nIt is the pump that",
        "\nWhich key is it",
    ]
    answer = Answer(texts=texts, tokens=[[]] * 4, finish=["length", "stop", "length", "length"])
    table = questions.candidates([(chunk("a#0"), "Question")], [answer], "embedded")
    assert list(table.question) == ["Which valve?", "Which pump?"]


@pytest.mark.parametrize(
    ("completion", "question"),
    [
        ('\n "Which  valve?" \nIt is', "Which valve?"),
        ("1. Which valve?", "Which valve?"),
        ("Q2: Which valve?", "Which valve?"),
        ("Question: Which valve?", "Which valve?"),
        ("1.5 bar or more?", "1.5 bar or more?"),
        ("", ""),
    ],
)
def test_a_completion_becomes_a_bare_question(completion, question):
    assert questions.tidy(completion) == question


def test_a_replay_asks_for_exactly_these_tokens():
    body = questions.replay([5, 9], "Passage:")
    assert body["extra_body"]["grammar"] == "root ::= <[5]> <[9]>"
    assert (body["prompt"], body["max_tokens"], body["temperature"]) == ("Passage:", 2, 0)


# ---------------------------------------------------------------- what is measured


def test_the_round_trip_finds_the_rank_of_the_questions_own_passage():
    chunks = [
        chunk("a#0", text="grease anchor chain weekly"),
        chunk("b#0", text="replace fuel filter"),
        chunk("c#0", text="replace fuel filter"),
        chunk("d#0", text="unrelated galley menu"),
    ]
    table = asked(
        ("grease anchor chain", "a#0"), ("replace fuel filter", "b#0"), ("replace fuel filter", "a#0"),
        ("replace fuel filter", "d#0", "c#0"),
    )  # fmt: skip
    got = questions.measure(table, chunks, chunks, WordEncoder())
    assert list(got.round_trip_rank) == [1, 1, 3, 1]
    assert list(got.rivals[[0, 1]]) == [0, 1]
    assert list(got.gain) == [0, 0, 0, 0]
    alone = questions.measure(table, chunks, chunks[3:], WordEncoder())  # own passages join the pool
    assert list(alone.round_trip_rank) == [1, 1, 3, 1]


def test_a_measured_gain_stays_and_a_second_measuring_replaces_the_first():
    table = asked(("close the valve", "a#0")).assign(gain=0.4)
    once = questions.measure(table, [chunk("a#0")], [], WordEncoder())
    twice = questions.measure(once, [chunk("a#0")], [], WordEncoder())
    assert twice.columns.is_unique and twice.gain[0] == 0.4


def test_gains_that_a_limit_left_out_are_told(capsys):
    table = asked(("close the valve", "a#0"), ("grease anchor", "a#0")).assign(gain=[0.4, np.nan])
    questions.measure(table, [chunk("a#0")], [], WordEncoder())
    assert "1 candidates have no gain (a limit came first" in capsys.readouterr().out


def test_copied_words_are_counted():
    table = asked(("Why close the valve before lunch?", "a#0"), ("Anything else, Sir?", "a#0"))
    got = questions.measure(table, [chunk("a#0")], [], WordEncoder())
    assert list(got.shared_run) == [4, 0] and list(got.words) == [6, 3]
    assert list(got.overlap) == [pytest.approx(4 / 6), 0]


@pytest.mark.parametrize(
    ("question", "foreign"),
    [
        ("Reset of TV-2101 at 35 bar?", False),
        ("reset tv 2101", False),
        ("Reset at 35bar", False),  # "35 bar" in the passage
        ("Reset of TVN-2101", True),
        ("Reset of TV-2107", True),
        ("Reset in 2024", True),
        ("Why the valve?", False),
    ],
)
def test_a_code_that_the_passage_lacks_is_foreign(question, foreign):
    passage = chunk("a#0", "Alarm TV-2101", "Reset is possible at 35 bar, not in WI-L112.")
    got = questions.measure(asked((question, "a#0")), [passage], [], WordEncoder())
    assert got.foreign_code[0] == foreign


def test_a_gain_is_compared_within_its_style():
    """A hurried search gains more than a sentence, whatever its worth."""
    table = asked(*[(f"valve {i}", "a#0") for i in range(6)]).assign(
        style=["Question"] * 3 + ["Search"] * 3, gain=[2.0, 3.0, 5.0, 4.0, 5.0, 6.0]
    )
    got = questions.measure(table, [chunk("a#0")], [], WordEncoder())
    assert list(got.above_style) == [-1, 0, 2, -1, 0, 1] and list(got.gain) == list(table.gain)
    bare = questions.measure(table.drop(columns="style"), [chunk("a#0")], [], WordEncoder())
    assert list(bare.above_style) == [-2.5, -1.5, 0.5, -0.5, 0.5, 1.5]


def test_the_rules_of_notebook_1_drop_what_their_names_say():
    text = "Close the red valve of pump TV-2101 before you start it and read the gauge at 35 bar."
    cases = {
        "Valve?": "not a question",
        "Which pump does the study name?": "speaks of the text",
        "close the red valve of pump": "copied wording",
        "Why close the valve valve?": "a word twice",
        "Why close pump TV-2107?": "another's code",
        "Why close a valve first?": "",
        "Why start it later?": "passage not needed",
        "What is read from the gauge?": "",
        "First, why close a valve?": "duplicate",
        "Which pump is started?": "better ones there",
    }
    table = asked(*[(question, "a#0") for question in cases]).assign(
        gain=[-1.0 if reason == "passage not needed" else 1.0 for reason in cases.values()]
    )
    table = questions.measure(table, [chunk("a#0", text=text)], [], WordEncoder())
    known = {
        "questions": questions,
        "base": WordEncoder(),
        "run": SimpleNamespace(cache_dir=lambda: None),
        "profile": SimpleNamespace(keep=2),
        "ROUND_TRIP": 20,
    }
    exec(cell_of_notebook_1("about_text = "), known)
    assert questions.sift(table, known["rules"]).reason.tolist() == list(cases.values())


@pytest.mark.parametrize(("capable", "first"), [(False, "valve 2"), (True, "valve 1")])
def test_notebook_1_puts_the_highest_gain_of_a_style_first_and_a_judges_mark_before_it(capable, first):
    table = asked(*[(f"valve {i}", "a#0") for i in range(4)]).assign(
        style=["Question", "Question", "Question", "Search"], gain=[2.0, 2.5, 4.0, 6.0], overall=[1, 9, 5, 5]
    )
    known = {
        "questions": questions,
        "chunks": [chunk("a#0")],
        "profile": SimpleNamespace(passages=1),
        "SEED": 13,
        "table": table,
        "base": WordEncoder(),
        "run": SimpleNamespace(cache_dir=lambda: None),
        "capable": capable,
        "display": lambda shown: None,
    }
    exec(cell_of_notebook_1("pool = "), known)
    assert known["table"].question[0] == first


def cell_of_notebook_1(start):
    notebook = (publish.NOTEBOOKS / "01_generate_synthetic_data.ipynb").read_text(encoding="utf8")
    sources = ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]
    return next(source for source in sources if source.startswith(start))


def test_no_candidates_can_be_measured_too():
    none = questions.candidates([], [], "embedded")
    got = questions.measure(none, [chunk("a#0")], [chunk("a#0")], WordEncoder())
    assert got.empty and {"gain", "round_trip_rank", "rivals", "words"} <= set(got)
    assert questions.duplicates(got, WordEncoder(), 0.9).empty


def test_of_questions_that_ask_the_same_the_first_stays():
    table = asked(
        ("close the valve", "a#0"), ("the valve close", "b#0"), ("grease anchor", "a#0"),
        ("what is alarm 312", "a#0"), ("what is alarm 313", "a#0"),
    )  # fmt: skip
    table.index = [7, 3, 9, 1, 5]
    gone = questions.duplicates(table, WordEncoder(), 0.7)
    assert gone.to_dict() == {7: False, 3: True, 9: False, 1: False, 5: False}


def test_a_question_asked_by_many_passages_stays_once():
    words = [f"w{i}" for i in range(60)]
    rows = [" ".join(words[:i] + words[i + 1 :]) for i in range(60)]  # each lacks another word
    rng = np.random.default_rng(0)
    table = asked(*((" ".join(rng.permutation(row.split())), "a#0") for row in rows))
    table["question"] = table.question.str.replace(r"\d", lambda d: "abcdefghij"[int(d[0])], regex=True)
    assert (~questions.duplicates(table, WordEncoder(), 0.9)).sum() == 1


# ---------------------------------------------------------------- rules and funnel


def test_search_terms_are_a_few_of_a_passages_own_words_around_a_code():
    common = "the pump of the turbine runs and the pump stops when the turbine is cold"
    texts = [f"{common} name{'x' * i} code-{i}a nick{'y' * i} half{'z' * i}" for i in range(60)]
    chunks = [chunk(f"{i}#0", "", text) for i, text in enumerate(texts)]
    terms = free_questions.search_terms(chunks, 13)
    assert len(terms) == 60 and set(terms.generator) == {"terms"}
    for row, text in zip(terms.itertuples(), texts, strict=True):
        words, own = row.question.split(), text.split()
        assert 2 <= len(words) <= 5 and sum("code-" in word for word in words) == 1
        assert [own.index(w) for w in words] == sorted(own.index(w) for w in words)
    assert not terms.question.str.contains("pump|turbine").any(), "a word of every passage says nothing"
    assert terms.equals(free_questions.search_terms(chunks, 13))
    assert not terms.equals(free_questions.search_terms(chunks, 14))


def test_passages_without_a_code_have_no_search_terms():
    texts = ["Libraries lend books to readers of all kinds", "In 1971 the eighteenth edition of it appeared"]
    assert free_questions.search_terms([chunk(f"{t[:3]}#0", "", t) for t in texts], 13).empty


def test_a_word_of_few_passages_is_drawn_more_often():
    letters = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    words = ["often" if i % 6 == 0 else f"e{c}" for i, c in enumerate(letters)]
    texts = [f"id-{i:03d} {words[i]} aa{c} bb{c} cc{c}" for i, c in enumerate(letters)]
    terms = free_questions.search_terms([chunk(f"{i}#0", "", text) for i, text in enumerate(texts)], 13)
    drawn = " ".join(terms.question[::6]).split()  # of the hundred passages with "often"
    assert 0 < drawn.count("often") < 0.8 * sum(word.startswith("aa") for word in drawn)


def test_the_first_broken_rule_is_the_reason_and_the_funnel_adds_up():
    table = pd.DataFrame({"question": ["a", "b", "c", "d"], "gain": [-1.0, -1.0, 1.0, np.nan]})
    rules = {
        "named b": lambda t: t.question == "b",
        "gain": lambda t: t.gain < 0,
        "unknown": lambda t: pd.Series([None] * 4, dtype=object),
    }
    judged = questions.sift(table, rules)
    assert list(judged.reason) == ["gain", "named b", "", ""] and "reason" not in table
    steps = questions.funnel(judged, rules)
    assert steps[["in", "dropped", "left"]].to_numpy().tolist() == [[4, 1, 3], [3, 1, 2], [2, 0, 2]]
    assert list(steps["dropped, for example"]) == ["b", "a", ""]


def test_what_was_dropped_takes_nobodys_place():
    table = pd.DataFrame({"question": list("abc"), "chunk_ids": [["p"], ["p"], ["p"]]})
    rules = {
        "copied": lambda t: t.question == "a",
        "twin of one that is left": lambda t: t.question[t.reason == ""].duplicated(),  # of these rows alone
        "better ones there": lambda t: t.reason.eq("").groupby(t.chunk_ids.str[0]).cumsum() > 1,
    }
    assert list(questions.sift(table, rules).reason) == ["copied", "", "better ones there"]


# ---------------------------------------------------------------- questions written before


def test_own_pairs_become_rows_also_those_with_literal_answers(tmp_path):
    rows = [{"question": "Which valve?", "chunk_ids": ["a.md#1"]}, {"question": "Who?", "positives": ["We."]}]
    pairs = inputs.read_pairs(write_jsonl(tmp_path / "q.jsonl", *rows), [chunk("a.md#0"), chunk("a.md#1")])
    back = given_questions.to_pairs(given_questions.to_table(pairs))
    assert [(p.question, p.chunk_ids, p.positives) for p in back] == [
        ("Which valve?", ["a.md#1"], []),
        ("Who?", [], ["We."]),
    ]


def test_a_quote_becomes_the_chunk_that_covers_most_of_it(tmp_path):
    document = "Close the valve. Start the pump. Read the gauge."
    chunks = [
        Chunk(chunk_id=f"a.md#{i}", doc_id="a.md", text=document[a:b], start=a, end=b)
        for i, (a, b) in enumerate([(0, 16), (17, 32), (33, 48)])
    ]
    quotes = ["Read the gauge", "valve. Start the pump.", "gauge"]
    path = write_jsonl(
        tmp_path / "q.jsonl",
        {"question": "How?", "evidence": [{"doc_id": "a.md", "quote": q} for q in quotes]},
        {"question": "Other?", "evidence": [{"doc_id": "zzz.md", "quote": "Read the gauge"}]},
    )
    found, lost = given_questions.read_ready_made(path, chunks, {"a.md": document})
    assert found.chunk_ids == ["a.md#2", "a.md#1"]
    assert (found.doc_id, found.generator, lost.chunk_ids) == ("a.md", "ready-made", [])
    assert given_questions.read_ready_made(path, chunks, {})[0].chunk_ids == ["a.md#2", "a.md#1"]
    assert list(given_questions.to_table([found, lost]).question) == ["How?"]
    with pytest.raises(CourseError, match="None of the given questions"):
        given_questions.to_table([lost])


@pytest.mark.parametrize("place", ["", "none.jsonl"])
def test_given_questions_that_are_no_file_are_told(place, tmp_path):
    with pytest.raises(CourseError, match="does not exist, or is a folder"):
        inputs.read_pairs(tmp_path / place, [chunk("a#0")])


def test_the_passages_of_given_questions_can_be_limited(tmp_path):
    rows = [{"question": f"{i}?", "chunk_ids": [c]} for i, c in enumerate(["a#0", "b#0", "a#0", "c#0"])]
    chunks = [chunk("a#0"), chunk("b#0"), chunk("c#0")]
    pairs = inputs.read_pairs(write_jsonl(tmp_path / "q.jsonl", *rows), chunks)
    assert list(given_questions.to_table(pairs, 2).question) == ["0?", "1?", "2?"]
    assert len(given_questions.to_table(pairs)) == 4


def test_written_and_free_questions_become_numbered_pairs():
    written = asked(("Which valve?", "a#0")).assign(
        question_id="ready-1", round_trip_rank=3, gain=0.5, rivals=2, generator="api"
    )
    free = free_questions.heading_questions([chunk("b#0", "Change the oil")]).drop(columns="dropped")
    first, second = given_questions.to_pairs(free_questions.mix(written, free, 0.5, 13))
    assert (first.question_id, first.round_trip_rank, first.generator) == ("ready-1", 3, "api")
    assert (first.gain, second.gain) == (0.5, 0)
    assert (second.question_id, second.round_trip_rank, second.generator) == ("q000001", None, "heading")
    assert second.chunk_ids == ["b#0"] and "rivals" not in first.model_dump()
