"""Parameters of the notebooks as a command line gives them: `-p NAME VALUE`, typed and checked at once."""

from __future__ import annotations

import ast

from utils.beir_files import read_corpus, read_test_set
from utils.files import ROOT, expect, here, resolve_path, there
from utils.machine import choose_profile, detect_device
from utils.run import MODELS

PATH_PARAMETERS = ("CORPUS", "QA_PAIRS", "TEST_SET", *MODELS)


def declared_parameters(name: str) -> dict:
    """The parameters that notebook `name` declares, with their defaults."""
    import papermill

    found = papermill.inspect_notebook(ROOT / "notebooks" / f"{name}.ipynb")
    return {key: ast.literal_eval(info["default"]) for key, info in found.items()}


def overrides(pairs: list[list[str]], declared: dict[str, dict]) -> dict:
    """The `-p` pairs, typed like the parameters' defaults; paths are relative to where the caller stands."""
    values = {}
    for key, text in pairs:
        defaults = [own[key] for own in declared.values() if key in own]
        known = sorted({name for own in declared.values() for name in own})
        expect(key != "RUN", "-p RUN: give the run's name with --name.")
        expect(defaults, f"-p {key}: no notebook declares this parameter. There are: {', '.join(known)}.")
        values[key] = typed(key, text, defaults[0])
        if key in PATH_PARAMETERS and text and there(here(text)):
            values[key] = str(here(text).absolute())  # a link keeps its name: e5-base-v2
    return values


def typed(key: str, text: str, default: object) -> object:
    """The value of a Python literal, of the default's type; raises CourseError if it is of another."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = text
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is None:  # chosen by the notebook, or a number
        expect(value is None or type(value) in (int, float), f"-p {key} {text}: expected a number, or None.")
        return value
    expect(
        type(value) is type(default),
        f"-p {key} {text}: expected a value of type {type(default).__name__}, such as {default!r}.",
    )
    return value


def check(given: dict) -> None:
    """Refuse before the first notebook what a notebook would refuse later."""
    choose_profile(given.get("PROFILE", "auto"), detect_device())
    for key in ("CORPUS", "QA_PAIRS", "TEST_SET"):
        if given.get(key):
            resolve_path(given[key], key)
    corpus = given.get("CORPUS") and resolve_path(given["CORPUS"], "CORPUS")
    if corpus and corpus.is_file():
        expect(
            corpus.suffix == ".jsonl", f"CORPUS: {corpus} is no .jsonl file. Give a folder or a corpus.jsonl."
        )
        if given.get("TEST_SET"):
            read_test_set(given["TEST_SET"], read_corpus(corpus))
