# python -m pytest tests/notebooks/test_static.py
"""What every notebook keeps to, read from its text without running it."""

import ast
import json
import re
from statistics import median

import pytest

from utils import course, publish, run

NOTEBOOKS = sorted(publish.NOTEBOOKS.glob("*.ipynb"))
COURSE = [path for path in NOTEBOOKS if path.stem in run.STAGES]


def load(path):
    return json.loads(path.read_text(encoding="utf8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def test_all_six_are_there():
    assert [path.stem for path in COURSE] == list(run.STAGES)


@pytest.mark.parametrize("path", COURSE, ids=lambda p: p.stem)
def test_parameters_are_read_and_never_reassigned(path):
    notebook = load(path)
    tagged = [cell for cell in code_cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell tagged 'parameters'"
    declared = course.declared_parameters(path.stem)
    assert {"RUN", "PROFILE", "SEED"} <= set(declared)
    later = "\n".join(
        "\n".join(line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!")))
        for cell in code_cells(notebook)
        if cell is not tagged[0]
    )
    names = [node for node in ast.walk(ast.parse(later)) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    written = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert not set(declared) - read, "declared, but nothing reads it"
    assert not set(declared) & written, "an injected value would be overwritten"
    for line in source(tagged[0]).splitlines():
        assert "#" in line or not line.strip(), f"a parameter without its comment: {line}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path):
    notebook = load(path)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in notebook["metadata"]
    assert path.stat().st_size <= 200 * 1024
    cells = [c for c in code_cells(notebook) if "parameters" not in c["metadata"].get("tags", [])]
    lengths = [len(source(cell).splitlines()) for cell in cells]
    assert max(lengths) <= 15 and median(lengths) <= 9
    kinds = "".join(cell["cell_type"][0] for cell in notebook["cells"])
    assert "ccc" not in kinds, "three code cells in a row: prose is missing"
    assert source(notebook["cells"][0]).startswith("# "), "the first cell is the numbered title"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_belong_to_the_cells(path):
    notebook = load(path)
    assert notebook["metadata"].get("course", {}).get("outputs_of") == publish.sources_digest(notebook)
    counts = [cell["execution_count"] for cell in code_cells(notebook) if source(cell).strip()]
    assert counts == sorted(counts) and None not in counts, "one clean run from top to bottom"
    text = json.dumps(notebook)
    assert '"output_type": "error"' not in text
    assert not re.search(r"/(home|root|Users|work|tmp)/\w", text), "a path of somebody's machine"
    assert "image/png" in text, "a notebook without a single plot"


@pytest.mark.parametrize("path", COURSE, ids=lambda p: p.stem)
def test_anatomy(path):
    prose = "\n".join(source(c) for c in load(path)["cells"] if c["cell_type"] == "markdown")
    assert len(re.findall(r"<details>", prose)) >= 2, "two exercises with folded solutions"
    for heading in ("own domain", "Takeaways", "Exercise"):
        assert heading.lower() in prose.lower(), heading
