# python -m pytest -m heavy tests/notebooks/test_exercises.py
"""The folded solutions run: each notebook with its own code and its solutions below, on the smoke profile."""

import json
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from utils import course, new_domain, publish, run

ORDER = [*run.STAGES, course.EXTRA]
DETAILS = re.compile(r"<details>(.*?)</details>", flags=re.S)
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.S | re.M)


def load(name):
    return nbformat.from_dict(json.loads((publish.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf8")))


def solutions(notebook) -> list[str]:
    """The code of each folded solution, in order; several blocks of one solution are one."""
    prose = "\n".join("".join(cell.source) for cell in notebook.cells if cell.cell_type == "markdown")
    return ["\n".join(BLOCK.findall(folded)) for folded in DETAILS.findall(prose)]


def with_solutions(notebook, values: dict):
    """The notebook with other parameters, and its solutions as the last cells, each tagged `solution`."""
    codes = solutions(notebook)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = new_domain.filled("".join(cell.source), values)
    notebook.cells += [
        nbformat.v4.new_code_cell(code, metadata={"tags": ["solution"]}) for code in codes if code.strip()
    ]
    return notebook


@pytest.mark.parametrize("name", ORDER)
def test_two_exercises_and_a_solution_with_code(name):
    found = solutions(load(name))
    assert len(found) >= 2, "two exercises with folded solutions"
    assert any(code.strip() for code in found)
    for code in found:
        compile(code, name, "exec")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run that the notebooks write, one after the other; the names of those that came to their end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("COURSE_HEADLESS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield []


@pytest.mark.heavy
@pytest.mark.parametrize("name", ORDER)
def test_solutions_run_below_their_notebook(name, finished):
    if name in run.STAGES and len(finished) < run.STAGES.index(name):
        pytest.skip("an earlier notebook did not come to its end; its own test says why")
    values = {"PROFILE": "smoke", "RUN": "exercises"}
    notebook = with_solutions(load(name), values)
    client = NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(publish.NOTEBOOKS)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        pytest.fail(f"{name}:\n{str(error)[-2500:]}")
    finally:
        if (run.runs_dir() / "exercises" / name / "manifest.json").exists():
            finished.append(name)
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            assert cell.outputs, f"a solution that shows nothing:\n{cell.source}"
