# python -m pytest tests/notebooks/test_capable_writer.py
"""Notebook 1 as a whole with a capable LLM behind a URL, played by the scripted server."""

import json
import os
import subprocess
import sys

from server.capable_llm import capable, misbehaving, passages
from server.scripted_llm import ScriptedLLM, running

from utils import run

NAMES = ("anchor", "boiler", "crane", "davit", "engine", "funnel", "galley", "hatch", "ladder", "mast")


def write_corpus(folder):
    """Ten documents of two passages; two neighbours share a code each."""
    folder.mkdir()
    for number, name in enumerate(NAMES):
        care = f"The {name} is inspected every {number + 3} weeks by the mate, who notes what is found."
        part = f"The {name} carries a bearing PX-{number // 2}17, which is greased before it is moved."
        parts = (f"# Care of the {name}", f"## Inspecting the {name}", care, f"## Greasing the {name}", part)
        text = "\n\n".join(parts)
        (folder / f"{name}.md").write_text(text)


def test_every_document_becomes_questions_or_is_listed(tmp_path):
    """One document's answers never have the right shape, and one request in ten is refused once."""
    write_corpus(tmp_path / "docs")

    def said(body, nth):
        hopeless = any("davit" in text for _, text in passages(body))
        return misbehaving("refusal", body) if hopeless else capable(body)

    def fault(path, body, nth):
        return "500" if nth == 0 and len(script.seen) % 10 == 0 else ""

    script = ScriptedLLM(fault, reply_to=said)
    options = ("--name", "capable", "--profile", "smoke", "--to", "1", "-p", "CORPUS", tmp_path / "docs")
    environment = os.environ | {"COURSE_RUNS": str(tmp_path / "runs"), "HF_HUB_OFFLINE": "1"}
    with running(script) as url:
        chosen = ("-p", "LLM", "scripted", "-p", "LLM_BASE_URL", url, "-p", "STYLE", "as a sailor would")
        command = [sys.executable, "-m", "utils.course", "run", *map(str, options), *chosen]
        done = subprocess.run(
            command, cwd=run.ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "capable" / "01_generate_synthetic_data"
    pairs, rejected = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf8").splitlines()]
        for name in ("qa_pairs.jsonl", "rejected.jsonl")
    )
    written = [pair for pair in pairs if pair["generator"] == "scripted"]
    served = {row["doc_id"] for row in written} | {row["chunk_ids"][0].split("#")[0] for row in rejected}
    assert {f"{name}.md" for name in NAMES} <= served
    assert any(r["reason"].startswith("artifacts: schema") and r["doc_id"] == "davit.md" for r in rejected)
    assert all(pair["scores"]["overall"] >= 7 and pair["evidence"] for pair in written)
    assert any(len({e["doc_id"] for e in pair["evidence"]}) == 2 for pair in written), "no pair of documents"
    assert {row["reason"] for row in rejected} >= {"judge"}
    styled = [body for *_, body, _ in script.seen if body and "as a sailor would" in str(body["messages"])]
    assert styled and not any("prompt" in body for *_, body, _ in script.seen if body)
    assert json.loads((folder / "sdg.json").read_text())
