"""Documents of a folder: loaders for text, Markdown, HTML, Word and PDF; their titles and headings."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

from utils.conversion import converted, decoded
from utils.files import files_below
from utils.records import word_count
from utils.run import ROOT, CourseError, expect, resolve_path

FRONT_MATTER = re.compile(r"---\n(?=[\w-]+[ \t]*:)(.*?)\n---\n", re.S)  # YAML, not a rule between sections

PLAIN = {".txt", ".text", ""}
MARKDOWN = {".md", ".markdown"}
CONVERTED = {".html", ".htm", ".pdf", ".docx"}
SENTENCE_END = r"(?<=\w{3})[.!]\s+[^\W\da-zß-ÿ]"  # no "z. B." and no "5.2"
ASKED = re.compile(
    r"(?P<bold>\*\*|__)?(?P<q>Q(?:uestion)? ?\d* ?[:.] *)?"
    rf"(?P<text>[¿\w](?:(?!{SENTENCE_END})[^?？؟\n。！])*[?？؟])(?(bold)(?P=bold))"
)
NUMBERED = re.compile(r"(\d{1,2}(?:\.\d{1,2}){0,3}\.?)[ \t]+(?=[^\W\d_]).+[^\W_]")
CHAPTER = re.compile(r"(\d{1,2})\.?[ \t]")
CLAUSE = re.compile(
    r"(?:§+[ \t]*\d+[a-z]?|第[一二三四五六七八九十百\d]+[章节節条條]"
    r"|(?:Art(?:icle|ikel)|Section|Chapter|Kapitel|Chapitre|Abschnitt|Appendix|Annex|Anhang|Anlage)[ \t]+"
    r"(?:\d+(?:\.\d+)*|[IVX]+|[A-Z])\b)(?:.*[^\W_])?"
)
BOLD = re.compile(r"(\*\*|__)(?P<name>(?=[^\W_])(?:[^\s*]+ ){0,11}[^\s*]*\w)\1")
SUBJECT = re.compile(r"(?:Subject|Betreff|Objet|Asunto|Oggetto|主题)[:：][ \t]*(\S.*)")
PICTURE = re.compile(r"(data:[\w.+/-]+;base64),[\w+/=]{100,}")
ANCHOR = re.compile(  # permalinks, tags and attributes in a heading
    r"\[[¶#§🔗]?\]\([^)]*\)|</?(?:a|b|br|code|em|i|img|kbd|span|strong|su[bp])\b[^<>]*>|[ \t]*\{[#.:][^{}]*\}"
)
LINE = re.compile(r"^[^\S\n]*\S.*$", re.M)
LONGEST_HEADING = 20  # words; a longer one is a paragraph with a rule below it
MIN_CHARACTERS = 50  # shorter documents are left out, as in the reference recipe


@dataclass(frozen=True)
class Document:
    """`doc_id` is its path below the folder. Word and HTML appear as the Markdown they convert to."""

    doc_id: str
    title: str
    text: str
    markdown: bool


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    doc_id: str
    reason: str


def corpus_path(corpus: str) -> Path:
    """The folder or `corpus.jsonl` that CORPUS names; empty: the sample domain's documents."""
    return resolve_path(corpus, "CORPUS") if corpus else ROOT / "data" / "corpus"


def load_documents(folder: Path) -> tuple[list[Document], list[Skipped]]:
    """All readable documents below a folder, sorted by path, and the files left out with the reason."""
    expect(folder.is_dir(), f"CORPUS: {folder} is not a folder. Give a folder of documents.")
    documents, skipped = [], []
    for path in files_below(folder):
        doc_id = os.fsencode(path.relative_to(folder).as_posix()).decode("utf8", "backslashreplace")
        try:
            documents.append(_load(path, doc_id))
        except (CourseError, OSError) as reason:
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
    text, title = converted(path) if suffix in CONVERTED else (decoded(path.read_bytes()), "")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = PICTURE.sub(r"\1", text)
    text = re.sub(r"^[^\S\n\f]+$", "", text, flags=re.M)  # a line of spaces is an empty one
    if title and not any(level == 1 for level, *_ in headings(text)):
        text = f"# {title}\n\n{text}"
    unprintable = sum(c < " " and c not in "\t\n\r\f" for c in text[:10_000])
    expect(unprintable <= 0.01 * min(len(text), 10_000), "a binary file, or text in an unknown encoding")
    expect(len(text.strip()) >= MIN_CHARACTERS, f"shorter than {MIN_CHARACTERS} characters")
    markdown = suffix not in PLAIN | {".pdf"}
    return Document(doc_id, _title(text, doc_id, markdown), text, markdown)


