"""What a corpus is like, before anything is spent on it: its figures, and what to worry about."""

from __future__ import annotations

from pathlib import Path

from utils.beir_files import read_corpus
from utils.documents import Document, Skipped, load_documents
from utils.duplicates import near_duplicates
from utils.records import passage_text


def preflight(documents: list[Document], skipped: list[Skipped]) -> tuple[dict[str, object], list[str]]:
    """Figures of a corpus, and what to worry about before anything is spent on it.

    Warnings as in the reference recipe: fewer than 20 documents, more than half too short, near copies.
    """
    words = sorted(len(document.text.split()) for document in documents)
    clusters = near_duplicates([document.text for document in documents]) if documents else []
    copies = len(documents) - len(set(clusters))
    n = len(documents)
    size = "below basic" if n < 50 else "basic" if n < 500 else "good" if n < 1000 else "best"
    figures = {
        "documents": n, "skipped": len(skipped), "words": sum(words), "shortest": words[0] if words else 0,
        "longest": words[-1] if words else 0, "near copies": copies,
        "size (50 basic, 500 good, 1,000 best)": size,
    }  # fmt: skip
    warnings = [f"skipped {file.doc_id}: {file.reason}" for file in skipped]
    if n < 20:
        warnings.append(f"only {n} documents: expect a small gain, and wide intervals")
    if words and words[n // 2] < 100:
        warnings.append("half of the documents have fewer than 100 words: little to ask about")
    if copies:
        warnings.append(f"{copies} documents are near copies of others: they stay on one side of the split")
    return figures, warnings


def preflight_report(path: Path) -> str:
    """The preflight of a folder of documents, or of a BEIR `corpus.jsonl`, as text."""
    if path.is_file():
        rows = read_corpus(path)
        empty = sum(not passage_text(row) for row in rows.values())
        return f"{len(rows)} passages, used as they are; {empty} of them empty."
    figures, warnings = preflight(*load_documents(path))
    lines = [f"{name}: {value}" for name, value in figures.items()]
    return "\n".join(lines + [f"! {warning}" for warning in warnings])
