"""The figures of notebooks 4 to 6; a figure function returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.plots import (
    BASE_COLOUR,
    BASE_LINE,
    OTHER_COLOUR,
    SYSTEM_COLOURS,
    THIRD_COLOUR,
    TUNED_COLOUR,
    new_figure,
)

# ---------------------------------------------------------------- 4 Evaluate


def systems_bars(scores: Mapping[str, Mapping[str, float]], metric: str) -> Figure:
    """`metric` (0–1) of every system on every test set: {test set: {system: value}}."""
    figure, (axis,) = new_figure(6.5, 3.0)
    systems = list(dict.fromkeys(name for row in scores.values() for name in row))
    width = 0.8 / len(systems)
    for i, name in enumerate(systems):
        heights = [row.get(name, np.nan) for row in scores.values()]
        at = np.arange(len(scores)) + (i - (len(systems) - 1) / 2) * width
        colour = SYSTEM_COLOURS.get(name, plt.cm.Greys(0.25 + 0.08 * i))
        bars = axis.bar(at, heights, width, label=name, color=colour, hatch="//" if name == "base" else None)
        axis.bar_label(bars, fmt="%.2f", fontsize=6, padding=1)
    axis.set_xticks(range(len(scores)), list(scores))
    axis.set(ylabel=f"{metric} (0 to 1)", ylim=(0, 1.05))
    axis.legend(ncols=min(7, len(systems)), fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def difference_intervals(differences: Mapping[str, Mapping], metric: str) -> Figure:
    """Tuned minus base with its 95 % interval, one line per test set: {name: {"delta", "ci95"}}."""
    figure, (axis,) = new_figure(5.5, 0.9 + 0.4 * len(differences))
    for row, (_name, value) in enumerate(differences.items()):
        low, high = value["ci95"]
        clear = low > 0 or high < 0
        axis.plot([low, high], [row, row], color=TUNED_COLOUR if clear else OTHER_COLOUR, lw=2)
        axis.plot(value["delta"], row, "o", color=TUNED_COLOUR if clear else OTHER_COLOUR)
    axis.axvline(0, color="black", lw=1, ls=BASE_LINE)
    axis.set_yticks(range(len(differences)), list(differences))
    axis.set(xlabel=f"tuned − base, {metric} (95 % interval)", ylim=(len(differences) - 0.5, -0.5))
    return figure


def score_distributions(scores: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Cosines of relevant and of the best non-relevant passages: {model: (relevant, other)}."""
    figure, axes = new_figure(6.5, 2.8, columns=len(scores))
    every = np.concatenate([cosines for pair in scores.values() for cosines in pair])
    bins = np.linspace(every.min(), every.max(), 30)  # the same for all, and one scale: to be compared
    for axis, (name, (relevant, other)) in zip(axes, scores.items(), strict=True):
        axis.sharey(axes[0])
        colour = SYSTEM_COLOURS.get(name, THIRD_COLOUR)
        axis.hist(relevant, bins, density=True, color=colour, alpha=0.6, label="relevant")
        axis.hist(
            other,
            bins,
            density=True,
            histtype="step",
            color="black",
            ls=BASE_LINE,
            label="best 10 not relevant",
        )
        axis.set(title=name, xlabel="cosine", ylabel="density")
        axis.legend(fontsize=7)
    return figure


def slice_heat_map(table, metric: str) -> Figure:
    """Differences by slice: a frame with columns test_set, slice, value, n, delta, p_holm, small."""
    table = table.sort_values("slice", kind="stable")
    rows = list(dict.fromkeys(zip(table["slice"], table["value"], strict=True)))
    columns = sorted(set(table["test_set"]))
    figure, (axis,) = new_figure(3.2 + 1.7 * len(columns), 0.8 + 0.24 * len(rows))
    limit = max(0.05, float(np.nanmax(np.abs(table["delta"].where(~table["small"].astype(bool), 0)))))
    shown = np.full((len(rows), len(columns)), np.nan)
    for row in table.itertuples():
        at = rows.index((row.slice, row.value)), columns.index(row.test_set)
        shown[at] = np.nan if row.small else row.delta
        star = f"  p = {row.p_holm:.2g}" if row.p_holm < 0.05 else ""
        if row.small:
            axis.add_patch(Rectangle((at[1] - 0.5, at[0] - 0.5), 1, 1, color="#dddddd"))
        colour = "#777777" if row.small else "white" if abs(row.delta) > 0.7 * limit else "black"
        label = f"{row.delta:+.3f}  n = {row.n}{star}"
        axis.text(at[1], at[0], label, ha="center", va="center", fontsize=7, color=colour)
    image = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_yticks(range(len(rows)), [f"{name}: {value}" for name, value in rows], fontsize=7)
    axis.set_xticks(range(len(columns)), columns)
    axis.grid(False)
    figure.colorbar(image, label=f"tuned − base, {metric}", shrink=0.8)
    return figure