def _title(text: str, doc_id: str, markdown: bool) -> str:
    front = FRONT_MATTER.match(text)
    named = front and re.search(r"^title:[ \t]*[\"']?([^\"'\s>|].*?)[\"']?[ \t]*$", front.group(1), re.M)
    if named:
        return named.group(1)
    if markdown:
        firsts = [path[0] for level, path, *_ in headings(text) if level == 1 and path]
        first = firsts[0] if firsts else ""
        if len(firsts) > 1 and (word_count(first) < 2 or first[0].isdigit()):
            first = ""  # "Introduction" heads a chapter, not the document
    else:
        first = _first_line(text)
    return first or re.sub(r"[_\-\s]+", " ", Path(doc_id).stem).strip()


def _first_line(text: str) -> str:
    """A mail's subject, or the first line with words, unless a sentence begins there; else ""."""
    lines = [line.strip() for line in text.strip().split("\n")]
    place = next((i for i, line in enumerate(lines) if re.search(r"[^\W_]", line)), 0)
    first, below = lines[place], "".join(lines[place + 1 : place + 2])
    subject = next(filter(None, map(SUBJECT.match, lines[:15])), None)
    if subject and re.match(r"[\w-]+[:：]", first):
        return subject[1]
    goes_on = below[:1].islower() or (len(first) >= 60 and re.match(r"[^\W_]", below))
    whole = len(first.split()) <= 15 and len(first) <= 120 and not first.endswith((",", ".", ";"))
    return first if whole and not goes_on else ""


# ---------------------------------------------------------------- lines that are headings by their form


def asked(line: str, marked: bool = False) -> str:
    """The question of a line like "**Who may climb?**", "Q: Who may climb?" or "Who may climb?"; else "".

    It has 3 to 25 words and nothing after it. marked: a line without asterisks or Q does not count.
    """
    form = ASKED.fullmatch(line.strip())
    if not form or (marked and not (form["bold"] or form["q"])):
        return ""
    return form["text"].strip() if 3 <= word_count(form["text"]) <= 25 else ""


def plain_headings(text: str, start: int) -> list[tuple[tuple[str, ...], int, int]]:
    """(path, start, end) of the lines from `start` on that head what stands below them in a plain text:
    between blank lines "3.2 Replacing the seal", "3. Maintenance" (see `_without_items`), "§ 3 Notice" or a
    question; "Q: …?" anywhere."""
    found = []
    for line in LINE.finditer(text, start):
        name = line[0].strip()
        alone = text.endswith("\n\n", 0, line.start()) and text.startswith("\n\n", line.end())
        number = NUMBERED.fullmatch(name) if alone else None
        if number and word_count(name) <= 12 and not name[number.end(1) :].lstrip()[0].islower():
            found.append((1 + number[1].rstrip(".").count("."), name, line.start(), line.end()))
        elif alone and CLAUSE.fullmatch(name) and word_count(name) <= 12:
            found.append((1, name, line.start(), line.end()))
        elif question := asked(name, marked=not alone):
            found.append((7, question, line.start(), line.end()))
    found = _without_items(text, found)
    rows, path = [], []
    for place, (level, name, begin, end) in enumerate(found):
        below, _, stop, _ = found[place + 1] if place + 1 < len(found) else (0, "", len(text), 0)
        if text[end:stop].strip() or below > level:  # else nothing stands below it: it is text
            path = [entry for entry in path if entry[0] < level] + [(level, name)]
            rows.append((tuple(name for _, name in path), begin, end))
    return rows


