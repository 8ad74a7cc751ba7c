# python -m pytest tests/unit/test_house.py
"""The house rules: lint, pinned versions, and which module may know which."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys

from utils.run import ROOT

ORDER = [
    *("files", "machine", "base_models", "chat_hosts", "run", "state"),
    *("records", "beir_files", "handover", "plots", "result_plots", "duplicates", "conversion", "documents"),
    *("language", "corpus", "preflight", "weights", "llm", "replies"),
    *("flight", "calls", "vector_cache"),
    *("hosted_encoder", "encoder"),
    *("structured", "grounding", "generation"),
    *("retrieval", "free_questions", "questions", "given_questions", "question_pairs", "question_writer"),
    *("inputs", "mining", "splitting", "preparation"),
    *("significance", "judgement", "evaluation", "contrastive", "recipe", "finishing", "options"),
    *("trainer", "checkpoints", "training", "projection"),
    *("onnx_encoder", "export", "layouts", "proof"),
    *("batching", "schemas", "guard", "api", "serve"),
    *("widgets", "labelling", "publish", "new_domain", "overrides", "course", "fine_tune"),
]


MODULES = sorted((ROOT / "utils").glob("*.py"))
LONGEST = 280  # lines of a module


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


def imported(source: str) -> set[str]:
    """The packages that a piece of Python imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_package_that_is_imported_is_a_requirement():
    """Also one that another brings today: tomorrow it may bring another version, or none."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf8")
    required = {canonical(name) for name in re.findall(r"^([\w.-]+)", text, flags=re.M)}
    brought_by = importlib.metadata.packages_distributions()
    not_ours = {"utils", "google"}  # google.colab is there on Colab alone
    for place, source in [*((path.name, path.read_text(encoding="utf8")) for path in MODULES), *cells()]:
        for name in imported(source) - sys.stdlib_module_names - not_ours:
            assert required & {canonical(package) for package in brought_by[name]}, f"{place} imports {name}"


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def cells() -> list[tuple[str, str]]:
    """(notebook, source) of every code cell, and of the Python in the folded solutions."""
    found = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
            source = "".join(cell["source"])
            code = (
                [source] if cell["cell_type"] == "code" else re.findall(r"```python\n(.*?)```", source, re.S)
            )
            found += [(path.name, re.sub(r"^[%!].*", "", text, flags=re.M)) for text in code]
    return found


def test_texts_are_cut_for_show_in_one_way():
    """`textwrap.shorten` leaves nothing of a text without spaces; `records.cut` leaves what fits."""
    for place, source in [*((path.name, path.read_text(encoding="utf8")) for path in MODULES), *cells()]:
        assert "textwrap" not in imported(source), f"{place}: records.cut"


def test_no_module_is_too_long_to_be_read_at_once():
    lengths = {path.name: len(path.read_text(encoding="utf8").splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}


def test_everything_public_is_used_by_more_than_tests():
    """A function or class of utils that only a test calls can go, and its test with it."""
    scripts = [
        path for folder in ("tests/benchmarks", "deploy", "data") for path in (ROOT / folder).rglob("*.py")
    ]
    sources = [path.read_text(encoding="utf8") for path in [*MODULES, *scripts]]
    used = set()
    for source in [*sources, *(text for _, text in cells())]:
        for node in ast.walk(ast.parse(source)):  # an import alone is no use
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.name in used, f"{path.name}: {node.name}"


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
