"""Better or lucky? Paired differences of per-query metrics: intervals, p values, power, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from utils.run import expect


def compare(base: pd.DataFrame, tuned: pd.DataFrame, seed: int, resamples: int = 10_000) -> dict[str, dict]:
    """Tuned minus base, query by query, for every metric.

    Args:
        base, tuned: what `metrics` returned for the same queries.
        seed: makes the resampling repeatable.
        resamples: bootstrap samples, and sign flips of the permutation test.

    Returns:
        {METRIC: {"delta": mean difference, "relative": delta / base mean (None if that is 0),
        "ci95": [low, high] of delta by the paired bootstrap (percentiles),
        "p": two-sided, paired permutation test (signs of the differences flipped)}}.
        One query alone says nothing: its interval is [-1, 1] and p is 1.
    """
    expect(list(base.index) == list(tuned.index), "Base and tuned were not measured on the same queries.")
    differences = (tuned - base).to_numpy()  # (queries, metrics)
    low, high = bootstrap_interval(differences, seed, resamples)
    p = permutation_p(differences, seed, resamples)
    rows = zip(base.columns, differences.mean(axis=0), base.mean(), low, high, p, strict=True)
    return {
        name: {
            "delta": float(delta),
            "relative": float(delta / before) if before > 0 else None,
            "ci95": [float(lower), float(upper)],
            "p": float(p_value),
        }
        for name, delta, before, lower, upper, p_value in rows
    }


def bootstrap_interval(differences: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap of the column means of float (n, m): low (m,), high (m,).

    All columns share the resampled queries: scipy draws the queries' row numbers, and one matrix product
    per batch gives the means (Efron & Tibshirani 1993, ch. 13).
    """
    from scipy.stats import bootstrap

    n, columns = differences.shape
    if n < 2:
        return np.full(columns, -1.0), np.full(columns, 1.0)

    def means(rows: np.ndarray, axis: int) -> np.ndarray:
        rows = np.atleast_2d(rows)  # (batch, n)
        at = (rows + np.arange(len(rows))[:, None] * n).ravel()
        counts = np.bincount(at, minlength=len(rows) * n).reshape(len(rows), n)
        return (counts @ differences).T / n  # (m, batch)

    drawn = bootstrap(
        (np.arange(n),),
        means,
        n_resamples=resamples,
        batch=_batch(n),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return drawn.confidence_interval.low.ravel(), drawn.confidence_interval.high.ravel()


def permutation_p(differences: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Two-sided p of the column means of float (n, m) when the signs of the rows are exchangeable: (m,).

    The test of `scipy.stats.permutation_test(permutation_type="samples")`, for all columns at once.
    """
    rng = np.random.default_rng(seed)
    n, columns = differences.shape
    observed = np.abs(differences.sum(axis=0)) * (1 - 1e-9) - 1e-12
    extreme = np.zeros(columns)
    for start in range(0, resamples, _batch(n)):
        rows = min(_batch(n), resamples - start)
        signs = rng.integers(0, 2, (rows, n), dtype=np.int8) * 2.0 - 1.0
        extreme += (np.abs(signs @ differences) >= observed).sum(axis=0)
    return (extreme + 1) / (resamples + 1)


def _batch(n: int) -> int:
    return max(1, 4_000_000 // n)  # at most 32 MB a batch


def queries_needed(differences: Iterable[float], power: float = 0.8) -> int | None:
    """How many queries a paired test at 5 % needs to see a mean difference of the size seen here.

    Normal approximation from the mean and spread of the per-query differences; None if their mean is 0.
    """
    from scipy.stats import norm

    d = np.asarray(list(differences), dtype=float)
    if len(d) < 2 or abs(d.mean()) < 1e-12:
        return None
    z = norm.ppf(0.975) + norm.ppf(power)
    return max(2, math.ceil((z * d.std(ddof=1) / d.mean()) ** 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of one false alarm among all stays below the level."""
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = np.ones(len(p_values)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted.tolist()
