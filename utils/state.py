"""The state of a run: whether it is there, what did not finish, what belongs to an earlier state of it."""

from __future__ import annotations

from pathlib import Path

from utils.run import STAGES, check_name, expect, read_manifest, redone, runs_dir


def existing(run: str) -> Path:
    """The folder of a run; raises CourseError, with the runs there are, if there is none of that name."""
    check_name(run)
    names = sorted({path.parent.name for name in STAGES for path in runs_dir().glob(f"*/{name}")})
    expect(run in names, f"There is no run {run!r} in {runs_dir()}. There are: {', '.join(names) or 'none'}.")
    return runs_dir() / run


def unfinished(run: str) -> list[str]:
    """The stages of a run that have a folder and no manifest: they are under way, or broke off."""
    folders = [runs_dir() / run / name for name in STAGES]
    return [f.name for f in folders if f.is_dir() and not (f / "manifest.json").exists()]


def outdated(run: str) -> list[str]:
    """The finished stages of a run that belong to an earlier state of it, in their order.

    Such a stage has read one that was begun or made again since, or that is outdated itself.
    """
    found: list[str] = []
    for name in STAGES:
        if (runs_dir() / run / name / "manifest.json").exists():
            manifest = read_manifest(run, name)
            read = {before for before in STAGES if f"{before}/manifest.json" in manifest["inputs"]}
            if redone(run, manifest) or read & {*found, *unfinished(run)}:
                found.append(name)
    return found
