# python -m pytest tests/notebooks/test_course.py
"""The headless runner: all six notebooks on the smoke profile, and what it says when something is wrong."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import save_small_base, save_tiny_judge

from utils import course, new_domain, publish, records, run, serve

SMOKE = ("--name", "smoke", "--profile", "smoke")
SMALL = (*SMOKE, "-p", "ROUND_TRIP", 9999, "-p", "HELD_OUT", [0.3, 0.2], "-p", "BASE_MODEL")


def command(*arguments, runs, cwd=None):
    environment = os.environ | {"COURSE_RUNS": str(runs), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "utils.course", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


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


@pytest.fixture
def default_run(tmp_path, monkeypatch):
    """(executed copies, notebooks to write into): folders of a finished run, made of its files alone."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(publish, "NOTEBOOKS", tmp_path / "notebooks")
    shutil.copytree(run.ROOT / "notebooks", tmp_path / "notebooks")
    for name in run.STAGES:
        stage = run.begin("whole", name, {})
        run.write_text(stage.path / "rows.jsonl", name)
        stage.finish({})
        executed(name, tmp_path / "runs" / "whole" / "notebooks")
    return tmp_path / "runs" / "whole" / "notebooks", tmp_path / "notebooks"


def executed(name: str, folder: Path, **injected) -> Path:
    """The executed copy of a notebook as papermill leaves it: every code cell prints its number."""
    notebook = json.loads((run.ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": f"cell {number}"}]
        cell["execution_count"] = number
    values = "\n".join(
        f"{key} = {value!r}" for key, value in ({"RUN": folder.parent.name} | injected).items()
    )
    place = next(i for i, c in enumerate(notebook["cells"]) if "parameters" in c["metadata"].get("tags", []))
    tags = {"tags": ["injected-parameters"]}
    cell = {"cell_type": "code", "id": "given", "metadata": tags, "source": values, "outputs": []}
    notebook["cells"].insert(place + 1, cell | {"execution_count": 1})
    run.write_text(folder / f"{name}.ipynb", json.dumps(notebook))
    return folder / f"{name}.ipynb"


def test_outputs_go_to_their_cells_also_after_the_prose_was_changed(default_run):
    _, notebooks = default_run
    path = notebooks / f"{run.STAGES[1]}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf8"))
    prose = [i for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "markdown"]
    moved = notebook["cells"].pop(prose[-1])
    added = {"cell_type": "markdown", "id": "added", "metadata": {}, "source": "One more word."}
    notebook["cells"][1:1] = [moved, added]
    path.write_text(json.dumps(notebook))
    publish.outputs("whole")
    after = json.loads(path.read_text(encoding="utf8"))["cells"]
    assert [cell["id"] for cell in after] == [cell["id"] for cell in notebook["cells"]]
    printed = [cell["outputs"][0]["text"] for cell in after if cell["cell_type"] == "code"]
    assert printed == [f"cell {number}" for number in range(1, len(printed) + 1)]


def test_a_bar_that_stood_still_when_it_was_saved_is_not_committed(default_run):
    copies, notebooks = default_run
    copy = copies / f"{run.STAGES[1]}.ipynb"
    notebook = json.loads(copy.read_text(encoding="utf8"))
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["outputs"])
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "one"}}
    for text in ("Loading:   0%|          | 0/272 [00:00<?, ?it/s]", "VBox(children=(Text(),))"):
        data = {"text/plain": text} | view
        cell["outputs"].append({"output_type": "display_data", "data": data, "metadata": {}})
    copy.write_text(json.dumps(notebook))
    publish.outputs("whole")
    found = (notebooks / copy.name).read_text(encoding="utf8")
    assert "0/272" not in found and "VBox(" in found and "widget-view" not in found


@pytest.mark.parametrize(
    ("name", "injected", "message"),
    [
        (run.STAGES[2], {"EPOCHS": 1}, "was run with EPOCHS = 1 (default None)"),
        (run.STAGES[5], {"PROFILE": "smoke"}, "was run with PROFILE = 'smoke' (default 'auto')"),
    ],
)
def test_only_a_run_of_the_defaults_is_committed(name, injected, message, default_run, capsys):
    copies, notebooks = default_run
    before = {path: path.read_bytes() for path in notebooks.iterdir()}
    executed(name, copies, **injected)
    assert course.main(["outputs", "--name", "whole"]) == 2
    said = capsys.readouterr().err
    assert message in said and "make notebooks NAME=" in said
    assert {path: path.read_bytes() for path in notebooks.iterdir()} == before, "nor a part of it"


def test_a_run_that_is_not_whole_is_not_committed(default_run, capsys):
    copies, _ = default_run
    (copies.parent / run.STAGES[3] / "manifest.json").unlink()
    assert course.main(["outputs", "--name", "whole"]) == 2
    assert f"'whole' is not whole: {run.STAGES[3]} did not finish" in capsys.readouterr().err


