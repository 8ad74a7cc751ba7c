"""The server's life: starting it from a shell or a notebook, and stopping it.

    python -m utils.serve runs/NAME/05_export/int8 --port 8000

Keys come from the environment (EMBEDDING_API_KEYS, separated by commas); without any, nobody needs one.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from utils.guard import Limits
from utils.run import ROOT, CourseError, expect

if TYPE_CHECKING:
    from fastapi import FastAPI

KEYS = "EMBEDDING_API_KEYS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LISTENING = "Listening on "


# ---------------------------------------------------------------- from a notebook


@dataclass
class Server:
    """A server process on loopback. Use it in `with`, or call `stop`; it also ends with this process."""

    command: list[str]
    log: Path
    url: str = ""  # http://127.0.0.1:PORT
    process: subprocess.Popen | None = None

    @property
    def base_url(self) -> str:
        """What a client takes as `base_url`."""
        return f"{self.url}/v1"

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def launch(self, wait: float = 90) -> Server:
        """Start the process and return once it is ready; a second launch takes the same port again."""
        expect(not self.running(), f"The server already runs at {self.url}.")
        with self.log.open("wb") as stream:
            port = ["--port", self.url.rsplit(":", 1)[1]] if self.url else []
            self.process = subprocess.Popen([*self.command, *port], stdout=stream, stderr=stream, cwd=ROOT)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            lines = self.log.read_text(errors="replace").splitlines()
            bound = next((x.removeprefix(LISTENING) for x in lines if x.startswith(LISTENING)), "")
            self.url = bound or self.url
            if bound and _ready(bound):  # before that another program on the port would answer
                return self
            last = lines[-1] if lines else "no output"
            expect(self.running(), f"The server did not start: {last} (log: {self.log})")
            time.sleep(0.1)
        self.stop()
        raise CourseError(f"The server was not ready within {wait:g} s. Its log: {self.log}")

    def stop(self, seconds: float = Limits.drain_seconds + 5) -> int | None:
        """End it gracefully (SIGTERM: accepted requests are answered first); returns its exit code."""
        if self.process is None:
            return None
        if self.running():
            self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(folder: Path, log: Path, port: int = 0, options: Sequence[str] = (), wait: float = 90) -> Server:
    """Start the server on loopback as a process of its own and return once it is ready.

    folder: an exported model; log: a file for its output; port 0: any free one; options: of the command
    line, e.g. ("--truncate", "END"). CourseError, with the reason, if it does not start. From then on no
    client of this process asks a proxy (HTTP_PROXY) for loopback: the texts would leave the machine.
    """
    _keep_loopback_here()
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "utils.serve", str(folder), "--port", str(port), *options]
    server = Server(command, log)
    atexit.register(server.stop)
    return server.launch(wait)


def _keep_loopback_here() -> None:
    """Take loopback out of the proxy's reach for this process' clients; a blank key variable means no key."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
    if not os.environ.get(KEYS, "set").strip():
        del os.environ[KEYS]


def _ready(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/v1/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


# ---------------------------------------------------------------- from a shell


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        _serve(args)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # uvicorn has stopped in good order, and raises it again
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.serve", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an exported model: runs/NAME/05_export/int8")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    parser.add_argument("--threads", type=int, default=0, help="of the session; 0: one per core")
    for limit in fields(Limits):
        kind = type(limit.default)
        choices = ("NONE", "END") if limit.name == "truncate" else None
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}", type=kind, default=limit.default, choices=choices
        )
    return parser


def _serve(args: argparse.Namespace) -> None:
    import uvicorn

    from utils.api import create_app
    from utils.onnx_encoder import OnnxEncoder

    limits = Limits(**{limit.name: getattr(args, limit.name) for limit in fields(Limits)})
    keys = read_keys(os.environ.get(KEYS, ""))
    bound = _bind(args.host, args.port)
    encoder = OnnxEncoder(args.folder, args.threads)
    app = create_app(encoder, limits, keys)
    print(f"{encoder.card.model} ({encoder.card.precision}, SHA-256 {encoder.card.digest[:16]}…)")
    if not keys and args.host not in LOOPBACK:
        print(f"Anyone who reaches {args.host} can use this server: set {KEYS} to ask for a key.")
    host = f"[{args.host}]" if ":" in args.host else args.host  # an IPv6 address
    print(f"{LISTENING}http://{host}:{bound.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
        timeout_keep_alive=math.ceil(limits.header_seconds),  # longer than clients keep theirs (5 s)
    )
    server = uvicorn.Server(config)
    app.state.watches = (
        lambda: _hang_up_on_the_stuck(server.server_state.connections, limits),
        lambda: _end_if_broken(app),
    )
    server.run(sockets=[bound])


def read_keys(given: str) -> tuple[str, ...]:
    """The keys of EMBEDDING_API_KEYS, none if it is blank; CourseError if there is a comma and no key."""
    keys = tuple(key.strip() for key in given.split(",") if key.strip())
    expect(
        keys or not given.strip(), f"{KEYS} is set and holds no key: fill it, or unset it to ask for none."
    )
    return keys


async def _end_if_broken(app: FastAPI, every: float = 5.0, patience: float = 60.0) -> None:
    """End the process when the encoder fails at everything, so that whoever supervises it starts it anew."""
    from utils.batching import QueueFull

    while True:
        await asyncio.sleep(every)
        batcher = app.state.batcher
        if batcher.sound:
            continue
        try:
            async with asyncio.timeout(patience):
                await batcher.encode(batcher.encoder.tokenize(["still there?"], "query"))
            expect(batcher.sound, "its vectors are not numbers")
        except Exception as error:  # whatever it is: it was the encoder's last chance
            if batcher.sound or isinstance(error, QueueFull):  # it recovered, or is asked again
                continue
            print(
                f"The encoder fails at everything ({error!r}); this server ends.", file=sys.stderr, flush=True
            )
            os._exit(1)


async def _hang_up_on_the_stuck(connections: set, limits: Limits) -> None:
    """Close connections that send no whole request head in time, and those that stop reading their answer.

    uvicorn itself would wait for ever, and keep the answer in memory.
    """
    # (connection, its latest request, bytes it has yet to read) → since when
    since: dict[tuple[object, object, int], float] = {}
    while True:
        await asyncio.sleep(limits.header_seconds / 5)
        idle = [c for c in connections if c.cycle is None or c.cycle.response_complete or c.flow.write_paused]
        unread = [(c, c.cycle, c.transport.get_write_buffer_size()) for c in idle]
        since = {state: since.get(state, time.monotonic()) for state in unread}
        for (connection, _, left), start in since.items():
            if time.monotonic() - start > limits.header_seconds:
                connection.transport.abort() if left else connection.transport.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: asyncio then sends at once
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # from here on nobody else can have the port
    except (OSError, OverflowError) as error:
        raise CourseError(
            f"{host}:{port} cannot be used ({error}). Stop what listens there, or choose another --port."
        ) from None
    return bound


if __name__ == "__main__":
    sys.exit(main())
