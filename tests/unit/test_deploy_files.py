# python -m pytest tests/unit/test_deploy_files.py
"""The files in deploy/ parse, name files that exist, and agree with the server's command line."""

import ast
import re
import shutil
import subprocess

import pytest
import yaml

from utils import serve
from utils.run import ROOT

DEPLOY = ROOT / "deploy"
SCRIPTS = ("tei.sh", "vllm.sh", "nim.sh", "course.sbatch")


def copied_modules():
    line = next(x for x in (DEPLOY / "Containerfile").read_text().splitlines() if x.startswith("COPY utils/"))
    return line.split()[1:-1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_valid_bash_and_executable(name):
    checked = subprocess.run(["bash", "-n", DEPLOY / name], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert (DEPLOY / name).stat().st_mode & 0o100
    assert "set -euo pipefail" in (DEPLOY / name).read_text()


@pytest.mark.parametrize(
    ("name", "first", "wanted"),
    [
        ("tei.sh", "docker", ["--model-id /model", "05_export/portable:/model:ro", "127.0.0.1:8080:80"]),
        ("vllm.sh", "vllm", ["serve", "--runner pooling", "--dtype float32", "--host 127.0.0.1"]),
        ("nim.sh", "docker", ["NIM_ENGINE_MODEL_PATH=/opt/custom-model", "nvidia/nemotron-3-embed-1b:2.4.0"]),
        (
            "course.sbatch",
            "srun",
            ["--cpus-per-task=16 .venv/bin/python -m utils.course run --name quickstart"],
        ),
    ],
)
def test_scripts_call_what_they_say(name, first, wanted, tmp_path):
    """The scripts run with a fake docker, vllm and srun, which print what they were called with."""
    (tmp_path / "runs/quickstart/05_export/portable").mkdir(parents=True)
    for command in ("docker", "vllm", "srun"):
        fake = tmp_path / command
        fake.write_text(f'#!/bin/sh\necho {command} "$@"\n')
        fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "NGC_API_KEY": "secret"}
    environment |= {"NIM_IMAGE": "nemotron-3-embed-1b", "NIM_TAG": "2.4.0"}
    done = subprocess.run(
        ["bash", DEPLOY / name, "quickstart"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(first)
    assert all(part in done.stdout for part in wanted), done.stdout
    assert "secret" not in done.stdout


@pytest.mark.parametrize(
    ("tag", "variable"), [("2.2.2", "NIM_MODEL_PATH"), ("2.10.0", "NIM_ENGINE_MODEL_PATH"), ("1.13.0", "")]
)
def test_nim_is_told_where_the_model_is_by_the_name_that_its_release_knows(tmp_path, tag, variable):
    (tmp_path / "runs/quickstart/05_export/portable").mkdir(parents=True)
    (tmp_path / "docker").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "NGC_API_KEY": "secret"}
    environment |= {"NIM_IMAGE": "nemotron-3-embed-1b", "NIM_TAG": tag}
    done = subprocess.run(
        ["bash", DEPLOY / "nim.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if not variable:  # it wants another file
        assert done.returncode == 2 and "choose a tag from 2.0 on" in done.stderr and not done.stdout
        return
    assert done.stdout.rstrip().endswith(f"nvcr.io/nim/nvidia/nemotron-3-embed-1b:{tag}")
    assert f" {variable}=/opt/custom-model " in done.stdout
    assert "05_export/portable:/opt/custom-model:ro" in done.stdout


def test_nim_asks_for_its_key(tmp_path):
    done = subprocess.run(
        ["bash", DEPLOY / "nim.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "set NGC_API_KEY" in done.stderr


def test_the_image_holds_every_module_and_package_the_server_imports():
    modules = copied_modules()
    packages = {
        re.split(r"[=<>]", line)[0].replace("-", "_")
        for line in (DEPLOY / "server-requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    for module in modules:
        for node in ast.parse((ROOT / module).read_text()).body:  # imports at the top; others are optional
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
                if node.module == "utils":
                    names = [f"utils.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("utils"):
                    assert f"{name.replace('.', '/')}.py" in modules, f"{module} imports {name}"
                else:
                    top = name.split(".")[0]
                    assert top in packages or top in __import__("sys").stdlib_module_names, f"{module}: {top}"


def test_the_images_pins_are_those_of_the_course():
    course = (ROOT / "requirements.txt").read_text()
    for line in (DEPLOY / "server-requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.search(rf"^{re.escape(line)}\s", course, re.M), line


def test_the_compose_file_has_a_health_check_loopback_and_known_options():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["embeddings"]
    assert "/v1/health/ready" in " ".join(service["healthcheck"]["test"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["restart"] == "always"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    serve._parser().parse_args(["/model", *service["command"]])


def test_the_images_command_is_one_the_server_takes():
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    entry = ast.literal_eval(next(x for x in lines if x.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT "))
    assert entry[:3] == ["python", "-m", "utils.serve"]
    assert serve._parser().parse_args(entry[3:]).host == "0.0.0.0"


def test_the_service_file_is_valid():
    unit = DEPLOY / "embeddings.service"
    command = re.search(r"^ExecStart=(.+)$", unit.read_text(), re.M).group(1).split()
    serve._parser().parse_args(command[3:])
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    problems = [
        x for x in done.stderr.splitlines() if "embeddings.service" in x and "not executable" not in x
    ]
    assert not problems, problems
