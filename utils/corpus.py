"""Documents → chunks: loaders, heading-aware and sentence-bounded cutting, offsets into the source.

A chunk's text is `document.text[start:end]`, without its headings; they stand in its title.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import semchunk
from markdown_it import MarkdownIt

from utils.duplicates import near_duplicates
from utils.records import Chunk, passage_text, read_corpus
from utils.run import ROOT, CourseError, expect, resolve_path

PLAIN = {".txt", ".text", ""}
MARKDOWN = {".md", ".markdown"}
CONVERTED = {".html", ".htm", ".pdf", ".docx"}
MIN_CHARACTERS = 50  # shorter documents are left out, as in the reference recipe
SPECIAL_TOKENS = 4  # start, end and the line break between title and text


@dataclass(frozen=True)
class Document:
    """`doc_id` is its path below the folder. PDF, Word and HTML appear as the Markdown they convert to."""

    doc_id: str
    title: str
    text: str
    markdown: bool


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    doc_id: str
    reason: str


@dataclass(frozen=True)
class Section:
    """The text below one heading. `blocks`: (start, end, keep_whole) in document characters."""

    path: tuple[str, ...]
    blocks: tuple[tuple[int, int, bool], ...]


# ---------------------------------------------------------------- loading


def corpus_path(corpus: str) -> Path:
    """The folder or `corpus.jsonl` that CORPUS names; empty: the sample domain's documents."""
    return resolve_path(corpus, "CORPUS") if corpus else ROOT / "data" / "corpus"


def load_documents(folder: Path) -> tuple[list[Document], list[Skipped]]:
    """All readable documents below a folder, sorted by path, and the files left out with the reason."""
    expect(folder.is_dir(), f"CORPUS: {folder} is not a folder. Give a folder of documents.")
    documents, skipped = [], []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        doc_id = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(doc_id).parts):
            continue
        try:
            documents.append(_load(path, doc_id))
        except CourseError as reason:
            skipped.append(Skipped(doc_id, str(reason)))
    listed = "; ".join(f"{s.doc_id}: {s.reason}" for s in skipped[:5])
    expect(
        documents,
        f"CORPUS: {folder} holds no usable document ({listed or 'it is empty'}). Put .md, .txt, .html, .pdf "
        f"or .docx files of at least {MIN_CHARACTERS} characters there.",
    )
    return documents, skipped


def _load(path: Path, doc_id: str) -> Document:
    suffix = path.suffix.lower()
    expect(suffix in PLAIN | MARKDOWN | CONVERTED, f"files of type {suffix} are not read")
    text = _converted(path) if suffix in CONVERTED else _decoded(path.read_bytes())
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    expect(len(text.strip()) >= MIN_CHARACTERS, f"shorter than {MIN_CHARACTERS} characters")
    markdown = suffix not in PLAIN
    return Document(doc_id, _title(text, doc_id, markdown), text, markdown)


