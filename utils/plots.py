"""One style, the shared colours, and the figures of notebooks 1 to 3; a figure function returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.figure import Figure

BASE_COLOUR = "#0072B2"  # blue and vermillion of Okabe & Ito: told apart by colour-blind readers too
TUNED_COLOUR = "#D55E00"
OTHER_COLOUR = "#767676"
THIRD_COLOUR = "#009E73"
BASE_LINE = "--"  # line styles as well as colour, for print
TUNED_LINE = "-"
OTHER_LINE = ":"
SYSTEM_COLOURS = {
    "bm25": OTHER_COLOUR,
    "base": BASE_COLOUR,
    "tuned": TUNED_COLOUR,
    "free_only": "#F0AE7A",
    "hybrid": THIRD_COLOUR,
    "larger": "#56B4E9",
    "reranked": "#CC79A7",
}


def use_course_style() -> None:
    """About 5×3 inches, a light grid behind the data, no frame on the top and on the right."""
    plt.rcParams.update(
        {
            "figure.figsize": (5.5, 3.0),
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "svg.hashsalt": "course",
        }
    )


def new_figure(width: float = 5.5, height: float = 3.0, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure in the course's style and its axes (always an array); it is closed to pyplot, so that a
    notebook shows it once: as the value of the cell that made it."""
    use_course_style()
    figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False)
    plt.close(figure)
    _keep_outputs_small()
    return figure, axes[0]


def compact_png(figure: Figure) -> bytes:
    """The figure as a PNG of 64 colours, a third of the size; of 256 where it has a colour scale."""
    from PIL import Image

    full, small = BytesIO(), BytesIO()
    scaled = any(axis.images or axis.get_label() == "<colorbar>" for axis in figure.axes)
    figure.savefig(full, format="png", bbox_inches="tight", facecolor="white")
    Image.open(full).convert("RGB").quantize(256 if scaled else 64).save(small, format="png", optimize=True)
    return small.getvalue()


def _keep_outputs_small() -> None:
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, compact_png)


# ---------------------------------------------------------------- 1 Generate


def passage_lengths(lengths: Mapping[str, Sequence[int]], limit: int) -> Figure:
    """Histograms of passage lengths in tokens on the same axes: {how it was cut: lengths}; line: `limit`."""
    figure, (axis,) = new_figure()
    shown = {name: values for name, values in lengths.items() if len(values)}
    bins = np.linspace(0, max(max(v) for v in shown.values()) + 1, 40)
    colours, lines = cycle((OTHER_COLOUR, BASE_COLOUR)), cycle((OTHER_LINE, BASE_LINE))
    for (name, values), colour, line in zip(shown.items(), colours, lines, strict=False):
        axis.hist(values, bins, histtype="step", color=colour, linestyle=line, linewidth=1.6, label=name)
    axis.axvline(limit, color="black", linewidth=0.8)
    axis.set(xlabel="tokens in a passage", ylabel="passages")
    axis.legend()
    return figure


def question_funnel(rows: Mapping[str, int]) -> Figure:
    """How many questions are left after each step, top to bottom: {step: number left}."""
    figure, (axis,) = new_figure(5.5, 0.3 * len(rows) + 0.8)
    bars = axis.barh(list(rows), list(rows.values()), color=BASE_COLOUR)
    axis.bar_label(bars, padding=3)
    axis.invert_yaxis()
    axis.set(xlabel="questions left")
    return figure


def spending(calls: pd.DataFrame, price_in: float = 0.0, price_out: float = 0.0) -> Figure:
    """What the calls of a run added up to over time, one line a tag: tokens, seconds of calls, and cost.

    calls: a frame as of `calls.Ledger.frame`. Prices are per million tokens; without one there is no cost
    panel. Cached calls cost nothing, nor do failed ones, unless the host counted tokens for an empty answer.
    Ten minutes without a call are a pause, after which the run went on: they are left out.
    """
    calls = calls.sort_values("at", kind="stable")
    waited = calls["at"].diff().fillna(0)
    minutes = waited.where(waited < 600, 0).cumsum() / 60
    billed = (calls["error"] == "") | (calls["tokens_in"] + calls["tokens_out"] > 0)
    paid = calls[(calls["cached"] == 0) & billed]
    cost = (paid["tokens_in"] * price_in + paid["tokens_out"] * price_out) / 1e6
    panels = {"thousand tokens": (paid["tokens_in"] + paid["tokens_out"]) / 1000}
    panels["seconds of calls"] = paid["seconds"]
    if price_in or price_out:
        panels["cost"] = cost
    figure, axes = new_figure(2.9 * len(panels), 2.8, columns=len(panels))
    colours = (BASE_COLOUR, TUNED_COLOUR, THIRD_COLOUR, OTHER_COLOUR, *SYSTEM_COLOURS.values())
    for axis, (unit, amounts) in zip(axes, panels.items(), strict=True):
        for number, (tag, own) in enumerate(paid.groupby("tag", sort=False)):
            style = {"color": colours[number % len(colours)], "linestyle": ("-", "--", ":", "-.")[number % 4]}
            axis.step(
                minutes[own.index], amounts[own.index].cumsum(), where="post", label=tag or "calls", **style
            )
        axis.set(xlabel="minutes at work", ylabel=unit, ylim=(0, None))
    failed = int((calls["error"] != "").sum())
    figure.suptitle(
        f"{len(paid)} paid calls, {int(calls['cached'].sum())} cached, {failed} failed", fontsize=9
    )
    if len(paid):
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return figure


