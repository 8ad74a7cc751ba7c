"""Near-duplicates of texts by MinHash, verified; texts that differ in a number or a code are none."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from utils.records import WITHOUT_SPACES

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

MARKS = {"Mn", "Mc"}  # Unicode's categories of marks on a letter
BESIDE = re.compile(f"{WITHOUT_SPACES.pattern}|[\uac00-\ud7af]")  # scripts that stand beside a code: A区, A동
LONE = re.compile(r"(?<![\w'’])(?<!\w\.)\w(?!\w|['’]|\.\w)")  # not the l of "l'eau", not the g of "e.g."
SYMBOL = re.compile(r"(?<![^\s(\[=|,;:])[-−+](?=\d)|(?<=[A-Za-z])(?:\+\+|#)(?!\w)|[<>≤≥]=?(?=\s?\d)")
LITTLE = set("aeiouwyzàáéèåавеикосуяіηοή")  # in lower case these are words: articles, prepositions


def near_duplicates(texts: Sequence[str], threshold: float = 0.7, unit: str = "word") -> np.ndarray:
    """Cluster numbers (n,) of texts: equal numbers mean equal or nearly equal texts. int64

    Nearly equal: Jaccard similarity of the word pairs (unit "word", for passages) or of the 4-character
    pieces (unit "char", for questions) at least `threshold`, and no differing number or code (`same_codes`).
    Candidates by MinHash and locality-sensitive hashing (rensa), each verified exactly. Empty texts are
    nobody's duplicate.
    """
    from rensa import RMinHash, RMinHashLSH
    from scipy.cluster.hierarchy import DisjointSet

    plain = [normalised(text) for text in texts]
    alike = DisjointSet(range(len(texts)))
    first: dict[tuple[str, tuple], int] = {}
    for i, text in enumerate(plain):
        if text:
            alike.merge(first.setdefault((text, symbols(texts[i])), i), i)
    index, hashed = RMinHashLSH(threshold, 120, 24), {}
    for (text, _), i in first.items():
        hashed[i] = RMinHash(120, 13)
        hashed[i].update(sorted(_pieces(text, unit)))
        index.insert(i, hashed[i])
    numbers = {i: _numbers(texts[i]) for i in hashed}  # of a template's copies, these differ: told at once
    for i in hashed:
        for j in index.query(hashed[i]):
            if j >= i or numbers[j] != numbers[i]:
                continue
            far = hashed[i].jaccard(hashed[j]) < threshold - 0.15  # three times the estimate's own error
            if far or alike.connected(i, j):  # or through others already
                continue
            if _jaccard(plain[i], plain[j], unit) >= threshold and same_codes(texts[i], texts[j]):
                alike.merge(i, j)
    return set_numbers(alike, range(len(texts)))


def set_numbers(sets: DisjointSet, nodes: Sequence[Hashable]) -> np.ndarray:
    """The set that each node is in, numbered in the order of the nodes, (n,). int64"""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(sets[node], len(number)) for node in nodes], dtype=np.int64)


def same_codes(a: str, b: str) -> bool:
    """Whether two texts have the same numbers and signs in the same order and share all their codes.

    A code is a word of capitals, or a letter alone that is no article or preposition: "ABS", the B of
    "unit B", the c of "unit c", the Б of "блок Б".
    """
    if _numbers(a) != _numbers(b) or symbols(a) != symbols(b):
        return False
    a, b = (BESIDE.sub(" ", unicodedata.normalize("NFC", text)) for text in (a, b))
    words_a, words_b = (set(normalised(text).split()) for text in (a, b))
    return _codes(a) & words_a <= words_b and _codes(b) & words_b <= words_a


def normalised(text: str) -> str:
    """Lower-cased words with single spaces between them: what counts as equal text."""
    text = text.casefold()
    if not text.isascii():  # vowel signs belong to their word, in Hindi or Thai
        text = unicodedata.normalize("NFC", text)
        text = "".join(
            c if c.isalnum() or c == "_" or unicodedata.category(c) in MARKS else " " for c in text
        )
        return " ".join(text.split())
    return " ".join(re.findall(r"\w+", text))


def symbols(text: str) -> tuple[str, ...]:
    """What is no word and yet tells texts apart: a number's sign, more or less than a number, C++ and C#."""
    return tuple(SYMBOL.findall(text))


def _numbers(text: str) -> list[str]:
    words = [word for word in normalised(text).split() if re.search(r"\d", word)]
    parts = [re.findall(r"[a-z]*\d[a-z\d]*", w) if WITHOUT_SPACES.search(w) else [w] for w in words]
    return [number for own in parts for number in own]


def _codes(text: str) -> set[str]:
    codes = {word for word in re.findall(r"\w\w+", text) if word.isalpha() and word.isupper()}
    codes |= {letter for letter in LONE.findall(text) if letter.islower() and letter not in LITTLE}
    for found in re.finditer(r"\b\w\b", text):
        letter, (start, end) = found[0], found.span()
        before, after = text[max(start - 2, 0) : start], text[end : end + 2]
        word = letter == "A" or (not letter.isascii() and letter.lower() in LITTLE)
        opens = word and not re.match(r"\w ", before) and after[:1] == " " and after[1:].islower()
        if letter.isupper() and letter != "I" and not opens:  # "A pump", "В насосной": no code
            codes.add(letter)
    return {normalised(code) for code in codes}


@lru_cache(4096)  # a text is compared with many others
def _pieces(text: str, unit: str) -> set[str]:
    words = text.split()
    if unit == "word" and len(words) > 1 and not WITHOUT_SPACES.search(text):
        return {f"{a} {b}" for a, b in itertools.pairwise(words)}
    return {text[i : i + 4] for i in range(max(1, len(text) - 3))}


def _jaccard(a: str, b: str, unit: str) -> float:
    left, right = _pieces(a, unit), _pieces(b, unit)
    return len(left & right) / len(left | right)
