"""Fine-tuning: rows → the trainer, resumed where it stopped and smaller where memory ends."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from utils import checkpoints
from utils.contrastive import CachedMaskedRankingLoss, ContrastiveBatches, MaskedRankingLoss
from utils.finishing import METRIC as METRIC
from utils.finishing import weights_of
from utils.options import add_lora, merge_lora
from utils.recipe import Recipe, for_processes, for_rows, smaller
from utils.records import TrainingRow, read_rows
from utils.run import CourseError, expect
from utils.trainer import (
    GiveBack,
    LiveLog,
    OrderOfEpoch,
    Trainer,
    Validation,
    dropout,
    history,
    training_arguments,
    unwrap,
)
from utils.trainer import validation_size as validation_size


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


@dataclass
class Training:
    """What `train` hands back; the model that was passed in now holds the kept checkpoint's weights.

    best: its validation nDCG@10; step: where it stood. seconds and rows_per_second are those of the part that
    was trained without a break: from step `first` on, above 0 if an interrupted training was gone on from.
    """

    history: pd.DataFrame
    recipe: Recipe
    best: float
    step: int
    seconds: float
    rows_per_second: float
    first: int = 0


def train(
    rows: list[TrainingRow],
    model: SentenceTransformer,
    recipe: Recipe,
    validation: Validation | None,
    folder: Path,
    draw: Callable | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    keep: bool = False,
) -> Training:
    """Fine-tune `model` in place; the latest weights that validation does not find clearly worse stay.

    folder: below it each training has one for its checkpoints (`checkpoints.folder_of`); an interrupted one
    with the same rows, recipe, base and validation is gone on from. keep: the end stays there, and whoever
    asks for the same training again gets it from there; else its folder goes. draw(history, title) -> Figure:
    the live plot. When memory runs out, gradient caching comes first, then smaller batches, each with a word;
    of several processes the one that ran out notes the smaller recipe and raises CourseError, for the others
    wait for it: the next start takes what was noted. Raises CourseError with fewer rows than processes.
    """
    processes = _processes()
    expect(
        len(rows) >= processes,
        f"{len(rows)} training rows cannot be shared by {processes} processes. Start {len(rows)} at most "
        f"(--num_processes), or run notebooks/02_prepare_training_data.ipynb on more documents.",
    )
    if left := len(rows) % processes:
        print(f"{processes} processes share evenly: {left} of {len(rows)} rows, others each epoch, stay out.")
    recipe = for_rows(recipe, len(rows))
    place = checkpoints.folder_of(folder, rows, model, recipe, validation)
    recipe = for_processes(checkpoints.noted_recipe(place, recipe), processes)
    ended = checkpoints.load_end(place, model)
    if ended is not None:
        figures, table = ended
        print(f"This training has ended before, at step {table.step.max()}: its weights are taken.")
        LiveLog(draw).show(table, "trained before")
        return Training(table, recipe, **figures)
    base = weights_of(model)  # on the CPU: no second copy beside the model on a GPU
    while True:
        try:
            kept = checkpoints.of_batch(place, recipe.batch)
            result = _train_once(rows, model, recipe, validation, kept, draw, callbacks)
            _put_away(result, model, place, keep)
            return result
        except BaseException as error:  # the Stop button too: the model is the base again, not half-trained
            model.load_state_dict(base)
            if not _out_of_memory(error):
                raise
            less = for_processes(smaller(recipe, error, processes), processes)
            checkpoints.start_smaller(place, less)
            if processes > 1:  # the others wait for this one; whoever launched them ends them
                raise CourseError(
                    f"Process {os.environ['RANK']} of {processes}, counted from 0, ran out of memory with a "
                    f"batch of {recipe.batch}. Start the same command again: it goes on with the smaller "
                    f"recipe, which is noted in {place}."
                ) from error
            recipe = less
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _put_away(result: Training, model: SentenceTransformer, place: Path, keep: bool) -> None:
    """Keep the end of a training in its folder, or remove the folder (and the one around it, when empty)."""
    if not _writes():
        return
    if keep:
        names = ("best", "step", "seconds", "rows_per_second", "first")
        figures = {name: getattr(result, name) for name in names}
        checkpoints.save_end(place, model, figures, result.history)
        return
    shutil.rmtree(place, ignore_errors=True)
    if place.parent.exists() and not any(place.parent.iterdir()):
        place.parent.rmdir()


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # as accelerate launch sets it


def _writes() -> bool:
    return _processes() == 1 or PartialState().is_main_process


def _train_once(rows, model, recipe, validation, folder, draw, callbacks) -> Training:
    started, live = time.perf_counter(), LiveLog(draw)
    with _trained_weights(model, recipe), dropout(model, recipe.dropout):
        called = [live, OrderOfEpoch(), GiveBack(), *callbacks]
        trainer = _trainer(rows, model, recipe, validation, folder, called)
        try:
            trainer.train(resume_from_checkpoint=checkpoints.latest(folder))
        finally:  # autocast's wrapper goes, also when memory ran out
            unwrap(trainer, model)
    seconds = time.perf_counter() - started
    model.eval()
    seen = (trainer.state.global_step - live.first) * recipe.batch
    table = history(trainer.state.log_history)
    if _processes() > 1:
        PartialState().wait_for_everyone()  # all have loaded the checkpoint that is kept
    best = trainer.state.best_metric if validation is not None else math.nan
    step = trainer.state.best_global_step or trainer.state.global_step
    return Training(table, recipe, best, step, seconds, seen / seconds, live.first)


@contextmanager
def _trained_weights(model: SentenceTransformer, recipe: Recipe) -> Iterator[None]:
    """LoRA's matrices beside the weights, if asked for, and no gradient where none comes. At the end, also of
    an error, the matrices are merged, and all weights may be trained again."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        if recipe.lora_rank:
            torch.manual_seed(recipe.seed)  # of the matrices' first values
            add_lora(model, recipe.lora_rank)
        for name, parameter in model.named_parameters():
            if ".pooler." in name:  # BERT's: no gradient comes there, and DDP would wait for one
                parameter.requires_grad_(False)
        yield
    finally:
        if recipe.lora_rank:
            merge_lora(model)
        for parameter in trainable:
            parameter.requires_grad_(True)


def _trainer(rows, model, recipe, validation, folder, callbacks) -> Trainer:
    processes = _processes()
    kind = CachedMaskedRankingLoss if recipe.gradient_cache else MaskedRankingLoss
    loss = kind(model, recipe.temperature, recipe.tokens, gather=processes > 1)
    if recipe.matryoshka:
        sizes = {*recipe.matryoshka, model.get_embedding_dimension()}  # the whole vector is served, too
        loss = MatryoshkaLoss(model, loss, matryoshka_dims=sorted(sizes, reverse=True))
    on_cpu = model.device.type == "cpu"
    trainer = Trainer(
        model=model,
        args=training_arguments(recipe, folder, validation is not None, processes, on_cpu),
        train_dataset=Dataset.from_dict({"row": list(range(len(rows)))}),
        loss=loss,
        evaluator=validation,
        data_collator=ContrastiveBatches(rows, model, recipe.hard_negatives, rectangular=processes > 1),
        callbacks=callbacks,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.patience = recipe.patience
    return trainer


def _out_of_memory(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
