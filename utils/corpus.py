"""Documents → chunks: heading-aware and sentence-bounded cutting, offsets into the source.

A chunk's text is `document.text[start:end]`, without its headings; they stand in its title.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import semchunk

from utils.beir_files import read_corpus
from utils.documents import Document, corpus_path, headings, load_documents, markdown_blocks, plain_headings
from utils.records import Chunk, passage_text, read_jsonl
from utils.run import expect

FULL_WIDTH = str.maketrans("。！？；，：", ".!?;,:")
SPECIAL_TOKENS = 4  # start, end and the line break between title and text


@dataclass(frozen=True)
class Section:
    """The text below one heading. `blocks`: (start, end, keep_whole) in document characters."""

    path: tuple[str, ...]
    blocks: tuple[tuple[int, int, bool], ...]


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
    heads = [((), start, start), *plain_headings(text, start)]
    ends = [begin for _, begin, _ in heads[1:]] + [len(text)]
    parts = [(path, end, stop) for (path, _, end), stop in zip(heads, ends, strict=True)]
    return [Section(path, ((end, stop, False),)) for path, end, stop in parts if text[end:stop].strip()]


def _markdown_sections(document: Document) -> Iterator[Section]:
    heads = {start: path for _, path, start, _ in headings(document.text)}
    path, blocks = (), []
    for kind, _, start, end in markdown_blocks(document.text):
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
        wide = len(block) > 1 and text[start:end].translate(FULL_WIDTH) != text[start:end]
        _, spans = semchunk.chunk(block, room - wide, count, memoize=False, offsets=True, overlap=shared)
        yield from ((start + a, start + b) for a, b in (_with_stops(block, spans) if wide else spans))


def _with_stops(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans, each with the stop of its last sentence, which may stand at the start of the next span."""
    found: list[tuple[int, int]] = []
    for start, end in spans:
        stops = len(text[start:end]) - len(text[start:end].lstrip(".!?;,:"))
        if found and stops:
            found[-1] = (found[-1][0], max(found[-1][1], start + stops))
            start += stops
        if start < end:
            found.append((start, end))
    return found


def _unwrapped(text: str) -> str:
    """The text, equally long, with spaces for line breaks inside sentences: no place to cut.

    Such a break stands before a small letter, or between a line of 60 characters and a word. Full-width
    punctuation becomes ASCII: it ends sentences as well.
    """
    inside = r"(?<=[^\n.!?:;|])\n(?=[ \t]*(?![A-ZÀ-Þ])[^\W\d_])"
    wrapped = r"(?<=[^\n]{59}[^\n|])\n(?=[ \t]*(?!\d+[.)])[^\W_])"
    return re.sub(f"{inside}|{wrapped}", " ", text).translate(FULL_WIDTH)


# ---------------------------------------------------------------- a corpus of either kind


def document_of(row: Mapping) -> str:
    """The document that a row of a `corpus.jsonl` is a passage of: its `doc_id` (or its metadata's), or what
    stands before the # of an `_id` like `manual.md#3`; else the row is a document of its own."""
    passage_id, metadata = str(row.get("_id")), row.get("metadata")
    told = row.get("doc_id", metadata.get("doc_id") if isinstance(metadata, dict) else None)
    return str(told) if told not in (None, "") else re.sub(r"(?<=.)#\d+$", "", passage_id)


def read_chunks(corpus: Path | str, tokenizer: object, max_tokens: int) -> list[Chunk]:
    """The chunks of a folder of documents, or the rows of a BEIR `corpus.jsonl`, used as they are.

    Rows keep their `_id`, their order and their empty texts; see `document_of` for their documents.
    """
    path = corpus_path(str(corpus))
    if path.is_dir():
        return chunk(load_documents(path)[0], tokenizer, max_tokens)
    expect(
        path.suffix == ".jsonl",
        f"CORPUS: {path} is neither a folder nor a .jsonl file. Give a folder or a corpus.jsonl.",
    )
    count = counter(tokenizer)
    known = {str(row.get("_id")): document_of(row) for row in read_jsonl(path)}
    rows = [
        Chunk(chunk_id=i, doc_id=known[i], **p)  # without offsets: its place in the document is not known
        for i, p in read_corpus(path).items()
    ]
    for row in rows:
        row.n_tokens = count(passage_text(row)) + 2
    return rows
