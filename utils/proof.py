"""Is what leaves the course still the model that was measured? Cosines, gates and speed of exports."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.run import expect

HARD_TEXTS = {
    "empty": "",
    "one space": " ",
    "one letter": "a",
    "one emoji": "😀",
    "emoji with joiners": "👩🏽‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈",
    "Arabic": "كيف أعيد ضبط المضخة؟",
    "Chinese": "如何重置水泵",
    "Hindi": "पंप को कैसे रीसेट करें",
    "Cyrillic": "Как перезапустить насос?",
    "combining marks": "z̴̡a̶̢l̷g̸o̵",
    "control characters": "a\x00b\x07c\u200bd",
    "numbers and code": "if (x >= 0x1F) { return -3.14e-10; }",
    "longer than any limit": "pump pressure valve " * 2000,
}
SERVED_TOLERANCE = {"fp32": 1e-4}


@dataclass(frozen=True)
class Verdict:
    """Whether an exported file may be served, and why (not)."""

    recommended: bool
    why: str


def cosines(reference: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows of two float (n, d): float64 (n,). A row that is not finite gives -1."""
    expect(reference.shape == vectors.shape, f"{vectors.shape} vectors instead of {reference.shape}.")
    a, b = reference.astype(np.float64), vectors.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    values = np.einsum("ij,ij->i", a, b) / np.where(norms > 0, norms, 1.0)
    values[(norms == 0) & (a == b).all(axis=1)] = 1.0
    return np.nan_to_num(values, nan=-1.0)


def parity_gate(
    precision: str, values: np.ndarray, ndcg_loss: float, min_cosine: float = 0.9999, max_loss: float = 0.01
) -> Verdict:
    """The gate of notebook 5.

    fp32 must repeat the original: a cosine below `min_cosine` or a loss over `max_loss` raises CourseError.
    A smaller precision may drift; it is recommended if its nDCG@10 moves by at most `max_loss`, either way:
    a gain by rounding is chance, and notebook 6 would refuse it.
    """
    lowest = float(values.min())
    passed = abs(ndcg_loss) <= max_loss and (precision != "fp32" or lowest >= min_cosine)
    said = f"lowest cosine {lowest:.5f}, nDCG@10 loss {ndcg_loss:+.4f} (at most {max_loss:g} is allowed)"
    expect(
        passed or precision != "fp32",
        f"The fp32 export is not the model that was measured: {said}; the lowest cosine must be "
        f"{min_cosine:g}. Nothing is released. Check max_tokens, prompts and pooling, then export again.",
    )
    return Verdict(passed, said)


def served_gate(
    expected: Mapping[str, float],
    served: Mapping[str, float],
    precision: str,
    below_5: float = 0.03,
    from_5: float = 0.01,
) -> pd.DataFrame:
    """The gate of notebook 6: metrics through the wire against those of the checkpoint.

    Allowed: `below_5` for cut-offs under 5, `from_5` for the others (NVIDIA's recipe); for fp32 1e-4.
    Returns a table (metric; checkpoint, served, difference, allowed); raises CourseError if any is over.
    """
    rows = []
    for metric in served:
        own = below_5 if int(metric.split("@")[1]) < 5 else from_5
        allowed = SERVED_TOLERANCE.get(precision, own)
        rows.append((metric, expected[metric], served[metric], served[metric] - expected[metric], allowed))
    table = pd.DataFrame(rows, columns=["metric", "checkpoint", "served", "difference", "allowed"])
    table = table.set_index("metric")
    bad = table[table["difference"].abs() > table["allowed"] + 1e-12]
    expect(
        bad.empty,
        f"The server is not the model that was measured: {', '.join(bad.index[:4])} differ by up to "
        f"{bad['difference'].abs().max():.4f}. Check that it serves this run's folder, and `truncate` and "
        f"`input_type` of the requests.",
    )
    return table


def latency(run: Callable[[Sequence], object], items: Sequence, repeats: int, warm: int = 1) -> np.ndarray:
    """Milliseconds of `repeats` calls `run(items)`: float (repeats,); `warm` calls before do not count."""
    for _ in range(warm):
        run(items)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(items)
        taken.append((time.perf_counter() - started) * 1000)
    return np.array(taken)
