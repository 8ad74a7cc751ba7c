# python tests/benchmarks/recipes.py --train runs/NAME/02_prepare_training_data --test gold:dev
"""Compares training recipes side by side: every recipe over several seeds, on the same rows and test sets.

Prints one line a recipe and test set: the metric, its change against the base and against the first recipe
(by default the plain one: in-batch negatives, 2 epochs, 5e-5, batch 64, temperature 0.05), each with a 95 %
interval of the paired difference per query, averaged over the seeds, and its p, by the paired permutation
test (signs flipped at random). Table and metrics of every query are also written to --out; --also FOLDER …
puts the models of earlier runs, from their --out, on the same test sets, beside them, and --models
NAME=FOLDER … models that are there, such as the tuned one of a run.

Sources of rows: --train FOLDER (a stage 2 folder: train.jsonl, beir/) or --train NAME=FOLDER …, several.
A test set is NAME=FOLDER[:SPLIT], a BEIR folder; without its own corpus.jsonl it uses the training corpus.
`gold[:SPLIT]` is the sample domain's, over the passages of the first training folder's run.
Several of its parts may be given: gold:dev gold:test. Never trained or chosen on: test parts. Recipes:
--recipes NAME … out of RECIPES, or NAME:setting=value,…; "remine=true" trains, mines hard negatives again
with that model, and trains once more from the base.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import normalize

from utils import finishing, mining, options, retrieval, run, training
from utils.beir_files import read_beir, read_corpus
from utils.evaluation import gold_of_run, metrics
from utils.machine import bf16_is_faster
from utils.recipe import choose_recipe
from utils.records import passage_text
from utils.run import expect
from utils.significance import bootstrap_interval, permutation_p

PLAIN = {
    "hard_negatives": 0,
    "epochs": 2,
    "learning_rate": 5e-5,
    "batch": 64,
    "temperature": 0.05,
    "dropout": None,
}
CHOSEN = {}  # what choose_recipe takes by itself
RECIPES = {
    "plain": PLAIN,
    "plain, no dropout": PLAIN | {"dropout": 0.0},
    "plain, 1 epoch": PLAIN | {"epochs": 1},
    "plain, 0.02": PLAIN | {"temperature": 0.02},
    "1 negative": PLAIN | {"hard_negatives": 1, "dropout": 0.0},
    "2 negatives": PLAIN | {"hard_negatives": 2, "dropout": 0.0},
    "2 negatives, 0.02": PLAIN | {"hard_negatives": 2, "dropout": 0.0, "temperature": 0.02},
    "4 negatives": PLAIN | {"hard_negatives": 4, "dropout": 0.0},
    "lr 1e-4": PLAIN | {"dropout": 0.0, "learning_rate": 1e-4},
    "lr 2e-5": PLAIN | {"dropout": 0.0, "learning_rate": 2e-5},
    "3 epochs": PLAIN | {"dropout": 0.0, "epochs": 3},
    "batch 32": PLAIN | {"dropout": 0.0, "batch": 32},
    "batch 128": PLAIN | {"dropout": 0.0, "batch": 128},
    "chosen": CHOSEN,
}


def main() -> None:
    args = arguments()
    device = run.detect_device()
    args.bf16 = bf16_is_faster(device.kind)[0] if args.bf16 is None else args.bf16
    model = retrieval.load_encoder(args.base_model, device, args.max_tokens)
    base = finishing.weights_of(model)
    sources = dict(
        item.split("=", 1) if "=" in item else (Path(item).parent.name, item) for item in args.train
    )
    rows = {name: pick(Path(folder), args) for name, folder in sources.items()}
    own = {name: Path(folder) / "beir" for name, folder in sources.items()}
    tests = dict(test_set(text, next(iter(own.values()))) for text in args.test)
    print(
        {name: len(r) for name, r in rows.items()},
        "rows;",
        {n: len(t.queries) for n, t in tests.items()},
        "queries",
    )
    (Path(args.out) / "scores.csv").unlink(missing_ok=True)
    scores = {("base", 1.0): [measure(model, tests, args)]} | earlier(args.also)
    times = {}
    validation = {name: validate(folder, args) for name, folder in own.items()}
    models = product(range(args.seeds), rows.items(), args.recipes)  # one seed of everything first
    for seed, (source, its_rows), label in models:
        name, settings = parse(label)
        name = f"{source}: {name}" if len(rows) > 1 else name
        stage = own[source].parent
        result = fit_once(its_rows, model, base, stage, settings | {"seed": seed}, validation[source], args)
        tuned = finishing.weights_of(model)
        times.setdefault(name, []).append(result.seconds)
        for alpha in args.alphas:
            finishing.blend(model, base, tuned, alpha)
            found = measure(model, tests, args)
            scores.setdefault((name, alpha), []).append(found)
            keep(Path(args.out) / "scores.csv", name, alpha, seed, found)
            shown = ", ".join(f"{t} {f.mean():.4f}" for t, f in found.items())
            print(f"{name}, α {alpha}, seed {seed}: {shown} ({result.seconds:.0f} s)", flush=True)
    for name, folder in (text.split("=", 1) for text in args.models):
        scores[name, 1.0] = [measure(retrieval.load_encoder(folder, device, args.max_tokens), tests, args)]
    table = report(scores, list(scores["base", 1.0][0]), times)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    table.to_csv(Path(args.out) / "recipes.csv", index=False)
    print(table.to_string(index=False))


def keep(path: Path, recipe: str, alpha: float, seed: int, found: dict[str, pd.Series]) -> None:
    """Add the metric of every query to a table of them."""
    table = pd.concat(found, names=["test set", "query"]).rename("value").reset_index()
    table = table.assign(recipe=recipe, alpha=alpha, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, mode="a", header=not path.exists(), index=False)


def earlier(folders: list[str]) -> dict:
    """The metrics that earlier runs kept, as `report` wants them."""
    scores = {}
    for folder in folders:
        table = pd.read_csv(Path(folder) / "scores.csv", dtype={"query": str})
        for (recipe, alpha, _), one in table.groupby(["recipe", "alpha", "seed"], sort=False):
            found = {name: part.set_index("query").value for name, part in one.groupby("test set")}
            scores.setdefault((recipe, alpha), []).append(found)
    return scores


def pick(folder: Path, args: argparse.Namespace) -> list:
    """The rows of a source: only those of --generators, at most --rows, drawn by the seed 13."""
    rows = training.load_rows(folder / "train.jsonl")
    kept = [r for r in rows if not args.generators or r.generator in args.generators]
    order = np.random.default_rng(13).permutation(len(kept))[: args.rows or len(kept)]
    return [kept[i] for i in sorted(order)]


def fit_once(
    rows: list, model, base: dict, stage: Path, settings: dict, validation, args: argparse.Namespace
):
    """Train the model from the base's weights by one recipe; returns the (last) `training.Result`."""
    device = run.detect_device()
    wanted = {key: value for key, value in settings.items() if key != "remine"} | {"bf16": args.bf16}
    model.load_state_dict(base)
    recipe = choose_recipe(rows, model, device, run.choose_profile("cpu", device), **wanted)
    folder = Path(args.out) / "checkpoints"
    result = training.train(rows, model, recipe, validation, folder)
    if settings.get("remine"):
        again = mined_again(rows, model, stage)
        model.load_state_dict(base)
        result = training.train(again, model, recipe, validation, folder)
    return result


