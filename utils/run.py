"""A run folder and its stages: parameters, inputs, and manifests.

A stage writes its artefacts first and its manifest last: a stage without a manifest has not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType

# What every stage starts from is found here too: `run.expect`, `run.choose_profile` and so on.
from utils.files import ADAPTER, ROOT, digest, expect, located, read_json, write_text
from utils.files import CourseError as CourseError
from utils.files import cache_dir as cache_dir
from utils.files import resolve_path as resolve_path
from utils.machine import PROFILES as PROFILES
from utils.machine import Device as Device
from utils.machine import Profile as Profile
from utils.machine import choose_profile as choose_profile
from utils.machine import detect_device, package_versions

STAGES = (
    "01_generate_synthetic_data",
    "02_prepare_training_data",
    "03_fine_tune",
    "04_evaluate",
    "05_export",
    "06_deploy",
)
MODELS = ("BASE_MODEL", "LARGER_MODEL", "RERANKER", "SECOND_OPINION")  # parameters that may name a folder
GENERAL, GOLD = (str(ROOT / "data" / name) for name in ("general", "gold"))
JUDGING = {STAGES[2]: [GENERAL], STAGES[3]: [GENERAL, GOLD]}  # what a stage measures by, whatever is given


def runs_dir() -> Path:
    """The folder of all runs: `COURSE_RUNS` if set, else `runs/` of the repository."""
    return Path(os.environ.get("COURSE_RUNS") or ROOT / "runs").expanduser().resolve()


def parameters(namespace: dict) -> dict:
    """The upper-case literals of a notebook: call it right below the cell tagged `parameters`."""
    kinds = (str, int, float, bool, list, tuple, dict, type(None))
    return {
        name: value
        for name, value in namespace.items()
        if re.fullmatch(r"[A-Z][A-Z0-9_]*", name) and isinstance(value, kinds)
    }


@dataclass
class Stage:
    """A stage of a run while it is being executed: its folder, parameters and inputs."""

    run: str
    name: str
    path: Path
    parameters: dict
    inputs: dict[str, str]
    started: float = field(default_factory=time.perf_counter)
    code: str = field(init=False)  # as it was when the stage began: that is what the kernel has imported

    def __post_init__(self) -> None:
        self.code = code_digest(self.name, self.parameters)

    @property
    def checkpoints(self) -> Path:
        """The folder of what trainings need to go on after a kill; `finish` removes it."""
        return self.path / "checkpoints"

    def add_input(self, path: Path) -> Path:
        """Note an input file or folder in the manifest, by digest; returns the path."""
        self.inputs[str(path)] = digest(path)
        return path

    def finish(self, headline: dict) -> Path:
        """Write the manifest, last, then remove the checkpoints, which are no output.

        headline: the few figures that say what came out (JSON values).
        """
        device = detect_device()
        outputs = {
            str(path.relative_to(self.path)): digest(path)
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name != "manifest.json" and self.checkpoints not in path.parents
        }
        expect(outputs, f"{self.name} wrote nothing into {self.path}; its manifest is not written.")
        manifest = {
            "stage": self.name,
            "run": self.run,
            "parameters": self.parameters,
            "code": self.code,
            "inputs": self.inputs,
            "outputs": outputs,
            "packages": package_versions(),
            "python": platform.python_version(),
            "device": asdict(device),
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "headline": headline,
        }
        write_text(self.path / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        return self.path / "manifest.json"


def begin(run: str, name: str, parameters: dict, needs: tuple[str, ...] = ()) -> Stage:
    """Open stage `name` of a run: check that the stages it needs have finished, make its folder.

    The stage's old manifest goes: from here until `finish` the stage counts as unfinished.
    """
    check_name(run)
    stage = Stage(run, name, runs_dir() / run / name, parameters, {})
    from utils.base_models import described  # needs pydantic, which setup brings

    named = set(JUDGING.get(name, ()))
    for parameter in MODELS:
        if model := parameters.get(parameter):
            named |= {located(model), described(model, parameter).model}  # a JSON file, the folder it names
    for path in sorted(named):
        if Path(path).expanduser().exists():
            stage.add_input(Path(path).expanduser())
    for earlier in needs:
        manifest = read_manifest(run, earlier)
        _check_chain(run, earlier, manifest)
        stage.inputs[f"{earlier}/manifest.json"] = _outputs_digest(manifest)
    stage.path.mkdir(parents=True, exist_ok=True)
    (stage.path / "manifest.json").unlink(missing_ok=True)
    return stage


def _check_chain(run: str, name: str, manifest: dict) -> None:
    """A stage that is needed may not have been made from an older state of the stages before it."""
    for before in redone(run, manifest):
        raise CourseError(
            f"Run {run!r}: {before} has been run again since {name}, which belongs to the older one. "
            f"Run {_notebook(run, name)} again, with the parameters that it had."
        )


def redone(run: str, manifest: dict) -> list[str]:
    """The stages that have given something else since the stage of this manifest read them."""
    earlier = {path.removesuffix("/manifest.json"): sha for path, sha in manifest["inputs"].items()}
    return [
        name
        for name in STAGES
        if name in earlier
        and (runs_dir() / run / name / "manifest.json").exists()
        and _outputs_digest(read_manifest(run, name)) != earlier[name]
    ]


def check_name(run: str) -> None:
    """A run's name must be a plain folder name."""
    expect(
        isinstance(run, str) and re.fullmatch(r"\w[\w.-]*", run),
        f"RUN = {run!r} is not a folder name. Use letters, digits, '_', '-' and '.'.",
    )


