"""Test sets, metrics of a run, and the files that hold them; `compare` comes from `utils.significance`.

A run is {query_id: {passage_id: score}}, qrels are {query_id: {passage_id: grade}}.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from utils.beir_files import Collection, Qrels, read_beir
from utils.duplicates import near_duplicates
from utils.records import Chunk, Evidence, locate, passage_text, read_jsonl, read_rows
from utils.retrieval import Run, encode, nearest
from utils.run import ROOT, STAGES, expect, read_manifest, runs_dir, write_text
from utils.significance import compare as compare

CUTOFFS = (1, 5, 10, 60, 100)
METRICS = [f"{name}@{k}" for name in ("nDCG", "Recall", "MAP", "Precision") for k in CUTOFFS] + ["MRR@10"]

# ---------------------------------------------------------------- test sets


def load_general(split: str = "test") -> Collection:
    """Everyday questions over their own passages: shows what the model forgot. `split`: dev or test."""
    return read_beir(ROOT / "data" / "general", split)


def load_gold(chunks: Iterable[Chunk], split: str = "test", folder: Path | None = None) -> Collection:
    """The sample domain's human-style questions, their quotes located in a run's own `chunks`.

    Grade 2 answers the question, 1 helps; a chunk that holds several quotes gets the highest grade.
    Questions none of whose quotes is in the chunks are left out; `metadata` keeps what else they carry.
    """
    folder = folder or ROOT / "data" / "gold"
    expect(
        split in {"dev", "test"},
        f"GOLD_SPLIT = {split!r}: the gold questions have the parts dev and test. Choose one.",
    )
    by_document: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_document.setdefault(chunk.doc_id, []).append(chunk)
    gold = Collection(name="gold")
    gold.corpus = {
        c.chunk_id: {"title": c.title, "text": c.text} for own in by_document.values() for c in own
    }
    documents = ROOT / "data" / "corpus"
    for row in read_jsonl(folder / "queries.jsonl"):
        metadata = row["metadata"]
        if metadata["split"] != split:
            continue
        judged: dict[str, int] = {}
        for evidence in (Evidence(**e) for e in metadata["evidence"]):
            text = _document_text(documents / evidence.doc_id)
            found = locate(evidence, by_document.get(evidence.doc_id, []), text)
            if found is not None:
                judged[found] = max(evidence.grade, judged.get(found, 0))
        if judged:
            gold.queries[row["_id"]], gold.qrels[row["_id"]] = row["text"], judged
            gold.metadata[row["_id"]] = metadata
    return gold


def gold_of_run(run: str, corpus: Mapping[str, dict], split: str = "test") -> tuple[Collection | None, str]:
    """`load_gold` over a run's passages, or None and the reason: gold belongs to the sample domain alone."""
    first, folder = STAGES[0], ROOT / "data" / "gold"
    manifests = [runs_dir() / run / name / "manifest.json" for name in STAGES[:2]]
    foreign = [read_manifest(run, p.parent.name)["parameters"].get("CORPUS") for p in manifests if p.exists()]
    if any(foreign):
        return None, f"the passages come from {next(filter(None, foreign))}, not from the sample domain"
    path = runs_dir() / run / first / "chunks.jsonl"
    if not (folder / "queries.jsonl").exists():
        return None, f"{folder} does not exist"
    if path.exists():
        chunks = [chunk for chunk in read_rows(path, Chunk) if chunk.chunk_id in corpus]
    else:  # a run that began with notebook 2
        chunks = [Chunk(chunk_id=i, doc_id=i.rpartition("#")[0], **p) for i, p in corpus.items()]
    gold = load_gold(chunks, split)
    gold.corpus = dict(corpus)
    return (gold, "") if gold.queries else (None, "none of its quotes is in this run's passages")


def _document_text(path: Path) -> str:
    plain = path.suffix in {".md", ".txt"} and path.exists()
    return path.read_text(encoding="utf8") if plain else ""


def warn_of_training_questions(train: Path, test: Collection) -> int:
    """How many questions of a train.jsonl repeat a test's query, or nearly; a word of warning if any do."""
    asked = list(dict.fromkeys(row["query"] for row in read_jsonl(train)))
    labels = near_duplicates([*test.queries.values(), *asked], unit="char").tolist()
    known = set(labels[: len(test.queries)])
    again = sum(label in known for label in labels[len(test.queries) :])
    if again:
        print(
            f"WARNING: {again} of {len(asked):,} training questions repeat a query of {test.name}, or "
            f"nearly. That flatters the tuned model. Give TEST_SET to notebook 2 and run "
            f"from there: it leaves them out."
        )
    return again


# ---------------------------------------------------------------- metrics


def metrics(run: Run, qrels: Qrels) -> pd.DataFrame:
    """Every metric of the course for every query, through ir-measures (trec_eval underneath).

    Args:
        run: scores, higher is better; queries that are missing score 0, unjudged queries are ignored.
        qrels: grades; nDCG uses them as gains, the other metrics count grade ≥ 1. A query without a
            relevant passage has no nDCG or recall and is left out.

    Returns:
        float64 values in 0–1; index `query_id` in the order of qrels, columns `METRICS`.

    A passage whose id equals the query's is kept (BEIR's evaluator drops it by default). Equal scores are
    ordered by passage id, last first, as trec_eval does, so that a result never depends on chance.
    """
    import ir_measures

    judged = {q: grades for q, grades in qrels.items() if any(g > 0 for g in grades.values())}
    expect(judged, "No query has a relevant passage, so nothing can be measured. Look at the qrels.")
    names = {ir_measures.parse_measure(_ir_name(name)): name for name in METRICS}
    ranked = {q: {p: float(-rank) for rank, p in enumerate(ranking(run[q]))} for q in judged if run.get(q)}
    table = pd.DataFrame(0.0, index=pd.Index(list(judged), name="query_id"), columns=METRICS)
    if ranked:
        values = pd.DataFrame(ir_measures.iter_calc(list(names), judged, ranked))
        values["measure"] = values["measure"].map(names)
        table.update(values.pivot(index="query_id", columns="measure", values="value"))
    return table


