"""Questions: the writer's candidates, what is measured on each, rules and funnel.

Candidates travel as a DataFrame, one row each: question, chunk_ids, doc_id, generator, and what was measured.
"""

from __future__ import annotations

import bisect
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from utils.duplicates import normalised, same_codes
from utils.records import Chunk, passage_text, word_count
from utils.replies import Answer
from utils.retrieval import encode, nearest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

COLUMNS = ["question", "chunk_ids", "doc_id", "generator", "style", "token_ids", "log_with", "n_tokens"]
CODED = re.compile(r"(?=[\w./-]*\d)\w(?:[\w./-]*\w)?")  # a word with a digit: 35, WI-T104, 66kV
END_OF_TEXT = 2  # SmolLM2's token for it; a grammar must not name it
Rules = Mapping[str, Callable[[pd.DataFrame], "pd.Series[bool]"]]


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


def cut(piece: Chunk, words: int = 110, room: float = 1200) -> str:
    """A passage as the writer reads it: heading path first, cut after `words` words or where `room` ends.

    A character that is not ASCII takes 3.6 of it, for the small writer has up to three tokens for one.
    """
    text = " ".join(passage_text(piece).split()[:words])
    used = list(itertools.accumulate(1.0 if character.isascii() else 3.6 for character in text))
    return text[: bisect.bisect_right(used, room)]


# ---------------------------------------------------------------- candidates


def candidates(asked: Sequence[tuple[Chunk, str]], answers: Sequence[Answer], generator: str) -> pd.DataFrame:
    """One row per distinct candidate. log_with: ln p(question | passage); token_ids: how it was written.

    A line that `max_tokens` cut off is half a question, and no candidate.
    """
    rows = []
    for (piece, style), answer in zip(asked, answers, strict=True):
        finish = answer.finish or [""] * len(answer.texts)
        for text, tokens, end in zip(answer.texts, answer.tokens, finish, strict=True):
            if not tidy(text) or (end == "length" and "\n" not in text.lstrip()):  # nothing whole was written
                continue
            ids = [token for token, _ in tokens if token != END_OF_TEXT]
            log = sum(p for _, p in tokens[: len(ids)]) if ids else np.nan
            rows.append((tidy(text), [piece.chunk_id], piece.doc_id, generator, style, ids, log, len(ids)))
    table = pd.DataFrame(rows, columns=COLUMNS)
    again = [
        (chunk_ids[0], normalised(q)) for chunk_ids, q in zip(table.chunk_ids, table.question, strict=True)
    ]
    table = table[~pd.Series(again, dtype=object).duplicated()]
    if generator != "embedded":  # no gain will order these, so the styles of a passage take turns
        passage = table.chunk_ids.str[0]
        turn = table.groupby([passage, "style"], sort=False).cumcount()
        table = table.iloc[np.lexsort((turn, pd.factorize(passage)[0]))]
    return table.reset_index(drop=True)


def unanswered(asked: Sequence[tuple[Chunk, str]], answers: Sequence[Answer]) -> list[dict]:
    """A row for the rejected questions for every request that got no answer, with the reason."""
    return [
        {
            "question": "",
            "chunk_ids": [piece.chunk_id],
            "doc_id": piece.doc_id,
            "reason": f"{style}: {answer.error}",
        }
        for (piece, style), answer in zip(asked, answers, strict=True)
        if answer.error
    ]


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
    are in the passage. foreign_code: whether it has a number or code whose characters are nowhere in the
    passage together, spaces and signs apart (5 is in 15, too). words. gain: 0 where nobody measures it; NaN,
    which is told, where it had to be left. above_style: the gain beyond the median of its style (of all,
    where there are no styles).
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
            rows.append((None, 0, 0, 0.0, False, word_count(question)))
            continue
        scores = passages @ query  # (n,)
        best = scores[own].max()
        others = np.delete(scores, own)
        run, overlap, foreign = _copied(question, [texts[c] for c in ids])
        rank, rivals = (others > best).sum() + 1, (others >= 0.97 * best).sum()
        rows.append((int(rank), int(rivals), run, overlap, foreign, word_count(question)))
    names = ["round_trip_rank", "rivals", "shared_run", "overlap", "foreign_code", "words"]
    measured = pd.DataFrame(rows, columns=names, index=table.index)
    measured["round_trip_rank"] = measured.round_trip_rank.astype("Int64")
    table = table.assign(gain=table.get("gain", 0.0)).drop(columns=names, errors="ignore")
    middle = table.groupby(table.get("style", lambda _: ""), dropna=False).gain.transform("median")
    table["above_style"] = table.gain - middle
    if unknown := int(table.gain.isna().sum()):
        print(
            f"{unknown} candidates have no gain (a limit came first, or the server cannot replay them: a "
            f"character of theirs is several tokens). They go last, none is dropped by it."
        )
    return pd.concat([table, measured], axis=1)


def _copied(question: str, passages: Sequence[str]) -> tuple[int, float, bool]:
    words = normalised(question).split()
    known = normalised(" ".join(passages)).split()
    run = SequenceMatcher(None, words, known, autojunk=False).find_longest_match().size
    overlap = sum(word in set(known) for word in words) / max(len(words), 1)
    joined = "".join(known)  # "66kV" is also named by "66 kV"
    foreign = any(normalised(code).replace(" ", "") not in joined for code in CODED.findall(question))
    return run, overlap, foreign


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
