"""Free questions, which the documents hold already: headings and titles, and the words around codes."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from utils.duplicates import normalised
from utils.records import WITHOUT_SPACES, Chunk, word_count
from utils.run import expect

CODE = re.compile(r"(?=.*\d)(?=.*[^\W\d_]).{4}")  # letters and digits, four characters at least
COUNTED = re.compile(r"\d[\d.,/]*(-?[a-z]{2,}(-[a-z]+)*|s)")  # 30-day, 100mg, 1990s: no codes
LINK = re.compile(r"!?\[[^\]]*\]\([^)]*\)")
TARGET = re.compile(r"(?<=\])\([^)]*\)|(?:https?://|www\.)\S+")  # of a link: nobody searches for it
NUMBERING = re.compile(r"^(?:Q\d*[:.]|§+ ?\d+|\d+(?:\.\d+)*[.)]?)\s+(?=[^\W\d])")  # in front of a heading
READ = 180  # words of a passage that a model of 256 tokens reads, about


def heading_questions(chunks: Sequence[Chunk], min_words: int = 2, max_documents: int = 2) -> pd.DataFrame:
    """Headings and titles as questions for the text below them; a column `dropped` says why one goes.

    An FAQ's questions and the numbered headings of a plain text are among them: `documents` sees to that.
    A heading that stands above more than `max_documents` sections, or has a single word ("Article 12"), is
    too generic alone: its document's title is put in front. The question's passage is the first chunk of its
    section; where it stands above several sections, at most `max_documents`, it is kept once, with all. Its
    number is left out. A text that more than a tenth of the documents share, and more than five, is
    boilerplate.
    """
    sections = [(piece.doc_id, piece.title) for piece in chunks]
    first = [p for p, own, before in zip(chunks, sections, [None, *sections], strict=False) if own != before]
    heads = [(piece, piece.title.split(" > ")) for piece in first if piece.title.strip()]
    spread = Counter(normalised(path[-1]) for _, path in heads)
    titles = Counter(normalised(path[0]) for path in {p.doc_id: path for p, path in heads}.values())
    texts = Counter(text for _, text in {(piece.doc_id, normalised(piece.text)) for piece in chunks})
    many = max(5, len({piece.doc_id for piece in chunks}) / 10)
    rows = []
    for piece, path in heads:
        generic = spread[normalised(path[-1])] > max_documents or _telling(path[-1]) < min_words
        question = NUMBERING.sub("", path[-1]) if len(path) > 1 else path[-1]
        question = f"{path[0]}: {question}" if generic and len(path) > 1 else question
        dropped = ""
        if _telling(question) < min_words:
            dropped = "too short"
        elif texts[normalised(piece.text)] > many:
            dropped = "boilerplate"
        elif generic and titles[normalised(path[0])] > max_documents:
            dropped = "generic"
        elif word_count(LINK.sub("", piece.text)) < 8:
            dropped = "hardly any text below it"
        rows.append((question, [piece.chunk_id], piece.doc_id, "heading", dropped))
    table = pd.DataFrame(rows, columns=["question", "chunk_ids", "doc_id", "generator", "dropped"])
    kept = table[table.dropped == ""]
    for _, same in kept.groupby(kept.question.map(normalised)):
        table.loc[same.index[1:], "dropped"] = "repeated"
        table.at[same.index[0], "chunk_ids"] = [chunk_id for ids in same.chunk_ids for chunk_id in ids]
        if len(same) > max_documents:
            table.loc[same.index, "dropped"] = "generic"
    return table


def _telling(heading: str) -> int:
    """Words of a heading that say something: no numbers, no single letters, no names of files like 3f2a9c."""
    heading = re.sub(r"\d", "", heading) if WITHOUT_SPACES.search(heading) else heading
    words = [word for word in heading.split() if not re.search(r"\d", word) and re.search(r"\w\w", word)]
    return word_count(" ".join(words))


def search_terms(chunks: Sequence[Chunk], seed: int, fewest: int = 2, most: int = 5) -> pd.DataFrame:
    """For every passage with a code (letters and digits) a query of a few of its words, the code among them.

    Words are drawn without replacement, with their idf as weight (Efraimidis & Spirakis 2006), and keep their
    order. Words of more than a fifth of the passages, of fewer than 3 characters, and those that stand so far
    back that a model does not read them, are left out. A number with its unit is no code. Passages
    without a code have no query: where people ask in sentences, loose words teach the wrong thing. Columns as
    in `heading_questions`.
    """
    rng = random.Random(seed)
    read = {c.chunk_id: " ".join(TARGET.sub(" ", c.text).split()[:READ]) for c in chunks}
    found = {c: [w.lower() for w in re.findall(r"\w[\w./-]*\w", text)] for c, text in read.items()}
    spread = Counter(word for words in found.values() for word in set(words))
    idf = {word: np.log(len(chunks) / n) for word, n in spread.items() if n <= max(1, len(chunks) / 5)}
    rows = []
    for piece in chunks:
        words = [w for w in dict.fromkeys(found[piece.chunk_id]) if len(w) > 2 and idf.get(w, 0) > 0]
        words = [w for w in words if not WITHOUT_SPACES.search(w)]  # there a "word" is a whole clause
        drawn = sorted(words, key=lambda word: rng.random() ** (1 / idf[word]), reverse=True)
        code = next((w for w in drawn if CODE.search(w) and not COUNTED.fullmatch(w)), None)
        if code is None or len(words) < 2 * fewest:
            continue
        others = [word for word in drawn if word != code]
        chosen = {code, *others[: rng.randint(fewest, most) - 1]}
        query = " ".join(word for word in words if word in chosen)
        rows.append((query, [piece.chunk_id], piece.doc_id, "terms"))
    return pd.DataFrame(rows, columns=["question", "chunk_ids", "doc_id", "generator"])


def mix(written: pd.DataFrame, free: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """Written and free questions together; the free ones are at most `share` of all (1: only free ones)."""
    expect(
        0 <= share <= 1, f"FREE_SHARE = {share} must lie between 0 (no free questions) and 1 (only those)."
    )
    if share == 1:
        return free
    room = len(free) if written.empty and share else int(share / (1 - share) * len(written))
    chosen = free.sample(min(room, len(free)), random_state=seed).sort_index()
    return pd.concat([written, chosen], ignore_index=True)