def test_make_notebooks_runs_what_is_not_up_to_date_first(tmp_path):
    done = subprocess.run(
        ["make", "-n", "notebooks", "NAME=whole", f"VENV={tmp_path}"],
        cwd=run.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    commands = re.findall(r"-m utils\.course (.+)", done.stdout)
    assert commands == ["run --name whole --resume", "outputs --name whole"], done.stdout + done.stderr


@pytest.mark.parametrize("given", [[], ["--notebooks", "elsewhere"]])
def test_report_takes_the_notebooks_that_were_run_in_jupyter(given, tmp_path, monkeypatch, capsys):
    """Those of a folder named like the run, as `new` makes it, or those of any folder that is named."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "teahouse" / run.STAGES[4]).mkdir(parents=True)
    folder = tmp_path / (given[1] if given else "teahouse")
    notebook = json.loads(executed(run.STAGES[4], folder).read_text(encoding="utf8"))
    notebook["cells"] = [c for c in notebook["cells"][:8] if c.get("id") != "given"]
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = new_domain.filled("".join(cell["source"]), {"RUN": "teahouse"})
    run.write_text(folder / f"{run.STAGES[4]}.ipynb", json.dumps(notebook))
    executed(run.STAGES[5], folder, RUN="another")
    assert course.main(["report", "--name", "teahouse", *given]) == 0
    page = tmp_path / "runs" / "teahouse" / "report" / "index.html"
    assert page.with_name(f"{run.STAGES[4]}.html").exists() and "5. Export" in page.read_text(encoding="utf8")
    assert f"{run.STAGES[5]}.html" not in page.read_text(encoding="utf8"), "another run's"
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    assert course.main(["report", "--name", "teahouse", *given]) == 2
    said = capsys.readouterr().err
    assert "report --name teahouse --notebooks FOLDER" in said and "make run" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "Choose one of: auto, smoke"),
        (["-p", "TEMPRATURE", "0.02"], "no notebook declares this parameter"),
        (["-p", "SEED", "many"], "expected a value of type int"),
        (["-p", "RUN", "other"], "give the run's name with --name"),
        (["-p", "EPOCHS", "three"], "expected a number, or None"),
        (["-p", "CORPUS", "no/such/folder"], "does not exist"),
        (["--from", "4", "--to", "2"], "comes after"),
        (["--from", "3"], "Run notebooks/02_prepare_training_data.ipynb first"),
        (["--name", "a/b"], "is not a folder name"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    assert course.main(["run", "--name", "bad", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_relative_folder_of_runs_is_relative_to_the_caller(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    done = command("run", "--name", "bad", "-p", "CORPUS", docs, "--to", "1", runs="mine", cwd=tmp_path)
    assert done.returncode == 2 and (tmp_path / "mine" / "bad" / "notebooks").exists(), done.stderr
    assert (tmp_path / "mine" / "bad" / run.STAGES[0]).exists(), "the notebook wrote to the same place"


def test_a_failing_cell_is_named_and_its_copy_kept(tmp_path):
    done = command("run", "--name", "bad", "-p", "CORPUS", tmp_path, "--to", "1", runs=tmp_path / "runs")
    assert done.returncode == 2
    assert "01_generate_synthetic_data.ipynb, cell" in done.stderr and "CourseError" in done.stderr
    assert (tmp_path / "runs" / "bad" / "notebooks" / "01_generate_synthetic_data.ipynb").exists()
    assert not (tmp_path / "runs" / "bad" / run.STAGES[0] / "manifest.json").exists()


def test_a_killed_kernel_says_what_to_do(tmp_path, monkeypatch):
    name = run.STAGES[0]
    notebook = json.loads((run.ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[-1]["source"] = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    notebook["cells"] = code[-1:]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf8")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path))
    with pytest.raises(run.CourseError, match=r"ended from outside.*--resume"):
        course.execute("killed", name, {})


def test_a_parameter_is_filled_in_whatever_stood_there():
    cell = 'A = "x # y"  # a hash\nB = [\n    1,\n]\nC = 3  # stays\n'
    assert new_domain.filled(cell, {"A": "z", "B": [2]}) == "A = 'z'  # a hash\nB = [2]\nC = 3  # stays\n"


def test_committed_outputs_name_no_home_whatever_its_letters(monkeypatch):
    monkeypatch.setattr(publish.Path, "home", lambda: Path("/home/jörg"))
    output = {"output_type": "stream", "name": "stdout", "text": "read /home/jörg/docs and/or more"}
    assert publish._clean([output])[0]["text"] == "read ~/docs and/or more"
    monkeypatch.setattr(publish.Path, "home", lambda: Path("/"))
    assert publish._clean([output])[0]["text"].endswith("and/or more")


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
