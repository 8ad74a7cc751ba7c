# python tests/benchmarks/llm_throughput.py [--requests 1280] [--in-flight 64] [--latency 0.2]
"""Requests a second of the course's client against a bare asyncio client: the same payloads, the same server.

The scripted server of the tests runs in a process of its own and waits `--latency` seconds with each answer.
The two clients take turns, three times; the ratio is of their medians.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))
from scripted_llm import ScriptedLLM, running

from utils import calls, flight
from utils.llm import Provider


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1280)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2)
    args = parser.parse_args()
    theirs, ours = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(args.latency, theirs), daemon=True)
    server.start()
    url, rates = ours.recv(), {"bare": [], "course": []}
    for turn in range(3):
        bodies = [body(f"turn {turn}, passage {i}") for i in range(args.requests)]
        rates["bare"].append(args.requests / bare(url, bodies, args.in_flight))
        rates["course"].append(args.requests / course(url, bodies, args.in_flight))
    ours.send("stop")
    server.join(10)
    median = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    ceiling = {"ceiling": args.in_flight / args.latency}
    print(json.dumps(median | ceiling | {"ratio": round(median["course"] / median["bare"], 3)}))


def serve(latency: float, pipe) -> None:
    """The scripted server, until something comes through the pipe."""
    with running(ScriptedLLM(seconds=latency)) as url:
        pipe.send(url)
        pipe.recv()


def body(text: str) -> dict:
    return {"messages": [{"role": "user", "content": f"{text} " + "word " * 200}], "max_tokens": 60}


def bare(url: str, bodies: list[dict], in_flight: int) -> float:
    """Seconds of httpx with a semaphore, nothing kept and nothing retried."""

    async def run() -> None:
        room = asyncio.Semaphore(in_flight)
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:

            async def one(asked: dict) -> None:
                async with room:
                    reply = await client.post(f"{url}/chat/completions", json={"model": "scripted"} | asked)
                    assert reply.json()["choices"]

            await asyncio.gather(*map(one, bodies))

    began = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - began


def course(url: str, bodies: list[dict], in_flight: int) -> float:
    """Seconds of `calls.ask` with cache and ledger in a fresh file."""
    requests = [flight.Request(asked, "benchmark") for asked in bodies]
    provider = Provider("remote", "scripted", url, "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        ledger = calls.Ledger("benchmark", Path(folder) / "answers.sqlite")
        began = time.perf_counter()
        answers = calls.ask(provider, requests, ledger, flight.Limits(in_flight=in_flight))
        took = time.perf_counter() - began
        assert not any(answer.error for answer in answers), answers[0].error
        ledger.db.close()
    return took


if __name__ == "__main__":
    main()
