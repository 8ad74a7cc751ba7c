# python -m pytest tests/notebooks/test_glossary.py
"""Every term of the glossary leads to a heading that is there, in a section that has something to show."""

import json
import re
from urllib.parse import unquote

import pytest

from utils.publish import NOTEBOOKS

ROWS = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \| \[([^\]]+)\]\(([\w.]+)#([^)]+)\) \|$",
    (NOTEBOOKS / "GLOSSARY.md").read_text(encoding="utf8"),
    flags=re.M,
)


def sections(file: str) -> dict[str, list[dict]]:
    """{anchor as Jupyter makes it: the cells from this heading to the next}."""
    found, cells = {}, []
    for cell in json.loads((NOTEBOOKS / file).read_text(encoding="utf8"))["cells"]:
        text = "".join(cell["source"])
        headings = re.findall(r"^#+ (.+)$", text, flags=re.M) if cell["cell_type"] == "markdown" else []
        for heading in headings:
            cells = found.setdefault(heading.strip().replace(" ", "-"), [])
        cells.append(cell)
    return found


def test_twenty_terms_in_order():
    assert len(ROWS) == 20
    terms = [row[0].lower() for row in ROWS]
    assert terms == sorted(set(terms))
    for term, meaning, *_ in ROWS:
        assert len(re.findall(r"[.!?](?: |$)", meaning)) in {1, 2}, f"{term}: one or two sentences"


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_link_leads_to_a_section_with_code(row):
    _, _, label, file, anchor = row
    there = sections(file)
    assert unquote(anchor) in there, f"{file} has no such heading; it has: {', '.join(there)}"
    assert any(cell["cell_type"] == "code" for cell in there[unquote(anchor)]), "nothing is shown there"
    assert label.split(", ", 1)[1].replace(" ", "-") == unquote(anchor), "the label names another heading"
