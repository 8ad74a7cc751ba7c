# python -m pytest tests/unit/test_house.py
"""The house rules: lint, pinned versions, and which module may know which."""

import ast
import importlib.metadata
import re
import subprocess
import sys

from utils.run import ROOT

ORDER = [
    *("files", "machine", "run"),
    *("records", "beir_files", "handover", "plots", "result_plots", "duplicates", "documents"),
    *("language", "corpus", "preflight", "weights", "chat_hosts", "llm", "replies"),
    *("flight", "calls", "vector_cache"),
    *("hosted_encoder", "encoder"),
    *("structured", "grounding", "generation"),
    *("retrieval", "free_questions", "questions", "given_questions", "question_writer", "inputs"),
    *("mining", "preparation"),
    *("significance", "judgement", "evaluation", "contrastive", "recipe", "finishing", "options"),
    *("trainer", "training", "projection", "onnx_encoder", "export", "layouts", "proof"),
    *("batching", "schemas", "guard", "api", "serve"),
    *("widgets", "labelling", "publish", "course"),
]


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_modules_import_only_from_those_below():
    for path in sorted((ROOT / "utils").glob("*.py")):
        if path.stem == "__init__":
            continue
        assert path.stem in ORDER, f"{path.name} has no place in the order of modules"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "utils":
                names = [node.module.split(".")[1]] if "." in node.module else [a.name for a in node.names]
                for name in names:
                    assert ORDER.index(name) < ORDER.index(path.stem), f"{path.name} imports {name}"


def test_every_requirement_is_pinned_installed_and_explained():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()
    for line in lines:
        if not line.startswith("#"):
            name, version, role = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==(\S+)\s+# (.+)", line).groups()
            assert importlib.metadata.version(name).split("+")[0] == version, f"{name}: {role}"


def test_conda_environment_builds_on_the_requirements():
    text = (ROOT / "environment.yml").read_text(encoding="utf8")
    assert "-r requirements.txt" in text and "-e ." in text


def test_no_secret_and_no_machine_path_in_the_repository():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for file in filter(None, files):
        path = ROOT / file
        if path.suffix in {".gguf", ".png", ".pdf", ".docx"} or not path.exists():
            continue
        text = path.read_text(encoding="utf8")
        assert not re.search(r"\b(sk|nvapi)-[A-Za-z0-9_-]{20,}", text), f"{file}: a key"
