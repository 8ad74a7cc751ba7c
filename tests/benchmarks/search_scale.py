# python tests/benchmarks/search_scale.py [--passages 100000] [--queries 20000] [--k 100] [--repeat 3]
"""Blocked exact search against one plain faiss.IndexFlatIP search: same vectors, threads and k.

Prints both times (best of `--repeat`, taken in turns), the peak memory above the vectors, and whether both
find the same; exits with 1 if the blocked search takes over 1.3 times as long, or over 2 GB.
"""

import argparse
import json
import resource
import sys
import threading
import time

import faiss
import numpy as np
import psutil

from utils.retrieval import dense_search, nearest

DIMENSIONS = 384
LIMIT_TIME, LIMIT_GB = 1.3, 2.0


def unit_vectors(n: int, seed: int) -> np.ndarray:
    """Random directions. float32 (n, 384)"""
    vectors = np.random.default_rng(seed).standard_normal((n, DIMENSIONS), dtype=np.float32)
    faiss.normalize_L2(vectors)
    return vectors


def plain(queries: np.ndarray, passages: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What is compared with: one index of all passages, one search of all queries."""
    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(passages)
    return index.search(queries, k)


def peak_gb(work, *given) -> tuple[float, object, float]:
    """(seconds, result, peak of the resident memory above its start in GB), sampled every 10 ms."""
    process, done, peak = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    result = work(*given)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return seconds, result, peak[0] / 2**30


def main() -> int:
    """Measure and judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    queries, passages = unit_vectors(args.queries, 1), unit_vectors(args.passages, 2)
    ids = ([f"q{i}" for i in range(len(queries))], [f"p{i}" for i in range(len(passages))])
    times = {"plain": [], "nearest": [], "dense_search": []}
    memory = dict.fromkeys(times, 0.0)
    works = {"plain": plain, "nearest": nearest, "dense_search": lambda q, p, k: dense_search(q, p, k, *ids)}
    for _ in range(args.repeat):
        results = {}
        for name, work in works.items():
            seconds, results[name], gigabytes = peak_gb(work, queries, passages, args.k)
            times[name].append(seconds)
            memory[name] = max(memory[name], gigabytes)
            if name == "dense_search":
                results.pop(name)
        same = np.mean(np.sort(results["plain"][1], 1) == np.sort(results["nearest"][1], 1))
    best = {name: min(values) for name, values in times.items()}
    report = {
        "passages": args.passages,
        "queries": args.queries,
        "k": args.k,
        "threads": faiss.omp_get_max_threads(),
        "seconds": {name: round(value, 2) for name, value in best.items()},
        "times_plain": {name: round(value / best["plain"], 3) for name, value in best.items()},
        "gb_above_the_vectors": {name: round(value, 2) for name, value in memory.items()},
        "same_passages_found": round(float(same), 6),
        "process_peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(report, indent=1))
    within = report["times_plain"]["nearest"] <= LIMIT_TIME and memory["nearest"] <= LIMIT_GB
    within = (
        within and report["times_plain"]["dense_search"] <= LIMIT_TIME and memory["dense_search"] <= LIMIT_GB
    )
    print("within the limits" if within else f"over the limits ({LIMIT_TIME} times, {LIMIT_GB} GB)")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
