"""How long the later stages will take for this corpus on this device, and what they took in the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from utils import retrieval
from utils.files import read_json
from utils.run import STAGES, Profile, Stage, runs_dir
from utils.trainer import validation_size

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

FILE = "projection.json"
QUESTION = 0.25  # the work of encoding a question, in passages
TRAINING = 3  # a step forward and backward, in steps forward
EVALUATIONS = 10  # of domain and general validation: during training, and for every α
STARTING = 0.3  # minutes that a stage takes to load packages and models
ON_PROCESSOR = STAGES[4:]  # these compute there, also where a GPU is


class Rate(NamedTuple):
    """Passages a second that are encoded on the model's device, and on the processor alone."""

    device: float
    processor: float


def encoding_rate(model: SentenceTransformer, texts: Sequence[str]) -> Rate:
    """Passages a second that the base model encodes here, measured once over the texts.

    Where that is a GPU, eight of the texts are encoded on the processor too: stages 5 and 6 compute there.
    """
    rate, device = _measured(model, texts), model.device
    if device.type == "cpu":
        return Rate(rate, rate)
    try:
        slower = _measured(model.to("cpu"), texts[:: max(len(texts) // 8, 1)][:8])
    finally:
        model.to(device)
    print(f"On the processor, which stages 5 and 6 use: {slower:.1f} passages a second.")
    return Rate(rate, slower)


def _measured(model: SentenceTransformer, texts: Sequence[str]) -> float:
    retrieval.encode(model, texts[:4], "passage")  # the first call prepares things
    started = time.perf_counter()
    retrieval.encode(model, texts, "passage")
    return len(texts) / (time.perf_counter() - started)


def project(passages: int, questions: int, free: int, profile: Profile, rate: Rate) -> dict[str, float]:
    """Minutes of stages 2 to 6, by name, from what they encode; stages 5 and 6 do so on the processor.

    A training row is a question, its passage and one hard negative; of `questions`, `free` are trained on a
    second time, alone, if there are others. bf16, exports faster than torch, and searching are not
    reckoned with.
    """
    alone = free if free < questions else 0  # free ones alone are no comparison
    row = (2 + QUESTION) * TRAINING * profile.epochs
    checks = EVALUATIONS * 2 * min(validation_size(profile)[1], passages)
    proved = min(passages, 300 if profile.name == "smoke" else 20_000)  # notebooks 5 and 6 take a part
    work = (
        passages + QUESTION * questions,
        (min(questions, profile.train_rows) + min(alone, profile.train_rows)) * row + checks,
        (3 if alone else 2) * passages,
        4 * proved,
        proved,
    )
    return {
        name: STARTING + w / (rate.processor if name in ON_PROCESSOR else rate.device) / 60
        for name, w in zip(STAGES[1:], work, strict=True)
    }


def compared(stage: Stage) -> pd.DataFrame:
    """Minutes a stage: what stage 1 projected beside what was used; `stage` is the one that is running."""
    root = runs_dir() / stage.run
    path = root / STAGES[0] / FILE
    expected = read_json(path) if path.exists() else {}
    used = {stage.name: (time.perf_counter() - stage.started) / 60}
    for name in STAGES[: STAGES.index(stage.name)]:
        manifest = root / name / "manifest.json"
        if manifest.exists():
            used[name] = read_json(manifest)["wall_seconds"] / 60
    table = pd.DataFrame({"projected": expected, "used": used}, index=[n for n in STAGES if n in used])
    table.loc["together"] = table.sum()
    return table
