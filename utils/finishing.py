"""From fine-tuned weights to the folder that is handed on: interpolation with the base, card, safetensors."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer

from utils import run
from utils.base_models import described
from utils.recipe import Recipe
from utils.records import TrainingRow
from utils.run import CourseError

NO_ROOM = 0.98  # nDCG@10 of a base that can hardly gain
METRIC = "nDCG@10"
State = dict[str, torch.Tensor]
Measure = Callable[[SentenceTransformer], dict[str, float]]


def weights_of(model: SentenceTransformer) -> State:
    """A copy of all weights, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def blend(model: SentenceTransformer, base: State, tuned: State, alpha: float) -> None:
    """Set the model's weights to (1 - alpha) × base + alpha × tuned (Wortsman et al. 2022, WiSE-FT)."""
    mixed = {
        name: torch.lerp(base[name].float(), tuned[name].float(), alpha).to(base[name].dtype)
        if base[name].is_floating_point()
        else base[name]
        for name in base
    }
    model.load_state_dict(mixed)


def interpolate(
    model: SentenceTransformer,
    base: State,
    tuned: State,
    validation: Measure,
    general: Measure | None,
    alphas: tuple[float, ...] = (0, 0.25, 0.5, 0.75, 1),
    tolerance: float = 0.02,
) -> tuple[float, pd.DataFrame]:
    """Try each alpha, leave the chosen one in the model; returns it and the table (alpha, domain, general).

    Chosen: the largest alpha at which nothing is lost, that is nDCG@10 on `validation` is not clearly below
    the base's (by its margin, as for checkpoints) and on `general` at most `tolerance` below it. Not the best
    on `validation`: its questions passed a filter by the base, so they show harm rather than gain. If no
    alpha is better there than the base, the base stays: alpha = 0. Where the base leaves validation no room
    (titles that stand in their passages: above 0.98), it shows no gain, and only harm is asked of it.
    """
    rows, margin = [], 0.0
    for alpha in sorted({0.0, *map(float, alphas)}):
        blend(model, base, tuned, alpha)
        outside = general(model)[METRIC] if general is not None else math.nan
        found = validation(model)
        margin = margin if rows else found.get("margin", 0.0)
        rows.append({"alpha": alpha, "domain": found[METRIC], "general": outside})
    table = pd.DataFrame(rows)
    floor, least = table.general[0] - tolerance, table.domain[0] - margin
    table["allowed"] = (table.general.isna() | (table.general >= floor)) & (table.domain >= least)
    gains = table.allowed & ((table.domain > table.domain[0]) | (table.domain[0] > NO_ROOM))
    best = float(table.alpha[table.allowed].max()) if gains.any() else 0.0
    blend(model, base, tuned, best)
    return best, table


def save_model(model: SentenceTransformer, folder: Path, card: str) -> None:
    """Write a plain sentence-transformers folder: safetensors, prompts, cosine similarity, model card."""
    shutil.rmtree(folder, ignore_errors=True)
    model.similarity_fn_name = "cosine"
    if "passage" in model.prompts:  # sentence-transformers' own name for it, read by encode_document
        model.prompts = model.prompts | {"document": model.prompts["passage"]}
    try:
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
    except OSError as error:
        raise CourseError(
            f"The model could not be written to {folder} ({error.strerror}). Free some space, run again."
        ) from error
    run.write_text(folder / "README.md", card)


def told(rows: Sequence[TrainingRow]) -> str:
    """The rows in a sentence: how many, and who wrote their questions."""
    writers = Counter(row.generator or "given" for row in rows)
    return f"{len(rows)} rows; questions by: {', '.join(f'{w} ({n})' for w, n in sorted(writers.items()))}."


def model_card(name: str, base_model: str, data: str, recipe: Recipe, results: str, alpha: float) -> str:
    """The folder's README.md: what it is, base, data, parameters, results, limits, licence."""
    base = described(base_model).model
    embedded = base == "embedded"
    base = "sentence-transformers/all-MiniLM-L6-v2" if embedded else base
    licence = "apache-2.0" if embedded else "other"
    terms = (
        "Apache-2.0, as its base"
        if embedded
        else f"that of its base, {base}: read its card before passing it on"
    )
    settings = recipe.settings()
    rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: {base}
license: {licence}
tags: [sentence-transformers, feature-extraction, retrieval]
---
# {name}

A bi-encoder for retrieval in one domain, fine-tuned from `{base}`.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/of/this/folder")
queries = model.encode_query(["a question"])
passages = model.encode_document(["a passage"])
print(model.similarity(queries, passages))
```

## Data
{data}

## Training
The weights are {1 - alpha:.2f} × base + {alpha:.2f} × fine-tuned.

| setting | value |
|---|---|
{rows}

## Results
{results}

## Limits
Trained on questions about one collection of documents; who wrote them stands under Data (`given`: whoever
brought them; `heading`, `terms`: taken from the documents; all others: a language model). Measure it on
questions that people asked before relying on it, and again when the documents change. It embeds text; it does
not judge truth.

## Licence
{terms}.
"""
