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
BELOW_5, FROM_5 = 0.03, 0.01  # how far a metric at a cut-off under 5, and from 5 on, may move
FLOOR = 0.5  # lowest cosine of a file that may be recommended: below, a text's vector says something else
SLACK = 1e-12  # rounding of a subtraction


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


def tolerance(metric: str, precision: str) -> float:
    """How far a metric, such as "nDCG@10", may move from the checkpoint's, either way.

    0.03 for cut-offs under 5 and 0.01 for the others (NVIDIA's recipe); for fp32 1e-4, nothing is rounded.
    """
    return SERVED_TOLERANCE.get(precision, BELOW_5 if int(metric.split("@")[1]) < 5 else FROM_5)


def parity_gate(
    precision: str,
    values: np.ndarray,
    moved: Mapping[str, float],
    min_cosine: float = 0.9999,
    max_loss: float = FROM_5,
) -> Verdict:
    """The gate of notebook 5.

    values: cosines to the original, (n,); moved: each metric's difference to the original.
    fp32 must repeat the original: a cosine below `min_cosine` or a metric that moved by more than its
    tolerance raises CourseError. A smaller precision may drift; it is recommended if nDCG@10 moved by at
    most `max_loss` and every metric by at most its `tolerance`, either way, as notebook 6 asks again, and no
    text's cosine is below `FLOOR` (-1 stands for a vector that is not finite: the server would refuse it).
    """
    allowed = {metric: tolerance(metric, precision) for metric in moved}
    if "nDCG@10" in allowed:
        allowed["nDCG@10"] = min(max_loss, allowed["nDCG@10"])
    far = [m for m, difference in moved.items() if not abs(difference) <= allowed[m] + SLACK]
    lowest = float(values.min())
    said = ", ".join(
        [f"lowest cosine {lowest:.5f}", *(_said(m, moved[m], allowed[m]) for m in _shown(moved, far))]
    )
    passed = not far and lowest >= (min_cosine if precision == "fp32" else FLOOR)
    expect(
        passed or precision != "fp32",
        f"The fp32 export is not the model that was measured: {said}; the lowest cosine must be "
        f"{min_cosine:g}. Nothing is released. Check max_tokens, prompts and pooling, then export again.",
    )
    return Verdict(passed, said)


def served_gate(expected: Mapping[str, float], served: Mapping[str, float], precision: str) -> pd.DataFrame:
    """The gate of notebook 6: metrics through the wire against those of the checkpoint, each `tolerance`.

    Returns a table (metric; checkpoint, served, difference, allowed); raises CourseError if any is over.
    """
    rows = [(m, expected[m], served[m], served[m] - expected[m], tolerance(m, precision)) for m in served]
    table = pd.DataFrame(rows, columns=["metric", "checkpoint", "served", "difference", "allowed"])
    table = table.set_index("metric")
    bad = table[~(table["difference"].abs() <= table["allowed"] + SLACK)]
    expect(
        bad.empty,
        f"The server is not the model that was measured: {', '.join(bad.index[:4])} differ by up to "
        f"{bad['difference'].abs().max():.4f}. Check that it serves this run's folder, and `truncate` and "
        f"`input_type` of the requests.",
    )
    return table


def _shown(moved: Mapping[str, float], far: list[str]) -> list[str]:
    """The metrics that a verdict names: nDCG@10, and the three that moved furthest beyond what is allowed."""
    worst = sorted(far, key=lambda metric: -abs(moved[metric]))
    return list(dict.fromkeys([metric for metric in ("nDCG@10",) if metric in moved] + worst[:3]))


def _said(metric: str, difference: float, allowed: float) -> str:
    return f"{metric} moved by {difference:+.4f} (at most {allowed:g} is allowed)"


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
