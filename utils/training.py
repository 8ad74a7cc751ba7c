"""Fine-tuning: rows → sentence-transformers' trainer, validation, checkpoints, and the same as a script.

On one or several processes:  accelerate launch -m utils.training --run NAME
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback

from utils import retrieval, run
from utils.beir_files import Collection, read_beir
from utils.contrastive import CachedMaskedRankingLoss, ContrastiveBatches, MaskedRankingLoss, ShuffledRows
from utils.evaluation import load_general, metrics
from utils.finishing import METRIC, interpolate, model_card, save_model, weights_of
from utils.options import add_lora, load_lora, merge_lora
from utils.recipe import Recipe, choose_recipe, smaller
from utils.records import TrainingRow, passage_text, read_rows
from utils.run import CourseError, Profile, expect

# ---------------------------------------------------------------- rows


def load_rows(path: Path, limit: int = 0, seed: int = 13) -> list[TrainingRow]:
    """The rows of a `train.jsonl`; with a limit, whole queries drawn by the seed until it is reached."""
    rows = read_rows(path, TrainingRow)
    expect(rows, f"{path} has no rows. Run notebooks/02_prepare_training_data.ipynb on more documents.")
    if not limit or len(rows) <= limit:
        return rows
    key = {row.query_id: hashlib.sha256(f"{seed}{row.query_id}".encode()).digest() for row in rows}
    drawn = sorted(rows, key=lambda row: key[row.query_id])[:limit]
    kept = {row.query_id for row in drawn}
    return [row for row in rows if row.query_id in kept]


# ---------------------------------------------------------------- validation


class Validation(BaseEvaluator):
    """nDCG@10 of a model on a collection (its passages sampled to `passages`, judged ones always kept)."""

    def __init__(self, collection: Collection, queries: int = 0, passages: int = 0, bf16: bool = False):
        super().__init__()
        self.name, self.bf16, self.primary_metric = collection.name, bf16, METRIC
        self.greater_is_better = True
        self.queries = _spread(list(collection.queries), queries)
        self.qrels = {q: collection.qrels[q] for q in self.queries}
        judged = {p for found in self.qrels.values() for p in found}
        rest = [p for p in collection.corpus if p not in judged]
        kept = judged | set(_spread(rest, max(passages - len(judged), 1)) if passages else rest)
        self.texts = {q: collection.queries[q] for q in self.queries}
        self.corpus = {p: passage_text(collection.corpus[p]) for p in collection.corpus if p in kept}

    def __call__(self, model, output_path=None, epoch=-1, steps=-1, **_) -> dict[str, float]:
        kind = model.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16), torch.inference_mode():
            queries = retrieval.encode(model, list(self.texts.values()), "query")
            passages = retrieval.encode(model, list(self.corpus.values()), "passage")
        found = retrieval.dense_search(queries, passages, 100, list(self.texts), list(self.corpus))
        return {METRIC: float(metrics(found, self.qrels)[METRIC].mean())}


def validation_size(profile: Profile) -> tuple[int, int]:
    """Questions and passages of a validation, at most."""
    return {"smoke": (20, 60), "cpu": (150, 400)}.get(profile.name, (1000, 20_000))


def _spread(items: list, n: int) -> list:
    """n items at equal distances (all of them for n = 0)."""
    return items if not n or n >= len(items) else [items[i * len(items) // n] for i in range(n)]


# ---------------------------------------------------------------- training


class Trainer(SentenceTransformerTrainer):
    """The library's trainer, without its own model card (see `finishing`), and strict about checkpoints: it
    would only log that the best one could not be loaded, and end with the last weights."""

    def add_model_card_callback(self, default_args_dict: dict) -> None:
        pass

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        adapter = Path(checkpoint_path) / "adapter_model.safetensors"
        if not adapter.exists():
            return super()._load_from_checkpoint(checkpoint_path)
        return load_lora(self.model, adapter)


class LiveLog(TrainerCallback):
    """Keeps the history and, in a notebook, redraws it in place at most every `seconds` (and at the end)."""

    def __init__(self, draw: Callable | None, seconds: float = 5.0):
        self.draw, self.seconds, self.handle, self.last = draw, seconds, None, 0.0

    def on_train_begin(self, args, state, control, **_) -> None:
        self.begin, self.first = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, **_) -> None:
        if time.perf_counter() - self.last > self.seconds:
            self._show(state)

    def on_train_end(self, args, state, control, **_) -> None:
        self._show(state)

    def _show(self, state) -> None:
        done = state.global_step - self.first
        rest = (state.max_steps - state.global_step) * (time.perf_counter() - self.begin) / max(done, 1)
        title = f"step {state.global_step} of {state.max_steps}, {rest / 60:.1f} minutes left"
        if self.draw is None or not state.is_world_process_zero:
            return
        from IPython.display import display

        figure = self.draw(history(state.log_history), title)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        elif self.handle:
            self.handle.update(figure)
        self.last = time.perf_counter()


def history(log: list[dict]) -> pd.DataFrame:
    """The trainer's log as a table: step, epoch, loss, learning_rate, grad_norm, nDCG@10 (one row a step)."""
    columns = {"eval_" + METRIC: METRIC}
    wanted = ["step", "epoch", "loss", "learning_rate", "grad_norm", METRIC]
    frame = pd.DataFrame(log).rename(columns=columns).reindex(columns=wanted)
    return frame.groupby("step", as_index=False).first()


