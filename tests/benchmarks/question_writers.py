# python tests/benchmarks/question_writers.py --name writers --test gold:dev
"""What each source of questions is worth: base → questions → training → people's queries, side by side.

Runs notebooks 1 and 2 once a writer (free questions from structure, the embedded model without and with its
LoRA, on the sample domain also the ready-made questions), then trains on each source over several seeds and
measures every model on the test sets (`recipes.py`). Questions are generated once; the training seed varies.

--corpus: a folder or a BEIR corpus.jsonl (default: the sample domain). --test NAME=FOLDER[:SPLIT] …: BEIR
folders with people's queries over the same passages (`gold[:SPLIT]`: the sample domain's own). "LoRA,
unranked" are all candidates, whatever the rules of notebook 1 say; "LoRA" are those that passed them.
--passages N: a random part of --corpus, a corpus.jsonl, that keeps every passage the test sets judge; the
sample domain is taken whole, so it does not go with `gold`. Finished parts are re-used: runs/NAME-SOURCE/.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from utils import beir_files, records, run

GENERATE, PREPARE = run.STAGES[:2]
WRITERS = {  # name: parameters of notebook 1, environment
    "free": ({"FREE_SHARE": 1}, {}),
    "bare": ({"FREE_SHARE": 0}, {"COURSE_ADAPTER": "none"}),
    "lora": ({"FREE_SHARE": 0}, {}),
    "ready-made": ({"FREE_SHARE": 0, "LLM": "ready-made"}, {}),
}


def main() -> None:
    args = arguments()
    if args.passages:
        args.corpus, args.test = part_of(args)
    writers = [name for name in WRITERS if name != "ready-made" or not args.corpus]
    made = {name: generate(args, name) for name in writers}
    kept = {name: read(folder / "qa_pairs.jsonl") for name, folder in made.items()}
    sources = {"free only": kept["free"], "no LoRA": kept["bare"]}
    for kind in records.FREE:  # headings alone, search terms alone
        sources[kind] = [row for row in kept["free"] if row["generator"] == kind]
    sources |= {"LoRA, unranked": kept["lora"] + unranked(made["lora"]), "LoRA": kept["lora"]}
    sources |= {"LoRA + free": kept["lora"] + kept["free"]}
    if "ready-made" in made:
        sources |= {"ready-made": kept["ready-made"]}
        sources |= {"all": kept["ready-made"] + kept["lora"] + kept["free"]}
    wanted = {n: rows for n, rows in sources.items() if rows and (not args.sources or n in args.sources)}
    prepared = [
        f"{name}={prepare(args, name, rows, made['lora']) / PREPARE}" for name, rows in wanted.items()
    ]
    command = [sys.executable, str(Path(__file__).with_name("recipes.py")), "--train", *prepared]
    command += ["--test", *args.test, "--seeds", str(args.seeds), "--recipes", *args.recipes]
    command += ["--rows", str(args.rows), "--alphas", *args.alphas]
    command += ["--out", str(run.runs_dir() / f"{args.name}-table")]
    sys.exit(subprocess.run(command).returncode)


def part_of(args: argparse.Namespace) -> tuple[str, list[str]]:
    """A smaller corpus.jsonl, and the test sets as folders over it."""
    folder = run.runs_dir() / f"{args.name}-part"
    corpus, tests = beir_files.read_corpus(Path(args.corpus)), []
    judged = set()
    for name, text in (item.split("=", 1) for item in args.test):
        source, _, split = text.partition(":")
        for file in ("queries.jsonl", f"qrels/{split or 'test'}.tsv"):
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(source) / file, folder / name / file)
        qrels = beir_files.read_qrels(folder / name / "qrels" / f"{split or 'test'}.tsv")
        judged |= {passage for marks in qrels.values() for passage in marks}
        tests.append(f"{name}={folder / name}:{split or 'test'}")
    others = random.Random(13).sample(sorted(corpus.keys() - judged), max(args.passages - len(judged), 0))
    chosen = judged | set(others)
    part = {passage: row for passage, row in corpus.items() if passage in chosen}
    beir_files.write_corpus(folder / "corpus.jsonl", part)
    for name, _ in (item.split("=", 1) for item in args.test):
        beir_files.write_corpus(folder / name / "corpus.jsonl", part)
    return str(folder / "corpus.jsonl"), tests


def generate(args: argparse.Namespace, writer: str) -> Path:
    """The folder of notebook 1 for one writer."""
    parameters, environment = WRITERS[writer]
    course(args, f"{args.name}-{writer}", 1, parameters, environment)
    return run.runs_dir() / f"{args.name}-{writer}" / GENERATE


def unranked(folder: Path) -> list[dict]:
    """The candidates that the rules of notebook 1 dropped, as pairs."""
    rows = [row for row in read(folder / "rejected.jsonl") if len(row["question"].split()) > 1]
    return [{"question": r["question"], "chunk_ids": r["chunk_ids"], "generator": "embedded"} for r in rows]


def prepare(args: argparse.Namespace, name: str, rows: list[dict], passages: Path) -> Path:
    """The run folder whose notebook 2 has prepared these questions over the passages of one notebook 1."""
    own = f"{args.name}-{name.replace(' + ', '-and-').replace(', ', '-').replace(' ', '-')}-rows"
    folder = run.runs_dir() / own
    if not (folder / GENERATE).exists():
        shutil.copytree(passages, folder / GENERATE)
    pairs = folder / "pairs.jsonl"
    numbered = [{**row, "question_id": f"q{i:06d}"} for i, row in enumerate(rows)]
    records.write_rows(pairs, numbered)
    course(args, own, 2, {"QA_PAIRS": pairs}, {})
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def course(args: argparse.Namespace, name: str, stage: int, parameters: dict, environment: dict) -> None:
    """One notebook, headless; skipped if it is up to date."""
    if args.corpus and stage == 1:
        parameters = parameters | {"CORPUS": Path(args.corpus).resolve()}
    command = [sys.executable, "-m", "utils.course", "run", "--name", name, "--resume"]
    command += ["--profile", args.profile, "--from", str(stage), "--to", str(stage)]
    for key, value in parameters.items():
        command += ["-p", key, str(value)]
    subprocess.run(command, check=True, env=os.environ | environment)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--corpus", default="")
    parser.add_argument("--passages", type=int, default=0)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--sources", nargs="*", default=[])
    parser.add_argument("--recipes", nargs="+", default=["chosen"])
    parser.add_argument("--alphas", nargs="+", default=["1.0"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of each source, at most; 0: all")
    args = parser.parse_args(given)
    if args.passages and not args.corpus.endswith(".jsonl"):
        parser.error("--passages N takes a part of a corpus.jsonl. Name one with --corpus, or leave it out.")
    bare = [text for text in args.test if "=" not in text]
    if args.passages and bare:
        parser.error(
            f"--passages N: {bare[0]} belongs to the sample domain. Give --test NAME=FOLDER[:SPLIT]."
        )
    return args


if __name__ == "__main__":
    main()