def _decoded(raw: bytes) -> str:
    from charset_normalizer import from_bytes

    expect(raw.strip(), "empty file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = None
    if text is None:
        guesses = from_bytes(raw[:200_000])
        best = guesses.best()
        expect(best is not None, "not text in any known encoding (a binary file?)")
        level = {g.encoding for g in guesses if (g.chaos, g.coherence) == (best.chaos, best.coherence)}
        text = raw.decode("cp1252" if "cp1252" in level else best.encoding, errors="replace")
    unprintable = sum(c < " " and c not in "\t\n\r\f" for c in text[:10_000])
    expect(unprintable <= 0.01 * min(len(text), 10_000), "a binary file, not text")
    return text


@cache
def _converter():
    from markitdown import MarkItDown

    return MarkItDown(enable_plugins=False)


def _converted(path: Path) -> str:
    try:
        return _converter().convert_local(path).text_content
    except (
        Exception
    ) as error:  # markitdown wraps errors of many parsers: whatever it is, this file is skipped
        raise CourseError(f"could not be converted ({type(error).__name__})") from error


def _title(text: str, doc_id: str, markdown: bool) -> str:
    front = re.match(r"---\n(.*?)\n---\n", text, re.S)
    named = front and re.search(r"^title:[ \t]*[\"']?([^\"'\s].*?)[\"']?[ \t]*$", front.group(1), re.M)
    if named:
        return named.group(1)
    if markdown:
        first = next((path[0] for level, path, *_ in _headings(text) if level == 1 and path), "")
    else:
        first = text.strip().split("\n", 1)[0].strip()
        first = first if len(first.split()) <= 15 and len(first) <= 120 else ""
    return first or re.sub(r"[_\-\s]+", " ", Path(doc_id).stem).strip()


# ---------------------------------------------------------------- structure


def sections(document: Document) -> list[Section]:
    """The document's sections in order, each with its heading path below the title and its text blocks."""
    if document.markdown:
        return list(_markdown_sections(document))
    text = document.text
    start = len(text) - len(text.lstrip())
    first, _, rest = text[start:].partition("\n")
    if first.strip() == document.title and rest.strip():
        start += len(first)
    return [Section((), ((start, len(text), False),))]


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def _blocks(text: str) -> Iterator[tuple[str, str, int, int]]:
    """(kind, heading text, start, end) of each top-level block; front matter is left out."""
    front = re.match(r"---\n.*?\n---\n", text, re.S)
    offset = front.end() if front else 0
    starts = [offset]
    for line in text[offset:].split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    tokens = _parser().parse(text[offset:])
    for i, token in enumerate(tokens):
        if token.level == 0 and token.map and token.nesting >= 0:
            kind = token.tag if token.type == "heading_open" else token.type
            heading = tokens[i + 1].content if token.type == "heading_open" else ""
            yield kind, heading, starts[token.map[0]], min(starts[token.map[1]], len(text))


def _headings(text: str) -> Iterator[tuple[int, tuple[str, ...], int, int]]:
    path: list[tuple[int, str]] = []
    for kind, heading, start, end in _blocks(text):
        if re.fullmatch(r"h[1-6]", kind):
            level = int(kind[1])
            plain = re.sub(r"\[¶?\]\([^)]*\)", "", heading)  # the permalink that HTML pages put there
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)  # a link: its words
            plain = re.sub(r"[*`]|\\(?=\W)", "", plain).strip()
            path = [entry for entry in path if entry[0] < level] + [(level, plain)]
            yield level, tuple(h for _, h in path if h), start, end


def _markdown_sections(document: Document) -> Iterator[Section]:
    heads = {start: path for _, path, start, _ in _headings(document.text)}
    path, blocks = (), []
    for kind, _, start, end in _blocks(document.text):
        if start in heads:
            if blocks:
                yield Section(path, tuple(blocks))
            path = tuple(h for h in heads[start] if h != document.title)
            blocks = []
        elif kind != "hr":
            whole = kind in {"table_open", "fence", "code_block"}
            if blocks and not whole and not blocks[-1][2]:
                blocks[-1] = (blocks[-1][0], end, False)
            else:
                blocks.append((start, end, whole))
    if blocks:
        yield Section(path, tuple(blocks))


# ---------------------------------------------------------------- cutting


def chunk(documents: Iterable[Document], tokenizer: object, max_tokens: int, overlap: int = 0) -> list[Chunk]:
    """Cut documents into passages of at most `max_tokens` tokens, title included.

    A chunk stays below one heading and ends at the end of a sentence; tables and code blocks stay whole
    unless one alone is longer than a chunk. `overlap`: tokens that neighbours within a section share.
    """
    expect(max_tokens >= 32, f"CHUNK_TOKENS = {max_tokens} is too small for a passage. Give 32 or more.")
    expect(
        0 <= overlap <= max_tokens // 2,
        f"CHUNK_OVERLAP = {overlap} must lie between 0 and half of CHUNK_TOKENS ({max_tokens // 2}).",
    )
    count = counter(tokenizer)
    return [piece for document in documents for piece in _chunks_of(document, count, max_tokens, overlap)]


