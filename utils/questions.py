"""Questions: free ones from structure, the writer's candidates, what is measured on each, rules and funnel.

Candidates travel as a DataFrame, one row each: question, chunk_ids, doc_id, generator, and what was measured.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from utils.duplicates import normalised, same_codes
from utils.records import WITHOUT_SPACES, Chunk, passage_text, word_count
from utils.replies import Answer
from utils.retrieval import encode, nearest
from utils.run import expect

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COLUMNS = ["question", "chunk_ids", "doc_id", "generator", "style", "token_ids", "log_with", "n_tokens"]
CODE = re.compile(r"(?=.*\d)(?=.*[^\W\d_]).{4}")  # letters and digits, four characters at least
COUNTED = re.compile(r"\d[\d.,/]*(-?[a-z]{2,}(-[a-z]+)*|s)")  # 30-day, 100mg, 1990s: no codes
READ = 180  # words of a passage that a model of 256 tokens reads, about
END_OF_TEXT = 2  # SmolLM2's token for it; a grammar must not name it
Rules = Mapping[str, Callable[[pd.DataFrame], "pd.Series[bool]"]]


# ---------------------------------------------------------------- free questions


def heading_questions(chunks: Sequence[Chunk], min_words: int = 2, max_documents: int = 2) -> pd.DataFrame:
    """Headings and titles as questions for the text below them; a column `dropped` says why one goes.

    A heading that repeats in more than `max_documents` documents, or has a single word ("Article 12"), is too
    generic alone: its document's title is put in front. The question's passage is the first chunk of its
    section; where it stands above several sections, at most `max_documents`, it is kept once, with all.
    """
    first: dict[tuple[str, str], Chunk] = {}
    for piece in chunks:
        first.setdefault((piece.doc_id, piece.title), piece)
    heads = [(piece, piece.title.split(" > ")) for piece in first.values() if piece.title.strip()]
    spread = Counter(normalised(path[-1]) for _, path in heads)
    titles = Counter(normalised(path[0]) for path in {p.doc_id: path for p, path in heads}.values())
    rows = []
    for piece, path in heads:
        generic = spread[normalised(path[-1])] > max_documents or _telling(path[-1]) < min_words
        question = f"{path[0]}: {path[-1]}" if generic and len(path) > 1 else path[-1]
        dropped = ""
        if _telling(question) < min_words:
            dropped = "too short"
        elif generic and titles[normalised(path[0])] > max_documents:
            dropped = "generic"
        elif word_count(piece.text) < 8:
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
    read = {c.chunk_id: " ".join(c.text.split()[:READ]) for c in chunks}
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


# ---------------------------------------------------------------- passages and prompts


def sample_passages(chunks: Sequence[Chunk], n: int, seed: int, min_words: int = 12) -> list[Chunk]:
    """At most n passages, spread over the documents: one of each in turn, in random order within it."""
    rng = random.Random(seed)
    piles = defaultdict(list)
    for piece in chunks:
        if word_count(piece.text) >= min_words:
            piles[piece.doc_id].append(piece)
    order = sorted(piles)
    rng.shuffle(order)
    for pile in piles.values():
        rng.shuffle(pile)
    chosen = []
    while len(chosen) < n and any(piles.values()):
        chosen += [piles[doc].pop() for doc in order if piles[doc]]
    return chosen[:n]


def cut(piece: Chunk, words: int = 110, characters: int = 1200) -> str:
    """A passage as the writer reads it: heading path first, cut after `words` words, or a third of the
    characters where words have no spaces between them and a character has more tokens."""
    characters = characters // 3 if WITHOUT_SPACES.search(passage_text(piece)) else characters
    return " ".join(passage_text(piece).split()[:words])[:characters]


# ---------------------------------------------------------------- candidates


def candidates(asked: Sequence[tuple[Chunk, str]], answers: Sequence[Answer], generator: str) -> pd.DataFrame:
    """One row per distinct candidate. log_with: ln p(question | passage); token_ids: how it was written."""
    rows = []
    for (piece, style), answer in zip(asked, answers, strict=True):
        for text, tokens in zip(answer.texts, answer.tokens, strict=True):
            if not tidy(text):  # nothing was written: no candidate
                continue
            ids = [token for token, _ in tokens if token != END_OF_TEXT]
            log = sum(p for _, p in tokens[: len(ids)]) if ids else np.nan
            rows.append((tidy(text), [piece.chunk_id], piece.doc_id, generator, style, ids, log, len(ids)))
    table = pd.DataFrame(rows, columns=COLUMNS)
    again = [
        (chunk_ids[0], normalised(q)) for chunk_ids, q in zip(table.chunk_ids, table.question, strict=True)
    ]
    return table[~pd.Series(again, dtype=object).duplicated()].reset_index(drop=True)


def tidy(text: str) -> str:
    """A completion as a question: its first line, without quotes, numbering or doubled spaces."""
    line = next((part for part in text.strip().split("\n") if part.strip()), "")
    line = re.sub(r"^\s*(?:\d+[.)]|[-*•]|Q\d*:|Question:)\s+", "", line)
    return re.sub(r"\s+", " ", line).strip().strip("\"“”'`").strip()


def replay(token_ids: Sequence[int], prompt: str) -> dict:
    """The body of a request that makes a llama.cpp server write exactly these tokens after `prompt`; the
    log-probabilities that it returns are then those of the given text."""
    grammar = "root ::= " + " ".join(f"<[{token}]>" for token in token_ids)
    body = {"prompt": prompt, "max_tokens": len(token_ids), "temperature": 0, "logprobs": 1}
    return body | {"extra_body": {"grammar": grammar}}


# ---------------------------------------------------------------- what is measured on a candidate


def measure(
    table: pd.DataFrame,
    chunks: Sequence[Chunk],
    pool: Sequence[Chunk],
    model: SentenceTransformer,
    cache: Path | None = None,
) -> pd.DataFrame:
    """The table with what the base model and the words say of each candidate.

    round_trip_rank: rank of its own passage when the base model searches for the question in `pool` and the
    questions' own passages (1: first; of several the best one's). rivals: other passages that score at least
    0.97 of it. shared_run: longest run of words copied from the passage. overlap: share of its words that
    are in the passage. words. gain: 0 where nobody measured it.
    """
    wanted = {c for ids in table.chunk_ids for c in ids} | {piece.chunk_id for piece in pool}
    texts = {piece.chunk_id: passage_text(piece) for piece in chunks if piece.chunk_id in wanted}
    at = {chunk_id: i for i, chunk_id in enumerate(texts)}
    passages = encode(model, [*texts.values()], "passage", cache=cache, progress="passages")  # (n, d)
    queries = encode(model, list(table.question), "query", cache=cache)  # (m, d)
    rows = []
    for query, question, ids in zip(queries, table.question, table.chunk_ids, strict=True):
        own = [at[c] for c in ids]
        if not own:  # a faulty answer that belongs to no passage
            rows.append((None, 0, 0, 0.0, word_count(question)))
            continue
        scores = passages @ query  # (n,)
        best = scores[own].max()
        others = np.delete(scores, own)
        run, overlap = _copied(question, [texts[c] for c in ids])
        rank, rivals = (others > best).sum() + 1, (others >= 0.97 * best).sum()
        rows.append((int(rank), int(rivals), run, overlap, word_count(question)))
    names = ["round_trip_rank", "rivals", "shared_run", "overlap", "words"]
    measured = pd.DataFrame(rows, columns=names, index=table.index)
    measured["round_trip_rank"] = measured.round_trip_rank.astype("Int64")
    return pd.concat([table.drop(columns=names, errors="ignore"), measured], axis=1).assign(
        gain=table.get("gain", 0.0)
    )


def _copied(question: str, passages: Sequence[str]) -> tuple[int, float]:
    words = normalised(question).split()
    known = normalised(" ".join(passages)).split()
    run = SequenceMatcher(None, words, known, autojunk=False).find_longest_match().size
    return run, sum(word in set(known) for word in words) / max(len(words), 1)


def duplicates(table: pd.DataFrame, model: SentenceTransformer, cosine: float, cache: Path | None = None):
    """Whether an earlier row asks the same (bool Series): cosine of the questions at least `cosine` under
    the base model, and no differing number or code. Within and across documents; put better rows first."""
    if table.empty:
        return pd.Series(False, index=table.index)
    vectors = encode(model, list(table.question), "query", cache=cache)
    scores, near = nearest(vectors, vectors, min(20, len(table)))
    gone = np.zeros(len(table), dtype=bool)
    asked = list(table.question)
    for i in range(len(table)):
        earlier = near[i][(scores[i] >= cosine) & (near[i] < i)]
        if near.shape[1] < len(table) and scores[i, -1] >= cosine:  # more near ones than were looked up
            earlier = np.flatnonzero(vectors[:i] @ vectors[i] >= cosine)
        gone[i] = any(not gone[j] and same_codes(asked[i], asked[j]) for j in earlier)
    return pd.Series(gone, index=table.index)


# ---------------------------------------------------------------- rules and funnel


def sift(table: pd.DataFrame, rules: Rules) -> pd.DataFrame:
    """The table with a column `reason`: the name of the first rule that a candidate breaks, or ''.

    A rule sees in `reason` what the rules before it have dropped, and may answer for the other rows alone.
    """
    out = table.assign(reason="")
    for name, broken in rules.items():
        open_rows = out.reason == ""
        found = broken(out).reindex(out.index).fillna(False).astype(bool)
        out.loc[open_rows & found, "reason"] = name
    return out


def funnel(table: pd.DataFrame, rules: Rules, examples: int = 2) -> pd.DataFrame:
    """Counts in, dropped and left after each rule, with examples of what it dropped."""
    rows, left = [], len(table)
    for name in rules:
        gone = table[table.reason == name]
        shown = " | ".join(gone.question.head(examples))
        rows.append((name, left, len(gone), left - len(gone), shown))
        left -= len(gone)
    return pd.DataFrame(rows, columns=["rule", "in", "dropped", "left", "dropped, for example"])
