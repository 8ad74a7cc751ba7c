# python tests/benchmarks/two_processes.py
"""The training script under `accelerate launch`: two processes on the CPU (gloo) against one, at the same
global batch. Prints both curves side by side; ends with an error if they differ by more than 0.2 %."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from utils.beir_files import write_corpus, write_qrels, write_queries
from utils.records import write_rows
from utils.run import ROOT

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "unit"))
from test_training import row
from tiny_models import make_tiny_encoder


def prepared_run(runs, base):
    """A finished stage 2 in the folder `runs`, on 64 small rows."""
    stage = runs / "two" / "02_prepare_training_data"
    rows = [row(i, negatives=[f"wrong {i}", f"other {i}"][: i % 3]) for i in range(64)]
    write_rows(stage / "train.jsonl", rows)
    corpus = {r.positive_id: {"title": "", "text": r.positive} for r in rows}
    write_corpus(stage / "beir" / "corpus.jsonl", corpus)
    write_queries(stage / "beir" / "queries.jsonl", {r.query_id: r.query for r in rows[:8]})
    write_qrels(stage / "beir" / "qrels" / "val.tsv", {r.query_id: {r.positive_id: 1} for r in rows[:8]})
    manifest = {"parameters": {"BASE_MODEL": str(base)}, "outputs": {}}
    (stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf8")


def compare(tmp_path: Path) -> None:
    make_tiny_encoder().save_pretrained(str(tmp_path / "base"))
    curves = {}
    for processes in (1, 2):
        runs = tmp_path / f"runs{processes}"
        prepared_run(runs, tmp_path / "base")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
        launch += ["--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--main_process_port", "0"] if processes > 1 else []
        given = [("bf16", "false"), ("batch", "16"), ("epochs", "2"), ("learning_rate", "0.001")]
        extra = [part for pair in given for part in ("-p", *pair)]
        done = subprocess.run(
            [*launch, "-m", "utils.training", "--run", "two", "--profile", "smoke", *extra],
            cwd=ROOT,
            env={**os.environ, "COURSE_RUNS": str(runs), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        stage = runs / "two" / "03_fine_tune"
        curves[processes] = pd.read_csv(stage / "history.csv")
        assert (stage / "model" / "model.safetensors").exists() and (stage / "manifest.json").exists()
    one, two = (curves[n][["step", "loss", "grad_norm"]].dropna() for n in (1, 2))
    assert len(one) == 8
    print(one.merge(two, on="step", suffixes=(" of one", " of two")).round(4).to_string(index=False))
    pd.testing.assert_frame_equal(one, two, rtol=2e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder))
