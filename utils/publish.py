"""What becomes of a run: outputs in the notebooks, and an HTML report."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import io
import json
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import nbformat

from utils import run, state
from utils.files import read_json
from utils.run import ROOT, STAGES, CourseError, expect, write_text

NOTEBOOKS = ROOT / "notebooks"
ANOTHER = "Make a run of the defaults, under a name not yet used: make notebooks NAME=defaults."


def sources_digest(notebook: dict, kinds: tuple[str, ...] = ("code",)) -> str:
    """SHA-256 over the sources of the cells of these kinds: ties outputs to the cells that made them.

    Whose repository the course is cloned from does not count.
    """
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] in kinds]
    sources = [re.sub(r"https://github\.com/[\w./-]+", "", source) for source in sources]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def assigned(notebook: dict, tag: str) -> dict:
    """The parameters that the cells with this tag set to literals; other lines of theirs are left out."""
    values = {}
    for cell in notebook["cells"]:
        if tag in cell["metadata"].get("tags", []):
            source = re.sub(r"^\s*[%!].*", "", "".join(cell["source"]), flags=re.M)  # magic is no Python
            for line in ast.parse(source).body:
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                    with suppress(ValueError):  # computed
                        values[line.targets[0].id] = ast.literal_eval(line.value)
    return values


def outputs(run_name: str) -> str:
    """Copy the outputs of a finished run's executed notebooks into `notebooks/`; returns what was done.

    The README's picture goes with them. Refuses what `ready` refuses, before anything is written. Machine
    paths, widget state and timing metadata are left out; prose may have changed since the run.
    """
    folder, lines = run.runs_dir() / run_name, []
    names = {path.stem for path in NOTEBOOKS.glob("*.ipynb") if (folder / "notebooks" / path.name).exists()}
    for target, notebook, ran in ready(run_name, names | set(STAGES)):
        for cell, done in zip(_code(notebook), _code(ran), strict=True):
            cell.outputs, cell.execution_count = _clean(done.outputs), done.execution_count
        notebook.metadata.pop("widgets", None)
        notebook.metadata["course"] = {"outputs_of": sources_digest(notebook)}
        write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        lines.append(f"{target.name}: {target.stat().st_size / 1024:.0f} KB")
    picture = folder / STAGES[3] / "figures" / "systems.png"
    if picture.exists():
        shutil.copy(picture, NOTEBOOKS / "quickstart.png")
        lines.append("quickstart.png: the README's picture")
    return "\n".join(lines)


def ready(run_name: str, names: Iterable[str] = STAGES) -> list[tuple[Path, dict, dict]]:
    """(path, notebook as it is, executed copy) of a run whose outputs may be committed as the default run's.

    Raises CourseError for a run that is not whole, or of other cells or other parameters than the defaults.
    """
    folder = state.existing(run_name)
    late = [n for n in STAGES if not (folder / n / "manifest.json").exists()] + state.outdated(run_name)
    expect(not late, f"Run {run_name!r} is not whole: {', '.join(late)} did not finish, or belong to an "
           f"earlier state of it. {ANOTHER}")  # fmt: skip
    found = []
    for name in sorted(names):
        copy, target = folder / "notebooks" / f"{name}.ipynb", NOTEBOOKS / f"{name}.ipynb"
        expect(copy.exists(), f"{copy} is missing: was the stage run in Jupyter? {ANOTHER}")
        ran, notebook = _read(copy), _read(target)
        _expect_defaults(copy, assigned(ran, "injected-parameters"), assigned(notebook, "parameters"))
        ran.cells = [cell for cell in ran.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        expect(
            sources_digest(ran) == sources_digest(notebook),
            f"{copy} was run from other cells than {target} has. {ANOTHER}",
        )
        failed = any(output.output_type == "error" for cell in _code(ran) for output in cell.outputs)
        expect(not failed, f"{copy} ends with an error. {ANOTHER}")
        found.append((target, notebook, ran))
    return found


def _expect_defaults(copy: Path, given: dict, defaults: dict) -> None:
    for name, value in given.items():
        expect(
            name == "RUN" or value == defaults.get(name),
            f"{copy} was run with {name} = {value!r} (default {defaults.get(name)!r}), but what is committed "
            f"is called the default run. {ANOTHER}",
        )


def _code(notebook: dict) -> list[dict]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _read(path: Path) -> dict:
    try:
        return nbformat.read(path, as_version=4)
    except ValueError:
        raise CourseError(f"{path} is not a notebook. Remove it, or save it again from Jupyter.") from None


def _clean(given: list[dict]) -> list[dict]:
    """Outputs without widget views, overwritten progress and this machine's paths; a stream is one output."""
    outputs: list[dict] = []
    for output in given:
        view = output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if view and re.search(r"\d%\|", output["data"].get("text/plain", "")):
            continue  # a progress bar as it stood before it moved
        last = outputs[-1] if outputs else {}
        if output["output_type"] == "stream" == last.get("output_type") and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            outputs.append(output)
    for output in outputs:
        if output["output_type"] == "stream":
            output["text"] = re.sub(r"[^\n]*\r(?=[^\n])", "", output["text"])
    shown = [o for o in outputs if o["output_type"] != "stream" or o["text"].strip()]
    text = json.dumps(shown, ensure_ascii=False)
    for path, name in ((run.runs_dir(), "runs"), (ROOT, "."), (Path.home(), "~")):
        if len(path.parts) > 1:  # a home of "/" names nothing
            text = text.replace(json.dumps(str(path), ensure_ascii=False)[1:-1], name)
    return [nbformat.from_dict(output) for output in json.loads(text)]


