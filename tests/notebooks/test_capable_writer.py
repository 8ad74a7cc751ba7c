# python -m pytest tests/notebooks/test_capable_writer.py
"""Notebook 1 as a whole with a capable LLM behind a URL, played by the scripted server."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
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


def course(documents, runs, *more):
    """Notebook 1 on these documents, as a process of its own."""
    options = ("--name", "capable", "--profile", "smoke", "--to", "1", "-p", "CORPUS", documents, *more)
    return subprocess.Popen(
        [sys.executable, "-m", "utils.course", "run", *map(str, options)],
        cwd=run.ROOT, env=os.environ | {"COURSE_RUNS": str(runs), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.heavy
def test_every_document_becomes_questions_or_is_listed(tmp_path):
    """One document's answers never have the right shape, and one request in ten is refused once."""
    write_corpus(tmp_path / "docs")

    def said(body, nth):
        hopeless = any("davit" in text for _, text in passages(body))
        return misbehaving("refusal", body) if hopeless else capable(body)

    def fault(path, body, nth):
        return "500" if nth == 0 and len(script.seen) % 10 == 0 else ""

    script = ScriptedLLM(fault, reply_to=said)
    with running(script) as url:
        chosen = ("-p", "LLM", "scripted", "-p", "LLM_BASE_URL", url, "-p", "STYLE", "as a sailor would")
        done = course(tmp_path / "docs", tmp_path / "runs", *chosen)
        _, told = done.communicate(timeout=600)
    assert done.returncode == 0, told[-3000:]
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


@pytest.mark.heavy
def test_a_killed_run_is_gone_on_from_to_the_same_questions_without_asking_twice(tmp_path):
    write_corpus(tmp_path / "docs")
    questions, asked = {}, {}
    for name in ("undisturbed", "killed"):
        script = ScriptedLLM(seconds=0.05, reply_to=lambda body, nth: capable(body))
        with running(script) as url:
            chosen = ("-p", "LLM", "scripted", "-p", "LLM_BASE_URL", url, "--resume")
            if name == "killed":
                first = course(tmp_path / "docs", tmp_path / name, *chosen)
                deadline = time.monotonic() + 300
                while sum(script.answered.values()) < sum(asked["undisturbed"].values()) / 2:
                    assert first.poll() is None and time.monotonic() < deadline, (
                        "it ended before it was killed"
                    )
                    time.sleep(0.01)
                for process in [
                    *psutil.Process(first.pid).children(recursive=True),
                    psutil.Process(first.pid),
                ]:
                    process.kill()
                first.communicate()
            done = course(tmp_path / "docs", tmp_path / name, *chosen)
            _, told = done.communicate(timeout=600)
            assert done.returncode == 0, told[-3000:]
        folder = tmp_path / name / "capable" / "01_generate_synthetic_data"
        questions[name], asked[name] = (folder / "qa_pairs.jsonl").read_text(), script.asked
        ledger = json.loads((folder / "ledger.json").read_text())
    assert questions["killed"] == questions["undisturbed"]
    assert set(asked["killed"]) == set(asked["undisturbed"])
    twice = sum(asked["killed"].values()) - sum(asked["undisturbed"].values())
    assert twice <= 8, "more calls were repeated than were in flight"
    not_paid_twice = sum(row["cached_calls"] for row in ledger["calls"])
    assert not_paid_twice >= sum(asked["undisturbed"].values()) / 2 - 8


@pytest.mark.heavy
def test_a_writer_that_continues_is_asked_in_the_chosen_style_alone(tmp_path):
    write_corpus(tmp_path / "docs")
    with running(ScriptedLLM()) as url:
        chosen = ("-p", "LLM", "scripted", "-p", "LLM_BASE_URL", url, "-p", "METHOD", "continue")
        done = course(tmp_path / "docs", tmp_path / "runs", *chosen, "-p", "STYLES", '["Slang"]')
        _, told = done.communicate(timeout=600)
        assert done.returncode and "the examples above have no line for ['Slang']" in told
    script = ScriptedLLM()
    with running(script) as url:
        chosen = ("-p", "LLM", "scripted", "-p", "LLM_BASE_URL", url, "-p", "METHOD", "continue")
        done = course(tmp_path / "docs", tmp_path / "runs", *chosen, "-p", "STYLES", '["Search"]')
        _, told = done.communicate(timeout=600)
    assert done.returncode == 0, told[-3000:]
    prompts = [body["prompt"] for *_, body, _ in script.seen if body]
    assert prompts and all(p.endswith("\nSearch:") and "\nQuestion:" not in p for p in prompts)
