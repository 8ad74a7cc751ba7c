# python -m pytest tests/unit/test_course_container.py
"""The course's container and conda environment: read as text, and their commands run outside a container."""

import fnmatch
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import yaml

from utils.run import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def stages() -> dict[str, list[tuple[str, str]]]:
    """{stage: its instructions (name, arguments) in order, those of the stage it builds on first}."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf8"), flags=re.M).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(str.strip, text.splitlines()):
        name, arguments = line.split(maxsplit=1)
        if name == "FROM":
            image, _, stage = arguments.split()
            current = found[stage] = [*found.get(image, [("FROM", image)])]
        else:
            current.append((name, " ".join(arguments.split())))
    return found


def last(stage: str, name: str) -> str:
    return [arguments for instruction, arguments in stages()[stage] if instruction == name][-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out: it or a folder above it matches a pattern."""
    patterns = [p for p in (ROOT / ".dockerignore").read_text().split("\n") if p and not p.startswith("#")]
    parts = path.split("/")
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(
        fnmatch.fnmatchcase(part.split("/")[-1] if p.startswith("**/") else part, p.removeprefix("**/"))
        for p in patterns
        for part in above
        if p.startswith("**/") or "/" not in part
    )


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_a_target_is_pinned_unprivileged_and_has_a_health_check(stage):
    instructions = stages()[stage]
    image = instructions[0][1]
    assert re.fullmatch(r"python:3\.1[123]-slim", image), "a tag that stays within the supported Pythons"
    assert last(stage, "USER") == "learner" and instructions[-1][0] == "USER"
    assert "useradd --uid 10001" in str(instructions) and last(stage, "WORKDIR").startswith("/")
    assert "COURSE_RUNS=/runs" in last("system", "ENV") and "COURSE_CACHE=/cache" in last("system", "ENV")
    assert json.loads(last(stage, "CMD"))[:2] == ["jupyter", "lab"]
    assert "token" not in last(stage, "CMD"), "JupyterLab makes a secret token of its own"
    for _, arguments in (one for one in instructions if one[0] == "RUN"):
        for command in arguments.split("&&"):
            if "pip install" in command:
                assert "--no-cache-dir" in command
            if "apt-get install" in command:
                assert "--no-install-recommends" in command and "rm -rf /var/lib/apt/lists" in arguments


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_embedded_weights_are_baked_in_before_the_user_changes(stage):
    names = [name for name, _ in stages()[stage]]
    fetch = next(i for i, (_, arguments) in enumerate(stages()[stage]) if "utils.llm fetch" in arguments)
    assert names.index("COPY") < fetch < names.index("USER")
    assert "a+rwX /cache" in stages()[stage][fetch][1], "any user can read them and add caches"


def test_copied_files_exist_and_are_not_ignored():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    left_out = {path.split("/")[0] for path in tracked.stdout.splitlines() if ignored(path)}
    assert left_out <= {".ci"}, "of what is versioned, an image has everything but the machinery"
    assert not ignored("deploy/server-requirements.txt"), "the server's image copies it"
    for path in (".git/config", ".venv/bin/python", "runs/quickstart/a", "utils/__pycache__/run.pyc"):
        assert ignored(path), path


def test_the_torch_pin_is_read_from_the_requirements():
    runs = " ".join(arguments for name, arguments in stages()["cpu"] if name == "RUN")
    command = re.search(r"\$\((grep [^)]+)\)", runs).group(1)
    found = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\n", found.stdout)


def test_the_commands_in_its_head_are_those_of_the_course():
    head = DOCKERFILE.read_text(encoding="utf8").split("FROM", 1)[0]
    arguments = re.search(r"python -m (utils\.course run .+)", head).group(1).split()
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--resume" in done.stdout
    fetched = subprocess.run(
        [sys.executable, "-m", "utils.llm", "fetch"], cwd=ROOT, capture_output=True, text=True
    )
    assert fetched.returncode == 0 and "embedded weights:" in fetched.stdout, fetched.stderr


@pytest.mark.heavy
def test_the_health_check_tells_a_running_jupyterlab_from_none(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    python, flag, code = json.loads(last("cpu", "HEALTHCHECK").split("CMD", 1)[1])
    assert (python, flag) == ("python", "-c")
    check = [sys.executable, "-c", code.replace("8888", port)]
    assert subprocess.run(check, capture_output=True).returncode != 0
    command = [
        part.replace("8888", port).replace("0.0.0.0", "127.0.0.1") for part in json.loads(last("cpu", "CMD"))
    ]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--allow-root",
        *command[2:-1],
        f"--notebook-dir={tmp_path}",
    ]
    log = (tmp_path / "log").open("w")
    lab = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HOME": str(tmp_path)})
    try:
        deadline = time.time() + 90
        while subprocess.run(check, capture_output=True).returncode and time.time() < deadline:
            time.sleep(1)
        assert subprocess.run(check, capture_output=True).returncode == 0, (tmp_path / "log").read_text()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=5)
    finally:
        lab.terminate()
        lab.wait(20)
        log.close()


@pytest.mark.heavy
def test_the_conda_environment_resolves():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf8"))
    lines = environment["dependencies"][-1]["pip"]
    assert "python=3.11" in environment["dependencies"] and "pip" in environment["dependencies"]
    arguments = [part for line in lines for part in line.split()]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
