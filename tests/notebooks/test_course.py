# python -m pytest tests/notebooks/test_course.py
"""The headless runner: all six notebooks on the smoke profile, and what it leaves."""

import json
import re
from pathlib import Path

import pytest
from command_line import command
from tiny_models import save_small_base, save_tiny_judge

from utils import course, records, run, serve

SMOKE = ("--name", "smoke", "--profile", "smoke")
SMALL = (*SMOKE, "-p", "ROUND_TRIP", 9999, "-p", "HELD_OUT", [0.3, 0.2], "-p", "BASE_MODEL")


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "base"
    save_small_base(folder)
    return folder


@pytest.fixture(scope="session")
def smoke(small_base, tmp_path_factory):
    """One run of all six notebooks, from a folder that is not the repository, with a base of two layers (so
    that any rank will do for the round trip) and enough held out for a few validation questions."""
    runs = tmp_path_factory.mktemp("runs")
    done = command("run", *SMALL, small_base, runs=runs, cwd=runs)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs / "smoke", done.stdout


def test_six_manifests_and_executed_copies(smoke):
    folder, _ = smoke
    for name in run.STAGES:
        manifest = json.loads((folder / name / "manifest.json").read_text(encoding="utf8"))
        assert manifest["headline"] and manifest["wall_seconds"] > 0
        assert manifest["parameters"]["PROFILE"] == "smoke"
        for file, sha in manifest["outputs"].items():
            assert run.digest(folder / name / file) == sha
        assert (folder / "notebooks" / f"{name}.ipynb").exists()


def test_a_written_question_carries_its_style_and_its_gain(smoke):
    folder, _ = smoke
    pairs = list(records.read_jsonl(folder / "01_generate_synthetic_data" / "qa_pairs.jsonl"))
    written = [pair for pair in pairs if pair["generator"] == "embedded"]
    assert {pair["query_type"] for pair in written} == {"Question"} and all(pair["gain"] for pair in written)
    assert {(pair["query_type"], pair["gain"]) for pair in pairs if pair not in written} == {("", 0)}


def test_the_run_ends_with_a_table_and_a_verdict(smoke):
    folder, printed = smoke
    results = json.loads((folder / "04_evaluate" / "results.json").read_text(encoding="utf8"))
    assert results["verdict"]["use"] in {"tuned", "base"}
    assert f"Verdict: use the {results['verdict']['use']} model" in printed
    for test_set, found in results["test_sets"].items():
        assert f"{found['systems']['base']['nDCG@10']:.3f}" in printed, test_set
    assert "minutes per stage" in printed


def test_resume_keeps_what_is_up_to_date(smoke, small_base):
    folder, _ = smoke
    before = (folder / "06_deploy" / "manifest.json").stat().st_mtime_ns
    done = command("run", "--resume", *SMALL, small_base, runs=folder.parent)
    assert done.returncode == 0 and done.stdout.count("kept") == 6
    assert (folder / "06_deploy" / "manifest.json").stat().st_mtime_ns == before


def test_resume_notices_other_parameters(smoke, small_base, monkeypatch):
    folder, _ = smoke
    monkeypatch.setenv("COURSE_RUNS", str(folder.parent))
    given = {"RUN": "smoke", "PROFILE": "smoke", "BASE_MODEL": str(small_base)}
    own = course.declared_parameters("04_evaluate") | given
    assert run.is_current("smoke", "04_evaluate", own)[0]
    current, why = run.is_current("smoke", "04_evaluate", own | {"SEED": 14})
    assert not current and "SEED" in why
    monkeypatch.setenv("COURSE_ADAPTER", "none")
    current, why = run.is_current("smoke", "04_evaluate", own)
    assert not current and "COURSE_ADAPTER" in why


def test_the_smoke_profile_proves_the_export_on_a_part_of_the_passages(smoke):
    folder, _ = smoke
    passages = (folder / "02_prepare_training_data" / "beir" / "corpus.jsonl").read_text(encoding="utf8")
    parity = json.loads((folder / "05_export" / "parity.json").read_text(encoding="utf8"))
    assert 0 < parity["passages"] < passages.count("\n") / 2


