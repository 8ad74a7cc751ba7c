# python -m pytest tests/contracts/test_results.py
"""The files of notebook 4, as later stages, the report and other people's tools read them.

The format is checked on results made here; with COURSE_RUN=NAME also on a finished run of that name.
"""

import json
import math
import os

import numpy as np
import pandas as pd
import pytest

from utils import beir_files, evaluation, judgement, run

SYSTEMS = {"bm25", "base", "tuned", "hybrid"}


def check_results(results: dict) -> None:
    """The contract of results.json."""
    assert set(results) == {"test_sets", "verdict"}
    for name, test in results["test_sets"].items():
        assert test["n_queries"] > 0 and set(test["systems"]) >= {"base", "tuned"}, name
        for system, values in test["systems"].items():
            assert set(values) == set(evaluation.METRICS), (name, system)
            assert all(0 <= value <= 1 for value in values.values()), (name, system)
        assert set(test["tuned_vs_base"]) == set(evaluation.METRICS)
        for metric, found in test["tuned_vs_base"].items():
            means = [test["systems"][system][metric] for system in ("base", "tuned")]
            assert found["delta"] == pytest.approx(means[1] - means[0], abs=1e-9), (name, metric)
            assert found["ci95"][0] <= found["delta"] + 1e-9 and found["delta"] <= found["ci95"][1] + 1e-9
            assert 0 < found["p"] <= 1
            if means[0] > 0:
                assert found["relative"] == pytest.approx(found["delta"] / means[0])
    decision = results["verdict"]
    assert decision["use"] in {"tuned", "base"} and isinstance(decision["collect_more"], bool)
    assert decision["why"] and all(set(rule) == {"rule", "value", "passed"} for rule in decision["rules"])
    assert (decision["use"] == "tuned") == all(rule["passed"] for rule in decision["rules"])


@pytest.fixture
def small(tmp_path):
    """Two systems on twelve queries, written as notebook 4 writes them."""
    draw = np.random.default_rng(3)
    qrels = {f"q{i}": {f"p{i}": 1} for i in range(12)}
    corpus = {f"p{i}": {"title": "", "text": f"passage {i}"} for i in range(12)}
    test = beir_files.Collection(corpus, {q: f"question, {q}" for q in qrels}, qrels, {}, "gold")
    runs = {s: {q: {p: float(draw.random()) for p in corpus} for q in qrels} for s in sorted(SYSTEMS)}
    scores = {"gold": {s: evaluation.metrics(found, qrels) for s, found in runs.items()}}
    compared = {"gold": evaluation.compare(scores["gold"]["base"], scores["gold"]["tuned"], 13, 1000)}
    test_sets = evaluation.results_of(scores, compared)
    evaluation.write_results(tmp_path / "results.json", test_sets, judgement.verdict(test_sets, "gold"))
    evaluation.per_query_table({"gold": test}, scores).to_csv(tmp_path / "per_query.csv", index=False)
    return tmp_path, scores


def test_results_json_keeps_its_contract(small):
    folder, _ = small
    check_results(json.loads((folder / "results.json").read_text()))


def test_per_query_csv_holds_every_query_of_every_system(small):
    folder, scores = small
    table = pd.read_csv(folder / "per_query.csv")
    assert list(table.columns) == ["test_set", "system", "query_id", "query", *evaluation.METRICS]
    assert len(table) == 12 * len(SYSTEMS) and not table.duplicated(["test_set", "system", "query_id"]).any()
    for system, own in table.groupby("system"):
        assert own["nDCG@10"].mean() == pytest.approx(scores["gold"][system]["nDCG@10"].mean())


def test_no_number_in_results_json_is_nan(small):
    folder, _ = small

    def refuse(name: str) -> None:
        raise AssertionError(f"results.json holds {name}")

    json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    with pytest.raises(ValueError):
        evaluation.write_results(folder / "bad.json", {"gold": {"n_queries": math.nan}}, {})
    assert not (folder / "bad.json").exists()


@pytest.mark.skipif("COURSE_RUN" not in os.environ, reason="COURSE_RUN names no finished run to look at")
def test_a_finished_run_agrees_with_its_own_files():
    folder = run.artefact(os.environ["COURSE_RUN"], "04_evaluate", "results.json").parent
    results = json.loads((folder / "results.json").read_text())
    check_results(results)
    table = pd.read_csv(folder / "per_query.csv")
    for name, test in results["test_sets"].items():
        assert set(test["systems"]) >= SYSTEMS
        for system, values in test["systems"].items():
            own = table[(table["test_set"] == name) & (table["system"] == system)]
            assert len(own) == test["n_queries"]
            assert own["nDCG@10"].mean() == pytest.approx(values["nDCG@10"], abs=1e-9)
            assert (folder / "runs" / f"{name}.{system}.trec").exists()
