# python tests/benchmarks/question_writers.py --name writers --test gold:dev
"""What each source of questions is worth: base → questions → training → people's queries, side by side.

Runs notebook 1 once a writer (free questions from structure, the embedded model without and with its LoRA,
on the sample domain also the ready-made questions) and notebook 2 once a source of rows, then trains on each
source over several seeds and measures every model on the test sets (`recipes.py`). Questions are generated
once; the training seed varies. Sources:

    free only                 headings and search terms
    heading, terms            one kind of them
    no LoRA, LoRA             what notebook 1 keeps: of those that pass, the highest gain within a style
    LoRA, unranked            any of the candidates, whatever the rules say
    LoRA, any that passed     one a passage, at random, of those that pass the rules
    LoRA, easiest, hardest    of those that pass, the one whose passage the base model ranks best, worst
    LoRA, bare gain           of those that pass, the one with the highest gain, whatever its style
    LoRA + free, all          both; all: with the strong ones too
    strong                    the ready-made questions; elsewhere those of --strong FILE, a QA_PAIRS file

--corpus: a folder or a BEIR corpus.jsonl (default: the sample domain). --test NAME=FOLDER[:SPLIT] …: BEIR
folders with people's queries over the same passages (`gold[:SPLIT]`: the sample domain's own), of which
notebook 2 is told the first, so that no question like one of its own is trained on.
--passages N: a random part of --corpus, a corpus.jsonl, that keeps every passage the test sets judge; the
sample domain is taken whole, so it does not go with `gold`. --rows N: of each source; mixtures have as many
of each part, or with --equal-rows as many in all. Finished parts are re-used: runs/NAME-SOURCE/. What follows
`--` goes to recipes.py.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from utils import beir_files, files, machine, questions, records, retrieval, run

GENERATE, PREPARE = run.STAGES[:2]
WRITERS = {  # name: parameters of notebook 1, environment
    "free": ({"FREE_SHARE": 1}, {}),
    "bare": ({"FREE_SHARE": 0}, {"COURSE_ADAPTER": "none"}),
    "lora": ({"FREE_SHARE": 0}, {}),
    "strong": ({"FREE_SHARE": 0, "LLM": "ready-made"}, {}),
}
MIXTURES = {"LoRA + free": ("LoRA", "free only"), "all": ("strong", "LoRA", "free only")}


def main() -> None:
    args = arguments()
    if args.passages:
        args.corpus, args.test = part_of(args)
    left_out = {"strong"} if args.corpus or args.strong else set()
    left_out |= {"bare"} if args.sources and "no LoRA" not in args.sources else set()
    made = {name: generate(args, name) for name in WRITERS if name not in left_out}
    asked_for = {part for name in args.sources for part in MIXTURES.get(name, (name,))}
    found = sources_of(made, args.strong, asked_for)
    sources = {name: draw(rows, args.rows) for name, rows in found.items() if rows}
    for name, parts in MIXTURES.items():
        if all(part in sources for part in parts):
            share = args.rows // len(parts) if args.equal_rows else args.rows
            sources[name] = [row for part in parts for row in draw(sources[part], share)]
    wanted = {name: rows for name, rows in sources.items() if not args.sources or name in args.sources}
    prepared = [
        f"{name}={prepare(args, name, rows, made['lora']) / PREPARE}" for name, rows in wanted.items()
    ]
    command = [sys.executable, str(Path(__file__).with_name("recipes.py")), "--train", *prepared]
    command += ["--test", *args.test, "--seeds", str(args.seeds), "--recipes", *args.recipes]
    command += ["--out", str(run.runs_dir() / f"{args.name}-table"), *args.more]
    sys.exit(subprocess.run(command).returncode)


def sources_of(made: dict[str, Path], strong: str, asked_for: set[str]) -> dict[str, list[dict]]:
    """The questions of every source, by the folders of notebook 1; what takes time only where asked for (or
    if nothing is, which means all)."""
    kept = {name: read(folder / "qa_pairs.jsonl") for name, folder in made.items()}
    found = {"free only": kept["free"], "no LoRA": kept.get("bare", []), "LoRA": kept["lora"]}
    for kind in records.FREE:
        found[kind] = [row for row in kept["free"] if row["generator"] == kind]
    dropped = read(made["lora"] / "rejected.jsonl")
    passed = kept["lora"] + as_pairs(row for row in dropped if row["reason"] == "better ones there")
    found["LoRA, unranked"] = kept["lora"] + as_pairs(dropped)
    if not asked_for or any(name.startswith("LoRA, ") for name in asked_for - {"LoRA, unranked"}):
        found |= {f"LoRA, {name}": rows for name, rows in one_a_passage(passed, made["lora"]).items()}
    found["strong"] = read(Path(strong)) if strong else kept.get("strong", [])
    return found


def as_pairs(rows: Iterable[dict]) -> list[dict]:
    """The candidates that the rules of notebook 1 dropped, as pairs."""
    named = [row for row in rows if len(row["question"].split()) > 1]
    wanted = ("question", "chunk_ids", "gain")
    return [{name: r[name] for name in wanted if name in r} | {"generator": "embedded"} for r in named]


def one_a_passage(rows: list[dict], folder: Path) -> dict[str, list[dict]]:
    """Other ways to take one question a passage than notebook 1's, the highest gain within a style."""
    chunks = records.read_rows(folder / "chunks.jsonl", records.Chunk)
    device = machine.detect_device()
    base = retrieval.load_encoder("embedded", device, machine.choose_profile("cpu", device).max_tokens)
    table = pd.DataFrame(rows).sample(frac=1, random_state=13)  # equals stay in random order
    table = questions.measure(table, chunks, chunks, base, files.cache_dir())
    passage = table.chunk_ids.str[0]
    orders = {
        "any that passed": table.index,
        "easiest": table.round_trip_rank.sort_values(kind="stable").index,
        "hardest": table.round_trip_rank.sort_values(kind="stable", ascending=False).index,
        "bare gain": table.gain.sort_values(kind="stable", ascending=False).index,
    }
    taken = {name: table.loc[order][~passage.loc[order].duplicated()].index for name, order in orders.items()}
    return {name: [rows[i] for i in sorted(index)] for name, index in taken.items()}