def mined_again(rows: list, model, stage: Path) -> list:
    """The rows with the hard negatives that the tuned model finds, by the settings of their notebook 2."""
    told = run.read_manifest(stage.parent.name, stage.name)["parameters"]
    suspects = mining.read_suspects(stage / "suspects.json")
    again = options.remine(rows, model, told["NEGATIVES"], told["MARGIN"], suspects)
    new = sum(len(set(a.negatives) - set(r.negatives)) for a, r in zip(again, rows, strict=True))
    print(f"{new} of {sum(len(row.negatives) for row in again)} negatives are new.")
    return again


def parse(label: str) -> tuple[str, dict]:
    """`NAME` of RECIPES, or `NAME:setting=value,…`, whose settings go over those of NAME."""
    name, _, more = label.partition(":")
    extra = {k: json.loads(v) for k, v in (pair.split("=") for pair in more.split(",") if pair)}
    return label, RECIPES[name] | extra


def test_set(text: str, own: Path):
    """Name and collection of `NAME=FOLDER[:SPLIT]` or `gold[:SPLIT]`."""
    name, _, rest = text.partition("=")
    folder, _, split = (rest or name).partition(":")
    if not rest:
        corpus = read_corpus(own / "corpus.jsonl")
        gold, reason = gold_of_run(own.parents[1].name, corpus, split or "test")
        expect(gold, f"--test {text}: {reason}.")
        return text.replace(":", " "), gold  # "gold dev" and "gold test" may stand side by side
    corpus = None if (Path(folder) / "corpus.jsonl").exists() else read_corpus(own / "corpus.jsonl")
    return name, read_beir(Path(folder), split or "test", corpus)


