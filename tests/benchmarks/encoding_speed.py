# python tests/benchmarks/encoding_speed.py runs/NAME
"""Passages and questions a second by the size of a batch, in torch and in onnxruntime, in one run.

RUN: a finished run, whose model, ONNX file and test questions are used. The first row of each table is
what the course takes by itself (`encoder.encode`, `OnnxEncoder.batch_tokens`). Best of three, in turn.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from utils import retrieval, run
from utils.beir_files import read_beir
from utils.onnx_encoder import OnnxEncoder
from utils.records import passage_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", type=int, default=96)
    args = parser.parse_args()
    test = read_beir(args.run / "04_evaluate" / "beir" / "gold")
    passages = [passage_text(row) for row in test.corpus.values()]
    texts = {
        "passage": passages[:: max(1, len(passages) // args.texts)][: args.texts],
        "query": list(test.queries.values())[: args.texts],
    }
    model = retrieval.load_encoder(str(args.run / "03_fine_tune" / "model"), run.detect_device())
    onnx = OnnxEncoder(args.run / "05_export" / "fp32")
    torch_sizes = [None, 4, 8, 16, 32, 64]  # texts of one forward pass
    onnx_sizes = [0, 256, 512, 1024, 2048, 4096]  # tokens of one
    show("torch", torch_sizes, texts, lambda own, kind, size: retrieval.encode(model, own, kind, size))
    show("onnxruntime", onnx_sizes, texts, onnx.encode)


def show(name: str, sizes: list, texts: dict[str, list[str]], encode: Callable) -> None:
    """Print texts a second: a row a size, a column a kind of text."""
    best: dict[tuple, float] = {}
    for _ in range(3):
        for size in sizes:
            for kind, own in texts.items():
                started = time.perf_counter()
                encode(own, kind, size)
                rate = len(own) / (time.perf_counter() - started)
                best[size or "chosen", kind] = max(best.get((size or "chosen", kind), 0), rate)
    print(name, pd.Series(best).unstack(sort=False).round(1).to_string(), sep="\n")


if __name__ == "__main__":
    main()
