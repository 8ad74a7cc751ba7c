# python tests/benchmarks/training_speed.py --train runs/NAME/02_prepare_training_data
"""Training throughput beside sentence-transformers' own default trainer settings, on the same rows.

Variants run in turn, `--repeats` times over, each for one epoch of batch × steps rows from
the same base weights. The first variant is the library alone: SentenceTransformerTrainer with its default
arguments (float32, default batch sampler and collator, the model's dropout). The others add one part each; in
the "equal" pair batch, precision and dropout are the same, so that what is left is padding, double passages
and tokenisation; "whole batches" pads a batch in one piece, as the library does, and "every copy" embeds a
passage as often as it stands there; "course, batch 8" takes as many steps as the library's defaults, so that
quality can be compared. Validation nDCG@10 after the same number of steps and rows stands beside
each.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from transformers import PrinterCallback

from utils import contrastive, finishing, retrieval, run, training
from utils.beir_files import read_beir
from utils.recipe import Recipe
from utils.trainer import unwrap


def library(rows, model, batch: int, negatives: int, bf16: bool, rate: float, folder: str, seed: int) -> None:
    """The library's trainer on text columns, everything else at its defaults."""
    columns = {"query": [r.query for r in rows], "positive": [r.positive for r in rows]}
    columns |= {f"negative_{i}": [r.negatives[i] for r in rows] for i in range(negatives)}
    args = SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=rate,
        bf16=bf16,
        seed=seed,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = losses.MultipleNegativesRankingLoss(model, scale=20.0)
    trainer = SentenceTransformerTrainer(
        model=model, args=args, train_dataset=Dataset.from_dict(columns), loss=loss
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    unwrap(trainer, model)


def ours(rows, model, recipe: Recipe, folder: str, whole: bool = False, copies: bool = False) -> None:
    """The course's training; whole: without its padding, copies: without its sharing of passages."""
    every = partial(contrastive.ContrastiveBatches, rectangular=True)
    with ExitStack() as changed:
        if whole:
            in_one = lambda self, features: self.model(features)["sentence_embedding"]  # noqa: E731
            changed.enter_context(mock.patch.object(contrastive.MaskedRankingLoss, "_embed", in_one))
        if copies:
            one = lambda rows, model, n, rectangular: every(rows, model, n)  # noqa: E731
            changed.enter_context(mock.patch.object(training, "ContrastiveBatches", one))
        training.train(rows, model, recipe, None, Path(folder) / "c")


def main() -> None:
    args = arguments()
    device = run.detect_device()
    model = retrieval.load_encoder("embedded", device, args.max_tokens)
    base = finishing.weights_of(model)
    rows = [r for r in training.load_rows(args.train / "train.jsonl") if len(r.negatives) >= args.negatives]
    order = np.random.default_rng(13).permutation(len(rows))[: args.batch * args.steps]
    rows = [rows[i] for i in order]
    validation = training.Validation(read_beir(args.train / "beir", "val"), 150, 300, bf16=True)
    mine = Recipe(
        epochs=1,
        batch=args.batch,
        learning_rate=5e-5,
        warmup=0,
        evaluate_every=1,
        temperature=0.05,
        hard_negatives=args.negatives,
        bf16=True,
        gradient_cache=False,
    )
    same = {"batch": args.batch, "negatives": args.negatives, "rate": 5e-5}
    variants = {
        "library, its defaults (batch 8)": lambda d, s: library(
            rows, model, **same | {"batch": 8}, bf16=False, folder=d, seed=s
        ),
        "library, equal batch": lambda d, s: library(rows, model, **same, bf16=False, folder=d, seed=s),
        "library, equal batch and bf16": lambda d, s: library(
            rows, model, **same, bf16=True, folder=d, seed=s
        ),
        "course, float32, dropout, whole batches, every copy": lambda d, s: ours(
            rows, model, replace(mine, bf16=False, dropout=None, seed=s), d, whole=True, copies=True
        ),
        "course, float32, dropout, whole batches": lambda d, s: ours(
            rows, model, replace(mine, bf16=False, dropout=None, seed=s), d, whole=True
        ),
        "course, float32, dropout": lambda d, s: ours(
            rows, model, replace(mine, bf16=False, dropout=None, seed=s), d
        ),
        "course, bf16, dropout": lambda d, s: ours(rows, model, replace(mine, dropout=None, seed=s), d),
        "course, bf16, no dropout": lambda d, s: ours(rows, model, replace(mine, seed=s), d),
        "course, batch 8, bf16, no dropout": lambda d, s: ours(
            rows, model, replace(mine, batch=8, seed=s), d
        ),
        "course, and gradient cache": lambda d, s: ours(
            rows, model, replace(mine, gradient_cache=True, seed=s), d
        ),
    }
    print(f"{len(rows)} rows, {args.negatives} negatives, {args.max_tokens} tokens, {device.cores} cores")
    print(f"validation of the base: {validation(model)['nDCG@10']:.4f}")
    found = []
    for repeat in range(args.repeats):
        for name, fit in variants.items():
            if args.only and not any(part in name for part in args.only):
                continue
            model.load_state_dict(base)
            with tempfile.TemporaryDirectory() as folder:
                cpu, wall = time.process_time(), time.perf_counter()
                fit(folder, repeat)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            model.eval()
            mark = validation(model)["nDCG@10"]
            found.append(
                {"variant": name, "rows/s": len(rows) / wall, "rows/CPU s": len(rows) / cpu, "nDCG@10": mark}
            )
            print(found[-1], flush=True)
    table = pd.DataFrame(found).groupby("variant", sort=False).mean().round(4)
    table["× the first"] = (table["rows/s"] / table["rows/s"].iloc[0]).round(2)
    print(table.to_string())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, help="a stage 2 folder")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="parts of variants' names")
    return parser.parse_args()


if __name__ == "__main__":
    torch.manual_seed(13)
    main()