def counter(tokenizer: object) -> Callable[[str], int]:
    """text → number of tokens, special tokens not counted."""
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _chunks_of(
    document: Document, count: Callable[[str], int], max_tokens: int, overlap: int
) -> Iterator[Chunk]:
    number = 0
    for section in sections(document):
        title = " > ".join((document.title, *section.path))
        head = count(title)
        if head > max_tokens // 2:  # a title that would crowd out the text
            title = document.title[:100]
            while count(title) > max_tokens // 2:
                title = title[: len(title) * 3 // 4].rstrip()
            head = count(title)
        room = max_tokens - head - SPECIAL_TOKENS
        for start, end in _pack(document.text, section, count, room, overlap):
            text = document.text[start:end]
            tokens = head + count(text) + SPECIAL_TOKENS
            yield Chunk(
                chunk_id=f"{document.doc_id}#{number}", doc_id=document.doc_id, title=title,
                text=text, start=start, end=end, n_tokens=tokens,
            )  # fmt: skip
            number += 1


def _pack(
    text: str, section: Section, count: Callable[[str], int], room: int, overlap: int
) -> Iterator[tuple[int, int]]:
    current: tuple[int, int] | None = None
    for start, end in _pieces(text, section, count, room, overlap):
        joined = (current[0], end) if current else None
        if joined and count(text[slice(*joined)]) <= room:
            current = joined
        else:
            if current:
                yield current
            current = (start, end)
    if current:
        yield current


def _pieces(
    text: str, section: Section, count: Callable[[str], int], room: int, overlap: int
) -> Iterator[tuple[int, int]]:
    for start, end, whole in section.blocks:
        start += len(text[start:end]) - len(text[start:end].lstrip())
        end = start + len(text[start:end].rstrip())
        if end <= start:
            continue
        if whole and count(text[start:end]) <= room:
            yield start, end
            continue
        block = text[start:end] if whole else _unwrapped(text[start:end])
        shared = min(overlap, room // 2) or None
        _, spans = semchunk.chunk(block, room, count, memoize=False, offsets=True, overlap=shared)
        yield from ((start + a, start + b) for a, b in spans)


def _unwrapped(text: str) -> str:
    """The text, equally long, with spaces for line breaks inside sentences: no place to cut.

    Such a break stands before a small letter, or between a line of 60 characters and a word.
    """
    inside = r"(?<=[^\n.!?:;|])\n(?=[ \t]*(?![A-ZÀ-Þ])[^\W\d_])"
    wrapped = r"(?<=[^\n]{59}[^\n|])\n(?=[ \t]*(?!\d+[.)])[^\W_])"
    return re.sub(f"{inside}|{wrapped}", " ", text)


# ---------------------------------------------------------------- a corpus of either kind


def read_chunks(corpus: Path | str, tokenizer: object, max_tokens: int, overlap: int = 0) -> list[Chunk]:
    """The chunks of a folder of documents, or the rows of a BEIR `corpus.jsonl`, used as they are.

    Rows keep their `_id`, their order and their empty texts; each counts as a document of its own.
    """
    path = corpus_path(str(corpus))
    if path.is_dir():
        return chunk(load_documents(path)[0], tokenizer, max_tokens, overlap)
    expect(
        path.suffix == ".jsonl",
        f"CORPUS: {path} is neither a folder nor a .jsonl file. Give a folder or a corpus.jsonl.",
    )
    count = counter(tokenizer)
    rows = [
        Chunk(chunk_id=i, doc_id=i, title=p["title"], text=p["text"], start=0, end=len(p["text"]))
        for i, p in read_corpus(path).items()
    ]
    for row in rows:
        row.n_tokens = count(passage_text(row)) + 2
    return rows


# ---------------------------------------------------------------- preflight


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