@dataclass
class Training:
    """What `train` hands back; the model that was passed in now holds the best checkpoint's weights."""

    history: pd.DataFrame
    recipe: Recipe
    best: float
    seconds: float
    rows_per_second: float


def train(
    rows: list[TrainingRow],
    model: SentenceTransformer,
    recipe: Recipe,
    validation: Validation | None,
    folder: Path,
    draw: Callable | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> Training:
    """Fine-tune `model` in place; the weights of the best validation stay.

    folder: checkpoints go there; those of an interrupted training with the same rows, recipe and base are
    gone on from. draw(history, title) -> Figure: the live plot. When memory runs out, gradient caching
    comes first, then smaller batches, each with a word.
    """
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    while True:
        try:
            return _train_once(rows, model, recipe, validation, folder, draw, callbacks)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            recipe = smaller(recipe, error)
        model.load_state_dict(base)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train_once(rows, model, recipe, validation, folder, draw, callbacks) -> Training:
    started = time.perf_counter()
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as accelerate launch sets it
    batches = ContrastiveBatches(rows, model, recipe.hard_negatives, rectangular=processes > 1)
    if recipe.lora_rank:
        add_lora(model, recipe.lora_rank)
    kind = CachedMaskedRankingLoss if recipe.gradient_cache else MaskedRankingLoss
    loss = kind(model, recipe.temperature, recipe.tokens, gather=processes > 1)
    if recipe.matryoshka:
        loss = MatryoshkaLoss(model, loss, matryoshka_dims=sorted(recipe.matryoshka, reverse=True))
    fingerprint = _fingerprint(rows, model, recipe)
    with PartialState().main_process_first() if processes > 1 else nullcontext():
        checkpoint = _last_checkpoint(folder, fingerprint)
    trainer = Trainer(
        model=model,
        args=_arguments(recipe, folder, validation is not None, processes, model.device.type == "cpu"),
        train_dataset=Dataset.from_dict({"row": list(range(len(rows)))}),
        loss=loss,
        evaluator=validation,
        data_collator=batches,
        callbacks=[LiveLog(draw), *callbacks],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if validation is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=recipe.patience))
    try:
        with _dropout(model, recipe.dropout):
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:  # autocast's wrapper and the adapters go, also when memory ran out
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        if recipe.lora_rank:
            merge_lora(model)
    seconds = time.perf_counter() - started
    model.eval()
    seen = trainer.state.global_step * recipe.batch
    table = history(trainer.state.log_history)
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    best = trainer.state.best_metric if validation is not None else math.nan
    return Training(table, recipe, best, seconds, seen / seconds)


def _arguments(recipe: Recipe, folder: Path, validate: bool, processes: int, on_cpu: bool) -> Arguments:
    every = "steps" if validate else "no"
    return Arguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=1.0,
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        activation_checkpointing=recipe.gradient_checkpointing,
        batch_sampler=_in_seeded_order,
        seed=recipe.seed,
        eval_strategy=every,
        eval_on_start=validate,
        eval_steps=recipe.evaluate_every,
        save_strategy=every,
        save_steps=recipe.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=validate,
        metric_for_best_model=METRIC if validate else None,
        greater_is_better=True,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_drop_last=processes > 1,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"split_batches": True},
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )


@contextmanager
def _dropout(model: SentenceTransformer, rate: float | None) -> Iterator[None]:
    """Set the rate of all dropout layers for the length of the training; None leaves the model's own."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)] if rate is not None else []
    own = [layer.p for layer in layers]
    for layer in layers:
        layer.p = rate
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            layer.p = before


def _in_seeded_order(dataset, batch_size: int, drop_last: bool, seed: int, **_) -> DefaultBatchSampler:
    return DefaultBatchSampler(ShuffledRows(len(dataset), seed), batch_size, drop_last)


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _fingerprint(rows: list[TrainingRow], model: SentenceTransformer, recipe: Recipe) -> str:
    settings = recipe.settings()
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    sha.update(retrieval.model_digest(model).encode())
    for row in rows:
        sha.update(row.model_dump_json().encode())
    return sha.hexdigest()


def _last_checkpoint(folder: Path, fingerprint: str) -> str | None:
    """The newest whole checkpoint of the same training; an older training's checkpoints are removed."""
    note = folder / "fingerprint.txt"
    if not note.exists() or note.read_text(encoding="utf8") != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        run.write_text(note, fingerprint)
        return None
    whole = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    newest = max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)
    if newest is not None:
        print(f"Going on from {newest.name} of an interrupted training.")
    return str(newest) if newest is not None else None


# ---------------------------------------------------------------- as a script


def fine_tune(run_name: str, profile: str = "auto", seed: int = 13, **given) -> dict:
    """Notebook 3's training without its figures: stage 2's rows → 03_fine_tune/model; returns the headline.

    Under `accelerate launch` every process calls it; the first one writes.
    """
    state, device = PartialState(cpu=not torch.cuda.is_available()), run.detect_device()
    size, needs = run.choose_profile(profile, device), "02_prepare_training_data"
    settings = {"RUN": run_name, "PROFILE": profile, "SEED": seed, **{k.upper(): v for k, v in given.items()}}
    stage = run.begin(run_name, "03_fine_tune", settings, (needs,)) if state.is_main_process else None
    base_model = run.read_manifest(run_name, needs)["parameters"]["BASE_MODEL"]
    model = retrieval.load_encoder(base_model, str(state.device), size.max_tokens)
    rows = load_rows(run.artefact(run_name, needs, "train.jsonl"), size.train_rows, seed)
    chosen = [choose_recipe(rows, model, device, size, seed=seed, **given)]  # the probe may differ by process
    recipe = broadcast_object_list(chosen)[0]
    beir = run.artefact(run_name, needs, "beir")
    validation = Validation(read_beir(beir, "val"), *validation_size(size), recipe.bf16)
    general = Validation(load_general("dev"), *validation_size(size), recipe.bf16)
    folder = run.runs_dir() / run_name / "03_fine_tune"
    base = weights_of(model)
    result = train(rows, model, recipe, validation, folder / "checkpoints")
    headline = {
        "rows": len(rows),
        "best_val": result.best,
        "rows_per_second": round(result.rows_per_second, 1),
    }
    if stage is not None:
        alpha, table = interpolate(model, base, weights_of(model), validation, general)
        text, data = table.round(4).to_string(index=False), f"{len(rows)} rows"
        card = model_card(run_name, base_model, data, recipe, text, alpha)
        save_model(model, folder / "model", card)
        result.history.to_csv(folder / "history.csv", index=False)
        stage.finish(headline | {"alpha": alpha})
    state.wait_for_everyone()
    return headline


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.training", description=__doc__)
    parser.add_argument("--run", required=True, help="the run whose stage 2 has finished")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("SETTING", "VALUE"), dest="given"
    )
    args = parser.parse_args(arguments)
    try:
        given = {name: json.loads(value) for name, value in args.given}
        print(fine_tune(args.run, args.profile, args.seed, **given))
    except (CourseError, json.JSONDecodeError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