@pytest.mark.heavy
def test_other_seeds_and_a_hosted_model_are_rows_of_the_evaluation(exported, tmp_path):
    asked = {"LLM": "ready-made", "FREE_SHARE": 0, "HELD_OUT": [0.4, 0.2]}
    asked |= {"LEARNING_RATES": [0.0005], "MORE_SEEDS": [14, 15], "LARGER_MODEL": "tiny"}
    with serve.start(exported / "fp32", tmp_path / "server.log") as host:
        asked["LARGER_URL"] = host.base_url
        more = [word for name, value in asked.items() for word in ("-p", name, value)]
        done = command("run", *SMOKE, "--to", "4", *more, runs=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "smoke" / "04_evaluate" / "results.json").read_text(encoding="utf8"))
    for name, test in found["test_sets"].items():
        marks = {system: values["nDCG@10"] for system, values in test["systems"].items()}
        mean = sum(marks[system] for system in ("tuned", "seed_14", "seed_15")) / 3
        assert test["seeds_vs_base"]["nDCG@10"]["delta"] == pytest.approx(mean - marks["base"]), name
        assert 0 <= marks["larger"] < marks["base"], "a model with random weights"
    gold = found["test_sets"]["gold"]["systems"]
    assert len({gold[system]["nDCG@10"] for system in ("tuned", "seed_14", "seed_15")}) > 1


@pytest.mark.heavy
def test_the_options_that_cost_time_run_in_their_notebooks(tiny_encoder, tmp_path):
    """Each is off by default, so that no other run executes its cells; the base is tiny and random."""
    tiny_encoder.save_pretrained(str(tmp_path / "base"))
    save_tiny_judge(tmp_path / "judge")
    asked = {"BASE_MODEL": tmp_path / "base", "FREE_SHARE": 1, "MARGIN": 1.0, "REMINE": True, "LORA_RANK": 4}
    asked |= {"SECOND_OPINION": tmp_path / "judge", "RERANKER": tmp_path / "judge", "LEARNING_CURVE": True}
    asked |= {"LEARNING_RATES": [1e-4, 1e-2], "MATRYOSHKA": [16], "HARD_NEGATIVES": 1}
    asked |= {"STYLES": ["Question"]}
    more = [word for name, value in asked.items() for word in ("-p", name, value)]
    done = command("run", "--name", "all", "--profile", "smoke", "--to", "4", *more, runs=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = {name: _printed(tmp_path / "all" / "notebooks" / f"{name}.ipynb") for name in run.STAGES[:4]}
    pairs = list(records.read_jsonl(tmp_path / "all" / run.STAGES[0] / "qa_pairs.jsonl"))
    assert {pair["generator"] for pair in pairs} == {"heading"}, "nobody searches with loose terms there"
    assert "suspects cleared by" in printed[run.STAGES[1]]
    tuning, evaluation = printed[run.STAGES[2]], printed[run.STAGES[3]]
    assert re.search(r"[1-9]\d* of \d+ negatives are new", tuning), "REMINE"
    assert re.search(r"the tuned model +[1-9]", tuning) and re.search(r"\n16 +0\.\d+\n32 +0\.\d+", tuning), (
        "MATRYOSHKA"
    )
    assert re.search(r"0\.0001 .*\n.*0\.0100", tuning), "a line for each of LEARNING_RATES"
    assert "The last doubling brought" in evaluation, "LEARNING_CURVE"
    results = json.loads((tmp_path / "all" / run.STAGES[3] / "results.json").read_text(encoding="utf8"))
    assert {"tuned", "reranked"} <= set(results["test_sets"]["gold"]["systems"])


def _printed(path: Path) -> str:
    """What the cells of an executed notebook show as text."""
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join("".join(text) for text in shown)


def test_report_is_one_folder_of_html(smoke):
    folder, _ = smoke
    done = command("report", "--name", "smoke", runs=folder.parent)
    page = (folder / "report" / "index.html").read_text(encoding="utf8")
    assert done.returncode == 0 and "Verdict: use the" in page and "data:image/png" in page
    for name in run.STAGES:
        assert f'href="{name}.html"' in page and (folder / "report" / f"{name}.html").exists()
    loss = (folder / "report" / "03_fine_tune.html").read_text(encoding="utf8")
    assert "data:image/svg+xml" in loss and "$$\\ell" not in loss, "a formula needs no network either"
    assert not re.search(r"<(script|link)[^>]+(src|href)=.https?:", page + loss)
