# python tests/benchmarks/api_docs.py [--limit N] [--profile cpu]
"""A new domain of another kind: the API documentation inside numpy, pandas, torch and scikit-learn.

Writes the docstrings of the installed packages into a folder of Markdown files, makes a domain of them with
`python -m utils.course new`, runs its six notebooks headless with the embedded default, and prints times and
figures.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import os
import re
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from utils import course, run

MODULES = {
    "numpy": ("", "linalg", "fft", "random", "ma", "polynomial", "char", "lib.stride_tricks", "testing"),
    "pandas": ("", "api.types", "api.extensions", "tseries.offsets", "plotting", "io.formats.style"),
    "torch": (
        *("", "nn", "nn.functional", "nn.init", "nn.utils", "optim", "optim.lr_scheduler", "linalg", "fft"),
        *(
            "special",
            "distributions",
            "utils.data",
            "autograd",
            "cuda",
            "jit",
            "onnx",
            "sparse",
            "ao.quantization",
        ),
    ),
    "sklearn": (
        *(
            "cluster",
            "compose",
            "covariance",
            "datasets",
            "decomposition",
            "ensemble",
            "feature_extraction.text",
        ),
        *(
            "feature_selection",
            "impute",
            "inspection",
            "linear_model",
            "manifold",
            "metrics",
            "metrics.pairwise",
        ),
        *(
            "model_selection",
            "multiclass",
            "naive_bayes",
            "neighbors",
            "neural_network",
            "pipeline",
            "preprocessing",
        ),
        *("random_projection", "svm", "tree", "utils", "gaussian_process.kernels", "mixture", "calibration"),
    ),
}
SHORTEST = 200  # characters; shorter docstrings say little more than the name


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """(public name, docstring) of the package's functions, classes and methods, each text once."""
    seen = set()
    for submodule in MODULES[package]:
        module = importlib.import_module(f"{package}.{submodule}".rstrip("."))
        for name, found in _members(module):
            members = [(name, found)]
            if inspect.isclass(found):
                members += [(f"{name}.{method}", inner) for method, inner in _members(found)]
            for path, member in members:
                text = inspect.getdoc(member) or ""
                key = hashlib.sha256(text.encode()).digest()
                if len(text) >= SHORTEST and key not in seen:
                    seen.add(key)
                    yield f"{module.__name__}.{path}", text


def _members(owner: object) -> Iterator[tuple[str, object]]:
    for name in sorted(set(dir(owner))):
        if name.startswith("_"):
            continue
        try:
            found = getattr(owner, name)
        except (AttributeError, ImportError, NotImplementedError, RuntimeError):
            continue  # lazily imported parts that this installation does not have
        if callable(found) or isinstance(found, property):
            yield name, found


def as_markdown(name: str, text: str) -> str:
    """A docstring as Markdown: summary in the title, numpydoc's sections in bold, examples as code blocks.

    "Parameters" and "Returns" stand in every docstring, so as headings they would say nothing.
    """
    text = re.sub(r"^(\S.*)\n[-=~]{3,}\s*$", r"**\1**\n", text, flags=re.M)
    text = re.sub(r":\w+:`~?([^`<]+?)(?: <[^`]+>)?`", r"`\1`", text)  # Sphinx roles
    text = re.sub(r"^\.\. (\w+):: ?(.*)$", r"\1: \2", text, flags=re.M)  # directives
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    signature = re.compile(r"[\w.]+\(")
    summary = next((b for b in blocks[:2] if not signature.match(b) and len(b) <= 150), "")
    body = [f"```python\n{b}\n```" if b.lstrip().startswith(">>>") else b for b in blocks if b != summary]
    title = f"{name}: {' '.join(summary.split()).rstrip('.')}" if summary else name
    return f"# {title}\n\n" + "\n\n".join(body) + "\n"


def extract(folder: Path, limit: int = 0) -> int:
    """Write one Markdown file for each docstring below `folder/<package>/`; returns how many."""
    count = 0
    for package in MODULES:
        with warnings.catch_warnings(action="ignore"):  # deprecated names are documented too
            taken = list(docstrings(package))
        step = max(1, len(taken) * len(MODULES) // limit) if limit else 1
        for name, text in taken[::step]:
            digest = hashlib.sha256(name.encode()).hexdigest()[:4]  # add and ADD differ on every file system
            run.write_text(folder / package / f"{name}.{digest}.md", as_markdown(name, text))
            count += 1
    return count


def run_domain(folder: Path, profile: str) -> float:
    """Execute the domain's own six notebooks; returns the wall time in minutes."""
    import papermill

    began = time.perf_counter()
    for name in run.STAGES:
        papermill.execute_notebook(
            folder / f"{name}.ipynb", folder / "executed" / f"{name}.ipynb", cwd=folder,
            parameters={"PROFILE": profile}, kernel_name="python3",
            progress_bar={"desc": name, "mininterval": 5},
        )  # fmt: skip
    return (time.perf_counter() - began) / 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=run.ROOT / "domains" / "api_docs")
    parser.add_argument("--limit", type=int, default=1200, help="about so many documents; 0: all")
    parser.add_argument("--profile", default="cpu", choices=list(run.PROFILES))
    parser.add_argument("--only-extract", action="store_true", help="write the documents and stop")
    args = parser.parse_args()
    documents = args.folder / "documents"
    began = time.perf_counter()
    count = extract(documents, args.limit)
    size = sum(path.stat().st_size for path in documents.rglob("*.md")) / 1e6
    print(f"{count} docstrings, {size:.1f} MB, extracted in {time.perf_counter() - began:.0f} s: {documents}")
    if args.only_extract:
        return 0
    command = [sys.executable, "-m", "utils.course", "new", str(args.folder), "--docs", str(documents)]
    subprocess.run(command, check=True)
    os.environ |= {"COURSE_HEADLESS": "1", "HF_HUB_OFFLINE": "1"}
    (args.folder / "executed").mkdir(exist_ok=True)
    minutes = run_domain(args.folder, args.profile)
    print(course.summary(args.folder.name))
    for name in run.STAGES:
        headline = run.read_manifest(args.folder.name, name)["headline"]
        print(f"{name}: {json.dumps(headline, ensure_ascii=False)[:400]}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # KiB on Linux
    device = run.detect_device()
    print(
        f"All six: {minutes:.1f} minutes on {device.cores} cores ({device.name}), peak memory {peak:.1f} GB."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