def read_manifest(run: str, name: str) -> dict:
    """The manifest of a finished stage; a `CourseError` names the notebook to run if there is none."""
    path = runs_dir() / run / name / "manifest.json"
    expect(
        path.exists(),
        f"Run {run!r} has no finished stage {name}. Run {_notebook(run, name)} first, with RUN = {run!r}.",
    )
    return read_json(path)


def _notebook(run: str, name: str) -> str:
    """The notebook of a stage, as the user knows it: beside this one, in the run's own folder, or ours."""
    own = [path for path in (Path(f"{name}.ipynb"), Path(run) / f"{name}.ipynb") if path.exists()]
    return f"{own[0].resolve().parent.name if own else 'notebooks'}/{name}.ipynb"


def artefact(run: str, name: str, file: str) -> Path:
    """A file or folder that a finished stage of the run wrote."""
    read_manifest(run, name)
    path = runs_dir() / run / name / file
    expect(
        path.exists(), f"{path} is missing although {name} has finished. Run {_notebook(run, name)} again."
    )
    return path


def is_current(run: str, name: str, parameters: dict) -> tuple[bool, str]:
    """Whether a stage can be skipped, and why (not): same parameters, code and inputs, outputs in place."""
    folder = runs_dir() / run / name
    if not (folder / "manifest.json").exists():
        return False, "has not finished"
    manifest = read_json(folder / "manifest.json")
    wanted = json.loads(json.dumps(parameters))
    changed = [key for key in wanted if manifest["parameters"].get(key, ...) != wanted[key]]
    if changed:
        return False, f"has other parameters: {', '.join(changed)}"
    if manifest["code"] != code_digest(name, parameters):
        return False, "has other code, or the environment has another COURSE_ADAPTER or LLM"
    for path, sha in manifest["inputs"].items():
        if path.endswith("/manifest.json") and path.split("/")[0] in STAGES:
            earlier = runs_dir() / run / path
            now = earlier.exists() and _outputs_digest(read_json(earlier))
        else:
            now = Path(path).exists() and digest(Path(path))
        if now != sha:
            return False, f"has another input: {path}"
    missing = [file for file in manifest["outputs"] if not (folder / file).exists()]
    return (False, f"has lost an output: {missing[0]}") if missing else (True, "is up to date")


def introduce(name: str, packages: Iterable[str]) -> None:
    """Print where a notebook runs, its packages (roles as in requirements.txt), and what it took before."""
    device = detect_device()
    place = "Colab" if os.environ.get("COLAB_RELEASE_TAG") else platform.system()
    print(f"{place}, Python {platform.python_version()}")
    print(f"{device.kind}: {device.name}, {device.cores} cores, {device.memory_gb:.0f} GB ({device.reason})")
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf8")
    roles = dict(re.findall(r"^([\w.-]+).*?==\S+\s+# (.+)$", requirements, flags=re.M))
    versions = package_versions()
    for package in packages:
        installed = versions.get(package, "?")
        print(f"  {package:<22} {installed:<12} {roles[package]}")
    lines = minutes_measured(name)
    print(
        "Time of this stage so far: "
        + ("; ".join(lines[:3]) if lines else "not measured on this machine yet.")
    )


def minutes_measured(name: str) -> list[str]:
    """What stage `name` took in the runs on this machine: one line per finished run, newest first."""
    lines = []
    for path in runs_dir().glob(f"*/{name}/manifest.json"):
        m = read_json(path)
        device = m["device"]
        lines.append(
            (
                m["finished"],
                f"run {m['run']!r}: {m['wall_seconds'] / 60:.1f} minutes "
                f"({device['kind']}, {device['cores']} cores, PROFILE {m['parameters'].get('PROFILE', '?')})",
            )
        )
    return [line for _, line in sorted(lines, reverse=True)]


def code_digest(name: str, parameters: Mapping = MappingProxyType({})) -> str:
    """SHA-256 of what a stage's result depends on besides its inputs: the notebook's code cells, `utils`,
    COURSE_ADAPTER, and where LLM is `auto`, what the environment offers (of keys, which are set).
    """
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources += [path.read_text(encoding="utf8") for path in sorted((ROOT / "utils").glob("*.py"))]
    adapter = Path(os.environ.get("COURSE_ADAPTER") or ADAPTER)
    sources.append(digest(adapter) if adapter.exists() else str(adapter))
    if parameters.get("LLM") == "auto":
        from utils.chat_hosts import HOSTED  # the server's image has no such module

        keys = [key for key, *_ in HOSTED if os.environ.get(key)] if parameters.get("SEND_DOCUMENTS") else []
        sources += [os.environ.get("LLM_BASE_URL", ""), *keys]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def _outputs_digest(manifest: dict) -> str:
    """Of all that a later stage may read; times, costs and labels, which no two runs share, are no part."""
    read = {
        file: sha
        for file, sha in manifest["outputs"].items()
        if file not in ("projection.json", "ledger.json", "labels.jsonl")
    }
    return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()
