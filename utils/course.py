"""Headless: runs the notebooks in their order with papermill, and reports on a run.

python -m utils.course run --name NAME [--profile smoke|cpu|gpu|full] [--from 1] [--to 6]
                           [-p PARAMETER VALUE]… [--resume]
python -m utils.course summary --name NAME
python -m utils.course report --name NAME [--notebooks FOLDER]
python -m utils.course outputs --name NAME
python -m utils.course new FOLDER --docs DOCUMENTS [--test-set BEIR_FOLDER] [--style FILE]
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from pathlib import Path

from utils import new_domain, publish, run, state
from utils.beir_files import read_corpus, read_test_set
from utils.run import CourseError, expect

EXTRA = "extra_train_a_question_writer"
PATH_PARAMETERS = (
    "CORPUS",
    "QA_PAIRS",
    "TEST_SET",
    "BASE_MODEL",
    "LARGER_MODEL",
    "RERANKER",
    "SECOND_OPINION",
)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code (0, 2 for a problem the user can mend, 130 for Ctrl-C)."""
    args = _parser().parse_args(arguments)
    for name in ("COURSE_RUNS", "COURSE_CACHE", "COURSE_ADAPTER"):  # relative to here, not to the notebooks
        if (os.environ.get(name) or "none") != "none":
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())
    try:
        return args.command(args)
    except CourseError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Finished stages are kept; go on with --resume.", file=sys.stderr)
        return 130


def run_course(args: argparse.Namespace) -> int:
    """Execute notebooks `args.first` to `args.last`, stop at the first that fails, then sum up."""
    names = run.STAGES[args.first - 1 : args.last]
    expect(names, f"--from {args.first} comes after --to {args.last}. Swap them.")
    run.check_name(args.name)
    declared = {name: declared_parameters(name) for name in run.STAGES}
    overrides = {"RUN": args.name, **_overrides(args.overrides, declared)}
    if args.profile is not None:
        overrides["PROFILE"] = args.profile
    _validate(overrides, declared)
    if args.first == 1 and not overrides.get("CORPUS"):
        _expect_own_documents(args.name)
    for name in names:
        own = {key: value for key, value in overrides.items() if key in declared[name]}
        label = f"[{name[1]}/6] {name}"
        current, why = run.is_current(args.name, name, declared[name] | own)
        if args.resume and current:
            print(f"{label}: kept, it {why}", flush=True)
            continue
        print(f"{label}: starts" + (f", because it {why}" if args.resume else ""), flush=True)
        execute(args.name, name, own)
        wall = run.read_manifest(args.name, name)["wall_seconds"]
        print(f"{label}: done in {wall / 60:.1f} minutes", flush=True)
    print(summary(args.name))
    return 0


def _expect_own_documents(run_name: str) -> None:
    """A run made from a user's documents is not run over with the sample's because CORPUS was forgotten."""
    if not (run.runs_dir() / run_name / run.STAGES[0] / "manifest.json").exists():
        return
    used = run.read_manifest(run_name, run.STAGES[0])["parameters"].get("CORPUS", "")
    expect(
        not used,
        f"Run {run_name!r} was made from {used}, and the sample documents would replace it. Give "
        f"-p CORPUS {used}, or a name not yet used with --name.",
    )


def commit_outputs(args: argparse.Namespace) -> None:
    """Execute the unnumbered notebook in the run too, then put the outputs of all seven into `notebooks/`."""
    publish.ready(args.name)  # a run that may not be committed is refused before minutes are spent
    execute(args.name, EXTRA, {"RUN": args.name})
    print(publish.outputs(args.name))


