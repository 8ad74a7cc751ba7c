# python -m pytest tests/unit/test_plots.py
"""The figures of what a run spent."""

from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib import colormaps
from PIL import Image

from utils import plots, result_plots


def calls(*rows):
    columns = ["tag", "at", "tokens_in", "tokens_out", "seconds", "cached", "error"]
    return pd.DataFrame(rows, columns=columns)


SPENT = calls(
    ("questions", 100.0, 1000, 500, 4.0, 0, ""),
    ("judge", 160.0, 2000, 100, 2.0, 0, ""),
    ("questions", 130.0, 1000, 500, 5.0, 0, ""),
    ("questions", 131.0, 9999, 9999, 9.0, 1, ""),
    ("judge", 132.0, 0, 0, 9.0, 0, "HTTP 429"),
    ("judge", 90_160.0, 2000, 100, 2.0, 0, ""),
)


def lines(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}


def test_spending_adds_up_what_was_paid_for_by_tag():
    figure = plots.spending(SPENT, price_in=1.0, price_out=10.0)
    tokens, seconds, cost = figure.axes
    assert lines(tokens) == {"questions": [[0, 1.5], [0.5, 3.0]], "judge": [[1.0, 2.1], [1.0, 4.2]]}
    assert [y for _, y in lines(seconds)["questions"]] == [4, 9]
    assert lines(cost)["judge"][-1][1] == 2 * (2000 * 1 + 100 * 10) / 1e6
    assert figure.get_suptitle() == "4 paid calls, 1 cached, 1 failed"
    empty = pd.concat([SPENT, calls(("judge", 90_161.0, 0, 800, 3.0, 0, "empty answer"))], ignore_index=True)
    assert lines(plots.spending(empty).axes[0])["judge"][-1][1] == 5.0, "a host bills an empty answer"


def test_a_colour_scale_keeps_its_colours():
    rows = [("t", "need", v, 20, d, 0.5, False) for v, d in (("a", -0.1), ("b", 0.1), ("c", 0.02))]
    columns = ["test_set", "slice", "value", "n", "delta", "p_holm", "small"]
    figure = result_plots.slice_heat_map(pd.DataFrame(rows, columns=columns), "nDCG@10")
    seen = (
        np.asarray(Image.open(BytesIO(plots.compact_png(figure))).convert("RGB")).reshape(-1, 3).astype(int)
    )
    scale = np.array(colormaps["RdBu_r"](np.linspace(0.02, 0.98, 50)))[:, :3] * 255  # (50, 3)
    nearest = np.abs(seen[:, None] - scale).max(axis=2).min(axis=0)
    assert nearest.max() < 32, "every colour of the scale stands in the picture"


def test_without_a_price_there_is_no_cost_panel_and_without_calls_an_empty_figure():
    assert [axis.get_ylabel() for axis in plots.spending(SPENT).axes] == [
        "thousand tokens",
        "seconds of calls",
    ]
    nothing = plots.spending(SPENT.assign(cached=1))
    assert not lines(nothing.axes[0]) and nothing.get_suptitle().startswith("0 paid")
    assert plots.compact_png(plots.spending(calls()))
