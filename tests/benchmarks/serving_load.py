"""Load on the embeddings server, beside onnxruntime alone and beside a plain server, in one run, on loopback.

    python tests/benchmarks/serving_load.py MODEL_FOLDER EXPORTED_FOLDER TEXTS.jsonl [--other NAME=URL]…

MODEL_FOLDER: sentence-transformers (for the plain server); EXPORTED_FOLDER: of notebook 5; TEXTS: rows with
"text". Bounded: at most REQUESTS requests per measurement, each side after the other, best of three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from utils import serve
from utils.onnx_encoder import OnnxEncoder

PLAIN = """
import sys, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

class Body(BaseModel):
    input: list[str]
    model: str

app = FastAPI()
model = SentenceTransformer(sys.argv[1], device="cpu")

@app.post("/v1/embeddings")
def embeddings(body: Body):
    rows = model.encode(body.input, normalize_embeddings=True).tolist()
    return {"object": "list", "data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}

@app.get("/v1/health/ready")
def ready():
    return {}

uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""


def main() -> None:
    args = parse()
    texts = [json.loads(line)["text"] for line in args.texts.open(encoding="utf8")]
    texts = [t for t in texts if t.strip()][: args.requests]
    encoder = OnnxEncoder(args.exported)
    texts = [shorten(encoder, t) for t in texts]
    sizes = [len(row) for row in encoder.tokenize(texts, "query")]
    print(f"{len(texts)} texts of {np.mean(sizes):.0f} tokens in the mean, {max(sizes)} at most")
    alone, budget = onnxruntime_alone(encoder, texts)
    print(f"{'onnxruntime alone':<38}{alone:8.1f} texts/s   (best batch: {budget} tokens)")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with serve.start(
            args.exported, log, options=("--truncate", "END", "--batch-tokens", str(budget))
        ) as own:
            report("this server", own.url, encoder.card.model, texts, alone, args)
        port = free_port()
        plain = subprocess.Popen([sys.executable, "-c", PLAIN, str(args.model), str(port)])
        try:
            wait(f"http://127.0.0.1:{port}")
            report("FastAPI + sentence-transformers", f"http://127.0.0.1:{port}", "m", texts, alone, args)
        finally:
            plain.terminate()
            plain.wait()
    for other in args.other:
        name, url = other.split("=", 1)
        report(name, url, args.other_model, texts, alone, args)


def onnxruntime_alone(encoder: OnnxEncoder, texts: list[str]) -> tuple[float, int]:
    """Texts a second of tokenising and running all texts, sorted by length, with the best batch budget."""
    best = (0.0, 0)
    for budget in (512, 1024, 2048, 4096, 8192):
        for _ in range(2):
            started = time.perf_counter()
            encoder.encode(texts, "query", budget)
            best = max(best, (len(texts) / (time.perf_counter() - started), budget))
    return best


def report(name: str, url: str, model: str, texts: list[str], alone: float, args) -> None:
    """Print throughput at `args.clients` clients (best of three), then p50 and p95 at half that load."""
    for size in args.sizes:
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        rates = [len(texts) / asyncio.run(closed_loop(url, model, groups, args.clients)) for _ in range(3)]
        rate = max(rates)
        waits = asyncio.run(open_loop(url, model, groups, rate / size / 2, args.seconds))
        p50, p95 = np.percentile(waits, [50, 95]) * 1000
        label = f"{name}, {size} a request"
        print(
            f"{label:<38}{rate:8.1f} texts/s   {rate / alone:5.2f} of onnxruntime alone   "
            f"at half load p50 {p50:6.1f} ms, p95 {p95:6.1f} ms",
            flush=True,
        )


async def closed_loop(url: str, model: str, groups: list[list[str]], clients: int) -> float:
    """Seconds until `clients` connections, each waiting for its answer, have sent all groups."""
    queue = [message(url, model, group) for group in reversed(groups)]

    async def client() -> None:
        async with Connection(url) as connection:
            while queue:
                await connection.ask(queue.pop())

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started


async def open_loop(url: str, model: str, groups: list, per_second: float, seconds: float) -> list[float]:
    """Seconds each request waited when they arrive at random (Poisson) at a fixed mean rate."""
    rng, waits = np.random.default_rng(0), []
    free: list[Connection] = []

    async def one(data: bytes) -> None:
        connection = free.pop() if free else await Connection(url).__aenter__()
        started = time.perf_counter()
        await connection.ask(data)
        waits.append(time.perf_counter() - started)
        free.append(connection)

    tasks, started, number = [], time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        tasks.append(asyncio.create_task(one(message(url, model, groups[number % len(groups)]))))
        number += 1
        await asyncio.sleep(rng.exponential(1 / per_second))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.writer.close()
    return waits


class Connection:
    """One kept-alive HTTP/1.1 connection that does little per request, so that the server is measured."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.address = host, int(port)

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(*self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return await self.reader.readexactly(length)


def message(url: str, model: str, group: list[str]) -> bytes:
    body = json.dumps({"model": model, "input": group, "encoding_format": "base64"}).encode()
    head = ("POST /v1/embeddings HTTP/1.1", "Host: x", "Content-Type: application/json")
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode() + body


def shorten(encoder: OnnxEncoder, text: str) -> str:
    """The text cut so that every server reads all of it."""
    ids = encoder.truncate(encoder.tokenize([text], "query")[0])
    return encoder.tokenizer.decode(ids) or "a"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(url: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/v1/health/ready", trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not start")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--requests", type=int, default=600, help="texts, at most")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], help="texts a request")
    parser.add_argument("--seconds", type=float, default=8, help="of the half load")
    parser.add_argument("--other", action="append", default=[], help="NAME=http://127.0.0.1:PORT, running")
    parser.add_argument("--other-model", default="model")
    args = parser.parse_args()
    for other in args.other:
        if not other.split("=", 1)[1].startswith("http://127.0.0.1:"):
            parser.error("only servers on 127.0.0.1 are measured")
    return args


if __name__ == "__main__":
    main()
