"""What notebook 2 starts from: passages, questions, and the questions of the human tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils import run
from utils.beir_files import read_test_set
from utils.duplicates import normalised, symbols
from utils.records import FREE, Chunk, QAPair, locate, passage_text, read_jsonl, read_rows
from utils.run import expect

LITERAL = "literal:/"  # ids of positive texts that belong to no passage of the corpus begin with this


@dataclass
class Inputs:
    """What notebook 2 starts from, and in words where it came from."""

    chunks: list[Chunk]
    pairs: list[QAPair]
    sample_domain: bool
    told: str


def generated(run_name: str, corpus: str) -> bool:
    """Whether the run's notebook 1 has finished on this corpus (empty: on whatever it was given)."""
    path = run.runs_dir() / run_name / run.STAGES[0] / "manifest.json"
    if not path.exists():
        return False
    used = run.read_manifest(run_name, run.STAGES[0])["parameters"].get("CORPUS", "")
    if not corpus or not used:
        return not corpus
    try:
        before = run.resolve_path(used, "CORPUS")
    except run.CourseError:  # what notebook 1 read is no longer there: it is not this corpus
        return False
    return before == run.resolve_path(corpus, "CORPUS")


def base_of_notebook_1(run_name: str) -> str:
    """The base model that the run's notebook 1 measured passages and questions with."""
    return run.read_manifest(run_name, run.STAGES[0])["parameters"]["BASE_MODEL"]


def read_inputs(stage: run.Stage, corpus: str, qa_pairs: str, tokenizer: object, max_tokens: int) -> Inputs:
    """Passages and questions: notebook 1's, or the user's own (`corpus`, `qa_pairs`; then no notebook 1).

    Where the run's notebook 1 has read the very file `qa_pairs`, its questions with the free ones are taken.
    """
    first = run.STAGES[0]
    from_notebook_1 = f"{first}/manifest.json" in stage.inputs
    if from_notebook_1:
        used = run.read_manifest(stage.run, first)["parameters"].get("CORPUS", "")
        chunks = read_rows(run.artefact(stage.run, first, "chunks.jsonl"), Chunk)
        source = "passages of notebook 1"
    else:
        expect(
            qa_pairs,
            f"Run {stage.run!r} has no questions for CORPUS = {corpus!r}: notebook 1 has not finished on it, "
            f"and QA_PAIRS is empty. Run notebook 1 first, or give QA_PAIRS.",
        )
        from utils.corpus import read_chunks

        used = corpus
        where = stage.add_input(run.resolve_path(corpus, "CORPUS")) if corpus else ""
        chunks = read_chunks(where, tokenizer, max_tokens)
        source = f"passages of {where.name if where else 'the sample domain'}"
    own = stage.add_input(run.resolve_path(qa_pairs, "QA_PAIRS")) if qa_pairs else None
    mixed = from_notebook_1 and (own is None or _were_read(stage.run, own))
    path = run.artefact(stage.run, first, "qa_pairs.jsonl") if mixed else own
    pairs = read_pairs(path, chunks)
    if len({chunk.doc_id for chunk in chunks}) == len(chunks) > 1:
        source += ", each counted as a document of its own"
    return Inputs(
        chunks,
        pairs,
        not used,
        f"{len(chunks):,} {source}; {len(pairs):,} questions of {path.parent.name}/{path.name}",
    )


def _were_read(run_name: str, pairs: Path) -> bool:
    """Whether the run's notebook 1 has read this file of questions, as it is now."""
    return run.read_manifest(run_name, run.STAGES[0])["inputs"].get(str(pairs)) == run.digest(pairs)


