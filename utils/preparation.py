"""Between questions and mining: repeats, what the split lets train, what crosses it, the leak audit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.beir_files import write_corpus, write_qrels, write_queries
from utils.duplicates import near_duplicates, normalised, same_codes
from utils.inputs import is_literal
from utils.records import FREE, Chunk, QAPair, TrainingRow
from utils.retrieval import nearest
from utils.splitting import Split
from utils.splitting import split_groups as split_groups

SPLITS = ("train", "val", "test")


def repeats(
    questions: Sequence[str],
    others: Sequence[str],
    vectors_of: dict[str, np.ndarray],
    cosine: float = 0.95,
) -> dict[int, int]:
    """Which questions repeat or nearly repeat one of `others`: {row of the question: row of the other}.

    By text (`near_duplicates`) or by the cosine of their vectors, {text: (d,)}; never if a number or a code
    differs.
    """
    if not len(questions) or not len(others):
        return {}
    vectors, other_vectors = (np.stack([vectors_of[t] for t in texts]) for texts in (questions, others))
    labels = near_duplicates([*others, *questions], unit="char")
    known = {label: j for j, label in enumerate(labels[: len(others)])}
    found = {i: known[label] for i, label in enumerate(labels[len(others) :]) if label in known}
    scores, rows = nearest(vectors, other_vectors, 3)
    for i, j in zip(*np.nonzero(scores >= cosine), strict=True):
        other = int(rows[i, j])
        if same_codes(questions[i], others[other]):
            found.setdefault(int(i), other)
    return found


# ---------------------------------------------------------------- what the split leaves


def copies(chunk_ids: Sequence[str], clusters: np.ndarray) -> dict[str, set[str]]:
    """{chunk id: ids of the passages that are equal or nearly equal, its own among them; empty if alone}."""
    members: dict[int, set[str]] = defaultdict(set)
    for chunk_id, cluster in zip(chunk_ids, clusters.tolist(), strict=True):
        members[cluster].add(chunk_id)
    alone: set[str] = set()
    shared = {cluster: own if len(own) > 1 else alone for cluster, own in members.items()}
    return {i: shared[cluster] for i, cluster in zip(chunk_ids, clusters.tolist(), strict=True)}


def usable(passages: dict[str, Chunk], split: Split, twins: dict[str, set[str]]) -> dict[str, Chunk]:
    """The passages that training may use: of training groups, and not nearly equal to a held-out one."""
    ok = {i for i in passages if all(split.passages[j] == "train" for j in (i, *twins[i]))}
    return {i: passage for i, passage in passages.items() if i in ok}


def assign(
    pairs: Sequence[QAPair], split: Split, allowed: dict[str, Chunk], twins: dict[str, set[str]]
) -> tuple[dict[str, list[QAPair]], Counter]:
    """({split: questions}, {reason: questions dropped}).

    allowed: the passages that training may use. twins: {id: ids of equal or near-equal passages}.
    """
    placed: dict[str, list[QAPair]] = {name: [] for name in SPLITS}
    dropped: Counter = Counter()
    for pair in pairs:
        homes = {split.passages[c] for c in pair.chunk_ids}
        if len(homes) > 1:
            dropped["its passages lie in two splits"] += 1
        elif homes == {"train"} and not all(c in allowed for c in pair.chunk_ids):
            dropped["its passage has a twin held out"] += 1
        elif homes == {"val"} and any(split.passages[t] == "test" for c in pair.chunk_ids for t in twins[c]):
            dropped["val: its passage has a twin in test"] += 1
        elif homes != {"train"} and is_literal(pair):
            dropped["its literal passage is held out"] += 1
        else:
            placed[homes.pop()].append(pair)
    for name in ("val", "test"):
        judges = [pair for pair in placed[name] if pair.generator not in FREE]
        if judges:
            dropped[f"{name}: a free question, too easy to test with"] += len(placed[name]) - len(judges)
            placed[name] = judges
    return placed, dropped


def draw(pairs: Sequence[QAPair], most: int, seed: int) -> list[QAPair]:
    """At most `most` questions, the free ones last to be drawn; in the order that they had."""
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    order.sort(key=lambda i: pairs[i].generator in FREE)
    return [pairs[i] for i in sorted(order[:most])]


def count(questions: dict[str, list[QAPair]], split: Split, passages: dict[str, Chunk]) -> dict[str, dict]:
    """Documents, passages and questions of every split."""
    table = {}
    for name, own in questions.items():
        ids = [i for i, home in split.passages.items() if home == name]
        documents = len({passages[i].doc_id for i in ids})
        table[name] = {"documents": documents, "passages": len(ids), "questions": len(own)}
    return table


def write_beir(folder: Path, corpus: dict[str, dict], questions: dict[str, list[QAPair]]) -> None:
    """The BEIR folder of a run: the whole corpus, all questions, one qrels file a split."""
    pairs = [pair for own in questions.values() for pair in own]
    kept = ("query_type", "reasoning_type", "hops", "complexity", "generator", "doc_id")
    write_corpus(folder / "corpus.jsonl", corpus)
    write_queries(
        folder / "queries.jsonl",
        {pair.question_id: pair.question for pair in pairs},
        {pair.question_id: {name: getattr(pair, name) for name in kept} for pair in pairs},
    )
    for name, own in questions.items():
        qrels = {p.question_id: {c: 1 for c in p.chunk_ids if c in corpus} for p in own}
        write_qrels(folder / "qrels" / f"{name}.tsv", qrels)


# ---------------------------------------------------------------- audit


def audit(
    rows: Sequence[TrainingRow],
    held_out_pairs: dict[str, list[QAPair]],
    human_questions: Sequence[str],
    split: dict[str, str],
    passages: dict[str, Chunk],
) -> dict[str, int]:
    """Leaks found in what is about to be written; every figure must be 0.

    rows: training rows. held_out_pairs: {"val": […], "test": […]}. split: {passage id: split}. It looks at
    the texts again, with nothing taken over from the split's own making.
    """
    sets = {"train": list(dict.fromkeys(row.query for row in rows))}
    sets |= {name: [pair.question for pair in own] for name, own in held_out_pairs.items()}
    judged = {n: list({c for pair in own for c in pair.chunk_ids}) for n, own in held_out_pairs.items()}
    answers = near_duplicates([passages[c].text for c in [*judged["val"], *judged["test"]]])
    sides = [(name, text) for name, texts in sets.items() for text in texts]
    held_out = {i: passages[i].text for i, name in split.items() if name != "train"}
    used = {i for row in rows for i in row.negative_ids}
    used_positive = {row.positive_id for row in rows}
    in_training = [passages[i].text for i in used | used_positive]
    labels = near_duplicates([*held_out.values(), *in_training])
    near = near_duplicates([text for _, text in sides], unit="char")
    human = near_duplicates([*human_questions, *sets["train"]], unit="char")
    return {
        "question_in_two_splits": _shared((name, normalised(text)) for name, text in sides),
        "near_equal_question_in_two_splits": _shared(
            (name, label) for (name, _), label in zip(sides, near, strict=True)
        ),
        "training_positive_from_held_out_group": len(held_out.keys() & used_positive),
        "training_negative_from_held_out_group": len(held_out.keys() & used),
        "near_copy_of_held_out_passage_in_training": _common(labels, len(held_out)),
        "near_equal_passage_asked_about_in_val_and_test": _common(answers, len(judged["val"])),
        "human_test_question_in_training": _common(human, len(human_questions)),
    }


def _common(labels: np.ndarray, border: int) -> int:
    """How many clusters have members on both sides of `border`."""
    return len(set(labels[:border].tolist()) & set(labels[border:].tolist()))


def _shared(sides: Iterable[tuple[str, object]]) -> int:
    """How many keys occur under more than one name."""
    names = defaultdict(set)
    for name, key in sides:
        names[key].add(name)
    return sum(len(found) > 1 for found in names.values())
