# python tests/benchmarks/writer_speed.py [--passages 48]
"""Candidates a second of the embedded question writer: servers, threads, answers at a time, prompt cache.

The same passages of the sample domain, both styles of each one after the other, in every variant; variants
take turns, `--repeats` times over. Beside each: the share of the servers' time that went into reading
prompts, and the tokens they read and wrote, as the servers report them. "Prompt kept": the second style of a
passage continues from what the first has read.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pandas as pd

from utils import corpus, llm, questions, retrieval, run
from utils.question_pairs import CUES
from utils.question_writer import prompt

VARIANTS = {  # name: (servers, threads of each, answers at a time of each, prompt kept)
    "a server a core, one thread each (the course's)": (2, 1, 1, True),
    "the same, no prompt kept": (2, 1, 1, False),
    "one server, 2 threads, one answer at a time": (1, 2, 1, True),
    "one server, 2 threads, 4 at a time": (1, 2, 4, True),
    "one server, 2 threads, 16 at a time": (1, 2, 16, True),
    "one server, one thread": (1, 1, 1, True),
}


def measure(passages: list[str], servers: int, threads: int, slots: int, keep: bool) -> dict:
    """Candidates a second, and what the servers say of their time."""
    provider = llm.connect("embedded")
    bodies = [
        [
            {"prompt": prompt(text) + cue, "temperature": 0.7, "max_tokens": 40, "stop": ["\n"], "seed": 13}
            for cue in CUES.values()
        ]
        for text in passages
    ]
    with ExitStack() as stack:
        urls = [stack.enter_context(llm.serving(provider, slots, threads)) for _ in range(servers)]
        client = stack.enter_context(httpx.Client(timeout=600, trust_env=False))

        def write(numbered: tuple[int, list[dict]]) -> list[dict]:
            number, asked = numbered
            url = urls[number % len(urls)]
            return [
                client.post(f"{url}/completions", json=body | {"cache_prompt": keep and i > 0}).json()[
                    "timings"
                ]
                for i, body in enumerate(asked)
            ]

        write((0, bodies[0]))  # the first request loads
        began = time.perf_counter()
        with ThreadPoolExecutor(servers * slots) as pool:
            timings = [one for found in pool.map(write, enumerate(bodies)) for one in found]
        took = time.perf_counter() - began
    reading, writing = (sum(one[f"{kind}_ms"] for one in timings) for kind in ("prompt", "predicted"))
    return {
        "candidates a second": len(timings) / took,
        "of the time, reading": reading / (reading + writing),
        "tokens read": sum(one["prompt_n"] for one in timings),
        "tokens written": sum(one["predicted_n"] for one in timings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    tokenizer = retrieval.load_encoder("embedded", run.detect_device(), 256).tokenizer
    chunks = questions.sample_passages(corpus.read_chunks("", tokenizer, 160), args.passages, 13)
    passages = [questions.cut(piece) for piece in chunks]
    print(f"{len(passages)} passages of {sum(len(p.split()) for p in passages) / len(passages):.0f} words")
    found = []
    for _ in range(args.repeats):
        for name, setting in VARIANTS.items():
            found.append({"variant": name} | measure(passages, *setting))
            print(found[-1], flush=True)
    print(pd.DataFrame(found).groupby("variant", sort=False).mean().round(2).to_string())


if __name__ == "__main__":
    main()
