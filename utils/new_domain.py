"""Notebooks for a new domain: those of the course with its parameters, and prompts in place of the sample."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from utils import run
from utils.beir_files import read_corpus, read_qrels, read_test_set
from utils.files import read_json
from utils.preflight import preflight_report
from utils.publish import NOTEBOOKS, sources_digest
from utils.run import STAGES, CourseError, expect, write_text

ALL_KINDS = ("code", "markdown")
TO_FILL_IN = "> *Fill in for your own domain:* what are these documents, who asks, and what do they ask for?"
NAMED = re.compile(r"((?:--run|--name)[ =]|\bruns/)quickstart\b")  # in commands and paths of the prose


def new(folder: Path, docs: str, test_set: str = "", style: Path | None = None) -> str:
    """Make a folder with the six notebooks for another domain: parameters filled in, sample prose to fill in.

    A notebook that was edited since it was made, or holds outputs, is kept. Returns what was done, and the
    preflight of `docs`. Raises CourseError for what it cannot use, before anything is written.
    """
    run.check_name(folder.name)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    expect(there.is_dir(), f"{there} is a file. Name a folder that is new, or was made by this command.")
    corpus = run.resolve_path(docs, "--docs")
    fits = corpus.is_dir() or corpus.suffix == ".jsonl"
    expect(fits, f"--docs: {corpus} is no .jsonl file. Give a folder of documents or a corpus.jsonl.")
    values = {"RUN": folder.name, "CORPUS": str(corpus)}
    if style:
        values["STYLE_EXAMPLES"] = _style_examples(style)
    if test_set:
        values["TEST_SET"] = _checked_test_set(test_set, corpus)
    found = preflight_report(corpus)
    made = folder / ".made.json"
    before = read_json(made) if made.exists() else {}
    report_lines, digests = [], {}
    for name in STAGES:
        target = folder / f"{name}.ipynb"
        why = _why_kept(target, before.get(name, "")) if target.exists() else ""
        if why:
            report_lines.append(f"kept, because it {why}: {target}")
            digests[name] = before.get(name, "")
            continue
        notebook = _for_domain(json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf8")), values)
        write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        digests[name] = sources_digest(notebook, ALL_KINDS)
        report_lines.append(f"made: {target}")
    write_text(made, json.dumps(digests, indent=1))
    return "\n".join([*report_lines, "", found])


def _style_examples(style: Path) -> list[str]:
    file = run.resolve_path(str(style), "--style")
    expect(file.is_file(), f"--style {style} is a folder. Give a text file, one real question a line.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise CourseError(f"--style {style} is not UTF-8 text. Save it as UTF-8.") from None
    found = [line.strip() for line in lines if line.strip()]
    expect(found, f"--style {style} is empty. Write one real question a line into it.")
    return found


def _checked_test_set(test_set: str, corpus: Path) -> str:
    """The path of a test set that can be read; ids of passages are known only of a `corpus.jsonl`."""
    folder = run.resolve_path(test_set, "--test-set")
    qrels = folder / "qrels" / "test.tsv"
    expect(qrels.exists(), f"--test-set {test_set}: {qrels} is missing. Give a BEIR folder with that file.")
    judged = {passage: {} for grades in read_qrels(qrels).values() for passage in grades}
    read_test_set(str(folder), read_corpus(corpus) if corpus.is_file() else judged)
    return str(folder)


def _why_kept(target: Path, digest: str) -> str:
    """Why a notebook that is there is the user's; empty if it is as it was made."""
    try:
        notebook = json.loads(target.read_text(encoding="utf8"))
        if sources_digest(notebook, ALL_KINDS) != digest:
            return "was edited"
        return "holds outputs" if any(cell.get("outputs") for cell in notebook["cells"]) else ""
    except (ValueError, KeyError):
        return "was edited"


def _for_domain(notebook: dict, values: dict) -> dict:
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        else:
            cell["source"] = NAMED.sub(rf"\g<1>{values['RUN']}", "".join(cell["source"]))
        if "sample" in tags:
            cell["source"] = TO_FILL_IN
        if "parameters" in tags:
            cell["source"] = filled("".join(cell["source"]), values)
    notebook["metadata"].pop("course", None)
    return notebook


def filled(source: str, values: dict) -> str:
    """A parameters cell with other values; comments are kept, names that it lacks are ignored."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in values:
            name = node.targets[0].id
            rest = lines[node.end_lineno - 1].encode()[node.value.end_col_offset :].decode()  # the comment
            lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {values[name]!r}{rest}"]
    return "".join(lines)
