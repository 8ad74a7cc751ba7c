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
import os
import sys
from pathlib import Path

from utils import files, inputs, new_domain, publish, run, state
from utils.overrides import check, declared_parameters, overrides
from utils.run import CourseError, expect

EXTRA = "extra_train_a_question_writer"


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
        print(
            "\nStopped. Finished stages are kept; go on with the same command and --resume.", file=sys.stderr
        )
        return 130


def run_course(args: argparse.Namespace) -> int:
    """Execute notebooks `args.first` to `args.last`, stop at the first that fails, then sum up."""
    names = run.STAGES[args.first - 1 : args.last]
    expect(names, f"--from {args.first} comes after --to {args.last}. Swap them.")
    run.check_name(args.name)
    declared = {name: declared_parameters(name) for name in run.STAGES}
    given = {"RUN": args.name, **overrides(args.overrides, declared)}
    if args.profile is not None:
        given["PROFILE"] = args.profile
    check(given)
    if args.first == 1 and not given.get("CORPUS"):
        _expect_own_documents(args.name)
    for name in names:
        own = {key: value for key, value in given.items() if key in declared[name]}
        label = f"[{name[1]}/6] {name}"
        current, why = _is_current(args.name, name, declared[name] | own)
        if args.resume and current:
            print(f"{label}: kept, it {why}", flush=True)
            continue
        print(f"{label}: starts" + (f", because it {why}" if args.resume else ""), flush=True)
        execute(args.name, name, own)
        wall = run.read_manifest(args.name, name)["wall_seconds"]
        print(f"{label}: done in {wall / 60:.1f} minutes", flush=True)
    print(summary(args.name))
    return 0


def _is_current(run_name: str, name: str, parameters: dict) -> tuple[bool, str]:
    """`run.is_current`; a stage 2 made of QA_PAIRS alone is not, once notebook 1 has run on that corpus."""
    current, why = run.is_current(run_name, name, parameters)
    if current and name == run.STAGES[1]:
        read = run.read_manifest(run_name, name)["inputs"]
        if f"{run.STAGES[0]}/manifest.json" not in read and inputs.generated(run_name, parameters["CORPUS"]):
            return False, "was made without notebook 1, which has run since"
    return current, why


def _expect_own_documents(run_name: str) -> None:
    """A run made from a user's documents is not run over with the sample's because CORPUS was forgotten."""
    folder = run.runs_dir() / run_name
    manifest, copy = folder / run.STAGES[0] / "manifest.json", folder / "notebooks" / f"{run.STAGES[0]}.ipynb"
    if manifest.exists():
        used = files.read_json(manifest)["parameters"].get("CORPUS", "")
    else:  # begun and broken off, or never begun
        begun = publish.assigned(files.read_json(copy), "injected-parameters") if copy.exists() else {}
        used = begun.get("CORPUS", "")
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
        lines += _comparison(files.read_json(results))
    lines += ["", "minutes per stage"]
    for name in run.STAGES:
        path = folder / name / "manifest.json"
        took = files.read_json(path)["wall_seconds"] / 60 if path.exists() else None
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


if __name__ == "__main__":
    sys.exit(main())
