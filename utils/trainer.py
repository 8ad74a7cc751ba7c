"""sentence-transformers' trainer as the course runs it: arguments, dropout, live history and validation."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import DefaultBatchSampler
from transformers import TrainerCallback

from utils import retrieval
from utils.beir_files import Collection, part_of_corpus, spread
from utils.contrastive import ShuffledRows
from utils.evaluation import metrics
from utils.finishing import METRIC
from utils.options import load_lora
from utils.recipe import Recipe
from utils.records import passage_text
from utils.run import Profile


def training_arguments(
    recipe: Recipe, folder: Path, validate: bool, processes: int, on_cpu: bool
) -> Arguments:
    """The trainer's settings; folder: checkpoints go there, one a validation."""
    every = "steps" if validate else "no"
    arguments = Arguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch // processes,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=1.0,
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        activation_checkpointing=recipe.gradient_checkpointing,
        batch_sampler=partial(_shared, processes=processes),
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
        dataloader_drop_last=processes > 1,  # as the library wants it; SharedBatches drops less
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process takes all GPUs, each with a whole batch
    return arguments


def unwrap(trainer: SentenceTransformerTrainer, model: SentenceTransformer) -> None:
    """Take autocast's wrapper off, and accelerate's mark, which would keep a next training from bfloat16."""
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    for left in ("forward", "_is_accelerate_prepared"):
        vars(model).pop(left, None)


@contextmanager
def dropout(model: SentenceTransformer, rate: float | None) -> Iterator[None]:
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


class Trainer(SentenceTransformerTrainer):
    """The library's trainer, without its own model card (see `finishing`), and with rules for checkpoints.

    The latest checkpoint that is not clearly worse than the best one is kept: validation questions are few
    and passed a filter by the base, so that a difference within their margin says nothing, and more training
    may still help. `patience` evaluations in a row that are clearly worse end the training. A kept checkpoint
    that cannot be loaded is an error; the library would only log it, and end with the last weights.
    """

    patience: int = 3

    def _determine_best_metric(self, metrics: dict[str, float], trial) -> bool:
        name = f"eval_{METRIC}"
        if self.args.metric_for_best_model is None:
            return False
        marks = {log["step"]: log[name] for log in self.state.log_history if name in log and log["step"] > 0}
        kept = metrics[name] >= max(marks.values()) - metrics.get("eval_margin", 0.0)
        if kept:
            self.state.best_metric, self.state.best_global_step = metrics[name], self.state.global_step
        elif sum(step > self.state.best_global_step for step in marks) >= self.patience:
            self.control.should_training_stop = True
        return kept

    def add_model_card_callback(self, default_args_dict: dict) -> None:
        pass

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        adapter = Path(checkpoint_path) / "adapter_model.safetensors"
        if not adapter.exists():
            return super()._load_from_checkpoint(checkpoint_path)
        return load_lora(self.model, adapter)


class SharedBatches(DefaultBatchSampler):
    """Batches of row numbers in the seeded order, each as one equal part a process, one after the other.

    part: rows of a part. accelerate deals the parts out in turn. The last batch of an epoch may be smaller;
    the rows of it that cannot be shared evenly, fewer than there are processes, are left out.
    """

    def __init__(self, rows: int, part: int, processes: int, seed: int):
        super().__init__(ShuffledRows(rows, seed), part, drop_last=False)
        self.processes, self.shared = processes, rows - rows % processes

    def __len__(self) -> int:
        return math.ceil(self.shared / (self.batch_size * self.processes)) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        rows, batch = list(self.sampler)[: self.shared], self.batch_size * self.processes
        for start in range(0, self.shared, batch):
            part = min(batch, self.shared - start) // self.processes
            for first in range(start, start + part * self.processes, part):
                yield rows[first : first + part]


def _shared(dataset, batch_size: int, seed: int, processes: int, **_) -> SharedBatches:
    return SharedBatches(len(dataset), batch_size, processes, seed)


