"""Files → text: HTML and Word as Markdown, PDF as plain text (markitdown), other text by its encoding."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from functools import cache
from pathlib import Path

from utils.run import CourseError, expect

HTML = {".html", ".htm"}
AROUND = re.compile(rb"<(nav|footer)\b[^>]*>.*?</\1\s*>", re.I | re.S)  # no part of a page's text
UNESCAPED = {"escape_underscores": False, "escape_asterisks": False}  # max_flow_rate, not max\_flow\_rate


def converted(path: Path) -> tuple[str, str]:
    """(text, title) of an HTML, Word or PDF file; the title is a page's own, else "".

    Raises CourseError where it cannot be read, whatever the parser said.
    """
    kind = path.suffix.lower()
    try:
        found = _page(path.read_bytes()) if kind in HTML else _converter().convert_local(path, **UNESCAPED)
    except Exception as error:  # markitdown wraps errors of many parsers
        raise CourseError(f"could not be converted ({type(error).__name__})") from error
    if kind == ".pdf":
        return without_running_lines(found.text_content), ""
    return found.text_content, " ".join((found.title or "").split()) if kind in HTML else ""


def _page(raw: bytes):
    from markitdown import StreamInfo

    charset = None
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # markitdown would not see the mark
        raw, charset = raw.decode("utf-16").encode("utf8"), "utf-8"
    kind = StreamInfo(extension=".html", charset=charset)
    return _converter().convert_stream(io.BytesIO(AROUND.sub(b"", raw)), stream_info=kind, **UNESCAPED)


@cache
def _converter():
    from markitdown import MarkItDown

    return MarkItDown(enable_plugins=False, style_map="p[style-name='Title'] => h1:fresh")  # Word's own title


def without_running_lines(text: str) -> str:
    """Pages, parted by form feeds, as one text without what stands at the top or foot of most of them.

    Lines count as the same when they differ in numbers alone. A sentence that goes on over a page's end, or a
    word over a line's end, is joined.
    """
    pages = [page.strip("\n").split("\n") for page in text.split("\f") if page.strip()]
    edges = [_edges(page) for page in pages]
    seen = Counter(line for own in edges for line in set(own.values()))
    running = {line for line, n in seen.items() if len(pages) >= 3 and n > len(pages) / 2}
    joined = ""
    for page, own in zip(pages, edges, strict=True):
        kept = "\n".join(line for i, line in enumerate(page) if own.get(i) not in running).strip()
        goes_on = joined and kept[:1].islower()
        joined += kept if not joined else f"\n{kept}" if goes_on else f"\n\n{kept}"
    return re.sub(r"(?<=[a-zß-ÿ])-\n(?=[a-zß-ÿ])", "", joined)


def _edges(page: list[str]) -> dict[int, str]:
    """{place: line without its numbers} of the first and the last two lines of a page."""
    full = [i for i, line in enumerate(page) if line.strip()]
    return {i: re.sub(r"\d+", "0", page[i].strip()) for i in {*full[:2], *full[-2:]}}


def decoded(raw: bytes) -> str:
    """Text in UTF-8, also with a stray byte in it, or in the encoding that it most likely has."""
    from charset_normalizer import from_bytes

    expect(raw.strip(), "empty file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("utf8", "replace").removeprefix("\ufeff")
        bad, foreign = text.count("\ufffd"), len(raw.translate(None, bytes(range(128))))
        text = text if bad <= 0.1 * foreign and bad <= max(1, len(text) / 1000) else None  # a stray byte
    if text is None:
        line = -1 if b"\0" in raw[:1000] else raw.find(b"\n", 200_000, 300_000)  # ends with a whole character
        guesses = from_bytes(raw[: line if line > 0 else 200_000])
        best = guesses.best()
        expect(best is not None, "not text in any known encoding (a binary file?)")
        level = {g.encoding for g in guesses if (g.chaos, g.coherence) == (best.chaos, best.coherence)}
        text = raw.decode("cp1252" if "cp1252" in level else best.encoding, errors="replace")
    return text