def validate(beir: Path, args: argparse.Namespace):
    """Checkpoints are chosen on the source's own validation questions (--no-validation: the last is kept)."""
    return None if args.no_validation else training.Validation(read_beir(beir, "val"), 150, 400, args.bf16)


def measure(model, tests: dict, args: argparse.Namespace) -> dict[str, pd.Series]:
    """The metric of every query of the test sets, all passages searched; shared passages are encoded once."""
    encoded, scores = {}, {}
    for name, test in tests.items():
        texts = tuple(passage_text(passage) for passage in test.corpus.values())
        with (
            torch.inference_mode(),
            torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16),
        ):
            queries = retrieval.encode(model, list(test.queries.values()), "query")
            if texts not in encoded:
                encoded[texts] = retrieval.encode(model, list(texts), "passage")
        for size in args.dimensions or [queries.shape[1]]:
            cut = [normalize(vectors[:, :size]) for vectors in (queries, encoded[texts])]
            found = retrieval.dense_search(*cut, 100, list(test.queries), list(test.corpus))
            label = f"{name}, {size}" if args.dimensions else name
            scores[label] = metrics(found, test.qrels)[args.metric]
    return scores


def report(scores: dict, tests: list[str], times: dict) -> pd.DataFrame:
    """One line a recipe, alpha and test set; differences are paired by query, after averaging the seeds."""
    lines = []
    names = list(scores)
    reference = next((n for n in names if n[0] != "base" and n[1] == 1.0), names[0])
    for (name, alpha), runs in scores.items():
        for test in tests:
            mean = lambda key: sum(r[test] for r in scores[key]) / len(scores[key])  # noqa: B023, E731
            line = {"recipe": name, "alpha": alpha, "test set": test, "mean": mean((name, alpha)).mean()}
            line["sd of seeds"] = float(np.std([r[test].mean() for r in runs], ddof=len(runs) > 1))
            for label, other in (("vs base", ("base", 1.0)), ("vs first", reference)):
                difference = (mean((name, alpha)) - mean(other)).to_numpy()[:, None]  # (queries, 1)
                low, high = bootstrap_interval(difference, seed=13, resamples=10_000)
                p = permutation_p(difference, seed=13, resamples=10_000)[0]
                text = f"{difference.mean():+.4f} [{float(low[0]):+.4f}, {float(high[0]):+.4f}] p {p:.4f}"
                line[label] = "" if (name, alpha) == other else text
            line["seconds"] = round(float(np.mean(times.get(name, [0]))))
            lines.append(line)
    return pd.DataFrame(lines).round(4)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--recipes", nargs="+", default=["plain", "chosen"])
    parser.add_argument(
        "--generators", nargs="*", default=[], help="only rows by these, e.g. heading ready-made"
    )
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alphas", nargs="+", type=float, default=[1.0])
    parser.add_argument("--metric", default="nDCG@10")
    parser.add_argument(
        "--dimensions", nargs="*", type=int, default=[], help="also cut vectors to so many numbers"
    )
    parser.add_argument("--base-model", default="embedded")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument(
        "--bf16", type=json.loads, help="true or false; default: where a probe finds it faster"
    )
    parser.add_argument("--no-validation", action="store_true")
    parser.add_argument("--out", default="runs/recipes")
    parser.add_argument("--also", nargs="*", default=[], help="the --out of earlier runs")
    parser.add_argument("--models", nargs="*", default=[], help="NAME=FOLDER of trained models")
    return parser.parse_args()


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