def read_pairs(path: Path, chunks: Sequence[Chunk]) -> list[QAPair]:
    """Questions whose passages exist; ids are given where there are none, quotes are located in `chunks`."""
    known = {chunk.chunk_id for chunk in chunks}
    pairs = read_rows(path, QAPair)
    _name_literals(pairs, chunks)
    expect(pairs, f"{path} holds no question. Give JSONL rows like {{'question': …, 'chunk_ids': […]}}.")
    for number, pair in enumerate(pairs, start=1):
        pair.question_id = pair.question_id or f"q{number}"
        found = [locate(e, chunks) for e in pair.evidence] if not pair.chunk_ids else pair.chunk_ids
        pair.chunk_ids = list(dict.fromkeys(c for c in found if c is not None))
        unknown = [c for c in pair.chunk_ids if c not in known]
        expect(
            not unknown,
            f"{path}, row {number}: chunk_ids {unknown[:3]} are not in the corpus. Use the corpus' own ids "
            f"(here such as {next(iter(known))!r}).",
        )
        expect(
            pair.chunk_ids or pair.positives,
            f"{path}, row {number}: no passage. Name chunk_ids, or give literal texts as 'positives'.",
        )
    twice = [i for i, n in Counter(pair.question_id for pair in pairs).items() if n > 1]
    expect(not twice, f"{path}: question_id {twice[:3]} appears more than once. Give every row its own.")
    return pairs


def _name_literals(pairs: Sequence[QAPair], chunks: Sequence[Chunk]) -> None:
    """Literal positive texts that are passages of the corpus become ids, so that they can be held out too."""
    if not any(pair.positives for pair in pairs):
        return
    of_text: dict[str, str] = {}
    for chunk in chunks:
        for text in (chunk.text, passage_text(chunk)):
            of_text.setdefault(" ".join(text.split()), chunk.chunk_id)
    for pair in pairs:
        found = {text: of_text.get(" ".join(text.split())) for text in pair.positives}
        pair.chunk_ids = list(dict.fromkeys([*pair.chunk_ids, *filter(None, found.values())]))
        pair.positives = [text for text, chunk_id in found.items() if chunk_id is None]


def human_questions(stage: run.Stage, given: Inputs, test_set: str) -> dict[str, list[str]]:
    """The questions of the human tests that will judge: {name: texts}; gold only on the sample domain."""
    found = {}
    gold = run.ROOT / "data" / "gold" / "queries.jsonl"
    if given.sample_domain and gold.exists():
        found["gold"] = [row["text"] for row in read_jsonl(stage.add_input(gold))]
    if test_set:
        folder = stage.add_input(run.resolve_path(test_set, "TEST_SET"))
        corpus = {chunk.chunk_id: {"title": chunk.title, "text": chunk.text} for chunk in given.chunks}
        found[folder.name] = list(read_test_set(str(folder), corpus).queries.values())
    return found


def merge_equal(pairs: Sequence[QAPair], most: int, own: bool = False) -> tuple[list[QAPair], Counter]:
    """One pair for equal questions, with all their passages; those with more than `most` are dropped.

    A question with that many answers ("Introduction") is too general to teach or to test with. The user's
    are kept, for whoever gives many passages means them: all that name no generator; with `own` all but the
    free ones.
    Returns the kept pairs and {reason: number of questions that went}.
    """
    merged: dict[tuple, QAPair] = {}
    for pair in pairs:
        key = (normalised(pair.question) or pair.question, symbols(pair.question))
        known = merged.setdefault(key, pair.model_copy(update={"chunk_ids": [], "positives": []}))
        known.chunk_ids += [c for c in dict.fromkeys(pair.chunk_ids) if c not in known.chunk_ids]
        known.positives += [t for t in dict.fromkeys(pair.positives) if t not in known.positives]
    kept = [
        pair
        for pair in merged.values()
        if len(pair.chunk_ids) + len(pair.positives) <= most
        or (pair.generator not in FREE and (own or not pair.generator))
    ]
    gone = {"equal to another, merged": len(pairs) - len(merged), "too general": len(merged) - len(kept)}
    return kept, Counter(gone)


def literal_passages(pairs: Sequence[QAPair]) -> tuple[list[QAPair], list[Chunk]]:
    """Literal positive texts as passages of their own, for training alone; the pairs then name them."""
    named, extra = [], []
    for pair in pairs:
        ids = [f"{LITERAL}{pair.question_id}/{i}" for i in range(1, len(pair.positives) + 1)]
        extra += [Chunk(chunk_id=i, doc_id=i, text=t) for i, t in zip(ids, pair.positives, strict=True)]
        named.append(pair.model_copy(update={"chunk_ids": [*pair.chunk_ids, *ids], "positives": []}))
    return named, extra


def is_literal(pair: QAPair) -> bool:
    """Whether a positive of the question is a text outside the corpus."""
    return bool(pair.positives) or any(c.startswith(LITERAL) for c in pair.chunk_ids)
