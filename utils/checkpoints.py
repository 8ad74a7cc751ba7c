"""What trainings leave on disk until their stage has finished, so that a rerun loses nothing.

Every training has a folder of its own, named by its fingerprint. While it goes on, its checkpoints stand
there; once it has ended, its end (the kept weights and the figures). `Stage.finish` removes them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from utils.files import read_json
from utils.finishing import weights_of
from utils.recipe import Recipe
from utils.records import TrainingRow
from utils.retrieval import model_digest
from utils.run import CourseError, digest, write_text
from utils.trainer import Validation

CODE = ("contrastive", "duplicates", "options", "trainer", "training")  # what decides how a training goes
WEIGHTS, FIGURES, RECIPE = "model.safetensors", "end.json", "recipe.json"


def folder_of(
    root: Path, rows: list[TrainingRow], model: SentenceTransformer, recipe: Recipe, validation: object
) -> Path:
    """The folder below `root` of the training of this base on these rows by this recipe and validation.

    Other code is another training; bfloat16 is none, for a probe decides it, and may decide otherwise later.
    """
    settings = [recipe.settings() | {"bf16": None}, model.max_seq_length, model.prompts]
    settings += [digest(Path(__file__).with_name(f"{name}.py")) for name in CODE]
    if isinstance(validation, Validation):
        settings += [validation.texts, validation.qrels, list(validation.corpus.items())]
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    sha.update(model_digest(model).encode())
    for row in rows:
        sha.update(row.model_dump_json().encode())
    return root / sha.hexdigest()[:16]


def latest(folder: Path) -> str | None:
    """The newest whole checkpoint of a training that was interrupted; None if there is none."""
    whole = [p for p in folder.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    newest = max(whole, key=lambda p: int(p.name.split("-")[1]), default=None)
    if newest is not None:
        print(f"Going on from {newest.name} of an interrupted training.")
    return str(newest) if newest is not None else None


def of_batch(folder: Path, batch: int) -> Path:
    """The folder of the checkpoints with this batch; those with another cannot be gone on from, and go."""
    own = folder / f"batch-{batch}"
    for other in set(folder.glob("batch-*")) - {own}:
        shutil.rmtree(other, ignore_errors=True)
    return own


def start_smaller(folder: Path, recipe: Recipe) -> None:
    """Memory ran out: note the smaller recipe for whoever goes on. Several processes may do so at once."""
    own = folder / f"{RECIPE}.{os.environ.get('RANK', 0)}"
    write_text(own, json.dumps(recipe.settings()))
    own.replace(folder / RECIPE)


def noted_recipe(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe that the memory sufficed for, if the training had to be made smaller; else the given one."""
    if not (folder / RECIPE).exists():
        return recipe
    noted = read_json(folder / RECIPE)
    noted["matryoshka"] = tuple(noted["matryoshka"])
    changed = {
        name: "memory ran out before" for name, value in recipe.settings().items() if noted[name] != value
    }
    return replace(recipe, **noted, why=recipe.why | changed)


def save_end(folder: Path, model: SentenceTransformer, figures: dict, history: pd.DataFrame) -> None:
    """Keep the end of a training: the model's weights, then the figures; its checkpoints go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous() for name, t in weights_of(model).items()}, folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CourseError(
            f"The trained weights could not be written to {folder} ({error}). Free some space and run again: "
            f"the training goes on from its last checkpoint."
        ) from error
    table = {"columns": list(history.columns), "rows": history.to_numpy(dtype=float).tolist()}
    write_text(folder / FIGURES, json.dumps({"figures": figures, "history": table}))
    for checkpoints in folder.glob("batch-*"):
        shutil.rmtree(checkpoints, ignore_errors=True)


def load_end(folder: Path, model: SentenceTransformer) -> tuple[dict, pd.DataFrame] | None:
    """Figures and history of a training that has ended, its weights put into the model; else None."""
    if not (folder / FIGURES).exists():
        return None
    kept = read_json(folder / FIGURES)
    model.load_state_dict(load_file(folder / WEIGHTS))
    history = pd.DataFrame(kept["history"]["rows"], columns=kept["history"]["columns"])
    return kept["figures"], history.astype({"step": int})
