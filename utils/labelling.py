"""The reader as a judge: a labeller for questions and their passages, and how far the LLM judge agrees."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
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
    box = _Labeller(pairs, labels, path).box
    display(Javascript(KEYS))
    return box


class _Labeller:
    """The widgets of `label_pairs`, the pair that is shown, and the one whose question is being edited."""

    def __init__(self, pairs: list[Mapping], labels: dict[str, dict], path: Path):
        import ipywidgets

        self.pairs, self.labels, self.path = pairs, labels, path
        unlabelled = [i for i, pair in enumerate(pairs) if pair["question"] not in labels]
        self.at = unlabelled[0] if unlabelled else 0
        self.edited: Mapping | None = None
        self.head, self.body = ipywidgets.HTML(), ipywidgets.HTML()
        self.editor = ipywidgets.Textarea(layout={"width": "100%"})
        self.editor.observe(self.typed, names="value")
        buttons = [
            self.button("accept", "Accept (a)", lambda: self.judge("accept")),
            self.button("reject", "Reject (r)", lambda: self.judge("reject")),
            self.button("edit", "Edit (e)", self.edit),
            self.button("back", "←", lambda: self.go(-1)),
            self.button("next", "→", lambda: self.go(1)),
            self.button("done", "Done (Esc)", lambda: self.go(int(self.pair["question"] in self.labels))),
        ]
        self.of_editing = (self.editor, buttons[-1])
        self.box = ipywidgets.VBox([self.head, self.body, self.editor, ipywidgets.HBox(buttons)])
        self.box.add_class("course-labeller")
        self.show()

    @staticmethod
    def button(name: str, sign: str, pressed: Callable[[], None]):
        import ipywidgets

        button = ipywidgets.Button(description=sign)
        button.add_class(f"labeller-{name}")  # the name by which KEYS presses it
        button.on_click(lambda _: pressed())
        return button

    @property
    def pair(self) -> Mapping:
        return self.pairs[self.at]

    def show(self, writing: bool = False) -> None:
        done = sum(pair["question"] in self.labels for pair in self.pairs)
        self.head.value = f"<b>{self.at + 1} of {len(self.pairs)}</b>, {done} labelled"
        self.body.value = _label_card(self.pair, self.labels.get(self.pair["question"]))
        for widget in self.of_editing:
            widget.layout.display = None if writing else "none"

    def go(self, step: int) -> None:
        self.at = min(max(self.at + step, 0), len(self.pairs) - 1)
        self.show()

    def judge(self, label: str) -> None:
        self.keep(self.pair, label)
        self.go(1)

    def keep(self, pair: Mapping, label: str, **more: str) -> None:
        self.labels[pair["question"]] = {"question": pair["question"], "label": label, **more}
        write_rows(self.path, self.labels.values())

    def edit(self) -> None:
        self.edited = None  # what is put into the field now was not typed
        earlier = self.labels.get(self.pair["question"], {}).get("edited")
        self.editor.value = earlier or self.pair["question"]
        self.edited = self.pair
        self.show(writing=True)

    def typed(self, change: Mapping) -> None:
        if self.edited is not None and change["new"].strip():
            self.keep(self.edited, "edit", edited=change["new"].strip())
            self.show(writing=self.editor.layout.display is None)  # it may arrive after the click on Done


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