def ranking(scores: Mapping[str, float], k: int | None = None) -> list[str]:
    """Passage ids, best first. Scores are compared as float32; equal ones by passage id, last first."""
    values = np.fromiter(scores.values(), dtype=np.float32, count=len(scores))
    expect(
        np.isfinite(values).all(), "A run holds a score that is not a number. Look at the model's vectors."
    )
    return [p for _, p in sorted(zip(values.tolist(), scores, strict=True), reverse=True)[:k]]


def _ir_name(name: str) -> str:
    return name.replace("Recall", "R").replace("MAP", "AP").replace("Precision", "P").replace("MRR", "RR")


def write_trec_run(path: Path, run: Run, tag: str) -> None:
    """Write a run in TREC format: `query Q0 passage rank score tag`, best first; spaces in ids become `_`."""
    lines = []
    for query_id, scores in run.items():
        for rank, passage_id in enumerate(ranking(scores), start=1):
            ids = (re.sub(r"\s", "_", name) for name in (query_id, passage_id))
            lines.append("{} Q0 {} {} {:.9g} {}\n".format(*ids, rank, scores[passage_id], tag))
    write_text(path, "".join(lines))


def write_results(path: Path, test_sets: Mapping, decision: Mapping) -> None:
    """Write results.json: {"test_sets": {…}, "verdict": {…}}; no value is NaN."""
    write_text(path, json.dumps({"test_sets": test_sets, "verdict": decision}, indent=1, allow_nan=False))


def results_of(scores: Mapping[str, Mapping[str, pd.DataFrame]], compared: Mapping[str, Mapping]) -> dict:
    """results.json's "test_sets" from {test set: {system: `metrics`}} and {test set: `compare`}."""
    return {
        name: {
            "n_queries": len(systems["base"]),
            "systems": {system: table.mean().to_dict() for system, table in systems.items()},
            "tuned_vs_base": dict(compared[name]),
        }
        for name, systems in scores.items()
    }


def per_query_table(
    tests: Mapping[str, Collection], scores: Mapping[str, Mapping[str, pd.DataFrame]]
) -> pd.DataFrame:
    """Every metric of every query and system in one frame: test_set, system, query_id, query, metrics."""
    parts = []
    for name, systems in scores.items():
        for system, table in systems.items():
            part = table.reset_index()
            part.insert(1, "query", part["query_id"].map(tests[name].queries))
            part.insert(0, "system", system)
            part.insert(0, "test_set", name)
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------- long passages, second stages


def token_counts(model, corpus: Mapping[str, dict]) -> dict[str, int]:
    """Tokens of every passage with its prefix, before cutting; as many as the model would read."""
    prefix = model.prompts.get("passage", "")
    ids, counts = list(corpus), {}
    for start in range(0, len(ids), 10_000):
        part = ids[start : start + 10_000]
        texts = [prefix + passage_text(corpus[passage_id]) for passage_id in part]
        encoded = model.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        counts |= dict(zip(part, map(len, encoded), strict=True))
    return counts


def windowed_search(model, test: Collection, k: int, cache: Path | None = None) -> Run:
    """Dense search in which a passage that is too long is read in pieces; its best piece counts (MaxP)."""
    lengths, owners, pieces = token_counts(model, test.corpus), [], []
    for passage_id, passage in test.corpus.items():
        text = passage_text(passage)
        own = [text] if lengths[passage_id] <= model.max_seq_length else _pieces(model, text)
        pieces += own
        owners += [passage_id] * len(own)
    queries = encode(model, list(test.queries.values()), "query", cache=cache)
    passages = encode(model, pieces, "passage", cache=cache)
    most = max(Counter(owners).values())
    scores, rows = nearest(queries, passages, k * most)
    run: Run = {}
    for query_id, own, best in zip(test.queries, rows.tolist(), scores.tolist(), strict=True):
        found: dict[str, float] = {}
        for row, score in zip(own, best, strict=True):
            found.setdefault(owners[row], score)  # best first, so the first piece seen is the best one
        run[query_id] = dict(list(found.items())[:k])
    return run


def _pieces(model, text: str) -> list[str]:
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    offsets = model.tokenizer(text, **options)["offset_mapping"]
    extra = len(model.tokenizer(model.prompts.get("passage", ""))["input_ids"])
    room = max(16, model.max_seq_length - extra)
    parts = [offsets[start : start + room] for start in range(0, len(offsets), room)]
    return [text[part[0][0] : part[-1][1]] for part in parts]


def rerank(judge, test: Collection, run: Run, depth: int = 30) -> Run:
    """The first `depth` passages of a run, reordered by a cross-encoder; those behind keep their order."""
    reordered: Run = {}
    for query_id, scores in run.items():
        ids = ranking(scores)
        pairs = [(test.queries[query_id], passage_text(test.corpus[p])) for p in ids[:depth]]
        marks = np.argsort(-np.asarray(judge.predict(pairs, show_progress_bar=False)), kind="stable")
        order = [ids[i] for i in marks] + ids[depth:]
        reordered[query_id] = {p: 1 / (1 + rank) for rank, p in enumerate(order)}
    return reordered