class OrderOfEpoch(TrainerCallback):
    """Tells the row order its epoch: in several processes a resumed loader does not pass it on."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **_) -> None:
        batches = train_dataloader.batch_sampler
        getattr(batches, "batch_sampler", batches).sampler.set_epoch(int(state.epoch))


class GiveBack(TrainerCallback):
    """Returns freed memory to the system after each step (glibc alone needs to be told): batches of ever
    other lengths leave it in pieces, and a process grows to several times what it uses."""

    def __init__(self) -> None:
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def on_step_end(self, args, state, control, **_) -> None:
        if self.trim:
            self.trim(0)


class LiveLog(TrainerCallback):
    """Redraws the history in place, in a notebook, and at the end once more. The training waits for it: so
    between two drawings lie `seconds`, and thirty times what the last one took, at least."""

    def __init__(self, draw: Callable | None, seconds: float = 5.0):
        self.draw, self.seconds, self.handle, self.due = draw, seconds, None, 0.0

    def on_train_begin(self, args, state, control, **_) -> None:
        self.begin, self.first = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, **_) -> None:
        if time.perf_counter() > self.due:
            self._update(state)

    def on_train_end(self, args, state, control, **_) -> None:
        self._update(state)

    def _update(self, state) -> None:
        done = state.global_step - self.first
        rest = (state.max_steps - state.global_step) * (time.perf_counter() - self.begin) / max(done, 1)
        title = f"step {state.global_step} of {state.max_steps}, {rest / 60:.1f} minutes left"
        if state.is_world_process_zero:
            self.show(history(state.log_history), title)

    def show(self, table: pd.DataFrame, title: str) -> None:
        """Draw the history (as `history` gives it), in place of what was drawn before."""
        if self.draw is None:
            return
        from IPython.display import display

        started = time.perf_counter()
        figure = self.draw(table, title)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        elif self.handle:
            self.handle.update(figure)
        ended = time.perf_counter()
        self.due = ended + max(self.seconds, 30 * (ended - started))


def history(log: list[dict]) -> pd.DataFrame:
    """The trainer's log as a table: step, epoch, loss, learning_rate, grad_norm, nDCG@10 (one row a step)."""
    columns = {"eval_" + METRIC: METRIC}
    wanted = ["step", "epoch", "loss", "learning_rate", "grad_norm", METRIC]
    frame = pd.DataFrame(log).rename(columns=columns).reindex(columns=wanted)
    return frame.groupby("step", as_index=False).first()


class Validation(BaseEvaluator):
    """nDCG@10 of a model on a collection (its passages sampled to `passages`, judged ones always kept).

    Beside it its margin: half a standard error, about that of the difference between two checkpoints that
    agree on most questions (a correlation of 7/8).
    """

    def __init__(self, collection: Collection, queries: int = 0, passages: int = 0, bf16: bool = False):
        super().__init__()
        self.name, self.bf16, self.primary_metric = collection.name, bf16, METRIC
        self.greater_is_better = True
        self.queries = spread(list(collection.queries), queries)
        self.qrels = {q: collection.qrels[q] for q in self.queries}
        self.texts = {q: collection.queries[q] for q in self.queries}
        kept = part_of_corpus(collection.corpus, self.qrels, passages)
        self.corpus = {p: passage_text(passage) for p, passage in kept.items()}

    def __call__(self, model, output_path=None, epoch=-1, steps=-1, **_) -> dict[str, float]:
        kind = model.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16), torch.inference_mode():
            queries = retrieval.encode(model, list(self.texts.values()), "query")
            passages = retrieval.encode(model, list(self.corpus.values()), "passage")
        found = retrieval.dense_search(queries, passages, 100, list(self.texts), list(self.corpus))
        values = metrics(found, self.qrels)[METRIC]
        return {METRIC: float(values.mean()), "margin": float(values.std(ddof=0) / len(values) ** 0.5 / 2)}


def validation_size(profile: Profile) -> tuple[int, int]:
    """Questions and passages of a validation, at most."""
    return {"smoke": (20, 60), "cpu": (400, 400)}.get(profile.name, (1000, 20_000))
