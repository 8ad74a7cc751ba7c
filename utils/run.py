"""A run folder and its stages, their manifests, the `PROFILE` dial, and what machine this is.

A stage writes its artefacts first and its manifest last: a stage without a manifest has not finished.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    "01_generate_synthetic_data",
    "02_prepare_training_data",
    "03_fine_tune",
    "04_evaluate",
    "05_export",
    "06_deploy",
)


class CourseError(ValueError):
    """A problem that the user can mend; the message says what is wrong, where, and what to do."""


def expect(condition: object, message: str) -> None:
    """Raise `CourseError(message)` unless the condition holds."""
    if not condition:
        raise CourseError(message)


# ---------------------------------------------------------------- where things are


def runs_dir() -> Path:
    """The folder of all runs: `COURSE_RUNS` if set, else `runs/` of the repository."""
    return Path(os.environ.get("COURSE_RUNS") or ROOT / "runs").expanduser().resolve()


def cache_dir() -> Path:
    """The folder of embedded weights and caches: `COURSE_CACHE` if set, else `~/.cache/embedding-course`."""
    path = Path(os.environ.get("COURSE_CACHE") or "~/.cache/embedding-course").expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def resolve_path(value: str, name: str) -> Path:
    """An existing path given as parameter `name`: absolute, or relative to here or to the repository."""
    tried = [Path(value).expanduser(), ROOT / value]
    found = next((path.resolve() for path in tried if path.exists()), None)
    expect(
        found,
        f"{name} = {value!r} does not exist (looked in {Path.cwd()} and {ROOT}). "
        f"Give an existing path, absolute or relative to one of the two.",
    )
    return found


# ---------------------------------------------------------------- the machine and the dial


@dataclass(frozen=True)
class Device:
    """What the course computes on. `memory_gb`: GPU memory, or RAM on a CPU."""

    kind: str  # cuda, mps, cpu
    name: str
    memory_gb: float
    cores: int
    reason: str


def detect_device() -> Device:
    """Find the fastest device torch can use here, and say why it was taken."""
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        reason = f"torch sees {torch.cuda.device_count()} CUDA GPU(s)"
        return Device("cuda", properties.name, memory, cores, reason)
    memory = psutil.virtual_memory().total / 2**30
    if torch.backends.mps.is_available():
        return Device("mps", "Apple GPU", memory, cores, "torch sees Apple's Metal")
    return Device("cpu", platform.machine(), memory, cores, "torch sees no GPU")


@dataclass(frozen=True)
class Profile:
    """The sizes that follow from the one dial. Tokens are those of the base model."""

    name: str
    passages: int  # passages that questions are written for, at most
    candidates: int  # questions written per passage, before ranking
    keep: int  # questions kept per passage, at most
    train_rows: int  # training rows, at most
    epochs: int
    max_tokens: int  # longest passage in training, mining, evaluation and export
    reason: str = ""


PROFILES = {
    "smoke": Profile("smoke", 24, 1, 1, 96, 1, 128),
    "cpu": Profile("cpu", 300, 2, 2, 3000, 2, 256),
    "gpu": Profile("gpu", 5000, 4, 3, 50_000, 3, 512),
    "full": Profile("full", 100_000, 7, 7, 1_000_000, 3, 512),
}


def choose_profile(profile: str, device: Device) -> Profile:
    """The profile of that name; `auto` follows the device (full from 60 GB of GPU memory, gpu from 12)."""
    expect(
        profile in {"auto", *PROFILES},
        f"PROFILE = {profile!r} is unknown. Choose one of: auto, {', '.join(PROFILES)}.",
    )
    if profile != "auto":
        return Profile(**asdict(PROFILES[profile]) | {"reason": "set by PROFILE"})
    name, why = "cpu", f"{device.reason}, so sizes are those of a laptop"
    if device.kind == "cuda" and device.memory_gb >= 12:
        name = "full" if device.memory_gb >= 60 else "gpu"
        why = f"{device.name} has {device.memory_gb:.0f} GB"
    return Profile(**asdict(PROFILES[name]) | {"reason": why})


# ---------------------------------------------------------------- stages and manifests


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

    def add_input(self, path: Path) -> Path:
        """Note an input file or folder in the manifest, by digest; returns the path."""
        self.inputs[str(path)] = digest(path)
        return path

    def finish(self, headline: dict) -> Path:
        """Write the manifest, last. `headline`: the few figures that say what came out (JSON values)."""
        device = detect_device()
        outputs = {
            str(path.relative_to(self.path)): digest(path)
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }
        expect(outputs, f"{self.name} wrote nothing into {self.path}; its manifest is not written.")
        manifest = {
            "stage": self.name,
            "run": self.run,
            "parameters": self.parameters,
            "code": code_digest(self.name),
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
        return self.path / "manifest.json"


def begin(run: str, name: str, parameters: dict, needs: tuple[str, ...] = ()) -> Stage:
    """Open stage `name` of a run: check that the stages it needs have finished, make its folder.

    The stage's old manifest goes: from here until `finish` the stage counts as unfinished.
    """
    check_name(run)
    stage = Stage(run, name, runs_dir() / run / name, parameters, {})
    for earlier in needs:
        stage.inputs[f"{earlier}/manifest.json"] = _outputs_digest(read_manifest(run, earlier))
    stage.path.mkdir(parents=True, exist_ok=True)
    (stage.path / "manifest.json").unlink(missing_ok=True)
    return stage


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
        f"Run {run!r} has no finished stage {name}. Run notebooks/{name}.ipynb first "
        f"(or: python -m utils.course run --name {run} --from {name[1]}).",
    )
    return json.loads(path.read_text(encoding="utf8"))


def artefact(run: str, name: str, file: str) -> Path:
    """A file or folder that a finished stage of the run wrote."""
    read_manifest(run, name)
    path = runs_dir() / run / name / file
    expect(
        path.exists(), f"{path} is missing although {name} has finished. Run notebooks/{name}.ipynb again."
    )
    return path


def is_current(run: str, name: str, parameters: dict) -> tuple[bool, str]:
    """Whether a stage can be skipped, and why (not): same parameters, code and inputs, outputs in place."""
    folder = runs_dir() / run / name
    if not (folder / "manifest.json").exists():
        return False, "has not finished"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf8"))
    wanted = json.loads(json.dumps(parameters))
    changed = [key for key in wanted if manifest["parameters"].get(key, ...) != wanted[key]]
    if changed:
        return False, f"has other parameters: {', '.join(changed)}"
    if manifest["code"] != code_digest(name):
        return False, "has other code"
    for path, sha in manifest["inputs"].items():
        if path.endswith("/manifest.json") and path.split("/")[0] in STAGES:
            earlier = runs_dir() / run / path
            now = earlier.exists() and _outputs_digest(json.loads(earlier.read_text(encoding="utf8")))
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
    for package in packages:
        print(f"  {package:<22} {importlib.metadata.version(package):<12} {roles[package]}")
    lines = minutes_measured(name)
    print(
        "Time of this stage so far: "
        + ("; ".join(lines[:3]) if lines else "not measured on this machine yet.")
    )


def minutes_measured(name: str) -> list[str]:
    """What stage `name` took in the runs on this machine: one line per finished run, newest first."""
    lines = []
    for path in runs_dir().glob(f"*/{name}/manifest.json"):
        m = json.loads(path.read_text(encoding="utf8"))
        device = m["device"]
        lines.append(
            (
                m["finished"],
                f"run {m['run']!r}: {m['wall_seconds'] / 60:.1f} minutes "
                f"({device['kind']}, {device['cores']} cores, PROFILE {m['parameters'].get('PROFILE', '?')})",
            )
        )
    return [line for _, line in sorted(lines, reverse=True)]


# ---------------------------------------------------------------- files and digests


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that it is either the old one or the whole new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CourseError(
            f"{path} could not be written ({error.strerror}). Free some space or make the folder "
            f"writable, then run again with --resume: finished stages are kept."
        ) from error


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files below a folder with their relative names."""
    sha = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            sha.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
        return sha.hexdigest()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()


def code_digest(name: str) -> str:
    """SHA-256 of a notebook's code cells and of `utils`: what a stage's result depends on."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources += [path.read_text(encoding="utf8") for path in sorted((ROOT / "utils").glob("*.py"))]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages named in requirements.txt."""
    names = re.findall(r"^([A-Za-z0-9_.-]+)", (ROOT / "requirements.txt").read_text(), flags=re.M)
    installed = {}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def _outputs_digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest["outputs"], sort_keys=True).encode()).hexdigest()
