# python tests/benchmarks/small_corpus.py [--documents 50] [--draws 1]
"""Does it help with few documents? Notebooks 1 to 4, by default settings, on parts of the sample domain.

Each draw takes other documents. They are tested with the gold questions (test part) that they answer. Prints
what was chosen and what came out.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from utils import beir_files, evaluation, records, run


def draw(folder: Path, documents: int, seed: int) -> Path:
    """A folder of some of the sample documents, at their own places."""
    source = run.ROOT / "data" / "corpus"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    for path in random.Random(seed).sample(files, documents):
        copy = folder / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


def gold_of(run_name: str, folder: Path) -> Path:
    """The gold questions that the passages of the run's notebook 1 answer, as a BEIR folder."""
    chunks = records.read_rows(run.artefact(run_name, run.STAGES[0], "chunks.jsonl"), records.Chunk)
    gold = evaluation.load_gold(chunks)
    beir_files.write_corpus(folder / "corpus.jsonl", gold.corpus)
    beir_files.write_queries(folder / "queries.jsonl", gold.queries)
    beir_files.write_qrels(folder / "qrels" / "test.tsv", gold.qrels)
    return folder


def course(name: str, first: int, last: int, **parameters: Path) -> None:
    given = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    stages = ["--from", str(first), "--to", str(last)]
    subprocess.run([sys.executable, "-m", "utils.course", "run", "--name", name, *stages, *given], check=True)


def report(name: str) -> None:
    """What the run chose and found, in three lines."""
    results = json.loads(run.artefact(name, run.STAGES[3], "results.json").read_text(encoding="utf8"))
    trained = run.read_manifest(name, run.STAGES[2])["headline"]
    for test, found in results["test_sets"].items():
        marks, pair = found["systems"], found["tuned_vs_base"]["nDCG@10"]
        low, high = pair["ci95"]
        line = f"{name}, {test}: {found['n_queries']} queries, base {marks['base']['nDCG@10']:.3f}, "
        print(f"{line}{pair['delta']:+.3f} [{low:+.3f}, {high:+.3f}], p {pair['p']:.4f}")
    minutes = sum(run.read_manifest(name, stage)["wall_seconds"] for stage in run.STAGES[:4]) / 60
    print(
        f"{name}: {trained['rows']} rows, α {trained['alpha']}, {minutes:.1f} minutes; {results['verdict']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--draws", type=int, default=1)
    args = parser.parse_args()
    for seed in range(1, args.draws + 1):
        name = f"small{args.documents}_{seed}"
        own = run.runs_dir() / f"{name}_own"
        docs = draw(own / "documents", args.documents, seed)
        course(name, 1, 1, CORPUS=docs)
        course(name, 2, 4, CORPUS=docs, TEST_SET=gold_of(name, own / "people"))
    for seed in range(1, args.draws + 1):
        report(f"small{args.documents}_{seed}")


if __name__ == "__main__":
    main()
