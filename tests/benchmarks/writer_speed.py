# python tests/benchmarks/writer_speed.py [--passages 48] [--words 110]
"""Candidates a second of the embedded question writer, by how its servers are set up.

The same passages of the sample domain, `--words` long (neighbouring ones put together), both styles of each
one after the other, in every variant; variants take turns, `--repeats` times over. Beside each: the share of
the servers' time that went into reading prompts, and the tokens they read, as they report them.
"Prompt kept": the second style of a passage continues from what the first has read.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import httpx
import pandas as pd
import xllamacpp

from utils import corpus, llm, retrieval, run, weights
from utils.question_pairs import CUES
from utils.question_writer import prompt


@dataclass(frozen=True)
class Variant:
    """How the servers are set up; the values that are given here are the course's."""

    servers: int = 2
    threads: int = 1  # of each
    requests: int = 1  # at a time, of each
    candidates: int = 2  # of a request, from one reading of its prompt
    keep: bool = True  # the prompt
    beside: bool = False  # the LoRA beside the 4-bit weights, else merged into 8-bit ones
    batch: int = 0  # tokens read at once; 0: the server's own


VARIANTS = {
    "a server a core, one thread each (the course's)": Variant(),
    "the same, one candidate a request": Variant(candidates=1),
    "the same, no prompt kept": Variant(keep=False),
    "the same, LoRA beside 4-bit weights": Variant(beside=True),
    "the same, 64 tokens read at once": Variant(batch=64),
    "one server, 2 threads, one request at a time": Variant(1, 2, 1),
    "one server, 2 threads, 4 at a time": Variant(1, 2, 4),
    "one server, 2 threads, 8 at a time": Variant(1, 2, 8),
    "one server, one thread": Variant(1, 1, 1),
}


def passages_of(words: int, most: int) -> list[str]:
    """So many passages of so many words, from all over the sample's documents."""
    tokenizer = retrieval.load_encoder("embedded", run.detect_device(), 256).tokenizer
    texts = {}
    for piece in corpus.read_chunks("", tokenizer, 160):
        texts.setdefault(piece.doc_id, [piece.title]).append(piece.text)
    long = [text for parts in texts.values() if len(text := " ".join(parts).split()) >= words]
    return [" ".join(text[:words]) for text in long[:: max(len(long) // most, 1)][:most]]


def settings(variant: Variant):
    """What `llm.serving` starts its servers with."""
    usual = llm._server_settings

    def changed(*given):
        made = usual(*given)
        if variant.beside:
            made.model.path = str(weights.embedded_weights())
            lora = xllamacpp.CommonAdapterLoraInfo()
            lora.path, lora.scale = str(weights.embedded_adapter()), 1.0
            made.lora_adapters = [lora]
        if variant.batch:
            made.n_batch = made.n_ubatch = variant.batch
        return made

    return mock.patch.object(llm, "_server_settings", changed)


def measure(passages: list[str], variant: Variant) -> dict:
    """Candidates a second, and what the servers say of their time."""
    provider = llm.connect("embedded")
    sampling = {
        "temperature": 0.7,
        "top_p": 0.95,
        "max_tokens": 40,
        "stop": ["\n"],
        "logprobs": 1,
        "seed": 13,
        "n": variant.candidates,
    }
    bodies = [[{"prompt": prompt(text) + cue} | sampling for cue in CUES.values()] for text in passages]
    with ExitStack() as stack:
        stack.enter_context(settings(variant))
        slots = variant.requests * variant.candidates
        serving = [llm.serving(provider, slots, variant.threads) for _ in range(variant.servers)]
        urls = [stack.enter_context(server) for server in serving]
        client = stack.enter_context(httpx.Client(timeout=600, trust_env=False))

        def write(numbered: tuple[int, list[dict]]) -> list[dict]:
            number, asked = numbered
            url = f"{urls[number % len(urls)]}/completions"
            told = []
            for i, body in enumerate(asked):
                reply = client.post(url, json=body | {"cache_prompt": variant.keep and i > 0})
                told.append(reply.raise_for_status().json()["timings"])
            return told

        write((0, bodies[0]))  # the first request loads
        began = time.perf_counter()
        with ThreadPoolExecutor(variant.servers * variant.requests) as pool:
            timings = [one for found in pool.map(write, enumerate(bodies)) for one in found]
        took = time.perf_counter() - began
    reading, writing = (sum(one[f"{kind}_ms"] for one in timings) for kind in ("prompt", "predicted"))
    return {
        "candidates a second": len(timings) * variant.candidates / took,
        "of the time, reading": reading / (reading + writing),
        "tokens read": sum(one["prompt_n"] for one in timings),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=48)
    parser.add_argument("--words", type=int, default=110)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    passages = passages_of(args.words, args.passages)
    print(f"{len(passages)} passages of {args.words} words")
    found = []
    for _ in range(args.repeats):
        for name, variant in VARIANTS.items():
            found.append({"variant": name} | measure(passages, variant))
            print(found[-1], flush=True)
    print(pd.DataFrame(found).groupby("variant", sort=False).mean().round(2).to_string())


if __name__ == "__main__":
    main()
