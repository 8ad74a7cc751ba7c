# python tests/benchmarks/evaluation_scale.py [queries] [vectors]
"""How long, and in how much memory: metrics, bootstrap and permutation test of 10,000 queries × 100 results
with 10,000 resamples (target: 20 s on 2 cores), and an exact search among 1,000,000 vectors × 384."""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from utils import evaluation
from utils.retrieval import nearest


def measure_statistics(queries: int) -> float:
    """Seconds for the metrics of base and tuned, intervals and p of all metrics."""
    runs, qrels = [], {}
    for seed in (1, 2):
        draw = np.random.default_rng(seed)
        ids = draw.integers(0, 1_000_000, (queries, 100))
        values = draw.random((queries, 100))
        runs.append(
            {
                f"q{i}": dict(zip(map("p{}".format, ids[i]), values[i].tolist(), strict=True))
                for i in range(queries)
            }
        )
    for query_id in runs[0]:
        qrels[query_id] = dict.fromkeys([*list(runs[0][query_id])[:2], *list(runs[1][query_id])[:2]], 1)
    started, busy = time.perf_counter(), time.process_time()
    base, tuned = (evaluation.metrics(found, qrels) for found in runs)
    measured = time.perf_counter()
    evaluation.compare(base, tuned, seed=13, resamples=10_000)
    ended = time.perf_counter()
    print(f"{queries:,} queries × 100 results: metrics of two systems {measured - started:.1f} s, ", end="")
    print(f"10,000 resamples and sign flips of {len(evaluation.METRICS)} metrics {ended - measured:.1f} s;")
    print(f"processor time {time.process_time() - busy:.1f} s (far below the clock: others were computing)")
    return ended - started


def measure_search(vectors: int) -> None:
    """An exact search in a file of vectors that is larger than what the search may hold."""
    draw = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as folder:
        passages = np.lib.format.open_memmap(
            Path(folder) / "passages.npy", mode="w+", dtype=np.float32, shape=(vectors, 384)
        )
        for start in range(0, vectors, 50_000):
            block = draw.standard_normal((min(50_000, vectors - start), 384), dtype=np.float32)
            passages[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
        passages.flush()
        wanted = np.sort(draw.choice(vectors, 100, replace=False))
        queries = np.array(passages[wanted])
        del passages
        stored = np.load(Path(folder) / "passages.npy", mmap_mode="r")
        before = anonymous_megabytes()
        started = time.perf_counter()
        _, rows = nearest(queries, stored, 100)
        seconds = time.perf_counter() - started
        assert (rows[:, 0] == wanted).all(), "a vector must be its own nearest neighbour"
        held = anonymous_megabytes() - before
        print(f"{vectors:,} vectors × 384, 100 queries: {seconds:.1f} s; {held:+.0f} MB held afterwards")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak resident {peak:.0f} MB, pages of the mapped file included")


def anonymous_megabytes() -> float:
    """Memory of this process that is not backed by a file (a mapped file's pages can be dropped any time)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    sizes = [int(argument) for argument in sys.argv[1:]] + [10_000, 1_000_000][len(sys.argv) - 1 :]
    seconds = measure_statistics(sizes[0])
    print(f"together {seconds:.1f} s (target: 20 s on 2 cores)")
    measure_search(sizes[1])
    sys.exit(seconds > 20)
