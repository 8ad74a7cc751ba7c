"""Notebook 3's training as a script, on one or several processes.

accelerate launch --num_processes 4 -m utils.fine_tune --run NAME [-p SETTING VALUE]…

`python -m utils.course run --name NAME --from 4` goes on with its model.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import fields
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from sentence_transformers import SentenceTransformer

from utils import retrieval, run
from utils.beir_files import read_beir
from utils.evaluation import load_general
from utils.finishing import interpolate, model_card, save_model, told, weights_of
from utils.overrides import declared_parameters, typed
from utils.recipe import Recipe, choose_recipe
from utils.run import CourseError, expect
from utils.trainer import Validation, validation_size
from utils.training import Training, load_rows, train

PREPARE, TUNE = run.STAGES[1:3]
EXAMPLES = {"int": 16, "float": 0.1, "float | None": None, "bool": False, "tuple[int, ...]": [128, 64]}
KNOWN = {field.name: EXAMPLES[field.type] for field in fields(Recipe) if field.name != "why"}
PARAMETERS = {"batch": "BATCH_SIZE", "learning_rate": "LEARNING_RATES"}  # others: the name in capitals


def fine_tune(
    run_name: str,
    profile: str = "auto",
    seed: int = 13,
    trust: bool = False,
    forgetting: float = 0.02,
    **given,
) -> dict:
    """Notebook 3's training without its figures: stage 2's rows → 03_fine_tune/model; returns the headline.

    Under `accelerate launch` every process calls it; the first one writes. forgetting: nDCG@10 that the
    general check may lose. given: settings of the recipe. A sweep, re-mining, further seeds and the model
    of the free questions alone are the notebook's; their parameters are recorded as it declares them.
    """
    patience = timedelta(hours=12)  # while the first process chooses α, the others wait
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=patience)
    device = run.detect_device()
    size = run.choose_profile(profile, device)
    base_model = run.read_manifest(run_name, PREPARE)["parameters"]["BASE_MODEL"]
    model = retrieval.load_encoder(base_model, str(state.device), size.max_tokens, trust)
    rows = load_rows(run.artefact(run_name, PREPARE, "train.jsonl"), size.train_rows, seed)
    chosen = [choose_recipe(rows, model, device, size, seed=seed, **given)]  # the probe may differ by process
    recipe = broadcast_object_list(chosen)[0]
    settings = {"RUN": run_name, "PROFILE": profile, "SEED": seed, "TRUST_REMOTE_CODE": trust}
    default = declared_parameters(PREPARE)["BASE_MODEL"]  # another one is given to all notebooks alike
    settings |= {"BASE_MODEL": "" if base_model == default else base_model, "FORGETTING": forgetting}
    settings = declared_parameters(TUNE) | settings | as_parameters(given)
    stage = run.begin(run_name, TUNE, settings, (PREPARE,)) if state.is_main_process else None
    beir = run.artefact(run_name, PREPARE, "beir")
    validation = Validation(read_beir(beir, "val"), *validation_size(size), recipe.bf16)
    general = Validation(load_general("dev"), *validation_size(size), recipe.bf16)
    base = weights_of(model)
    checkpoints = run.runs_dir() / run_name / TUNE / "checkpoints"
    result = train(rows, model, recipe, validation, checkpoints, keep=True)
    headline = {
        "rows": len(rows),
        "processes": state.num_processes,
        "best_val": result.best,
        "rows_per_second": round(result.rows_per_second, 1),
        "learning_rate": result.recipe.learning_rate,
    }
    if stage is not None:
        tuned = weights_of(model)
        alpha, table = interpolate(model, base, tuned, validation, general, tolerance=forgetting)
        text = table.round(4).to_string(index=False)
        card = model_card(run_name, base_model, told(rows), result.recipe, text, alpha)
        _save(stage, model, card, result, headline | {"alpha": alpha})
    state.wait_for_everyone()
    return headline


def _save(stage: run.Stage, model: SentenceTransformer, card: str, result: Training, headline: dict) -> None:
    """Model, history and manifest as notebook 3 leaves them; models of an earlier training of it go."""
    save_model(model, stage.path / "model", card)
    result.history.to_csv(stage.path / "history.csv", index=False)
    for earlier in (stage.path / "free_only", *stage.path.glob("seed_*")):  # of other rows, perhaps
        shutil.rmtree(earlier, ignore_errors=True)
    stage.finish(headline)


def as_parameters(given: dict) -> dict:
    """Settings of the recipe as parameters of notebook 3, by name and form; what it lacks: in capitals."""
    given = given | ({"learning_rate": [given["learning_rate"]]} if "learning_rate" in given else {})
    return {PARAMETERS.get(name, name.upper()): value for name, value in given.items()}


def settings_given(pairs: list[list[str]]) -> dict:
    """The `-p` pairs, as Python literals of the setting's type; raises CourseError where one is not."""
    for name, _ in pairs:
        expect(name in KNOWN, f"-p {name}: the recipe has no such setting. There are: {', '.join(KNOWN)}.")
    return {name: typed(name, text, KNOWN[name]) for name, text in pairs}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.fine_tune", description=__doc__)
    parser.add_argument("--run", required=True, help="the run whose stage 2 has finished")
    parser.add_argument("--profile", default="auto")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--forgetting", type=float, default=0.02, help="what the general check may lose")
    parser.add_argument("--trust-remote-code", action="store_true", help="of a base that brings its own")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("SETTING", "VALUE"),
        dest="given",
        help=f"of the recipe: {', '.join(KNOWN)}",
    )
    args = parser.parse_args(arguments)
    try:
        given = {"seed": args.seed} | settings_given(args.given)
        common = {"trust": args.trust_remote_code, "forgetting": args.forgetting}
        print(fine_tune(args.run, args.profile, **common, **given))
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