def draw(rows: list[dict], most: int) -> list[dict]:
    return random.Random(13).sample(rows, min(most or len(rows), len(rows)))


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


def prepare(args: argparse.Namespace, name: str, rows: list[dict], passages: Path) -> Path:
    """The run folder whose notebook 2 has prepared these questions over the passages of one notebook 1."""
    own = f"{args.name}-{name.replace(' + ', '-and-').replace(', ', '-').replace(' ', '-')}-rows"
    folder = run.runs_dir() / own
    if not (folder / GENERATE).exists():
        shutil.copytree(passages, folder / GENERATE)
    pairs = folder / "pairs.jsonl"
    numbered = [{**row, "question_id": f"q{i:06d}"} for i, row in enumerate(rows)]
    records.write_rows(pairs, numbered)
    # On the sample domain notebook 2 knows gold by itself: repeats of its questions are not trained on.
    test = {"TEST_SET": Path(args.test[0].partition("=")[2].rpartition(":")[0]).resolve()}
    course(args, own, 2, {"QA_PAIRS": pairs} | (test if args.corpus else {}), {})
    return folder


def read(path: Path) -> list[dict]:
    return list(records.read_jsonl(path))


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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0, help="of each source, at most; 0: all")
    parser.add_argument("--equal-rows", action="store_true", help="mixtures have --rows in all, not of each")
    parser.add_argument("--strong", default="", help="QA_PAIRS file of a strong writer's questions")
    given = sys.argv[1:] if given is None else given
    cut = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:cut])
    args.more = given[cut + 1 :]
    if args.passages and not args.corpus.endswith(".jsonl"):
        parser.error("--passages N takes a part of a corpus.jsonl. Name one with --corpus, or leave it out.")
    if args.equal_rows and not args.rows:
        parser.error("--equal-rows says how --rows N are shared. Give --rows N.")
    bare = [text for text in args.test if "=" not in text]
    if args.passages and bare:
        parser.error(
            f"--passages N: {bare[0]} belongs to the sample domain. Give --test NAME=FOLDER[:SPLIT]."
        )
    if args.corpus and not all("=" in text and ":" in text for text in args.test):
        parser.error("--corpus goes with --test NAME=FOLDER:SPLIT.")
    return args


if __name__ == "__main__":
    main()
