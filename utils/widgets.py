"""What can be clicked in the notebooks; each has a static form for headless runs (COURSE_HEADLESS=1)."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Sequence

from bm25s.stopwords import STOPWORDS_EN_PLUS

from utils.records import cut

Hit = tuple[float, str, str]  # score, title, text


def headless() -> bool:
    """Whether nobody is there to click: `utils.course` sets COURSE_HEADLESS=1."""
    return os.environ.get("COURSE_HEADLESS") == "1"


# ---------------------------------------------------------------- 4 Evaluate: results next to each other


def search_box(search: Callable[[str], dict[str, list[Hit]]], examples: Sequence[str]):
    """A search field whose results stand in one column a model; headless: the `examples` as HTML.

    search: query → {model name: hits, best first}. Returns an ipywidgets box or an IPython HTML object.
    """
    from IPython.display import HTML

    if headless():
        return HTML("".join(f"<p><b>{html.escape(q)}</b></p>{side_by_side(q, search(q))}" for q in examples))
    import ipywidgets

    field = ipywidgets.Text(
        value=examples[0] if examples else "", placeholder="ask something", description="query",
        layout={"width": "100%"},
    )  # fmt: skip
    field.continuous_update = False
    shown = ipywidgets.HTML()

    def answer(_change: object = None) -> None:
        query = field.value.strip()
        shown.value = side_by_side(query, search(query)) if query else ""

    field.observe(answer, names="value")
    answer()
    return ipywidgets.VBox([field, shown])


def side_by_side(query: str, results: dict[str, list[Hit]], length: int = 260) -> str:
    """HTML: a column for each model, each hit with score, title and its first words, the query's marked."""
    cell = '<td style="vertical-align:top; text-align:left; line-height:1.4; width:50%; padding:0 1em 0 0">'
    columns = []
    for name, hits in results.items():
        items = "".join(
            f"<li><small>{score:.3g}</small> <b>{highlight(title, query)}</b><br>"
            f"{highlight(cut(text, length), query)}</li>"
            for score, title, text in hits
        )
        columns.append(f"{cell}<b>{html.escape(name)}</b><ol>{items}</ol></td>")
    return f'<table style="width:100%"><tr>{"".join(columns)}</tr></table>'


def highlight(text: str, query: str) -> str:
    """`text` as HTML; words that begin like one of the query's (five letters) are marked, stop words not."""
    words = {word.lower() for word in re.findall(r"\w{3,}", query)} - set(STOPWORDS_EN_PLUS)
    stems = {word[:5] for word in words}
    parts = re.split(r"(\w+)", text)
    marked = (
        f"<mark>{html.escape(p)}</mark>" if p[:5].lower() in stems and len(p) > 2 else html.escape(p)
        for p in parts
    )
    return "".join(marked)


# ---------------------------------------------------------------- 6 Deploy: start and stop the server


def server_buttons(server):
    """Start and stop a `serve.Server`; headless: its address and state as HTML."""
    from IPython.display import HTML

    def state() -> str:
        word = "running" if server.running() else "stopped"
        return f"<code>{html.escape(server.base_url)}</code>: {word}"

    if headless():
        return HTML(state())
    import ipywidgets

    shown = ipywidgets.HTML(state())
    start, stop = ipywidgets.Button(description="Start server"), ipywidgets.Button(description="Stop")

    def press(action: Callable[[], object]) -> None:
        start.disabled = stop.disabled = True
        try:
            action()
            shown.value = state()
        except ValueError as error:  # a CourseError says what to do
            shown.value = html.escape(str(error))
        finally:
            start.disabled = stop.disabled = False  # a cell may start or stop it too, so both stay usable

    start.on_click(lambda _: press(lambda: None if server.running() else server.launch()))
    stop.on_click(lambda _: press(server.stop))
    return ipywidgets.VBox([ipywidgets.HBox([start, stop]), shown])
