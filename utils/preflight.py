"""What a corpus is like, before anything is spent on it: its figures, and what to worry about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.beir_files import read_corpus
from utils.documents import Document, Skipped, load_documents
from utils.duplicates import near_duplicates
from utils.language import language
from utils.records import Chunk, passage_text, word_count

SIZES = {1000: "best", 500: "good", 50: "basic", 0: "below basic"}  # documents, as the reference advises


def preflight(
    texts: Sequence[Document | Chunk], skipped: Sequence[Skipped] = (), unit: str = "documents"
) -> tuple[dict[str, object], list[str]]:
    """Figures of a corpus ({name: value}, lengths in words), and sentences on what to worry about.

    Warnings as in the reference recipe: fewer than 20 documents, half of them too short, near copies; and a
    mix of languages, or one that the embedded models were not made for. `unit`: "documents", or "passages"
    of a vector store, whose number and length say nothing about the size of a corpus.
    """
    words = sorted(word_count(text.text) for text in texts)
    n = len(words)
    copies = n - len(set(near_duplicates([text.text for text in texts]))) if n else 0
    spoken = Counter(language(text.text) for text in texts)
    figures = {
        unit: n, "skipped": len(skipped), "words": sum(words), "shortest": words[0] if words else 0,
        "median": words[n // 2] if words else 0, "longest": words[-1] if words else 0, "near copies": copies,
        "languages": ", ".join(f"{name} {count}" for name, count in spoken.most_common()),
    }  # fmt: skip
    warnings = [f"skipped {file.doc_id}: {file.reason}" for file in skipped]
    if unit == "documents":
        size = next(name for least, name in SIZES.items() if n >= least)
        figures["size"] = f"{size} (50 are basic, 500 good, 1,000 best)"
        warnings += _size_warnings(words)
    if copies:
        warnings.append(f"{copies} {unit} are near copies of others: they stay on one side of the split")
    return figures, warnings + _language_warnings(spoken, unit)


def _size_warnings(words: Sequence[int]) -> list[str]:
    warnings = []
    if len(words) < 20:
        warnings.append(f"only {len(words)} documents: expect a small gain, and wide intervals")
    if words and words[len(words) // 2] < 100:
        warnings.append("half of the documents have fewer than 100 words: little to ask about")
    return warnings


def _language_warnings(spoken: Counter, unit: str) -> list[str]:
    known = Counter({name: count for name, count in spoken.items() if name != "und"})
    if not known:
        return []
    most = known.most_common(1)[0][0]
    warnings = []
    if most != "en":
        warnings.append(
            f"most {unit} are in {most!r}: the embedded models read English, set BASE_MODEL and LLM"
        )
    others = known.total() - known[most]
    if others > 0.05 * known.total():
        warnings.append(
            f"{others} {unit} are in another language than {most!r}: a base model of one misses them"
        )
    return warnings


def preflight_report(path: Path) -> str:
    """The preflight of a folder of documents, or of a BEIR `corpus.jsonl`, as text."""
    if path.is_file():
        rows = [Chunk(chunk_id=i, doc_id=i, text=passage_text(row)) for i, row in read_corpus(path).items()]
        figures, warnings = preflight([row for row in rows if row.text], unit="passages")
        figures = {"empty": sum(not row.text for row in rows)} | figures
    else:
        figures, warnings = preflight(*load_documents(path))
    lines = [f"{name}: {value}" for name, value in figures.items()]
    return "\n".join(lines + [f"! {warning}" for warning in warnings])
