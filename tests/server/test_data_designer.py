# python -m pytest -m heavy tests/server/test_data_designer.py
"""NeMo Data Designer, in an environment of its own, writes questions that notebook 2 reads as QA_PAIRS."""

import json
import re
import subprocess
import sys

import pytest
import scripted_llm

from utils.inputs import read_pairs
from utils.records import Chunk, write_rows
from utils.run import ROOT

pytestmark = pytest.mark.heavy
SCRIPT, PINS = ROOT / "deploy" / "designer_questions.py", ROOT / "deploy" / "designer-requirements.txt"
TEXT = "Deck {0} is washed at {1}:00. Salt goes first."
CHUNKS = [
    Chunk(chunk_id=f"deck.md#{i}", doc_id="deck.md", title="Deck", text=TEXT.format(i, i + 5))
    for i in range(6)
]


@pytest.fixture(scope="module")
def designer(tmp_path_factory):
    """The Python of an environment with the pinned Data Designer, installed from PyPI."""
    folder = tmp_path_factory.mktemp("designer")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "-r", PINS], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return python


def write(text):
    """Two questions about the passage in the prompt: one quotes it, one makes its quote up."""
    asked = re.search(r"Deck (\d) is washed at (\d+):00", text)
    if not asked:
        return "Hello."  # it first asks whether the endpoint and the model are there
    deck, hour = asked.groups()
    kind = {"query_type": "structural", "reasoning_type": "temporal", "complexity": 2}
    true = {
        "question": f"When is deck {deck} cleaned?",
        "answer": f"At {hour}.",
        "quote": f"washed at {hour}:00",
    }
    false = {"question": f"Who cleans deck {deck}?", "answer": "Nobody.", "quote": "by the night shift"}
    return f"```json\n{json.dumps({'pairs': [true | kind, false | kind]})}\n```"


class PartsHandler(scripted_llm.Handler):
    """Takes a message's content also as a list of parts, which is how Data Designer sends it."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        for message in body["messages"]:
            if isinstance(message["content"], list):
                message["content"] = "".join(part["text"] for part in message["content"])
        self.seen(body)
        self.answer(body, body["messages"][-1]["content"])


def run(python, *arguments):
    return subprocess.run([python, SCRIPT, *arguments], capture_output=True, text=True, timeout=300)


def test_it_writes_what_notebook_2_reads(designer, tmp_path, monkeypatch):
    monkeypatch.setattr(scripted_llm, "Handler", PartsHandler)
    monkeypatch.setenv("LLM_API_KEY", "word")
    write_rows(tmp_path / "chunks.jsonl", CHUNKS)
    script = scripted_llm.ScriptedLLM(write=write)
    with scripted_llm.running(script) as url:
        done = run(
            designer, tmp_path / "chunks.jsonl", tmp_path / "qa.jsonl", "--base-url", url, "--model", "m"
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 questions of 6 of 6 passages; 6 dropped" in done.stdout
    assert {authorization for *_, authorization in script.seen} == {"Bearer word"}
    assert "word" not in done.stdout + done.stderr
    pairs = read_pairs(tmp_path / "qa.jsonl", CHUNKS)
    assert {(pair.question, *pair.chunk_ids) for pair in pairs} == {
        (f"When is deck {i} cleaned?", f"deck.md#{i}") for i in range(6)
    }
    passages = {chunk.chunk_id: chunk.text for chunk in CHUNKS}
    assert all(pair.evidence[0].quote in passages[pair.chunk_ids[0]] for pair in pairs)
    assert {pair.reasoning_type for pair in pairs} == {"temporal"} and {
        pair.complexity for pair in pairs
    } == {2}
    assert all(pair.generator.startswith("data-designer ") for pair in pairs)


def test_passages_leave_the_machine_only_with_the_users_word(designer, tmp_path):
    write_rows(tmp_path / "chunks.jsonl", CHUNKS)
    url = ("--base-url", "http://llm.example/v1", "--model", "m")
    done = run(designer, tmp_path / "chunks.jsonl", tmp_path / "qa.jsonl", *url)
    assert done.returncode == 2 and "--send-documents" in done.stderr
    assert not (tmp_path / "qa.jsonl").exists()
