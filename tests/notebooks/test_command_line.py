# python -m pytest tests/notebooks/test_command_line.py
"""The course's command: what it refuses, what it says when a cell fails, which outputs it commits."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import command

from utils import course, new_domain, publish, run


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


def test_committed_outputs_name_no_home_whatever_its_letters(monkeypatch):
    monkeypatch.setattr(publish.Path, "home", lambda: Path("/home/jörg"))
    output = {"output_type": "stream", "name": "stdout", "text": "read /home/jörg/docs and/or more"}
    assert publish._clean([output])[0]["text"] == "read ~/docs and/or more"
    monkeypatch.setattr(publish.Path, "home", lambda: Path("/"))
    assert publish._clean([output])[0]["text"].endswith("and/or more")
