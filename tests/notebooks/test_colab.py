# python -m pytest tests/notebooks/test_colab.py
"""The setup cell in a place like Colab: no course on disk, its own torch, old packages in memory, elsewhere.

The cell runs in a fresh Python of its own. The fast tests give it a pip that only notes what it was asked;
the heavy one lets the real pip install.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
import venv
from pathlib import Path

import pytest

from utils import llm, publish, run

SETUP_CELL = """\
# Find the course. On Colab: clone it, install what is missing (never torch), results to Drive if asked.
import os
import runpy
import subprocess
from pathlib import Path

if os.environ.get("COLAB_RELEASE_TAG"):
    home, results_in_drive = Path(os.environ.get("COURSE_HOME", "/content/course")), False
    repository = os.environ.get("COURSE_REPO", "https://github.com/your-organisation/embedding-course")
    if not home.exists():
        subprocess.run(["git", "clone", "--depth", "1", repository, home], check=True)
    runpy.run_path(str(home / "deploy" / "colab_setup.py"))["prepare"](results_in_drive)

from utils import run"""

FAKE_PIP = """
import json, os, shutil, sys
from pathlib import Path

site = Path(__file__).parents[1]
arguments = sys.argv[1:]
constraint = Path(arguments[arguments.index("-c") + 1]).read_text() if "-c" in arguments else ""
with open(os.environ["PIP_LOG"], "a") as log:
    log.write(json.dumps([arguments, constraint]) + chr(10))
if "-e" in arguments:
    (site / "course.pth").write_text(arguments[-1] + chr(10))
for name, version in (a.split("==") for a in arguments if "==" in a):
    name = name.split("[")[0].replace("-", "_")
    for old in site.glob(name + "-*.dist-info"):
        shutil.rmtree(old)
    info = site / (name + "-" + version + ".dist-info")
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {name}\\nVersion: {version}\\n")
    (info / "top_level.txt").write_text(name)
    (site / name).mkdir(exist_ok=True)
    (site / name / "__init__.py").write_text(f"__version__ = {version!r}")
