# python -m pytest -m heavy tests/unit/test_two_processes.py
"""The training script in two processes on the CPU (gloo) against one, at the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_training import row
from tiny_models import make_tiny_encoder

from utils.beir_files import write_corpus, write_qrels, write_queries
from utils.records import write_rows
from utils.run import ROOT

GIVEN = {"bf16": "False", "batch": "16", "epochs": "2", "learning_rate": "0.001", "evaluate_every": "7"}
ARGUMENTS = ["--run", "two", "--profile", "smoke", "--forgetting", "0.5"]
ARGUMENTS += [part for pair in GIVEN.items() for part in ("-p", *pair)]
GREEDY = """
import os, sys, torch
from utils import contrastive, fine_tune
left, forward = [8], contrastive.MaskedRankingLoss.forward
def greedy(*args):
    left[0] -= 1
    if left[0] < 0 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return forward(*args)
contrastive.MaskedRankingLoss.forward = greedy
sys.exit(fine_tune.main(ARGUMENTS))
"""


def prepared_run(runs, base, rows=70):
    """A finished stage 2 in the folder `runs`, on so many small rows."""
    stage = runs / "two" / "02_prepare_training_data"
    rows = [row(i, negatives=[f"wrong {i}", f"other {i}"][: i % 3]) for i in range(rows)]
    write_rows(stage / "train.jsonl", rows)
    corpus = {r.positive_id: {"title": "", "text": r.positive} for r in rows}
    write_corpus(stage / "beir" / "corpus.jsonl", corpus)
    write_queries(stage / "beir" / "queries.jsonl", {r.query_id: r.query for r in rows[:8]})
    write_qrels(stage / "beir" / "qrels" / "val.tsv", {r.query_id: {r.positive_id: 1} for r in rows[:8]})
    manifest = {"parameters": {"BASE_MODEL": str(base)}, "inputs": {}, "outputs": {}}
    (stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf8")


def environment(runs: Path) -> dict:
    here = {"COURSE_RUNS": str(runs), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return os.environ | here


def launch(processes: int, runs: Path) -> list[str]:
    """Start the script in so many processes, with the environment that `accelerate launch` sets on GPUs (with
    --cpu it starts one process only); what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = environment(runs)
    common |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "utils.fine_tune", *ARGUMENTS],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    printed = [one.communicate(timeout=600) for one in started]
    for one, (_, error) in zip(started, printed, strict=True):
        assert one.returncode == 0, error[-3000:]
    return [out for out, _ in printed]


def curve(runs: Path) -> pd.DataFrame:
    table = pd.read_csv(runs / "two" / "03_fine_tune" / "history.csv")
    return table[["step", "loss", "grad_norm", "learning_rate"]].dropna()


@pytest.mark.heavy
def test_two_processes_follow_the_curve_of_one(tmp_path):
    make_tiny_encoder().save_pretrained(str(tmp_path / "base"))
    curves = {}
    for processes in (1, 2):
        runs = tmp_path / f"runs{processes}"
        prepared_run(runs, tmp_path / "base")
        for printed in launch(processes, runs):
            assert f"'processes': {processes}" in printed
        stage = runs / "two" / "03_fine_tune"
        curves[processes] = curve(runs)
        manifest = json.loads((stage / "manifest.json").read_text(encoding="utf8"))
        assert manifest["parameters"]["FORGETTING"] == 0.5
        assert manifest["parameters"]["BATCH_SIZE"] == 16 and manifest["headline"]["learning_rate"] == 0.001
        assert (stage / "model" / "model.safetensors").exists() and (stage / "manifest.json").exists()
    assert len(curves[1]) == 10, "with the last six rows of each epoch"
    pd.testing.assert_frame_equal(curves[1], curves[2], rtol=2e-3)

    runs = tmp_path / "short of memory"
    prepared_run(runs, tmp_path / "base")
    (tmp_path / "greedy.py").write_text(f"ARGUMENTS = {ARGUMENTS}{GREEDY}", encoding="utf8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "greedy.py")]
    first, second = (
        subprocess.run(command, cwd=ROOT, env=environment(runs), capture_output=True, text=True, timeout=300)
        for _ in range(2)
    )
    assert first.returncode != 0 and "Process 1 of 2" in first.stderr, first.stderr[-3000:]
    assert second.returncode == 0 and "Going on from checkpoint-7" in second.stdout, second.stderr[-3000:]
    pd.testing.assert_frame_equal(curves[1], curve(runs), rtol=2e-3)
