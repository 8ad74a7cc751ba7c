"""The reader as a judge: a labeller for questions and their passages, and how far the LLM judge agrees."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.records import cut, read_jsonl, write_rows
from utils.widgets import headless

# Each key presses the button of its name; the attribute keeps JupyterLab's own shortcuts out.
KEYS = """
(() => {
  const names = {a: "accept", r: "reject", e: "edit", ArrowLeft: "back", ArrowRight: "next"};
  const press = (box, name) => box.querySelector(".labeller-" + name + ":not([disabled])")?.click();
  const wire = (box) => {
    if (box.dataset.wired) return;
    box.dataset.wired = "yes";
    box.tabIndex = 0;
    box.setAttribute("data-lm-suppress-shortcuts", "true");
    const write = (tries) => {
      const field = box.querySelector("textarea");
      if (field?.offsetParent) field.focus();
      else if (tries) setTimeout(write, 100, tries - 1);
    };
    box.addEventListener("click", (event) => {
      if (event.target.closest(".labeller-edit")) write(30);
      else if (event.target.closest("button")) box.focus({preventScroll: true});
    });
    box.addEventListener("keydown", (event) => {
      const writing = event.target.tagName === "TEXTAREA";
      const name = writing ? (event.key === "Escape" ? "done" : "") : names[event.key];
      if (!name || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      press(box, name);
    }, true);  // on the way down: a text field lets no key through on the way up
    box.focus({preventScroll: true});
  };
  let looks = 100;
  const look = () => {
    document.querySelectorAll(".course-labeller").forEach(wire);
    if (--looks) setTimeout(look, 100);
  };
  look();
})();
"""


def label_pairs(pairs: Sequence[Mapping], path: Path, n: int = 20):
    """A labeller for the first `n` questions: accept, reject or edit by button, or by keys: a, r, e, ← and →.

    pairs: mappings with `question`, `passage` and, if there is one, `answer`; a question that stands there
    twice is shown once. Each label is written to `path` (JSONL) at once, and shown again when the cell is run
    again. An edit keeps what is being typed; Done or Escape ends it. Returns an ipywidgets box; headless: the
    pairs as an HTML table.
    """
    from IPython.display import HTML, Javascript, display

    pairs, labels = [*{pair["question"]: pair for pair in pairs}.values()][:n], read_labels(path)
    if headless() or not pairs:
        return HTML(_label_table(pairs, labels))
    import ipywidgets

    names = ("accept", "reject", "edit", "back", "next", "done")
    signs = ("Accept (a)", "Reject (r)", "Edit (e)", "←", "→", "Done (Esc)")
    buttons = {k: ipywidgets.Button(description=sign) for k, sign in zip(names, signs, strict=True)}
    for name, button in buttons.items():
        button.add_class(f"labeller-{name}")
    head, body = ipywidgets.HTML(), ipywidgets.HTML()
    editor = ipywidgets.Textarea(layout={"width": "100%"})
    unlabelled = [i for i, pair in enumerate(pairs) if pair["question"] not in labels]
    state = {"at": unlabelled[0] if unlabelled else 0, "edited": None}

    def show(writing: bool = False) -> None:
        pair = pairs[state["at"]]
        done = sum(p["question"] in labels for p in pairs)
        head.value = f"<b>{state['at'] + 1} of {len(pairs)}</b>, {done} labelled"
        body.value = _label_card(pair, labels.get(pair["question"]))
        for widget in (editor, buttons["done"]):
            widget.layout.display = None if writing else "none"

    def keep(pair: Mapping, label: str, **more: str) -> None:
        labels[pair["question"]] = {"question": pair["question"], "label": label, **more}
        write_rows(path, labels.values())

    def go(step: int) -> None:
        state["at"] = min(max(state["at"] + step, 0), len(pairs) - 1)
        show()

    def judge(label: str) -> None:
        keep(pairs[state["at"]], label)
        go(1)

    def edit(_: object) -> None:
        pair = pairs[state["at"]]
        state["edited"] = None  # what is put into the field now was not typed
        editor.value = labels.get(pair["question"], {}).get("edited") or pair["question"]
        state["edited"] = pair
        show(writing=True)

    def typed(change: Mapping) -> None:
        if state["edited"] is not None and change["new"].strip():
            keep(state["edited"], "edit", edited=change["new"].strip())
            show(writing=editor.layout.display is None)  # the text may arrive after the click on Done

    editor.observe(typed, names="value")
    buttons["accept"].on_click(lambda _: judge("accept"))
    buttons["reject"].on_click(lambda _: judge("reject"))
    buttons["edit"].on_click(edit)
    buttons["back"].on_click(lambda _: go(-1))
    buttons["next"].on_click(lambda _: go(1))
    buttons["done"].on_click(lambda _: go(int(pairs[state["at"]]["question"] in labels)))
    show()
    box = ipywidgets.VBox([head, body, editor, ipywidgets.HBox(list(buttons.values()))])
    box.add_class("course-labeller")
    display(Javascript(KEYS))
    return box


def read_labels(path: Path) -> dict[str, dict]:
    """{question: row} of the reader's labels, empty if there are none yet.

    A row has `question` and `label` (accept, reject, edit), and after an edit the `edited` question.
    """
    return {row["question"]: row for row in read_jsonl(path)} if path.exists() else {}


def agreement(
    labels: Mapping[str, Mapping], scores: Mapping[str, float], threshold: float = 7.0
) -> dict[str, object]:
    """How far a judge (`scores`: question → mark, kept from `threshold` on) agrees with the reader.

    Accepted as it stands is a yes, rejected or edited a no. `agreement`: share of equal decisions, with its
    95 % Wilson interval (low, high); `kappa`: Cohen's, what goes beyond chance. None where there is nothing
    to say; `note` warns of few labels, and of decisions that are all alike.
    """
    both = [i for i in labels if scores.get(i) is not None]
    found = {"labels": len(both), "agreement": None, "low": None, "high": None, "kappa": None, "note": ""}
    if not both:
        return found | {"note": "no label yet: nothing says whether the judge can be trusted"}
    from scipy.stats import binomtest
    from sklearn.metrics import cohen_kappa_score

    reader = [labels[i]["label"] == "accept" for i in both]
    judge = [scores[i] >= threshold for i in both]
    equal = sum(r == j for r, j in zip(reader, judge, strict=True))
    low, high = binomtest(equal, len(both)).proportion_ci(method="wilson")
    found |= {"agreement": equal / len(both), "low": float(low), "high": float(high)}
    notes = [f"only {len(both)} labels: the interval is wide"] if len(both) < 20 else []
    if len(set(reader)) == len(set(judge)) == 1:
        notes.append("reader and judge each decided alike every time: kappa says nothing")
    else:
        found["kappa"] = float(cohen_kappa_score(reader, judge))
    return found | {"note": "; ".join(notes)}


def _label_card(pair: Mapping, label: Mapping | None) -> str:
    answer = f"<p><b>Answer</b> {html.escape(pair['answer'])}</p>" if pair.get("answer") else ""
    edited = f": {html.escape(label['edited'])}" if label and "edited" in label else ""
    given = f"<p><b>Your label</b> {label['label']}{edited}</p>" if label else ""
    passage = html.escape(pair["passage"]).replace("\n", "<br>")
    return (
        f"<p><b>Question</b> {html.escape(pair['question'])}</p>{answer}{given}"
        f'<div style="max-height:16em; overflow:auto; line-height:1.4"><b>Passage</b> {passage}</div>'
    )


def _label_table(pairs: Sequence[Mapping], labels: Mapping[str, Mapping]) -> str:
    cell = '<td style="text-align:left; vertical-align:top">'
    rows = "".join(
        f"<tr>{cell}{html.escape(pair['question'])}</td>{cell}{html.escape(cut(pair['passage'], 160))}</td>"
        f"{cell}{labels.get(pair['question'], {}).get('label', '')}</td></tr>"
        for pair in pairs
    )
    return f"<table><tr><th>question</th><th>passage</th><th>your label</th></tr>{rows}</table>"
