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


def prepared_run(runs, base):
    """A finished stage 2 in the folder `runs`, on 64 small rows."""
    stage = runs / "two" / "02_prepare_training_data"
    rows = [row(i, negatives=[f"wrong {i}", f"other {i}"][: i % 3]) for i in range(64)]
    write_rows(stage / "train.jsonl", rows)
    corpus = {r.positive_id: {"title": "", "text": r.positive} for r in rows}
    write_corpus(stage / "beir" / "corpus.jsonl", corpus)
    write_queries(stage / "beir" / "queries.jsonl", {r.query_id: r.query for r in rows[:8]})
    write_qrels(stage / "beir" / "qrels" / "val.tsv", {r.query_id: {r.positive_id: 1} for r in rows[:8]})
    manifest = {"parameters": {"BASE_MODEL": str(base)}, "inputs": {}, "outputs": {}}
    (stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf8")


def launch(processes: int, runs: Path) -> list[str]:
    """Start the script in so many processes, with the environment that `accelerate launch` sets on GPUs (with
    --cpu it starts one process only); what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = [("bf16", "false"), ("batch", "16"), ("epochs", "2"), ("learning_rate", "0.001")]
    extra = [part for pair in given for part in ("-p", *pair)]
    common = os.environ | {"COURSE_RUNS": str(runs), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    common |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "utils.fine_tune",
                "--run",
                "two",
                "--profile",
                "smoke",
                "--forgetting",
                "0.5",
                *extra,
            ],
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
        curves[processes] = pd.read_csv(stage / "history.csv")
        manifest = json.loads((stage / "manifest.json").read_text(encoding="utf8"))
        assert manifest["parameters"]["FORGETTING"] == 0.5
        assert manifest["parameters"]["BATCH_SIZE"] == 16 and manifest["headline"]["learning_rate"] == 0.001
        assert (stage / "model" / "model.safetensors").exists() and (stage / "manifest.json").exists()
    one, two = (curves[n][["step", "loss", "grad_norm"]].dropna() for n in (1, 2))
    assert len(one) == 8
    pd.testing.assert_frame_equal(one, two, rtol=2e-3)
