# python -m pytest tests/unit/test_evaluation.py
"""Metrics, paired statistics, slices and the verdict: what notebook 4 decides by."""

import argparse
import json
import math

import numpy as np
import pandas as pd
import pytest
from benchmarks import question_writers, recipes
from scipy import stats

from utils import beir_files, evaluation, judgement, records, result_plots, significance, widgets
from utils.run import CourseError


def random_run(seed: int, queries: int = 60, found: int = 120) -> dict:
    """A run with many ties: scores are multiples of 0.05."""
    draw = np.random.default_rng(seed)
    return {
        f"q{i}": {
            f"p{p}": int(s) / 20
            for p, s in zip(draw.choice(400, found, False), draw.integers(0, 20, found), strict=True)
        }
        for i in range(queries)
    }


def random_qrels(seed: int, queries: int = 60) -> dict:
    draw = np.random.default_rng(seed)
    return {f"q{i}": {f"p{p}": 1 + int(p) % 2 for p in draw.choice(400, 5, False)} for i in range(queries)}


def a_collection(texts: dict[str, str], queries: dict[str, str], qrels: dict) -> beir_files.Collection:
    corpus = {i: {"title": "", "text": text} for i, text in texts.items()}
    return beir_files.Collection(corpus, queries, qrels, {}, "test")


# ---------------------------------------------------------------- metrics