"""


class Colab:
    """A runtime like Colab's below `folder`; what it has installed is up to the test."""

    def __init__(self, folder: Path):
        self.folder, self.pip_log = folder, folder / "pip.jsonl"
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        self.site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
        self.add("google/colab/__init__.py", "")
        self.add("google/colab/drive.py", "def mount(path): print('mounted', path)")
        self.repository = folder / "repository"
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("utils", "deploy"):
            shutil.copytree(run.ROOT / name, self.repository / name, ignore=skip)
        for name in ("requirements.txt", "pyproject.toml", "README.md"):
            shutil.copy(run.ROOT / name, self.repository)
        git = ["git", "-C", self.repository, "-c", "user.name=test", "-c", "user.email=test@example.org"]
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "course"]):
            subprocess.run([*git, *command], check=True)

    def add(self, file: str, text: str) -> None:
        (self.site / file).parent.mkdir(parents=True, exist_ok=True)
        (self.site / file).write_text(text)

    def install(self, name: str, version: str) -> None:
        """A package that holds nothing but its version, with the records that pip needs to replace it."""
        info = f"{name}-{version}.dist-info"
        self.add(f"{name}/__init__.py", f"__version__ = {version!r}")
        self.add(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        self.add(f"{info}/top_level.txt", name)
        self.add(
            f"{info}/RECORD",
            f"{name}/__init__.py,,\n{info}/METADATA,,\n{info}/top_level.txt,,\n{info}/RECORD,,\n",
        )

    def cell(self, before: str = "", cell: str = SETUP_CELL, after: str = "", tag: str = "release-colab"):
        """Run the setup cell in a fresh kernel that has already loaded what `before` imports."""
        passed = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        passed |= {
            key: value for key, value in os.environ.items() if key.upper().startswith(("PIP_", "SSL_"))
        }
        environment = passed | {
            "PYTHONDONTWRITEBYTECODE": "1",  # a package swapped within a second would be read from its .pyc
            "COLAB_RELEASE_TAG": tag,
            "PIP_LOG": str(self.pip_log),
            "HOME": str(self.folder),
        }
        environment |= {
            "COURSE_REPO": f"file://{self.repository}",
            "COURSE_HOME": str(self.folder / "course"),
        }
        return subprocess.run(
            [self.python, "-c", f"{before}\n{cell}\n{after}"],
            cwd=self.elsewhere, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def pip_calls(self) -> list:
        return (
            [json.loads(line) for line in self.pip_log.read_text().splitlines()]
            if self.pip_log.exists()
            else []
        )


@pytest.fixture
def colab(tmp_path):
    """Colab with the fake pip, a torch of its own, an old numpy, and pandas as the course pins it."""
    place = Colab(tmp_path)
    place.add("pip/__main__.py", FAKE_PIP)
    for name, version in {
        "torch": "2.99.0+cu130",
        "numpy": "2.0.2",
        "ipykernel": "6.17.1",
        "pandas": pin("pandas"),
    }.items():
        place.install(name, version)
    return place


def pin(name: str) -> str:
    lines = (run.ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()
    return next(line.split("==")[1].split()[0] for line in lines if line.startswith(f"{name}=="))


@pytest.mark.parametrize("path", sorted(publish.NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_notebook_opens_with_the_setup_cell(path):
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    address = r"https://github\.com/[\w./-]+"  # a clone of one's own may be written there
    assert re.sub(address, "", "".join(first["source"])) == re.sub(address, "", SETUP_CELL)


def test_clones_and_installs_only_what_is_missing_and_never_torch(colab):
    done = colab.cell()
    assert done.returncode == 0, done.stderr
    assert (colab.folder / "course" / "utils" / "run.py").exists()
    (arguments, constraint), (editable, _) = colab.pip_calls()
    asked = {argument.split("==")[0].split("[")[0] for argument in arguments if "==" in argument}
    assert {"numpy", "sentence-transformers", "semchunk", "openai"} <= asked
    assert not asked & {
        "torch",
        "pandas",
        "ipykernel",
        "ipython",
        "ipywidgets",
        "jupyterlab",
        "pytest",
        "playwright",
    }
    assert constraint.split() == ["torch==2.99.0+cu130", "ipykernel==6.17.1"], (
        "nor may a dependency replace them"
    )
    assert editable[-4:] == ["--quiet", "--no-deps", "-e", str(colab.folder / "course")]
    assert "torch 2.99.0+cu130 is Colab's own" in done.stdout


def test_asks_for_a_restart_when_an_old_package_is_loaded_and_then_goes_on(colab):
    first = colab.cell(before="import numpy, pandas", after="print('went on')")
    assert first.returncode != 0 and "went on" not in first.stdout
    assert f"Still in memory: numpy 2.0.2 (installed: {pin('numpy')})" in first.stderr
    assert "Restart session" in first.stderr and "pandas" not in first.stderr
    assert not (colab.folder / ".cache").exists(), "nothing may be downloaded before the restart"
    calls = len(colab.pip_calls())
    again = colab.cell(before="import numpy, pandas", after="print('went on with', run.__file__)")
    assert again.returncode == 0, again.stderr
    assert f"went on with {colab.folder / 'course' / 'utils' / 'run.py'}" in again.stdout
    assert len(colab.pip_calls()) == calls, "a second visit installs nothing"


def test_running_the_cell_again_without_a_restart_is_noticed(colab):
    """Nothing is left to install then, but the old version is still the one in memory."""
    twice = f"import numpy\ntry:\n    exec({SETUP_CELL!r})\nexcept SystemExit:\n    print('asked once')"
    done = colab.cell(before=twice)
    assert "asked once" in done.stdout and "Still in memory: numpy 2.0.2" in done.stderr


@pytest.mark.parametrize("version", ["2.5.1", None])
def test_a_torch_that_is_too_old_or_absent_is_not_replaced_but_named(colab, version):
    shutil.rmtree(colab.site / "torch-2.99.0+cu130.dist-info")
    if version:
        colab.install("torch", version)
    done = colab.cell()
    assert done.returncode != 0 and "Choose a newer runtime" in done.stderr
    assert str(version or "none") in done.stderr and "Traceback" not in done.stderr
    assert not colab.pip_calls()


def test_results_go_to_drive_only_when_asked(colab):
    quiet = colab.cell(after="print(run.runs_dir())")
    assert "mounted" not in quiet.stdout and "/content/drive" not in quiet.stdout
    asked = SETUP_CELL.replace(", False", ", True")
    done = colab.cell(cell=asked, after="print(run.runs_dir())")
    assert "mounted /content/drive" in done.stdout
    assert done.stdout.splitlines()[-1] == "/content/drive/MyDrive/embedding-course"


def test_another_package_named_utils_is_named_instead_of_imported(colab):
    colab.add("utils/__init__.py", "")
    done = colab.cell()
    assert "The name 'utils' is taken by" in done.stderr and "site-packages/utils" in done.stderr


def test_elsewhere_than_colab_the_cell_changes_nothing(colab):
    done = colab.cell(tag="")
    assert "No module named 'utils'" in done.stderr
    assert not colab.pip_calls() and not (colab.folder / "course").exists()


def test_no_false_alarm_with_the_packages_of_this_environment():
    """What a package says of itself in memory is what its installer recorded: nobody restarts in vain."""
    setup = publish.ROOT / "deploy" / "colab_setup.py"
    names = "numpy, scipy, pandas, transformers, datasets, faiss, onnxruntime, PIL, pyarrow, openai, pydantic"
    code = f"import {names}, runpy; print(runpy.run_path({str(setup)!r})['loaded_not_installed']())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "{}", done.stdout + done.stderr


def test_keys_come_from_colabs_secrets(monkeypatch):
    userdata = types.SimpleNamespace(get=lambda name: {"NVIDIA_API_KEY": "from-the-secrets"}[name])
    colab_package = types.SimpleNamespace(userdata=userdata)
    monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=colab_package))
    monkeypatch.setitem(sys.modules, "google.colab", colab_package)
    for name in ("NVIDIA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert llm.secret("NVIDIA_API_KEY") == "from-the-secrets"
    assert llm.secret("OPENAI_API_KEY") == "", "a secret that is not there is no key, and no error"
    monkeypatch.setenv("NVIDIA_API_KEY", "from-the-environment")
    assert llm.secret("NVIDIA_API_KEY") == "from-the-environment"


@pytest.mark.slow
def test_with_the_real_pip(tmp_path):
    """Two packages missing, one old and loaded; all others as installed here, out of the new pip's reach."""
    colab, hidden = Colab(tmp_path), ("semchunk", "rensa", "bm25s", "embedding_course", "__editable__")
    preinstalled = tmp_path / "preinstalled"
    preinstalled.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(hidden):
            (preinstalled / entry.name).symlink_to(entry)
    colab.add("preinstalled.pth", f"{preinstalled}\n")
    colab.install("bm25s", "0.2.0")
    first = colab.cell(before="import bm25s")
    assert f"bm25s 0.2.0 (installed: {pin('bm25s')})" in first.stderr, first.stdout + first.stderr
    assert (colab.site / "semchunk").exists() and (colab.site / "rensa").exists()
    assert not (colab.site / "torch").exists() and not (colab.site / "numpy").exists()
    use = "from utils import corpus\nprint(run.ROOT, corpus.semchunk.__name__)"
    second = colab.cell(before="import bm25s", after=use)
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1] == f"{tmp_path / 'course'} semchunk"