def _without_items(text: str, found: list[tuple[int, str, int, int]]) -> list[tuple[int, str, int, int]]:
    """The lines without those like "3. Operation" that are items of a list: chapters count 1, 2, 3, …, have
    text below them, and are two at least. What is written in capitals is a heading in any case."""
    kept, chapters, last = [], [], 0
    for place, row in enumerate(found):
        level, name, _, end = row
        number = CHAPTER.match(name) if level == 1 else None
        if number and name != name.upper():
            below, _, stop, _ = found[place + 1] if place + 1 < len(found) else (0, "", len(text), 0)
            if int(number[1]) != last + 1 or not (text[end:stop].strip() or below > level):
                continue
            chapters.append(row)
        last = int(number[1]) if number else last
        kept.append(row)
    return kept if len(chapters) != 1 else [row for row in kept if row not in chapters]


# ---------------------------------------------------------------- Markdown


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def markdown_blocks(text: str) -> Iterator[tuple[str, str, int, int]]:
    """(kind, heading text, start, end) of each top-level block; front matter is left out.

    A line in bold, with text below it, is a heading too, "h6"; so is a question on a line of its own, "h7".
    """
    blocks = [*_blocks(text)]
    bold = [kind == "paragraph_open" and BOLD.fullmatch(text[a:b].strip()) for kind, _, a, b in blocks]
    for place, name in enumerate(bold[:-1]):
        if name and not bold[place + 1] and not re.fullmatch(r"h[r1-6]", blocks[place + 1][0]):
            blocks[place] = ("h6", name["name"], *blocks[place][2:])
    heads = [_question_of(text, block) for block in blocks]
    for place, (block, (question, end)) in enumerate(zip(blocks, heads, strict=True)):
        follows = place + 1 < len(blocks) and not re.fullmatch(r"h[r1-6]", blocks[place + 1][0])
        if question and end < block[3]:
            yield "h7", question, block[2], end
            yield block[0], "", end, block[3]
        elif question and follows and not heads[place + 1][0]:
            yield "h7", question, *block[2:]
        else:
            yield block


def _question_of(text: str, block: tuple[str, str, int, int]) -> tuple[str, int]:
    """(the question that a paragraph's first line asks, or "", and where what it heads begins)"""
    kind, _, start, end = block
    first, _, rest = text[start:end].strip().partition("\n")
    question = asked(first, marked=bool(rest)) if kind == "paragraph_open" else ""
    return question, text.index(rest, text.index(first, start) + len(first)) if question and rest else end


def _blocks(text: str) -> Iterator[tuple[str, str, int, int]]:
    front = FRONT_MATTER.match(text)
    offset = front.end() if front else 0
    starts = [offset]
    for line in text[offset:].split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    tokens = _parser().parse(text[offset:])
    for i, token in enumerate(tokens):
        if token.level == 0 and token.map and token.nesting >= 0:
            ruled = token.markup in ("-", "=")  # underlined
            head = token.type == "heading_open" and not (
                ruled and len(tokens[i + 1].content.split()) > LONGEST_HEADING
            )
            kind = token.tag if head else token.type.replace("heading", "paragraph")
            heading = tokens[i + 1].content if head else ""
            yield kind, heading, starts[token.map[0]], min(starts[token.map[1]], len(text))


def headings(text: str) -> Iterator[tuple[int, tuple[str, ...], int, int]]:
    path: list[tuple[int, str]] = []
    for kind, heading, start, end in markdown_blocks(text):
        if re.fullmatch(r"h[1-7]", kind):
            level = int(kind[1])
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", ANCHOR.sub("", heading))  # a link: its words
            plain = " ".join(html.unescape(re.sub(r"[*`]|\\(?=[\W_])", "", plain)).split())
            path = [entry for entry in path if entry[0] < level] + [(level, plain)]
            yield level, tuple(h for _, h in path if h), start, end
