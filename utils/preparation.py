"""Between questions and mining: groups that belong together, the split, what crosses it, the leak audit."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.beir_files import write_corpus, write_qrels, write_queries
from utils.duplicates import connected, near_duplicates, normalised, same_codes
from utils.inputs import is_literal
from utils.records import FREE, Chunk, QAPair, TrainingRow
from utils.retrieval import nearest
from utils.run import expect

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


# ---------------------------------------------------------------- groups and split


@dataclass
class Split:
    """Which passage is in which split, and how the groups came about."""

    passages: dict[str, str] = field(default_factory=dict)  # chunk id → train, val, test
    groups: int = 0
    largest: float = 0.0  # share of all questions in the largest group
    unit: str = "document"
    fallback: str = ""


def split_groups(
    chunks: Sequence[Chunk],
    pairs: Sequence[QAPair],
    clusters: np.ndarray,
    shares: dict[str, float],
    seed: int,
    most: float = 0.5,
) -> Split:
    """Allot whole groups of documents to train, val and test, by the share of the questions.

    Documents tied by near-equal passages (`clusters`, one number a chunk) or by a question that needs both
    form a group. Passages repeated in more than a tenth of the documents (and in more than five) tie nothing.
    If the largest group holds more than `most` of the questions, multi-hop questions no longer tie, and are
    dropped where they cross a border; if that fails too, or documents are so few that holding out two takes
    half as much again as it should, groups are made of passages instead of documents (with and without
    multi-hop ties). The step taken is told in `fallback`.
    Questions with literal positives are never held out; free ones only where there is nothing else.
    """
    own = [pair for pair in pairs if not is_literal(pair)]
    expect(
        own,
        f"Of {len(pairs)} questions, none names passages of the corpus alone: literal positives train, but "
        f"cannot be held out, so nothing is left to validate and test with. Give chunk_ids for at least some "
        f"dozens of questions in QA_PAIRS, or put the texts into CORPUS (a BEIR corpus.jsonl) and "
        f"name their ids.",
    )
    judges = [pair for pair in own if pair.generator not in FREE] or own
    untied = "multi-hop questions tie nothing, and are dropped where they cross a border"
    steps = (
        ("document", True, ""),
        ("document", False, untied),
        ("passage", True, "groups are made of passages instead of documents"),
        ("passage", False, f"groups are made of passages instead of documents, and {untied}"),
    )
    for unit, multi_hop, told in steps:  # noqa: B007
        groups = _groups(chunks, pairs, clusters, unit, multi_hop)
        sizes = Counter(groups[pair.chunk_ids[0]] for pair in judges)
        largest = max(sizes.values(), default=0) / max(1, len(judges))
        least = sum(sorted(sizes.values())[:2]) / max(1, len(judges))
        few = unit == "document" and len(judges) >= 20 and least > 1.5 * sum(shares.values())
        if largest <= most and len(sizes) >= 3 and not few:
            break
    expect(
        len(sizes) >= 3,
        f"{len(judges)} questions fall into {len(sizes)} separate group(s) of passages; train, val and test "
        f"need at least 3. Bring more passages or more questions; passages that overlap (CHUNK_OVERLAP) are "
        f"kept together.",
    )
    of_group = _allot(sizes, shares, seed)
    passages = {chunk_id: of_group.get(group, "train") for chunk_id, group in groups.items()}
    return Split(passages, len(set(groups.values())), largest, unit, told)


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


def _groups(
    chunks: Sequence[Chunk], pairs: Sequence[QAPair], clusters: np.ndarray, unit: str, multi_hop: bool
) -> dict[str, int]:
    names = [chunk.doc_id if unit == "document" else chunk.chunk_id for chunk in chunks]
    node = {name: i for i, name in enumerate(dict.fromkeys(names))}
    home = {chunk.chunk_id: node[name] for chunk, name in zip(chunks, names, strict=True)}
    copies: dict[int, list[int]] = defaultdict(list)
    for chunk, cluster in zip(chunks, clusters, strict=True):
        copies[int(cluster)].append(home[chunk.chunk_id])
    common = max(5, len(node) / 10) if unit == "document" else len(node)
    sets = [nodes for nodes in copies.values() if len(set(nodes)) <= common]
    sets += [[home[c] for c in pair.chunk_ids] for pair in pairs] if multi_hop else []
    if unit == "passage":  # neighbours that share a part of their text
        for one, other in itertools.pairwise(chunks):
            if one.doc_id == other.doc_id and one.start < other.end and other.start < one.end:
                sets.append([home[one.chunk_id], home[other.chunk_id]])
    labels = connected(len(node), [(nodes[0], other) for nodes in sets for other in nodes])
    return {chunk_id: int(labels[i]) for chunk_id, i in home.items()}


def _allot(sizes: Counter, shares: dict[str, float], seed: int) -> dict[int, str]:
    """Groups in random order; each held-out split takes what fits, and at least one group."""
    total, filled, of_group = sum(sizes.values()), Counter(), {}
    order = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    for split in ("test", "val"):
        target = shares[split] * total
        free = [g for g in order if g not in of_group]
        for group in [g for g in free if sizes[g] <= max(1, target)] or [min(free, key=sizes.get)]:
            if filled[split] == 0 or filled[split] + sizes[group] <= target:
                of_group[group] = split
                filled[split] += sizes[group]
    return of_group


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
