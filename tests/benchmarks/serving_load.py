# python tests/benchmarks/serving_load.py MODEL_FOLDER EXPORTED_FOLDER TEXTS.jsonl [--infinity PROGRAM]
"""Load on the embeddings server, beside onnxruntime alone and beside other servers, in one run, on loopback.

MODEL_FOLDER: for the other servers, notebook 5's `portable`, whose names infinity reads; EXPORTED_FOLDER: the
same model from notebook 5 (fp32, and without prompts, which the others do not put in front); TEXTS: rows with
"text". PROGRAM: infinity_emb of an environment of its own:
pip install "infinity-emb[server,torch]==0.0.78" "transformers<5" "torch==2.13.0" "click<8.2" optimum

Bounded: at most REQUESTS texts per measurement, one server after the other, best of three. The client is a
process of its own on the same processors; its share of them is printed beside each rate, and "alone" is also
printed for what the client leaves over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from utils import serve
from utils.onnx_encoder import OnnxEncoder
from utils.proof import cosines

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
    encoder = OnnxEncoder(args.exported)
    texts = [json.loads(line)["text"] for line in args.texts.open(encoding="utf8")]
    texts = [shorten(encoder, text) for text in texts if text.strip()][: args.requests]
    sizes = [len(row) for row in encoder.tokenize(texts, "query")]
    print(f"{len(texts)} texts of {np.mean(sizes):.0f} tokens in the mean, {max(sizes)} at most")
    alone, budget = onnxruntime_alone(encoder, texts)
    print(f"onnxruntime alone: {alone:.1f} texts/s (best batch: {budget} tokens)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, start in SERVERS.items():
            if name == "infinity" and not args.infinity:
                continue
            with start(args, Path(folder)) as url:
                rows += measure(name, url, encoder, texts, alone, args)
    for url in args.other:
        rows += measure(url, url, encoder, texts, alone, args)
    table = (
        pd.DataFrame(rows).set_index(["server", "texts a request"]).sort_index(level=1, sort_remaining=False)
    )
    print(table.to_string())
    if args.out:
        table.to_csv(args.out)


# ---------------------------------------------------------------- the servers


@contextmanager
def own(args, folder: Path):
    with serve.start(args.exported, folder / "server.log", options=("--truncate", "END")) as server:
        yield server.url


@contextmanager
def plain(args, folder: Path):
    port = free_port()
    with started(
        [sys.executable, "-c", PLAIN, str(args.model), str(port)], port, folder / "plain.log"
    ) as url:
        yield url


@contextmanager
def infinity(args, folder: Path):
    port = free_port()
    options = {"--engine": "torch", "--device": "cpu", "--dtype": "float32", "--url-prefix": "/v1"}
    options |= {"--host": "127.0.0.1", "--port": str(port), "--served-model-name": "model"}
    flat = [word for pair in options.items() for word in pair]
    command = [args.infinity, "v2", "--model-id", str(args.model), *flat, "--no-bettertransformer"]
    with started(command, port, folder / "infinity.log") as url:
        yield url


SERVERS = {"this server": own, "FastAPI + sentence-transformers": plain, "infinity": infinity}


@contextmanager
def started(command: list[str], port: int, log: Path):
    """A server process on a port of loopback, answering; ended afterwards."""
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | offline)
    try:
        wait(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


# ---------------------------------------------------------------- the measurements


def onnxruntime_alone(encoder: OnnxEncoder, texts: list[str]) -> tuple[float, int]:
    """Texts a second of tokenising and running all texts, sorted by length, with the best batch budget."""
    best = (0.0, 0)
    for budget in (256, 512, 1024, 2048, 4096, 8192):
        for _ in range(2):
            started = time.perf_counter()
            encoder.encode(texts, "query", budget)
            best = max(best, (len(texts) / (time.perf_counter() - started), budget))
    return best


def measure(name: str, url: str, encoder: OnnxEncoder, texts: list[str], alone: float, args) -> list[dict]:
    """For each size of a request: the rate at `args.clients` clients, and the waits at half that load."""
    model = encoder.card.model if name == "this server" else "model"
    check_same_model(url, model, encoder, texts[:8])
    rows = []
    for size in args.sizes:
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        taken, busy = min(asyncio.run(closed_loop(url, model, groups, args.clients)) for _ in range(3))
        rate, share = len(texts) / taken, busy / taken / os.cpu_count()
        waits = asyncio.run(open_loop(url, model, groups, rate / size / 2, args.seconds))
        p50, p95 = np.percentile(waits, [50, 95]) * 1000
        row = {"server": name, "texts a request": size, "texts/s": round(rate, 1)}
        row |= {"of alone": round(rate / alone, 2), "client's share": round(share, 2)}
        row |= {"of alone, client aside": round(rate / alone / (1 - share), 2)}
        rows.append(row | {"half load p50 (ms)": round(p50, 1), "p95 (ms)": round(p95, 1)})
        print(rows[-1], flush=True)
    return rows


def check_same_model(url: str, model: str, encoder: OnnxEncoder, texts: list[str]) -> None:
    """Servers are compared only if they give the same vectors."""
    body = {"model": model, "input": texts}
    rows = httpx.post(f"{url}/v1/embeddings", json=body, timeout=120, trust_env=False).json()["data"]
    got = np.array([row["embedding"] for row in rows], dtype=np.float32)
    lowest = cosines(encoder.encode(texts, encoder.card.default_input_type), got).min()
    if lowest < 0.999:
        raise SystemExit(f"{url} does not serve the same model: lowest cosine {lowest:.4f}")


async def closed_loop(url: str, model: str, groups: list[list[str]], clients: int) -> tuple[float, float]:
    """Seconds until `clients` connections, each waiting for its answer, have sent all groups.

    And the processor's seconds that this process itself took for it.
    """
    queue = [message(url, model, group) for group in reversed(groups)]

    async def client() -> None:
        async with Connection(url) as connection:
            while queue:
                await connection.ask(queue.pop())

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, time.process_time() - busy


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
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (
            asyncio.IncompleteReadError,
            ConnectionResetError,
        ):  # the server had closed it while it was idle
            await self.__aenter__()
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


def wait(url: str, process: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"{url} did not start: {log.read_text(errors='replace')[-2000:]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("exported", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--requests", type=int, default=600, help="texts, at most")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 8], help="texts a request")
    parser.add_argument("--seconds", type=float, default=8, help="of the half load")
    parser.add_argument("--infinity", default="", help="the program infinity_emb")
    parser.add_argument("--other", action="append", default=[], help="http://127.0.0.1:PORT, running")
    parser.add_argument("--out", type=Path, help="a CSV file for the table")
    args = parser.parse_args()
    if not all(other.startswith("http://127.0.0.1:") for other in args.other):
        parser.error("only servers on 127.0.0.1 are measured")
    return args


if __name__ == "__main__":
    main()
