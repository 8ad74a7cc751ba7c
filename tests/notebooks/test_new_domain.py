# python -m pytest tests/notebooks/test_new_domain.py
"""`course new`: six notebooks for somebody's own documents."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command

from utils import course, new_domain, publish, run


def test_a_parameter_is_filled_in_whatever_stood_there():
    cell = 'A = "x # y"  # a hash\nB = [\n    1,\n]\nC = 3  # stays\n'
    assert new_domain.filled(cell, {"A": "z", "B": [2]}) == "A = 'z'  # a hash\nB = [2]\nC = 3  # stays\n"


def test_new_domain_keeps_an_edited_notebook(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "tea.md").write_text("# Tea\n\n## Steeping\n\n" + "Green tea is steeped at 75 degrees. " * 20)
    target = tmp_path / "teahouse"
    first = command("new", target, "--docs", docs, runs=tmp_path, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    notebooks = sorted(target.glob("*.ipynb"))
    assert [path.stem for path in notebooks] == list(run.STAGES)
    assert f"CORPUS = '{docs}'" in "".join(_parameters(notebooks[0])) and "1 " in first.stdout
    edited = json.loads(notebooks[0].read_text(encoding="utf8"))
    edited["cells"][0]["source"] = "# My own title"
    notebooks[0].write_text(json.dumps(edited))
    second = command("new", target, "--docs", docs, runs=tmp_path, cwd=tmp_path)
    assert "kept, because it was edited" in second.stdout
    assert "My own title" in notebooks[0].read_text(encoding="utf8")


def test_new_domain_takes_relative_paths_a_human_test_and_a_style(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tea.md").write_text("# Tea\n\n" + "Green tea is steeped at 75 degrees. " * 20)
    (tmp_path / "human" / "qrels").mkdir(parents=True)
    (tmp_path / "human" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ttea.md#0\t1\n")
    (tmp_path / "human" / "queries.jsonl").write_text('{"_id": "q1", "text": "how hot?"}\n')
    asked = ["how hot for sencha?", 'what does "first flush" mean']
    (tmp_path / "asked.txt").write_text("\n\n".join(asked) + "\n")
    options = ("--docs", "docs", "--test-set", "human", "--style", "asked.txt")
    done = command("new", "teahouse", *options, runs=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    filled = {path.stem: _values(path) for path in sorted((tmp_path / "teahouse").glob("*.ipynb"))}
    assert set(filled) == set(run.STAGES)
    assert {values["RUN"] for values in filled.values()} == {"teahouse"}
    first, second = filled["01_generate_synthetic_data"], filled["02_prepare_training_data"]
    assert first["CORPUS"] == str(tmp_path / "docs"), "absolute, so that any working directory will do"
    assert second["TEST_SET"] == str(tmp_path / "human")
    assert first["STYLE_EXAMPLES"] == asked
    for name in run.STAGES:
        kept = set(_values(publish.NOTEBOOKS / f"{name}.ipynb"))
        assert set(filled[name]) == kept, "no parameter is lost or added"
    prose = (tmp_path / "teahouse" / "01_generate_synthetic_data.ipynb").read_text(encoding="utf8")
    assert "Fill in for your own domain" in prose and '"sample"' in prose
    for name in run.STAGES:
        written = (tmp_path / "teahouse" / f"{name}.ipynb").read_text(encoding="utf8")
        assert "quickstart" not in written, "commands and paths in the prose name the run, too"
    assert "utils.fine_tune --run teahouse" in (tmp_path / "teahouse" / "03_fine_tune.ipynb").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--docs", "nowhere"), "--docs = 'nowhere' does not exist"),
        (("--docs", "tea", "--test-set", "."), "qrels/test.tsv is missing"),
        (("--docs", "tea", "--test-set", "half"), "queries.jsonl does not exist"),
        (("--docs", "tea", "--style", "empty.txt"), "is empty. Write one real question a line"),
        (("--docs", "tea", "--style", "latin.txt"), "is not UTF-8 text. Save it as UTF-8"),
        (("--docs", "tea", "--style", "tea"), "is a folder. Give a text file"),
        (("--docs", "half"), "holds no usable document"),
        (("--docs", "latin.txt"), "is no .jsonl file"),
    ],
)
def test_new_domain_checks_what_it_is_given_before_it_writes(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes("wie heiß?\n".encode("latin-1"))
    run.write_text(tmp_path / "tea" / "tea.md", "# Tea\n\n" + "Green tea is steeped at 75 degrees. " * 20)
    run.write_text(tmp_path / "half" / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq1\tp1\t1\n")
    assert course.main(["new", "teahouse", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "teahouse").exists()


@pytest.mark.parametrize("place", ["taken", "taken/teahouse"])
def test_new_domain_does_not_go_where_a_file_is(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert course.main(["new", place, "--docs", str(run.ROOT / "data" / "corpus")]) == 2
    assert "taken is a file. Name a folder" in capsys.readouterr().err


def test_new_domain_keeps_a_notebook_that_was_run(tmp_path):
    run.write_text(tmp_path / "docs" / "tea.md", "# Tea\n\n" + "Green tea is steeped at 75 degrees. " * 20)
    new_domain.new(tmp_path / "teahouse", str(tmp_path / "docs"))
    ran = tmp_path / "teahouse" / f"{run.STAGES[0]}.ipynb"
    notebook = json.loads(ran.read_text(encoding="utf8"))
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "an hour's work"}]
    ran.write_text(json.dumps(notebook))
    for _ in range(2):
        told = new_domain.new(tmp_path / "teahouse", str(tmp_path / "docs"))
        assert f"kept, because it holds outputs: {ran}" in told and told.count("made: ") == 5
        assert "an hour's work" in ran.read_text(encoding="utf8")


@pytest.mark.slow
def test_a_domain_of_another_kind_runs_in_its_own_notebooks(tmp_path):
    """The API documentation of the installed packages, a tiny share of it, on the smoke profile."""
    script = run.ROOT / "tests" / "benchmarks" / "api_docs.py"
    options = ["--folder", tmp_path / "api_docs", "--limit", "60", "--profile", "smoke"]
    environment = os.environ | {"COURSE_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(
        [sys.executable, script, *options], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Verdict: use the" in done.stdout and "All six:" in done.stdout
    results = json.loads((tmp_path / "runs" / "api_docs" / "04_evaluate" / "results.json").read_text())
    assert "gold" not in results["test_sets"], "the sample domain's questions have no place here"


def _values(path: Path) -> dict:
    tree = ast.parse("".join(_parameters(path)))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}


def _parameters(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    return next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", []))
