"""In front of the embeddings API: limits, keys, errors in OpenAI's shape, and metrics."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

OPEN_PATHS = ("/v1/health/", "/metrics", "/docs", "/openapi.json")
COUNTED_PATHS = ("/v1/embeddings", "/v1/models")
SMALL_BODY = 64 * 1024  # bytes: is taken even when the room for bodies is used up
BODIES = 8  # of the largest size that may be in memory at the same time
STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # of JSON
STATUS_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


@dataclass(frozen=True)
class Limits:
    """What one server takes. Tokens are those of the served model."""

    truncate: str = "NONE"  # what a request without `truncate` means: NONE refuses, END cuts
    batch_tokens: int = 0  # of one batch, padding included; 0: what suits the device
    queue_tokens: int = 300_000  # of one request, and of all requests that wait
    max_inputs: int = 2048  # texts of one request
    max_body_mb: int = 16
    drain_seconds: float = 90.0  # after SIGTERM, in which requests that were accepted are still answered
    header_seconds: float = 15.0  # a client may take to send a request's head
    body_seconds: float = 20.0  # and its body


class Refused(Exception):
    """A request that is answered with an error in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, **headers
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers


def json_response(status: int, content: dict, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")


def error_response(refused: Refused) -> Response:
    kind = STATUS_TYPES.get(refused.status, "invalid_request_error")
    body = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}
    headers = {name.replace("_", "-"): value for name, value in refused.headers.items()}
    return json_response(refused.status, {"error": body}, headers)


def handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_response(Refused(400, f"The body is not JSON: {first['ctx']['error']}."))
        param = str(first["loc"][1]) if len(first["loc"]) > 1 else None
        message = f"{param}: {first['msg']}."
        if param is None:
            message = "The body must be a JSON object, sent with Content-Type: application/json."
        if param == "input":
            message = (
                "input must be a text, or a non-empty list of texts, of token ids, or of lists of token ids."
            )
        return error_response(Refused(400, message, param))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return error_response(Refused(error.status_code, str(error.detail), **(error.headers or {})))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return error_response(Refused(500, "The server failed; its log says why."))


class Guard:
    """In front of the app: keys, the size and the pace of bodies, and the count of answers.

    All bodies together take at most `BODIES` times `max_body_mb`, and `SMALL_BODY` for each connection.
    """

    def __init__(self, app, limits: Limits, keys: tuple[str, ...], meters: dict) -> None:
        self.app, self.limits, self.meters = app, limits, meters
        self.keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self.held = 0  # bytes of all bodies in memory

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, body = time.perf_counter(), [500], bytearray()  # 500: what an escaping error becomes

        async def counted(message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            self._check_key(scope)
            await self._read(receive, body)
            self._check_values(body)
            await self.app(scope, _replay(body, receive), counted)
        except Refused as refused:
            await error_response(refused)(scope, receive, counted)
        finally:
            self.held -= len(body)
            path = scope["path"] if scope["path"] in COUNTED_PATHS else "other"
            self.meters["requests"].labels(path, str(status[0])).inc()
            if path == "/v1/embeddings":
                self.meters["seconds"].observe(time.perf_counter() - started)

    def _check_key(self, scope) -> None:
        if not self.keys or scope["path"].startswith(OPEN_PATHS):
            return
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        known = any([hmac.compare_digest(given, own) for own in self.keys])  # all are compared, always
        if not known or scheme.lower() != b"bearer":
            said = "No valid API key in the Authorization header (Bearer …)."
            raise Refused(401, said, code="invalid_api_key", www_authenticate="Bearer")

    async def _read(self, receive, body: bytearray) -> None:
        """Fill `body`. Of a body that is refused the rest is read and dropped, so that the answer arrives."""
        size, refused = 0, None
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(499, "The client hung up.")
                    part = message.get("body", b"")
                    size += len(part)
                    if refused is None:
                        body += part
                        self.held += len(part)
                        refused = self._too_large(len(body))
                    if refused is not None:
                        self.held -= len(body)
                        body.clear()
                    if not message.get("more_body") or size > 16 * self.limits.max_body_mb * 2**20:
                        break
        except TimeoutError:
            raise Refused(
                408, f"The body did not arrive in {self.limits.body_seconds:g} s.", connection="close"
            ) from None
        if refused is not None:
            raise refused

    def _check_values(self, body: bytearray) -> None:
        """Refuse a body of far more numbers and lists than a request may hold: parsing it would stop all."""
        most = self.limits.queue_tokens + self.limits.max_inputs + 100
        if len(body) > SMALL_BODY and STRINGS.sub(b"", body).count(b",") > most:
            said = f"More than {self.limits.queue_tokens} tokens in one request. Send fewer token lists."
            raise Refused(400, said, "input")

    def _too_large(self, size: int) -> Refused | None:
        limit = self.limits.max_body_mb * 2**20
        if size > limit:
            text = f"The body is larger than {self.limits.max_body_mb} MB. Send fewer texts in a request."
            return Refused(413, text, connection="close")
        if size > SMALL_BODY and self.held > BODIES * limit:
            text = "Too many large requests at the same time; try again in 1 s."
            return Refused(429, text, code="queue_full", retry_after="1", connection="close")
        return None


def _replay(body: bytearray, receive):
    """A `receive` that hands out the body once, then waits for the client to go."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict:
        return waiting.pop() if waiting else await receive()

    return again


def make_meters(card) -> dict:
    """Prometheus metrics of one server, in a registry of its own."""
    registry = CollectorRegistry()
    info = Gauge(
        "embeddings_model_info", "The served model", ["model", "precision", "digest"], registry=registry
    )
    info.labels(card.model, card.precision, card.digest).set(1)
    rows = Histogram(
        "embeddings_batch_rows",
        "Texts in a batch",
        registry=registry,
        buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    )
    busy = Counter("embeddings_encoder_seconds", "Time the session computed", registry=registry)

    def on_batch(size: int, tokens: int, seconds: float) -> None:
        rows.observe(size)
        busy.inc(seconds)

    return {
        "registry": registry,
        "on_batch": on_batch,
        "requests": Counter(
            "embeddings_requests", "Requests answered", ["path", "status"], registry=registry
        ),
        "seconds": Histogram("embeddings_request_seconds", "From request to answer", registry=registry),
        "texts": Counter("embeddings_texts", "Texts embedded", registry=registry),
        "tokens": Counter("embeddings_tokens", "Tokens embedded", registry=registry),
        "queue": Gauge("embeddings_queue_tokens", "Tokens that wait", registry=registry),
    }