def report(run_name: str, summary: str, notebooks: str = "") -> str:
    """One HTML folder from a run: a front page and the executed notebooks; works from file://, offline.

    notebooks: a folder of notebooks that were run and saved in Jupyter; empty: see `_executed`.
    """
    from nbconvert import HTMLExporter

    folder = state.existing(run_name)
    copies = _executed(run_name, notebooks)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", mermaid_js_url="")
    links, figures = [], []
    for copy, notebook in copies.items():
        notebook = _with_drawn_formulas(notebook)
        body, _ = exporter.from_notebook_node(notebook)
        write_text(folder / "report" / f"{copy.stem}.html", body)
        links.append(f'<li><a href="{copy.stem}.html">{_title(notebook, copy.stem)}</a></li>')
        found = _figures(notebook)
        figures += found[:2] if copy.stem == "04_evaluate" else found[-1:]
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(run_name)}</title>
<style>body{{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
pre{{background:#f6f8fa;padding:1rem;white-space:pre-wrap}}img{{max-width:100%}}figure{{margin:1.5rem 0}}
figcaption{{font-weight:600}}</style>
<h1>Run {html.escape(run_name)}</h1>
<h2>Result and time</h2><pre>{html.escape(summary.strip())}</pre>
<h2>Cost of the questions</h2><pre>{html.escape(_cost(folder))}</pre>
<h2>The notebooks as they were executed</h2><ul>{"".join(links)}</ul>
<h2>Figures</h2>{"".join(figures)}</html>"""
    write_text(folder / "report" / "index.html", page)
    return f"{folder / 'report' / 'index.html'}"


def _executed(run_name: str, given: str) -> dict[Path, dict]:
    """The notebooks that were run with this RUN, in the folder `given`; without one: the headless run's, or
    those in a folder named like the run, as `new` makes it, in the current one."""
    places = [run.runs_dir() / run_name / "notebooks", Path(run_name)]
    places = [run.resolve_path(given, "--notebooks")] if given else places
    for place in places:
        found = {path: _read(path) for path in sorted(place.glob("*.ipynb"))}
        found = {path: notebook for path, notebook in found.items() if _was_run(notebook, run_name)}
        if found:
            return found
    raise CourseError(
        f"No notebook with outputs and RUN = {run_name!r} in {' or '.join(map(str, places))}. Save those you "
        f"ran, and name their folder: python -m utils.course report --name {run_name} --notebooks FOLDER."
    )


def _was_run(notebook: dict, run_name: str) -> bool:
    values = assigned(notebook, "parameters") | assigned(notebook, "injected-parameters")
    return values.get("RUN") == run_name and any(cell.execution_count for cell in _code(notebook))


def _with_drawn_formulas(notebook: dict) -> dict:
    """Formulas as pictures: what usually sets them is fetched from the net."""
    from matplotlib.mathtext import math_to_image

    def draw(found: re.Match) -> str:
        picture = io.BytesIO()
        large = found[1].replace(r"\frac", r"\dfrac")
        math_to_image(f"${large}$", picture, format="svg")
        data = base64.b64encode(picture.getvalue()).decode()
        return f'<img alt="{html.escape(found[1])}" src="data:image/svg+xml;base64,{data}" height="60">'

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\$\$(.+?)\$\$", draw, cell.source, flags=re.S)
    return notebook


def _cost(folder: Path) -> str:
    manifest, ledger = (folder / STAGES[0] / name for name in ("manifest.json", "ledger.json"))
    if not (manifest.exists() and ledger.exists()):
        return "Stage 1 did not run: no LLM was called."
    headline = read_json(manifest)["headline"]
    lines = [f"{key.replace('_', ' ')}: {value}" for key, value in headline.items()]
    for spent in read_json(ledger)["calls"]:
        lines.append(
            f"calls of {spent['model']}, {spent['tag']}: {spent['requests']} requests, "
            f"{spent['tokens_in']:,} tokens in, {spent['tokens_out']:,} out, cost {spent['cost']:.2f}"
        )
    return "\n".join(lines)


def _title(notebook: dict, default: str) -> str:
    found = re.search(r"^# (.+)$", notebook.cells[0].source, flags=re.M)
    return html.escape(found[1] if found else default)


def _figures(notebook: dict) -> list[str]:
    """Every plot of an executed notebook as HTML, under the title and the heading that it stands below."""
    figures, heading, title = [], "", _title(notebook, "")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^## (.+)$", cell.source, flags=re.M) or [heading])[-1]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                data = "".join(output.data["image/png"].split())
                caption = f"<figcaption>{title}: {html.escape(heading)}</figcaption>"
                figures.append(f'<figure>{caption}<img src="data:image/png;base64,{data}"></figure>')
    return figures