# ---------------------------------------------------------------- 2 Prepare


def similarities(
    positive: Sequence[float], before: Sequence[float], after: Sequence[float], margin: float
) -> Figure:
    """Cosines of positives and of negatives to their questions: nearest passages (left), after the rule."""
    figure, axes = new_figure(8.0, 2.8, columns=2)
    edges = np.linspace(min([*positive, *before, *after, 0]), 1, 41)
    titles = ("nearest passages", f"after masking and margin {margin:g}")
    for axis, negatives, title in zip(axes, (before, after), titles, strict=True):
        axis.hist(positive, edges, density=True, color=THIRD_COLOUR, alpha=0.45, label="positives")
        outline = {"histtype": "step", "color": OTHER_COLOUR, "linewidth": 1.5, "label": "negatives"}
        axis.hist(negatives, edges, density=True, **outline)
        axis.set(
            xlabel="cosine to the question (base model)", ylabel="density", title=title, xlim=edges[[0, -1]]
        )
        axis.legend(loc="upper right")
    axes[1].set_ylim(axes[0].get_ylim())
    return figure


# ---------------------------------------------------------------- 3 Fine-tune


def temperature_effect(similarities: np.ndarray, temperatures: Sequence[float]) -> Figure:
    """The same cosines (passages,), the answer first, as softmax probabilities at several temperatures."""
    figure, axes = new_figure(7.0, 2.4, columns=len(temperatures))
    for axis, temperature in zip(axes, temperatures, strict=True):
        odds = np.exp((similarities - similarities.max()) / temperature)
        axis.bar(np.arange(len(odds)), odds / odds.sum(), color=BASE_COLOUR)
        axis.plot(0, odds[0] / odds.sum(), "o", mfc="none", mec=TUNED_COLOUR, ms=11)
        axis.set(title=f"τ = {temperature}", ylim=(0, 1.1), xlabel="passage")
        axis.set_xticks([])
    axes[0].set_ylabel("probability")
    return figure


def training_curves(history: pd.DataFrame, title: str = "") -> Figure:
    """Loss, validation nDCG@10, learning rate and gradient norm over the steps."""
    figure, axes = new_figure(8.5, 2.6, columns=4)
    for axis, column in zip(axes, ["loss", "nDCG@10", "learning_rate", "grad_norm"], strict=True):
        known = history.dropna(subset=[column])
        marker = "o" if column == "nDCG@10" else None
        axis.plot(known["step"], known[column], TUNED_LINE, color=TUNED_COLOUR, marker=marker, ms=4)
        axis.set(title=column.replace("_", " ").replace("grad ", "gradient "), xlabel="step")
        if column == "nDCG@10" and len(known):
            axis.axhline(known[column].iloc[0], ls=BASE_LINE, color=BASE_COLOUR)
    figure.suptitle(title, fontsize=9)
    return figure


def interpolation_trade_off(table: pd.DataFrame, chosen: float, tolerance: float) -> Figure:
    """nDCG@10 of every alpha: domain validation against the general check; `chosen` is ringed."""
    figure, (axis,) = new_figure(5.0, 3.2)
    axis.plot(table["domain"], table["general"], "o-", color=TUNED_COLOUR)
    for i, row in enumerate(table.itertuples()):
        place = {"xytext": (0, 9 if i % 2 else -16), "textcoords": "offset points", "ha": "center"}
        if row.alpha:  # the base has its own mark
            axis.annotate(f"α = {row.alpha:g}", (row.domain, row.general), fontsize=8, **place)
    axis.margins(0.12)
    taken = table.loc[table["alpha"] == chosen, ["domain", "general"]].iloc[0]
    axis.plot(*taken, "o", mfc="none", mec="k", ms=13, ls="", label="taken")
    axis.plot(table["domain"][0], table["general"][0], "s", color=BASE_COLOUR, label="base (α = 0)")
    axis.axhline(
        table["general"][0] - tolerance, ls=OTHER_LINE, color=OTHER_COLOUR, label="allowed to forget"
    )
    axis.set(xlabel="nDCG@10, validation of the domain", ylabel="nDCG@10, general (dev)")
    axis.legend()
    return figure