def corpus_map(points: Mapping[str, np.ndarray], kinds: Sequence[str]) -> Figure:
    """Two-dimensional views of the corpus, {model: float (n, 2)}, coloured by the kind of document."""
    figure, axes = new_figure(7.0, 3.2, columns=len(points))
    names = list(dict.fromkeys(kinds))
    for axis, (model, xy) in zip(axes, points.items(), strict=True):
        for i, kind in enumerate(names):
            chosen = np.array([k == kind for k in kinds])
            marker = "os^vDPX*<>"[i % 10]
            axis.scatter(
                *xy[chosen].T,
                s=9,
                color=plt.cm.tab10(i % 10),
                marker=marker,
                label=kind.replace("$", r"\$"),
                lw=0,
            )
        axis.set(title=model, xticks=[], yticks=[])  # t-SNE's directions mean nothing
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7)
    return figure


def learning_curve(table, metric: str, base: float) -> Figure:
    """`metric` against the number of training questions; a frame with columns questions, value, low, high."""
    figure, (axis,) = new_figure()
    error = [table["value"] - table["low"], table["high"] - table["value"]]
    axis.errorbar(
        table["questions"], table["value"], yerr=error, color=TUNED_COLOUR, marker="o", label="tuned"
    )
    axis.axhline(base, color=BASE_COLOUR, ls=BASE_LINE, label="base")
    axis.set(xlabel="training questions", ylabel=f"{metric} (95 % interval)", xlim=(0, None))
    axis.legend()
    return figure


# ---------------------------------------------------------------- 5 Export


def cosine_drift(similar: Mapping[str, np.ndarray]) -> Figure:
    """Share of texts whose drift, 1 − cosine to the original, is at least x: {file: cosines (n,)}."""
    figure, (axis,) = new_figure()
    for (name, values), style in zip(similar.items(), cycle(("-", "--", ":", "-.")), strict=False):
        drift = np.sort(np.maximum(1 - values, 1e-9))[::-1]
        axis.step(drift, np.arange(1, len(drift) + 1) / len(drift), style, label=name)
    axis.set(xscale="log", xlabel="1 − cosine to the original (log)", ylabel="share of texts at least so far")
    axis.legend()
    return figure


def quality_speed(rate: Mapping[str, float], quality: Mapping[str, float]) -> Figure:
    """nDCG@10 (0–1) against passages a second, one labelled point a system."""
    figure, (axis,) = new_figure()
    for name, marker in zip(rate, cycle("os^vDPX"), strict=False):
        colour = OTHER_COLOUR if name.startswith("torch") else TUNED_COLOUR
        axis.plot(rate[name], quality[name], marker, color=colour, ms=8, label=name, ls="")
    axis.set(xlabel="passages a second", ylabel="nDCG@10", xlim=(0, 1.1 * max(rate.values())))
    axis.margins(y=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---------------------------------------------------------------- 6 Deploy


def load_curve(load) -> Figure:
    """Requests a second and p50/p95 (ms) against clients; a frame as in load.csv."""
    figure, (rate, wait) = new_figure(6.5, 2.8, columns=2)
    rate.plot(load["clients"], load["requests_per_second"], "o-", color=TUNED_COLOUR)
    rate.set(xlabel="clients", ylabel="requests a second", ylim=(0, None))
    wait.plot(load["clients"], load["p50_ms"], "o-", color=TUNED_COLOUR, label="p50")
    wait.plot(load["clients"], load["p95_ms"], "s--", color=OTHER_COLOUR, label="p95")
    wait.set(xlabel="clients", ylabel="milliseconds a request", ylim=(0, None))
    wait.legend()
    return figure
