"""Colab: install what is missing, never torch; ask for a restart if older versions are still loaded.

Called by a notebook's setup cell, inside its kernel, so that it sees what the kernel has loaded.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import site
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Colab's own: its torch fits its driver, its front end its kernel
OWN = ("torch", "ipykernel", "ipython", "ipywidgets")
NOT_NEEDED = ("jupyterlab", "ruff", "pytest", "hypothesis", "schemathesis", "playwright", "beir")  # tools
OLDEST_TORCH = "2.6"  # what the pinned transformers asks for
ALSO_COMPARED = ("pyarrow", "huggingface-hub")  # also installed
DRIVE = "/content/drive"
RESTART = "Choose Runtime > Restart session, then run this cell again; nothing has been downloaded yet."


def prepare(results_in_drive: bool = False) -> None:
    """Make the course importable in this kernel, or stop with `SystemExit` and one sentence on what to do."""
    torch = _check_torch()
    packages = missing()
    print(f"torch {torch} is Colab's own; {len(packages)} packages to install.")
    if packages:
        _install(packages)
    if not _importable():
        _pip("--no-deps", "-e", str(ROOT))
        site.addsitedir(sysconfig.get_paths()["purelib"])  # this kernel reads a new .pth only when told
        importlib.invalidate_caches()
    stale = loaded_not_installed()
    if stale:
        listed = ", ".join(f"{name} {old} (installed: {new})" for name, (old, new) in stale.items())
        raise SystemExit(f"Still in memory: {listed}. {RESTART}")
    if not _importable():
        raise SystemExit(
            f"The name 'utils' is taken by {_utils_file()}. Remove that and run this cell again."
        )
    if results_in_drive:
        _keep_in_drive()


def wanted() -> dict[str, str]:
    """{package with extras: pinned version} of requirements.txt, without what Colab does not need."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf8")
    pins = dict(re.findall(r"^([\w.,\[\]-]+)==(\S+)", text, flags=re.M))
    return {name: version for name, version in pins.items() if name not in (*OWN, *NOT_NEEDED)}


def missing() -> list[str]:
    """The requirements to install: absent, older than the pin, or of another major version."""
    found = []
    for package, pin in wanted().items():
        installed = _installed(package.split("[")[0])
        if not installed or _numbers(installed) < _numbers(pin) or _numbers(installed)[0] != _numbers(pin)[0]:
            found.append(f"{package}=={pin}")
    return found


def loaded_not_installed() -> dict[str, tuple[str, str]]:
    """{package: (version in memory, version installed)} where this kernel still holds another one."""
    names = {_canonical(name.split("[")[0]) for name in (*wanted(), *ALSO_COMPARED)}
    stale = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        loaded = getattr(sys.modules.get(module), "__version__", None)
        for package in {_canonical(name) for name in packages} & names:
            installed = importlib.metadata.version(package)
            if isinstance(loaded, str) and loaded.split("+")[0] != installed.split("+")[0]:
                stale[package] = (loaded, installed)
    return stale


def _check_torch() -> str:
    torch = _installed("torch")
    if not torch or _numbers(torch) < _numbers(OLDEST_TORCH):
        raise SystemExit(
            f"torch {OLDEST_TORCH} or later is needed, this runtime has {torch or 'none'}. Choose a newer "
            f"runtime (Runtime > Change runtime type); the course does not replace Colab's torch."
        )
    return torch


def _install(packages: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraint = Path(folder) / "colab.txt"
        own = [f"{name}=={_installed(name)}" for name in OWN if _installed(name)]
        constraint.write_text("\n".join(own) + "\n", encoding="utf8")
        _pip("-c", str(constraint), *packages)
    importlib.invalidate_caches()


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments])
    if done.returncode:
        raise SystemExit("pip could not install the course's packages; its reason stands above this line.")


def _keep_in_drive() -> None:
    from google.colab import drive

    drive.mount(DRIVE)
    os.environ["COURSE_RUNS"] = f"{DRIVE}/MyDrive/embedding-course"
    print(f"Results are kept in {os.environ['COURSE_RUNS']}.")


def _importable() -> bool:
    return _utils_file() == ROOT / "utils" / "__init__.py"


def _utils_file() -> Path | None:
    spec = importlib.util.find_spec("utils")
    return Path(spec.origin).resolve() if spec and spec.origin else None


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0]))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