def test_metrics_follow_their_definitions():
    table = evaluation.metrics({"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"b": 2, "x": 1}})
    row = table.loc["q"]
    assert list(table.columns) == evaluation.METRICS
    assert row["nDCG@10"] == pytest.approx((2 / math.log2(3)) / (2 + 1 / math.log2(3)))
    assert row["Recall@5"] == 0.5 and row["Precision@5"] == 0.2 and row["MRR@10"] == 0.5
    assert row["MAP@100"] == pytest.approx(0.25) and row["Recall@1"] == 0.0


def test_grades_count_in_ndcg_only():
    qrels = {"q": {"answers": 2, "helps": 1}}
    right = evaluation.metrics({"q": {"answers": 2.0, "helps": 1.0}}, qrels).loc["q"]
    wrong = evaluation.metrics({"q": {"answers": 1.0, "helps": 2.0}}, qrels).loc["q"]
    assert wrong["nDCG@10"] < right["nDCG@10"] == 1.0
    assert wrong["Recall@10"] == right["Recall@10"] == wrong["MAP@10"] == 1.0


def test_a_query_that_found_nothing_counts_as_zero_and_unjudged_ones_do_not_count():
    qrels = {"found": {"a": 1}, "missing": {"a": 1}, "empty": {"a": 1}, "nothing relevant": {"a": 0}}
    run = {"found": {"a": 1.0}, "empty": {}, "nothing relevant": {"a": 1.0}, "never judged": {"a": 1.0}}
    table = evaluation.metrics(run, qrels)
    assert table["nDCG@10"].to_dict() == {"found": 1.0, "missing": 0.0, "empty": 0.0}


def test_a_query_id_that_equals_a_passage_id_drops_nothing():
    table = evaluation.metrics({"same": {"same": 2.0, "other": 1.0}}, {"same": {"same": 1}})
    assert table.loc["same", "nDCG@1"] == 1.0


def test_ties_do_not_depend_on_the_order_of_the_run():
    run, qrels = random_run(1), random_qrels(2)
    backwards = {q: dict(reversed(scores.items())) for q, scores in run.items()}
    pd.testing.assert_frame_equal(evaluation.metrics(run, qrels), evaluation.metrics(backwards, qrels))


def test_broken_input_is_named():
    with pytest.raises(CourseError, match="not a number"):
        evaluation.metrics({"q": {"a": float("nan")}}, {"q": {"a": 1}})
    with pytest.raises(CourseError, match="relevant passage"):
        evaluation.metrics({"q": {"a": 1.0}}, {"q": {"a": 0}})


def test_a_test_set_with_wrong_qrels_is_refused_with_the_place(tmp_path):
    corpus = {"p1": {"title": "", "text": "one"}}
    beir_files.write_queries(tmp_path / "mine" / "queries.jsonl", {"q1": "a?", "q2": "b?"})
    beir_files.write_qrels(tmp_path / "mine" / "qrels" / "test.tsv", {"q1": {"p1": 1}, "q2": {"p1": 0}})
    test = beir_files.read_test_set(str(tmp_path / "mine"), corpus)
    assert test.name == "mine" and list(test.queries) == ["q1"]
    beir_files.write_qrels(tmp_path / "mine" / "qrels" / "test.tsv", {"q1": {"p9": 1}})
    with pytest.raises(CourseError, match=r"p9.*chunk ids"):
        beir_files.read_test_set(str(tmp_path / "mine"), corpus)
    lines = "query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp1\t2\n"
    (tmp_path / "mine" / "qrels" / "test.tsv").write_text(lines)
    with pytest.raises(CourseError, match=r"line 3.*judged twice"):
        beir_files.read_test_set(str(tmp_path / "mine"), corpus)
    beir_files.write_qrels(tmp_path / "mine" / "qrels" / "test.tsv", {"q1": {"p1": 1}})
    (tmp_path / "mine").rename(tmp_path / "gold")
    with pytest.raises(CourseError, match="Rename the folder"):
        beir_files.read_test_set(str(tmp_path / "gold"), corpus)


def test_gold_quotes_are_found_in_the_passages_of_a_run(tmp_path):
    chunks = [
        records.Chunk(chunk_id="d#0", doc_id="d.md", text="The pitch bearing is greased twice a year."),
        records.Chunk(chunk_id="d#1", doc_id="d.md", text="Code E-42 means that the brake is worn."),
    ]
    evidence = [
        {"doc_id": "d.md", "quote": "brake is worn", "grade": 2},
        {"doc_id": "d.md", "quote": "greased twice", "grade": 1},
    ]
    rows = [
        {
            "_id": "g1",
            "text": "What is E-42?",
            "metadata": {"need": "fault", "split": "test", "evidence": evidence},
        },
        {
            "_id": "g2",
            "text": "Other part",
            "metadata": {"need": "fault", "split": "dev", "evidence": evidence},
        },
        {
            "_id": "g3",
            "text": "Lost",
            "metadata": {"split": "test", "evidence": [{"doc_id": "no.md", "quote": "x"}]},
        },
    ]
    records.write_rows(tmp_path / "queries.jsonl", rows)
    gold = evaluation.load_gold(chunks, "test", tmp_path)
    assert gold.qrels == {"g1": {"d#1": 2, "d#0": 1}} and gold.metadata["g1"]["need"] == "fault"
    assert list(evaluation.load_gold(chunks, "dev", tmp_path).queries) == ["g2"]


def test_gold_is_found_in_a_run_that_began_with_notebook_2(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(evaluation, "ROOT", tmp_path)
    quote = {"doc_id": "kind/d.md", "quote": "brake is worn", "grade": 2}
    row = {"_id": "g1", "text": "What is E-42?", "metadata": {"split": "test", "evidence": [quote]}}
    records.write_rows(tmp_path / "data" / "gold" / "queries.jsonl", [row])
    (tmp_path / "data" / "corpus" / "kind").mkdir(parents=True)
    (tmp_path / "data" / "corpus" / "kind" / "d.md").write_text("# D\n\nGreased. The brake is worn.")
    second = tmp_path / "runs" / "mine" / "02_prepare_training_data"
    second.mkdir(parents=True)
    corpus = {"kind/d.md#0": {"title": "D", "text": "Greased."}}
    corpus["kind/d.md#1"] = {"title": "D", "text": "The brake is worn."}
    for given, found in ((None, {"g1": {"kind/d.md#1": 2}}), ("elsewhere", None)):
        (second / "manifest.json").write_text(json.dumps({"parameters": {"CORPUS": given}}))
        gold, why = evaluation.gold_of_run("mine", corpus)
        assert (gold.qrels if gold else None) == found and bool(why) == (found is None)


def test_training_questions_that_repeat_a_test_are_counted_and_told(tmp_path, capsys):
    asked = ["How often is the bilge pump tested?", "Who looks after the winch in winter?", "What is a deck?"]
    rows = [{"query": text, "query_id": str(i)} for i, text in enumerate([*asked, asked[0]])]
    records.write_rows(tmp_path / "train.jsonl", rows)
    test = beir_files.Collection(name="mine", queries={"1": "how often is the BILGE pumps tested"})
    assert evaluation.warn_of_training_questions(tmp_path / "train.jsonl", test) == 1
    assert "WARNING: 1 of 3 training questions repeat a query of mine" in capsys.readouterr().out
    test.queries = {"1": "Something else entirely, about cables?"}
    assert evaluation.warn_of_training_questions(tmp_path / "train.jsonl", test) == 0
    assert not capsys.readouterr().out


def test_trec_run_can_be_read_back_by_ir_measures(tmp_path):
    import ir_measures

    run, qrels = {"q 1": {"a b": 0.5, "c": 0.75}}, {"q_1": {"a_b": 1}}
    evaluation.write_trec_run(tmp_path / "x.trec", run, "base")
    first, second = (tmp_path / "x.trec").read_text().splitlines()
    assert first.split() == ["q_1", "Q0", "c", "1", "0.75", "base"] and second.split()[3] == "2"
    read = ir_measures.calc_aggregate(
        [ir_measures.RR], qrels, ir_measures.read_trec_run(str(tmp_path / "x.trec"))
    )
    assert read[ir_measures.RR] == 0.5


@pytest.mark.heavy
def test_beirs_own_evaluator_agrees():
    beir = pytest.importorskip("beir.retrieval.evaluation", reason="pip install beir to compare with it")
    run, qrels, cutoffs = random_run(3), random_qrels(4), list(evaluation.CUTOFFS)
    copy = {q: dict(scores) for q, scores in run.items()}
    theirs = beir.EvaluateRetrieval.evaluate(qrels, copy, cutoffs, ignore_identical_ids=False)
    ours = evaluation.metrics(run, qrels).mean()
    for values, name in zip(theirs, ("nDCG", "MAP", "Recall", "Precision"), strict=True):
        for k, value in zip(cutoffs, values.values(), strict=True):
            assert value == pytest.approx(round(ours[f"{name}@{k}"], 5), abs=1e-6), (name, k)  # they round


# ---------------------------------------------------------------- statistics


def test_intervals_and_p_agree_with_scipys_own():
    d = np.random.default_rng(5).normal(0.04, 0.2, (80, 2))
    low, high = significance.bootstrap_interval(d, 13, 10_000)
    p = significance.permutation_p(d, 13, 10_000)
    for i in range(2):
        theirs = stats.bootstrap((d[:, i],), np.mean, method="percentile", rng=1).confidence_interval
        test = stats.permutation_test(
            (d[:, i],), lambda x, axis: x.mean(axis), permutation_type="samples", rng=1
        )
        assert low[i] == pytest.approx(theirs.low, abs=0.003) and high[i] == pytest.approx(
            theirs.high, abs=0.003
        )
        assert p[i] == pytest.approx(test.pvalue, abs=0.02)


def test_compare_is_repeatable_and_tells_better_from_equal():
    qrels = random_qrels(6)
    base = evaluation.metrics(random_run(7), qrels)
    better = evaluation.metrics({q: {p: 1.0 for p in grades} for q, grades in qrels.items()}, qrels)
    once, again = (evaluation.compare(base, better, 13, 2000) for _ in range(2))
    assert once == again
    assert once["nDCG@10"]["ci95"][0] > 0 and once["nDCG@10"]["p"] < 0.001
    same = evaluation.compare(base, base, 13, 2000)["nDCG@10"]
    assert same["delta"] == 0 and same["ci95"] == [0, 0] and same["p"] == 1


def test_one_query_alone_proves_nothing():
    one = evaluation.metrics({"q": {"a": 1.0}}, {"q": {"a": 1}})
    none = evaluation.metrics({"q": {"b": 1.0}}, {"q": {"a": 1}})
    found = evaluation.compare(none, one, 13, 1000)["nDCG@10"]
    assert found["ci95"] == [-1.0, 1.0] and found["p"] == 1.0 and found["relative"] is None


def test_as_many_queries_as_needed_do_show_the_difference():
    draw = np.random.default_rng(8)
    needed = significance.queries_needed(draw.normal(0.05, 0.3, 4000))
    seen = [stats.ttest_1samp(draw.normal(0.05, 0.3, needed), 0).pvalue < 0.05 for _ in range(400)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.08)
    assert significance.queries_needed([0.1, -0.1]) is None


def test_holm_is_stricter_the_more_is_looked_at():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([]) == []


def test_the_comparison_of_recipes_tells_p_beside_every_interval():
    draw = np.random.default_rng(3)
    base = pd.Series(draw.random(40))
    scores = {
        ("base", 1.0): [{"people": base}],
        ("plain", 1.0): [{"people": base + draw.normal(0.1, 0.3, 40)}],
    }
    scores["worse", 1.0] = [{"people": base - 0.2}]
    table = recipes.report(scores, ["people"], {}).set_index("recipe")
    plain, worse = (scores[name, 1.0][0]["people"] for name in ("plain", "worse"))
    for column, first in {"vs base": base, "vs first": plain}.items():
        for name, second in {"plain": plain, "worse": worse}.items():
            if first is second:
                assert table.loc[name, column] == ""
                continue
            difference = (second - first).to_numpy()[:, None]
            expected = significance.permutation_p(difference, seed=13, resamples=10_000)[0]
            assert table.loc[name, column].endswith(f"] p {expected:.4f}")
    assert table.loc["worse", "vs base"].endswith("p 0.0001")
    assert not table.loc["plain", "vs base"].endswith("p 0.0001")


def test_recipes_measures_short_vectors_beside_whole_ones(monkeypatch):
    """The right passage is the nearer one by three numbers, the other by the first two."""
    vectors = {"asked": [0.6, 0.0, 0.8], "right": [0.3, 0.3, 0.9], "other": [1.0, 0.0, 0.0]}
    given = lambda model, texts, kind: np.array([vectors[t] for t in texts], dtype=np.float32)  # noqa: E731
    monkeypatch.setattr(recipes.retrieval, "encode", given)
    test = a_collection({"p1": "other", "p2": "right"}, {"q": "asked"}, {"q": {"p2": 1}})
    model = argparse.Namespace(device=argparse.Namespace(type="cpu"))
    args = argparse.Namespace(bf16=False, dimensions=[3, 2], metric="nDCG@10")
    found = recipes.measure(model, {"people": test}, args)
    assert list(found) == ["people, 3", "people, 2"]
    assert found["people, 3"].item() == 1 and found["people, 2"].item() < 1


def test_a_writers_questions_are_told_apart_by_what_the_rules_made_of_them(tmp_path):
    def row(question, **more):
        return {"question": question, "chunk_ids": ["c1"], "generator": "embedded"} | more

    made = {name: tmp_path / name for name in ("free", "lora")}
    free = [row("Care of pumps", generator="heading"), row("PX-1 seal", generator="terms")]
    records.write_rows(made["free"] / "qa_pairs.jsonl", free)
    records.write_rows(made["lora"] / "qa_pairs.jsonl", [row("Who greases the pump?")])
    dropped = [row("When is it greased?", reason="better ones there"), row("Is it so?", reason="round trip")]
    records.write_rows(made["lora"] / "rejected.jsonl", [*dropped, row("Why?", reason="not a question")])
    records.write_rows(tmp_path / "strong.jsonl", [row("How often is it greased?")])
    found = question_writers.sources_of(made, str(tmp_path / "strong.jsonl"), {"LoRA", "free only"})
    asked = {name: [r["question"] for r in rows] for name, rows in found.items() if rows}
    assert asked == {
        "free only": ["Care of pumps", "PX-1 seal"],
        "heading": ["Care of pumps"],
        "terms": ["PX-1 seal"],
        "LoRA": ["Who greases the pump?"],
        "LoRA, unranked": ["Who greases the pump?", "When is it greased?", "Is it so?"],
        "strong": ["How often is it greased?"],
    }


def test_a_part_of_the_passages_goes_with_test_sets_of_ones_own(capsys):
    start = ["--name", "part", "--passages", "9"]
    own = ["--test", "cisi=CISI:test"]
    passed_on = question_writers.arguments(
        [*start, *own, "--corpus", "c.jsonl", "--", "--bf16", "false"]
    ).more
    assert passed_on == ["--bf16", "false"]
    assert question_writers.arguments([*start, *own, "--corpus", "CISI/corpus.jsonl"]).passages == 9
    for given, named in (
        (own, "Name one with --corpus"),
        (["--test", "gold:dev", "--corpus", "CISI/corpus.jsonl"], "gold:dev belongs to the sample domain"),
    ):
        with pytest.raises(SystemExit):
            question_writers.arguments([*start, *given])
        assert named in capsys.readouterr().err


# ---------------------------------------------------------------- slices and examples


def test_a_query_without_spaces_has_a_length_in_words():
    queries = {"a": "泵", "b": "如何更换海上风力发电机组的主轴承密封件", "c": "which seal"}
    test = a_collection({"p": "密封件"}, queries, {q: {"p": 1} for q in queries})
    lengths = judgement.query_traits(test)["length"]
    assert lengths.to_dict() == {"a": "1–5 words", "b": "6–12 words", "c": "1–5 words"}


def test_slices_find_the_kind_of_query_that_gained():
    texts = {f"p{i}": f"fault E-{100 + i} stops the turbine" for i in range(40)}
    queries = {f"q{i}": f"E-{100 + i}" if i < 20 else "why does it stand still" for i in range(40)}
    test = a_collection(texts, queries, {f"q{i}": {f"p{i}": 1} for i in range(40)})
    test.metadata = {f"q{i}": {"hops": 1 + i % 2} for i in range(40)}
    traits = judgement.query_traits(test)
    assert (traits["identifier"][:20] == "with a code").all() and (
        traits["identifier"][20:] != "with a code"
    ).all()
    noise = np.random.default_rng(9).normal(0, 0.02, 40)
    gain = pd.Series(np.where(np.arange(40) < 20, 0.4, 0.0) + noise, index=traits.index)
    table = judgement.slice_table({"test": gain}, {"test": traits}, seed=13).set_index(["slice", "value"])
    assert table.loc[("identifier", "with a code"), "p_holm"] < 0.05
    assert table.loc[("identifier", "without a code"), "p_holm"] > 0.05
    assert not table["small"].any() and (table["p_holm"] >= table["p"]).all()
    assert set(table.index.get_level_values("slice")) == {
        "identifier",
        "overlap",
        "hops",
    }  # not need, not length


def test_codes_are_told_from_words_and_measures():
    codes = ("What is E-42?", "AB-12 leaks", "the PL-3000/B pump", "order 4711")
    assert all(judgement.IDENTIFIER.search(text) for text in codes)
    words = ("open and/or closed", "at 12.5 bar", "a well-known fault", "in 8 hours")
    assert not any(judgement.IDENTIFIER.search(text) for text in words)
    assert judgement.IDENTIFIER.search("the PL-3000/B pump")[0] == "PL-3000/B"


def test_hops_may_be_any_word_and_many_folders_are_one_kind():
    found = beir_files.Collection(
        {"p": {"title": "", "text": "a"}}, {"q": "a", "r": "a"}, {"q": {"p": 1}, "r": {"p": 1}}
    )
    found.metadata = {"q": {"hops": "multi"}, "r": {"hops": 2}}
    assert list(judgement.query_traits(found)["hops"]) == ["multi", "several"]
    assert judgement.kinds(["manuals/a#0", "b"]) == ["manuals", "documents"]
    assert set(judgement.kinds(f"doc{i}/0" for i in range(50))) == {"documents"}


def test_more_resamples_let_a_slice_have_a_smaller_p():
    rng = np.random.default_rng(0)
    gain = pd.Series(rng.normal(1, 0.1, 80), index=[f"q{i}" for i in range(80)])
    traits = pd.DataFrame({"need": ["repair", "plan"] * 40}, index=gain.index)
    least = [judgement.slice_table({"t": gain}, {"t": traits}, 13, n).p.min() for n in (99, 999)]
    assert least == [pytest.approx(1 / 100), pytest.approx(1 / 1000)]


def test_small_slices_are_not_tested():
    gain = pd.Series([0.5] * 12 + [0.9] * 3, index=[f"q{i}" for i in range(15)])
    traits = pd.DataFrame({"need": ["many"] * 12 + ["few"] * 3}, index=gain.index)
    table = judgement.slice_table({"test": gain}, {"test": traits}, seed=13).set_index("value")
    assert table.loc["few", "small"] and table.loc["few", "p_holm"] == 1.0 and not table.loc["many", "small"]


def test_wins_and_losses_are_the_largest_ones():
    gain = pd.Series({"a": 0.1, "b": -0.5, "c": 0.9, "d": 0.0, "e": -0.2})
    assert judgement.wins_and_losses(gain, 2) == (["c", "a"], ["b", "e"])


def test_results_stand_side_by_side_with_marked_words_and_safe_html():
    shown = widgets.side_by_side("worn brake", {"base": [(0.5, "T", "The brakes <b>wear</b>")], "tuned": []})
    assert "<mark>brakes</mark>" in shown and "&lt;" in shown and "<b>wear</b>" not in shown


def test_search_box_has_a_static_form_when_nobody_can_click(monkeypatch):
    monkeypatch.setenv("COURSE_HEADLESS", "1")
    box = widgets.search_box(lambda query: {"base": [(1.0, "T", f"about {query}")]}, ["brakes"])
    assert "<mark>brakes</mark>" in box.data
    monkeypatch.delenv("COURSE_HEADLESS")
    field, shown = widgets.search_box(
        lambda query: {"base": [(1.0, "T", f"about {query}")]}, ["brakes"]
    ).children
    field.value = "gears"
    assert "<mark>gears</mark>" in shown.value


# ---------------------------------------------------------------- the verdict


def judged(base: dict, tuned: dict, qrels: dict) -> dict:
    tables = {"base": evaluation.metrics(base, qrels), "tuned": evaluation.metrics(tuned, qrels)}
    compared = evaluation.compare(tables["base"], tables["tuned"], 13, 2000)
    return evaluation.results_of({"x": tables}, {"x": compared})["x"]


@pytest.fixture(scope="module")
def cases() -> dict:
    qrels = random_qrels(10)
    perfect = {q: {p: 1.0 for p in grades} for q, grades in qrels.items()}
    return {
        "better": judged(random_run(11), perfect, qrels),
        "worse": judged(perfect, random_run(11), qrels),
        "equal": judged(perfect, perfect, qrels),
    }


def test_a_better_model_is_used(cases):
    decision = judgement.verdict({"gold": cases["better"], "general": cases["equal"]}, human="gold")
    assert decision["use"] == "tuned" and not decision["collect_more"]
    assert all(rule["passed"] and rule["value"] for rule in decision["rules"])


@pytest.mark.parametrize("case", ["worse", "equal"])
def test_a_worse_or_equal_model_keeps_the_base(cases, case):
    decision = judgement.verdict({"gold": cases[case], "general": cases["equal"]}, human="gold")
    assert decision["use"] == "base" and "interval" in decision["why"]


def test_a_test_set_too_small_for_any_verdict_says_so(cases):
    for n, told in ((5, True), (6, False)):
        decision = judgement.verdict({"mine": cases["equal"] | {"n_queries": n}}, human="mine")
        assert ("no difference can reach p < 0.05" in decision["why"]) is told


def test_forgetting_keeps_the_base_unless_it_is_tolerated(cases):
    sets = {"gold": cases["better"], "general": cases["worse"]}
    assert judgement.verdict(sets, human="gold")["use"] == "base"
    assert judgement.verdict(sets, human="gold", general_tolerance=1.0)["use"] == "tuned"


def test_synthetic_questions_alone_ask_for_human_ones(cases):
    decision = judgement.verdict({"synthetic": cases["better"]})
    assert decision["use"] == "tuned" and decision["collect_more"] and "no human questions" in decision["why"]


def test_a_rising_learning_curve_asks_for_more(cases):
    decision = judgement.verdict({"gold": cases["better"]}, human="gold", still_rising=True)
    assert decision["collect_more"] and "still rises" in decision["why"]


# ---------------------------------------------------------------- long passages, second stages


@pytest.fixture(scope="module")
def encoder():
    from utils.retrieval import load_encoder

    return load_encoder("embedded", "cpu", 32)


def test_passages_beyond_the_models_length_are_counted_and_can_be_read_in_pieces(encoder):
    filler = "The weather was fine and nothing happened at the site on that day. " * 8
    texts = {"long": filler + "The yaw brake was worn.", "short": "Oil was changed in the gearbox."}
    test = a_collection(texts, {"q": "worn yaw brake"}, {"q": {"long": 1}})
    counted = evaluation.token_counts(encoder, test.corpus)
    assert counted["long"] > encoder.max_seq_length >= counted["short"]
    vector = encoder.encode(["worn yaw brake", texts["long"]], normalize_embeddings=True)
    found = evaluation.windowed_search(encoder, test, 10)["q"]
    assert set(found) == {"long", "short"}
    assert found["long"] > float(vector[0] @ vector[1]) + 0.2, "the piece with the answer must speak"


def test_a_reranker_reorders_the_first_passages_only():
    class Judge:
        def predict(self, pairs, show_progress_bar=False):
            return [len(text) for _, text in pairs]

    test = a_collection({"a": "x", "b": "xxx", "c": "xxxxx"}, {"q": "?"}, {"q": {"a": 1}})
    found = evaluation.rerank(Judge(), test, {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, depth=2)
    assert evaluation.ranking(found["q"]) == ["b", "a", "c"]


def test_score_samples_are_the_cosines_of_relevant_and_of_other_passages():
    test = a_collection({"a": "", "b": "", "c": ""}, {"q": "?"}, {"q": {"a": 2, "c": 0}})
    passages = np.eye(3, dtype=np.float32)
    relevant, other = judgement.score_samples(
        test, passages[:1], passages, {"q": {"a": 1.0, "b": 0.25, "c": 0.5}}
    )
    assert relevant == [1.0] and sorted(other) == [0.25, 0.5]
    assert judgement.separation(relevant, other) == 1.0


# ---------------------------------------------------------------- figures


def test_small_slices_are_grey_and_carry_no_p():

    columns = ["test_set", "slice", "value", "n", "delta", "p_holm", "small"]
    rows = [["gold", "need", "many", 40, 0.2, 0.01, False], ["gold", "need", "few", 3, 0.9, 1.0, True]]
    figure = result_plots.slice_heat_map(pd.DataFrame(rows, columns=columns), "nDCG@10")
    few, many = sorted(figure.axes[0].texts, key=lambda text: text.get_text())[::-1]
    assert "n = 3" in few.get_text() and few.get_color() == "#777777" and "p =" not in few.get_text()
    assert many.get_color() == "white", "on the darkest red"
    assert "p = 0.01" in many.get_text()


def test_the_learning_curve_shows_every_part_and_the_base():

    table = pd.DataFrame({"questions": [25, 50, 100], "value": [0.4, 0.5, 0.52]})
    figure = result_plots.learning_curve(
        table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1), "nDCG@10", 0.3
    )
    tuned, base = figure.axes[0].containers[0].lines[0], figure.axes[0].lines[-1]
    assert list(tuned.get_xdata()) == [25, 50, 100] and set(base.get_ydata()) == {0.3}


def test_figures_are_small_enough_for_a_notebook():
    from utils import plots

    scores = {name: {"bm25": 0.3, "base": 0.4, "tuned": 0.5} for name in ("synthetic", "gold", "general")}
    png = plots.compact_png(result_plots.systems_bars(scores, "nDCG@10"))
    assert png.startswith(b"\x89PNG") and len(png) < 20_000
