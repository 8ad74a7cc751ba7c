"""Documents as an LLM reads them, and what holds of its questions: artifacts, quotas, evidence."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from utils.duplicates import normalised
from utils.language import language
from utils.records import WITHOUT_SPACES, Chunk, Evidence, passage_text, word_count
from utils.run import expect

# TV-3106, 30-1505-A, BL-ICE; capitals alone may be any word that somebody found important
CODE = r"\b(?:[A-Z][\w/-]*\d[\w/-]*\w|\d+-[\w-]*\w|[A-Z]{2,}(?:-[A-Z]{2,})+)\b"
QUOTE = 3  # words that a quote has at least; two characters count as one where no spaces stand
DASHES = str.maketrans({"–": "-", "—": "-", "−": "-", "‑": "-", "’": "'", "‘": "'", "“": '"', "”": '"'})


@dataclass(frozen=True)
class Bundle:
    """Passages that are shown together: of one document, or of two that share `about`."""

    key: str
    chunks: tuple[Chunk, ...]
    about: str = ""  # the code or term that ties two documents; empty for a single one

    @property
    def documents(self) -> list[str]:
        """The ids of its documents, in order."""
        return list(dict.fromkeys(chunk.doc_id for chunk in self.chunks))

    def rows(self) -> list[dict]:
        """Its passages as the LLM gets them: id and text, the title and heading path in front."""
        return [{"chunk_id": chunk.chunk_id, "text": passage_text(chunk)} for chunk in self.chunks]


# ---------------------------------------------------------------- bundles


def bundles(
    chunks: Sequence[Chunk], at_most: int, seed: int, size: int = 12, min_words: int = 12
) -> list[Bundle]:
    """Documents in random order, at most `at_most` passages in all; a long one in parts of `size` passages.

    First every document's first part, then the second ones. Passages below `min_words` words are left out.
    """
    piles: dict[str, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        if word_count(chunk.text) >= min_words:
            piles[chunk.doc_id].append(chunk)
    order = sorted(piles)
    random.Random(seed).shuffle(order)
    parts = [
        (start, Bundle(f"{doc_id}, part {start // size + 1}" if len(piles[doc_id]) > size else doc_id,
                       tuple(piles[doc_id][start : start + size])))
        for doc_id in order
        for start in range(0, len(piles[doc_id]), size)
    ]  # fmt: skip
    ordered = [part for _, part in sorted(parts, key=lambda entry: entry[0])]
    room = itertools.accumulate(len(part.chunks) for part in ordered)
    return [part for part, total in zip(ordered, room, strict=True) if total <= at_most] or ordered[:1]


def across(
    alone: Sequence[Bundle], terms: Mapping[str, Iterable[str]], at_most: int, size: int = 4
) -> list[Bundle]:
    """Bundles of two documents that share a rare code or one of the `terms` ({bundle key: its artifacts}).

    Shared by two to four documents; the rarest first, and every document in one pair before any has two.
    At most `size` passages of each document: those that name what they share.
    """
    holders: dict[str, dict[str, list[Chunk]]] = defaultdict(lambda: defaultdict(list))
    known = {normalised(term): term for own in terms.values() for term in own if len(term.split()) <= 4}
    for bundle in alone:
        for chunk in bundle.chunks:
            text = passage_text(chunk)
            plain = f" {normalised(text)} "
            shared = {term for low, term in known.items() if low and f" {low} " in plain}
            for name in {*re.findall(CODE, text)} | shared:
                holders[name][chunk.doc_id].append(chunk)
    rare = sorted((len(found), name) for name, found in holders.items() if 2 <= len(found) <= 4)
    pairs: dict[tuple[str, str], Bundle] = {}
    for _, name in rare:
        for left, right in itertools.combinations(sorted(holders[name]), 2):
            both = (*holders[name][left][:size], *holders[name][right][:size])
            pairs.setdefault((left, right), Bundle(f"{left} + {right}", both, name))
    chosen, used = {}, Counter()
    for most in range(1, 5):
        for key, bundle in pairs.items():
            if key not in chosen and len(chosen) < at_most and all(used[document] < most for document in key):
                chosen[key] = bundle
                used.update(key)
    return [*chosen.values()]


# ---------------------------------------------------------------- artifacts and quotas


def sound_artifacts(found: Sequence[BaseModel], bundle: Bundle, of_each: int = 2) -> list[dict]:
    """At most `of_each` artifacts of a kind, each with its chunks of the bundle; none: left out."""
    known = {chunk.chunk_id for chunk in bundle.chunks}
    kept, seen = [], Counter()
    for artifact in found:
        own = [chunk_id for chunk_id in artifact.chunk_ids if chunk_id in known]
        if own and seen[artifact.kind] < of_each:
            seen[artifact.kind] += 1
            kept.append({**artifact.model_dump(), "chunk_ids": own})
    return kept


def check_quotas(
    query_types: Mapping, reasoning: Sequence[str], hops: Mapping, complexity: Mapping, across: float
) -> None:
    """Raises CourseError for quotas that no answer can keep; the shape of a question has 1 to 3 hops."""
    for name, wanted in {"QUERY_TYPES": query_types, "HOPS": hops, "COMPLEXITY": complexity}.items():
        expect(isinstance(wanted, Mapping), f"{name} = {wanted!r}: give {{value: number of questions}}.")
    expect(query_types, "QUERY_TYPES is empty: name a kind of question, like {'contextual': 2}.")
    expect(reasoning, "REASONING is empty: name a kind of reasoning, like ['factual'].")
    able = "multi_hop" in query_types or not across
    expect(able, "ACROSS asks for multi_hop questions: add 'multi_hop' to QUERY_TYPES, or set ACROSS = 0.")
    ranges = {"HOPS": (hops, 1, 3), "COMPLEXITY": (complexity, 2, 5)}
    for name, (wanted, least, most) in ranges.items():
        for value in wanted:
            fits = str(value) in map(str, range(least, most + 1))
            expect(fits, f"{name}: no question can have {value!r}. Give {least} to {most}.")
    for name, wanted in {"QUERY_TYPES": query_types, "HOPS": hops, "COMPLEXITY": complexity}.items():
        for value, n in wanted.items():
            fits = isinstance(n, int) and n >= 0
            expect(fits, f"{name}: {n!r} of {value!r} is no number of questions. Give a whole number.")


def attainable(lacking: Mapping[str, Mapping], bundle: Bundle) -> dict[str, dict]:
    """What is worth asking for again: a single passage hardly has a question of several hops."""
    if len(bundle.chunks) > 1:
        return dict(lacking)
    hard = {"query_type": {"multi_hop"}, "hops": {"2", "3"}}
    kept = {name: {value: n for value, n in short.items() if str(value) not in hard.get(name, ())}
            for name, short in lacking.items()}  # fmt: skip
    return {name: short for name, short in kept.items() if short}


def missing(quotas: Mapping[str, Mapping], rows: Sequence[Mapping]) -> dict[str, dict]:
    """What the rows lack: {"query_type": {"multi_hop": 1}} for quotas of the same form; {} if nothing."""
    lacking = {}
    for name, wanted in quotas.items():
        counts = Counter(str(row[name]) for row in rows)
        short = {value: n - counts[str(value)] for value, n in wanted.items() if n > counts[str(value)]}
        if short:
            lacking[name] = short
    return lacking


def in_words(lacking: Mapping[str, Mapping]) -> str:
    """Quotas for a prompt: how many questions they need, and a line for each quota."""
    total = max(sum(short.values()) for short in lacking.values())
    lines = [
        f"- {name}: {', '.join(f'{n} of {value}' for value, n in short.items())}"
        for name, short in lacking.items()
    ]
    return "\n".join([f"{total} question(s), among them at least", *lines])


# ---------------------------------------------------------------- evidence


def to_row(question: BaseModel, bundle: Bundle, generator: str) -> dict:
    """A question as a row for `questions`: evidence and chunk ids found, and in `fault` what is wrong."""
    row = question.model_dump()
    texts = {chunk.chunk_id: chunk for chunk in bundle.chunks}
    hops = row["hops"]
    own = list(dict.fromkeys(hop["chunk_id"] for hop in hops if hop["chunk_id"] in texts))
    evidence = [
        Evidence(doc_id=texts[hop["chunk_id"]].doc_id, quote=hop["quote"]).model_dump()
        for hop in hops
        if hop["chunk_id"] in texts
    ]
    first = texts[own[0]].doc_id if own else bundle.documents[0]
    return row | {
        "hops": len(hops), "chunk_ids": own, "evidence": evidence, "doc_id": first, "generator": generator,
        "bundle": bundle.key, "fault": ungrounded(hops, bundle) or _one_hop(row) or foreign(row, bundle),
    }  # fmt: skip


def ungrounded(hops: Sequence[Mapping], bundle: Bundle) -> str:
    """Why the evidence does not hold, or "": a quote of some words for each hop, each found in the text of
    the passage it names (the title is none), and no two in the same place."""
    texts = {chunk.chunk_id: chunk for chunk in bundle.chunks}
    for number, hop in enumerate(hops, start=1):
        if hop["chunk_id"] not in texts:
            return f"ungrounded: hop {number} names {hop['chunk_id']!r}, which was not shown"
        if word_count(plain(hop["quote"])) < QUOTE:
            return f"ungrounded: {hop['quote'][:80]!r} has fewer than {QUOTE} words"
        if not holds(texts[hop["chunk_id"]].text, hop["quote"]):
            return f"ungrounded: {hop['quote'][:80]!r} is not in {hop['chunk_id']}"
    for one, other in itertools.combinations(hops, 2):
        here, there = (texts[hop["chunk_id"]] for hop in (one, other))
        if here.doc_id == there.doc_id and plain(one["quote"]) == plain(other["quote"]):
            return "ungrounded: two hops quote the same"
        if here is there and not _apart(here.text, one["quote"], other["quote"]):
            return "ungrounded: two quotes overlap"
    if bundle.about and len({texts[hop["chunk_id"]].doc_id for hop in hops}) < 2:
        return "ungrounded: one of the two documents is enough"
    return ""


def _apart(text: str, one: str, other: str) -> bool:
    """Whether both quotes can be found in a text without sharing a word."""
    ends = [(match.span(), again.span()) for match in found(text, one) for again in found(text, other)]
    return any(a[1] <= b[0] or b[1] <= a[0] for a, b in ends)


def _one_hop(row: Mapping) -> str:
    too_few = row.get("query_type") == "multi_hop" and len(row["hops"]) < 2
    return "ungrounded: a multi_hop question with one quote" if too_few else ""


def foreign(row: Mapping, bundle: Bundle) -> str:
    """Why the question is in another language than its passages, or "" (also where it cannot be told)."""
    asked = language(f"{row['question']} {row['answer']}")
    spoken = language(" ".join(chunk.text for chunk in bundle.chunks))
    return f"language: {asked}, not {spoken}" if "und" not in (asked, spoken) and asked != spoken else ""


def holds(text: str, quote: str) -> bool:
    """Whether a text contains a quote, whole words, white space and Markdown apart."""
    return bool(found(text, quote))


def found(text: str, quote: str) -> list[re.Match]:
    """Where a quote stands in `plain(text)`."""
    wanted = plain(quote).strip(" .,;:!?\"'")
    if not wanted:
        return []
    start = "" if WITHOUT_SPACES.match(wanted) else r"(?<!\w)"  # there no space ends a word
    end = "" if WITHOUT_SPACES.match(wanted[-1]) else r"(?!\w)"
    return [*re.finditer(start + re.escape(wanted) + end, plain(text))]


def plain(text: str) -> str:
    """A text in small letters without markup: links are their words, table cells stand side by side."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text.translate(DASHES))
    text = re.sub(r"</?[a-zA-Z][^<>]*>|[|#>\\]", " ", text)
    text = re.sub(r"^[ \t]*(?:[-+]|\d+[.)])[ \t]+|:?-{3,}:?", " ", text, flags=re.M)
    return re.sub(r"\s+", " ", re.sub(r"[*_`]", "", text)).strip().casefold()
