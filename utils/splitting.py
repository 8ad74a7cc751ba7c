"""The split: which documents belong together, and which of train, val and test they go to."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from utils.duplicates import set_numbers
from utils.inputs import is_literal
from utils.records import FREE, Chunk, QAPair
from utils.run import expect


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
    form a group. Passages repeated in more than a tenth of the documents (and in more than five) are
    boilerplate and tie nothing, except documents that consist of such passages by more than half: versions of
    one text. If the largest group holds more than `most` of the questions, multi-hop questions no longer tie,
    and are dropped where they cross a border; if that fails too, or documents are so few that holding out
    two takes half as much again as it should, groups are made of passages instead of documents (with and
    without multi-hop ties). The step taken is told in `fallback`.
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
    needed = [{groups[c] for c in pair.chunk_ids} for pair in judges]
    together = all(len(own) == 1 for own in needed)
    of_group = _allot(sizes, shares, seed) if together else _grow(needed, shares, seed)
    passages = {chunk_id: of_group.get(group, "train") for chunk_id, group in groups.items()}
    return Split(passages, len(set(groups.values())), largest, unit, told)


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
    boilerplate = [nodes for nodes in copies.values() if len(set(nodes)) > common]
    length, repeated = Counter(home.values()), Counter(n for nodes in boilerplate for n in nodes)
    versions = {n for n in repeated if repeated[n] > length[n] / 2}
    sets = [nodes for nodes in copies.values() if len(set(nodes)) <= common]
    sets += [[n for n in nodes if n in versions] for nodes in boilerplate]
    sets += [[home[c] for c in pair.chunk_ids] for pair in pairs] if multi_hop else []
    if unit == "passage":  # neighbours that share a part of their text
        for one, other in itertools.pairwise(chunks):
            if one.doc_id == other.doc_id and one.start < other.end and other.start < one.end:
                sets.append([home[one.chunk_id], home[other.chunk_id]])
    tied = DisjointSet(range(len(node)))
    for nodes in sets:
        for other in nodes:
            tied.merge(nodes[0], other)
    labels = set_numbers(tied, range(len(node)))
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


def _grow(needed: list[set[int]], shares: dict[str, float], seed: int) -> dict[int, str]:
    """The same where questions need several groups: a split grows along them, so that some lie inside.

    needed: the groups of each question. A split takes, again and again, the group that completes most of the
    questions which it has a part of; one that leads nowhere new is followed by a group at random.
    """
    touching: dict[int, list[int]] = defaultdict(list)  # group → its questions
    for question, own in enumerate(needed):
        for group in own:
            touching[group].append(question)
    order = np.random.default_rng(seed).permutation(sorted(touching)).tolist()
    of_group: dict[int, str] = {}
    for split in ("test", "val"):
        missing, whole = [len(own) for own in needed], 0
        reached: Counter = Counter()  # free group → questions that lack it alone
        while whole < max(1, shares[split] * len(needed)):
            if len(of_group) >= len(order) - 1:
                break
            free = next(group for group in order if group not in of_group)
            group = max((g for g in reached if g not in of_group), key=reached.get, default=free)
            of_group[group] = split
            for question in touching[group]:
                missing[question] -= 1
                whole += missing[question] == 0
                if missing[question] == 1:
                    reached.update(needed[question] - {g for g, s in of_group.items() if s == split})
    return of_group
