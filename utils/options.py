"""Optional parts of fine-tuning: LoRA, Matryoshka sizes, re-mining, a sweep, a second model on some rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer

from utils import retrieval
from utils.contrastive import named_passages, passage_groups
from utils.finishing import METRIC, State, blend, save_model, weights_of
from utils.mining import DEEPEST, choose_negatives
from utils.recipe import Recipe
from utils.records import FREE, TrainingRow
from utils.run import expect


def add_lora(model: SentenceTransformer, rank: int) -> None:
    """Freeze the model and put trainable low-rank matrices beside all its linear layers (Hu et al. 2021)."""
    from peft import LoraConfig, TaskType

    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".pooler." not in name)  # Dense modules stay, too


def lora_sizes(model: SentenceTransformer, ranks: tuple[int, ...] = (8, 16, 32)) -> pd.DataFrame:
    """What training keeps in memory for each rank, and for all weights: one row each.

    Columns: weights that are trained (millions), their share, and GB of gradients and Adam's two moments
    (12 bytes a weight).
    """
    inner = model[0].auto_model.named_modules()
    linear = [m for name, m in inner if isinstance(m, torch.nn.Linear) and "pooler" not in name]
    counts = {f"rank {r}": sum(r * (m.in_features + m.out_features) for m in linear) for r in ranks}
    counts["all weights"] = sum(p.numel() for p in model.parameters())
    trained = pd.Series(counts)
    columns = {
        "trained, M": trained / 1e6,
        "share": trained / counts["all weights"],
        "GB": trained * 12 / 2**30,
    }
    return pd.DataFrame(columns)


def load_lora(model: SentenceTransformer, path: Path) -> None:
    """Read the adapters that a checkpoint holds into a model that has them already."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model[0].auto_model, load_file(path))


def merge_lora(model: SentenceTransformer) -> None:
    """Add the low-rank products to the weights and remove the adapters: a plain model again."""
    from peft.tuners.lora import LoraLayer

    inner = model[0].auto_model
    for name, layer in [(n, m) for n, m in inner.named_modules() if isinstance(m, LoraLayer)]:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(inner.get_submodule(parent), child, layer.get_base_layer())
    inner._hf_peft_config_loaded = False
    vars(inner).pop("peft_config", None)
    inner.requires_grad_(True)


def by_dimension(model: SentenceTransformer, validation: Callable, dimensions: list[int]) -> pd.Series:
    """nDCG@10 of the first d numbers of every vector, for each d and for the whole width."""
    width = model.get_embedding_dimension()
    marks = {}
    try:
        for size in sorted({*dimensions, width}):
            model.truncate_dim = size
            marks[size] = validation(model)[METRIC]
    finally:
        model.truncate_dim = None
    return pd.Series(marks, name=METRIC).rename_axis("dimensions")


def remine(
    rows: list[TrainingRow],
    model: SentenceTransformer,
    negatives: int = 4,
    margin: float = 0.95,
    suspects: Mapping[str, list[str]] | None = None,
) -> list[TrainingRow]:
    """The rows with new hard negatives, mined with `model` among the passages the rows already name.

    So nothing held out comes in. The rule is notebook 2's: a query's positives are masked, what scores above
    margin × its lowest positive is suspect and left out, the best of the rest are kept. suspects: {query id:
    ids of passages that notebook 2 excluded}; these stay out, whatever the tuned model makes of them.
    """
    group = passage_groups(rows)
    of_id = {passage_id: group[text] for row in rows for passage_id, text in named_passages(row)}
    answers: dict[str, set[int]] = {}  # query → groups of passages that are no negatives of it
    for row in rows:
        out = answers.setdefault(row.query, set())
        out.add(group[row.positive])
        out |= {of_id[i] for i in (suspects or {}).get(row.query_id, ()) if i in of_id}
    mined: dict[int, TrainingRow] = {}
    marks: dict[str, list[float]] = {}  # query → similarities of all its positives
    for plain in (True, False):  # free questions' passages come without their title
        own = [i for i, row in enumerate(rows) if (row.generator in FREE) is plain]
        if not own:
            continue
        pool = {text: passage_id for i in own for passage_id, text in named_passages(rows[i])}
        texts = list(pool)
        queries = retrieval.encode(model, [rows[i].query for i in own], "query")  # (rows, d)
        passages = retrieval.encode(model, texts, "passage")  # (pool, d)
        at = {text: n for n, text in enumerate(texts)}
        positives = [float(q @ passages[at[rows[i].positive]]) for q, i in zip(queries, own, strict=True)]
        for i, positive in zip(own, positives, strict=True):
            marks.setdefault(rows[i].query, []).append(positive)
        for number, i in enumerate(own):
            row, positive = rows[i], positives[number]
            for depth in (100, DEEPEST):  # deeper only where suspects and answers fill the ranking
                scores, found = retrieval.nearest(queries[number : number + 1], passages, depth)
                candidates = [(texts[c], s) for c, s in zip(found[0], scores[0].tolist(), strict=True)]
                masked = {text for text, _ in candidates if group[text] in answers[row.query]}
                kept = choose_negatives(candidates, marks[row.query], masked, margin)[0][:negatives]
                if len(kept) == negatives:
                    break
            mined[i] = row.model_copy(
                update={
                    "negatives": [text for text, _ in kept],
                    "negative_ids": [pool[text] for text, _ in kept],
                    "negative_scores": [round(score, 4) for _, score in kept],
                    "positive_score": round(positive, 4),
                }
            )
    return [mined[i] for i in range(len(rows))]


def sweep(
    rates: list[float], recipe: Recipe, model: SentenceTransformer, train: Callable
) -> tuple[object, pd.DataFrame]:
    """Train once a learning rate from the same start; the model ends with the weights of the best validation.

    train(recipe) -> Training trains `model` in place. Returns the best Training and the table of all.
    """
    expect(all(rate > 0 for rate in rates), f"LEARNING_RATES = {rates}: give numbers above 0.")
    base, tried = weights_of(model), []
    for rate in rates:
        model.load_state_dict(base)
        result = train(
            replace(recipe, learning_rate=rate, why=recipe.why | {"learning_rate": "best of the sweep"})
        )
        tried.append((result, weights_of(model)))
    result, weights = max(tried, key=lambda item: item[0].best)
    model.load_state_dict(weights)
    columns = {METRIC: [r.best for r, _ in tried], "seconds": [r.seconds for r, _ in tried]}
    return result, pd.DataFrame(columns, index=pd.Index(rates, name="learning rate"))


def train_part(
    rows: list[TrainingRow],
    model: SentenceTransformer,
    base: State,
    folder: Path,
    card: str,
    train: Callable,
    alpha: float = 1.0,
) -> float:
    """Train a second model from the same base on some of the rows into `folder`/model; returns the seconds.

    train(rows) -> Training trains `model` in place; its weights are put back afterwards.
    alpha: how far the second model moves from the base. Without rows nothing is done (0 seconds).
    """
    shutil.rmtree(folder, ignore_errors=True)  # an earlier run's
    if not rows:
        return 0.0
    before = weights_of(model)
    model.load_state_dict(base)
    result = train(rows)
    blend(model, base, weights_of(model), alpha)
    save_model(model, folder / "model", card)
    model.load_state_dict(before)
    return result.seconds