def execute(run_name: str, name: str, parameters: dict) -> Path:
    """Run one notebook with papermill; returns the executed copy, which is kept also when a cell fails."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    copy = run.runs_dir() / run_name / "notebooks" / f"{name}.ipynb"
    os.environ["COURSE_HEADLESS"] = "1"
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            run.ROOT / "notebooks" / f"{name}.ipynb",
            copy,
            parameters=parameters,
            kernel_name="python3",
            cwd=run.ROOT / "notebooks",
            progress_bar={"desc": name, "mininterval": 2},
        )
    except DeadKernelError:
        raise CourseError(
            f"{name}.ipynb: its process was ended from outside, as happens when memory runs out. Free some "
            f"and go on with --resume (finished stages are kept), or begin with a smaller PROFILE.\n"
            f"The executed copy shows how far it came: {copy}"
        ) from None
    except papermill.PapermillExecutionError as error:
        raise CourseError(
            f"{name}.ipynb, cell {error.cell_index}: {error.ename}: {error.evalue}\n"
            f"The executed copy shows where: {copy}"
        ) from None
    except OSError as error:
        raise CourseError(
            f"{copy.parent} cannot be written ({error.strerror}). Free some space there, or point "
            f"COURSE_RUNS to a writable folder; finished stages are kept, go on with --resume."
        ) from None
    return copy


def declared_parameters(name: str) -> dict:
    """The parameters that notebook `name` declares, with their defaults."""
    import papermill

    found = papermill.inspect_notebook(run.ROOT / "notebooks" / f"{name}.ipynb")
    return {key: ast.literal_eval(info["default"]) for key, info in found.items()}


def summary(run_name: str) -> str:
    """The result of a run as text: base against tuned, the verdict, minutes per stage, where to look next.

    A verdict that belongs to an earlier state of the run is not repeated. Raises CourseError without a run.
    """
    folder, old = state.existing(run_name), state.outdated(run_name)
    lines = []
    results = folder / "04_evaluate" / "results.json"
    if "04_evaluate" in old:
        again = [name[1] for name in run.STAGES[:4] if name in {*old, *state.unfinished(run_name)}]
        lines += ["", "The verdict belongs to an earlier state of this run: earlier stages were run since."]
        lines += [f"Run stage{'s' * (len(again) > 1)} {', '.join(again)} again."]
    elif (folder / "04_evaluate" / "manifest.json").exists() and results.exists():
        lines += _comparison(json.loads(results.read_text(encoding="utf8")))
    lines += ["", "minutes per stage"]
    for name in run.STAGES:
        path = folder / name / "manifest.json"
        took = json.loads(path.read_text(encoding="utf8"))["wall_seconds"] / 60 if path.exists() else None
        note = "  of an earlier state" if name in old else ""
        lines.append(f"  {name:<28}" + (f"{took:6.1f}{note}" if took is not None else "  not finished"))
    if (folder / "notebooks").exists():
        lines += ["", f"Executed notebooks: {folder / 'notebooks'}"]
    return "\n".join([*lines, "", f"Everything the run wrote: {folder}"])


def _comparison(results: dict) -> list[str]:
    lines = ["", f"{'nDCG@10':<12}{'queries':>8}{'base':>9}{'tuned':>9}{'difference':>12}   95 % interval, p"]
    for test_set, found in results["test_sets"].items():
        systems, change = found["systems"], found["tuned_vs_base"]["nDCG@10"]
        low, high = change["ci95"]
        lines.append(
            f"{test_set:<12}{found['n_queries']:>8}{systems['base']['nDCG@10']:>9.3f}"
            f"{systems['tuned']['nDCG@10']:>9.3f}{change['delta']:>+12.3f}"
            f"   [{low:+.3f}, {high:+.3f}], p = {change['p']:.4f}"
        )
    verdict = results["verdict"]
    return [*lines, "", f"Verdict: use the {verdict['use']} model. {verdict['why']}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.course", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run the notebooks in order")
    runner.add_argument("--name", default="quickstart", help="the run's folder below runs/")
    runner.add_argument(
        "--profile", default=None, help="smoke, cpu, gpu, full or auto; with sizes: cpu:keep=1"
    )
    runner.add_argument("--from", dest="first", type=int, default=1, choices=range(1, 7))
    runner.add_argument("--to", dest="last", type=int, default=6, choices=range(1, 7))
    runner.add_argument(
        "-p", dest="overrides", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    runner.add_argument("--resume", action="store_true", help="keep the stages that are up to date")
    runner.set_defaults(command=run_course)
    on_a_run = {
        "summary": ("print a run's result again", lambda args: print(summary(args.name))),
        "report": (
            "one HTML folder from a run",
            lambda args: print(publish.report(args.name, summary(args.name), args.notebooks)),
        ),
        "outputs": ("commit a run's outputs into notebooks/", commit_outputs),
    }
    for command, (purpose, function) in on_a_run.items():
        teller = commands.add_parser(command, help=purpose)
        teller.add_argument("--name", default="quickstart")
        if command == "report":
            teller.add_argument("--notebooks", default="", help="a folder of notebooks run in Jupyter")
        teller.set_defaults(command=lambda args, function=function: function(args) or 0)
    maker = commands.add_parser("new", help="six notebooks of your own, for another domain")
    maker.add_argument("folder", type=Path)
    maker.add_argument("--docs", required=True, help="a folder of documents, or a BEIR corpus.jsonl")
    maker.add_argument("--test-set", default="", help="a BEIR folder with human questions")
    maker.add_argument("--style", type=Path, default=None, help="a text file, one real question a line")
    maker.set_defaults(
        command=lambda args: print(new_domain.new(args.folder, args.docs, args.test_set, args.style)) or 0
    )
    return parser


def _overrides(pairs: list[list[str]], declared: dict[str, dict]) -> dict:
    """The `-p` pairs, typed like the parameters' defaults; paths are relative to where the caller stands."""
    values = {}
    for key, text in pairs:
        defaults = [own[key] for own in declared.values() if key in own]
        known = sorted({name for own in declared.values() for name in own})
        expect(key != "RUN", "-p RUN: give the run's name with --name.")
        expect(defaults, f"-p {key}: no notebook declares this parameter. There are: {', '.join(known)}.")
        values[key] = typed(key, text, defaults[0])
        if key in PATH_PARAMETERS and text and Path(text).expanduser().exists():
            values[key] = str(Path(text).expanduser().absolute())  # a link keeps its name: e5-base-v2
    return values


def typed(key: str, text: str, default: object) -> object:
    """The value of a Python literal, of the default's type; raises CourseError if it is of another."""
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
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


def _validate(overrides: dict, declared: dict[str, dict]) -> None:
    """Refuse before the first notebook what a notebook would refuse later."""
    run.choose_profile(overrides.get("PROFILE", "auto"), run.detect_device())
    for key in ("CORPUS", "QA_PAIRS", "TEST_SET"):
        if overrides.get(key):
            run.resolve_path(overrides[key], key)
    corpus = overrides.get("CORPUS") and run.resolve_path(overrides["CORPUS"], "CORPUS")
    if corpus and corpus.is_file():
        run.expect(
            corpus.suffix == ".jsonl", f"CORPUS: {corpus} is no .jsonl file. Give a folder or a corpus.jsonl."
        )
        if overrides.get("TEST_SET"):
            read_test_set(overrides["TEST_SET"], read_corpus(corpus))


if __name__ == "__main__":
    sys.exit(main())
