"""The embeddings API: `POST /v1/embeddings` as OpenAI's clients use it, around a loaded encoder."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import asynccontextmanager

import numpy as np
import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from utils.batching import Batcher, QueueFull
from utils.guard import Guard, Limits, Refused, handle_errors, json_response, make_meters
from utils.onnx_encoder import INPUT_TYPES, OnnxEncoder
from utils.schemas import REFUSALS, EmbeddingRequest, EmbeddingResponse

INLINE = 20_000  # characters or token ids that are read without leaving the event loop
TOKENIZED_AT_ONCE = 200_000  # characters, about
# ---------------------------------------------------------------- the app


def create_app(encoder: OnnxEncoder, limits: Limits = Limits(), keys: tuple[str, ...] = ()) -> FastAPI:  # noqa: B008
    """The ASGI app around a loaded encoder. keys: any of them opens the endpoints; none: open to all."""
    card = encoder.card
    meters = make_meters(card)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        budget = limits.batch_tokens or encoder.batch_tokens
        app.state.batcher = Batcher(encoder, budget, limits.queue_tokens, meters["on_batch"])
        for kind in INPUT_TYPES:
            await app.state.batcher.encode(encoder.tokenize(["warm up"], kind))
        watches = [asyncio.create_task(watch()) for watch in getattr(app.state, "watches", ())]
        yield
        for watch in watches:
            watch.cancel()
        await asyncio.to_thread(app.state.batcher.close)

    app = FastAPI(
        title="Embeddings",
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        responses=REFUSALS,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if keys else [],  # documents what Guard asks for
    )

    @app.post("/v1/embeddings", responses={200: {"model": EmbeddingResponse}})
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        rows = await _read_inputs(encoder, body, limits)
        vectors = await _unless_gone(request, app.state.batcher.encode(rows))
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            said = f"{card.model} ({card.precision}) gave values that are not numbers for input"
            raise Refused(500, f"{said} {', '.join(map(str, np.flatnonzero(~finite)[:5]))}.")
        tokens = sum(map(len, rows))
        meters["texts"].inc(len(rows))
        meters["tokens"].inc(tokens)
        answer = _answer(body, _shorten(vectors, body.dimensions, card), tokens)
        return Response(
            orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
        )

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models")
    async def models() -> Response:
        return json_response(200, {"object": "list", "data": [_model(encoder)]})

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        _input_type(card, name, None)
        return json_response(200, _model(encoder))

    @app.head("/v1/health/live", include_in_schema=False)
    @app.get("/v1/health/live")
    async def live() -> Response:
        return json_response(200, {"object": "health", "message": "live"})

    @app.head("/v1/health/ready", include_in_schema=False)
    @app.get("/v1/health/ready")
    async def ready() -> Response:
        if not app.state.batcher.sound:
            raise Refused(503, "The encoder fails; the log says why. The server ends if it does not recover.")
        return json_response(200, {"object": "health", "message": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        meters["queue"].set(app.state.batcher.waiting_tokens)
        return Response(generate_latest(meters["registry"]), media_type=CONTENT_TYPE_LATEST)

    handle_errors(app)
    app.add_middleware(Guard, limits=limits, keys=keys, meters=meters)
    return app


async def _read_inputs(encoder: OnnxEncoder, body: EmbeddingRequest, limits: Limits) -> list[list[int]]:
    """The token ids of a request's inputs; whatever is wrong with the request is refused here."""
    kind = _input_type(encoder.card, body.model, body.input_type)
    _check_dimensions(encoder.card, body.dimensions)
    inputs = body.input
    if isinstance(inputs, str) or isinstance(inputs[0], int):
        inputs = [inputs]
    if len(inputs) > limits.max_inputs:
        raise Refused(400, f"{len(inputs)} inputs; at most {limits.max_inputs} fit in a request.", "input")
    if isinstance(inputs[0], str):
        _check_texts(inputs)
    cut = (body.truncate or limits.truncate) == "END"
    if sum(map(len, inputs)) < INLINE:
        return _rows(encoder, inputs, kind, cut, limits)
    return await asyncio.to_thread(
        _rows, encoder, inputs, kind, cut, limits
    )  # the loop stays free for others


def _rows(encoder: OnnxEncoder, inputs: list, kind: str, cut: bool, limits: Limits) -> list[list[int]]:
    card, rows, total = encoder.card, [], 0
    for row in _token_ids(encoder, inputs, kind):
        row = encoder.truncate(row) if cut else row
        if len(row) > card.max_tokens:
            least = "at least " if len(row) > 2 * card.max_tokens else ""
            text = f"Input {len(rows)} has {least}{len(row)} tokens; {card.model} takes {card.max_tokens}. "
            text += 'Shorten it, or send "truncate": "END".'
            raise Refused(400, text, "input", "context_length_exceeded")
        total += len(row)
        if total > limits.queue_tokens:
            text = f"More than {limits.queue_tokens} tokens in one request. Send fewer texts."
            raise Refused(400, text, "input")
        rows.append(row)
    return rows


def _token_ids(encoder: OnnxEncoder, inputs: list, kind: str) -> Iterator[list[int]]:
    """The token ids of each input, few at a time: a tokenizer's result is much larger than its text."""
    top = encoder.tokenizer.get_vocab_size()
    part, characters = [], 0
    for given in inputs:
        if isinstance(given, str):
            part.append(given)
            characters += len(given)
            if characters > TOKENIZED_AT_ONCE:
                yield from encoder.tokenize(part, kind)
                part, characters = [], 0
        elif any(not 0 <= token < top for token in given):
            raise Refused(400, f"Token ids of {encoder.card.model} are 0 to {top - 1}.", "input")
        else:
            yield encoder.wrap(given, kind)
    yield from encoder.tokenize(part, kind)


def _check_texts(texts: list[str]) -> None:
    if any(not text for text in texts):
        raise Refused(400, "An input is empty. Leave empty texts out.", "input")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        text = "An input holds half of a surrogate pair: it is not valid text."
        raise Refused(400, text, "input") from None


def _input_type(card, name: str, asked: str | None) -> str:
    """Which prompt a request wants: its `input_type`, its model name's ending, or the default."""
    for kind in INPUT_TYPES:
        if name == f"{card.model}-{kind}":
            if asked not in {None, kind}:
                raise Refused(
                    400, f"input_type = {asked!r} contradicts the model's name {name!r}.", "input_type"
                )
            return kind
    if name != card.model:
        known = f"{card.model}, {card.model}-query, {card.model}-passage"
        raise Refused(
            404, f"The model {name!r} does not exist here. Served: {known}.", "model", "model_not_found"
        )
    return asked or card.default_input_type


def _check_dimensions(card, asked: int | None) -> None:
    allowed = sorted({*card.matryoshka, card.dimensions})
    if asked is not None and asked not in allowed:
        why = "" if card.matryoshka else " (it was not trained for shorter vectors)"
        raise Refused(400, f"dimensions = {asked}: {card.model} offers {allowed}{why}.", "dimensions")


def _shorten(vectors: np.ndarray, dimensions: int | None, card) -> np.ndarray:
    if dimensions is None or dimensions == card.dimensions:
        return vectors
    short = vectors[:, :dimensions]
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12)


def _answer(body: EmbeddingRequest, vectors: np.ndarray, tokens: int) -> dict:
    if body.encoding_format == "base64":
        values = [base64.b64encode(row).decode() for row in vectors.astype("<f4")]
    else:
        values = np.ascontiguousarray(vectors)
    data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _model(encoder: OnnxEncoder) -> dict:
    card = encoder.card
    return {
        "id": card.model,
        "object": "model",
        "created": 0,
        "owned_by": "embedding-course",
        "digest": card.digest,
        "identity": encoder.identity,
        "precision": card.precision,
        "dimensions": card.dimensions,
        "matryoshka": card.matryoshka,
        "max_tokens": card.max_tokens,
        "prompts": card.prompts,
        "default_input_type": card.default_input_type,
    }


async def _unless_gone(request: Request, work) -> np.ndarray:
    """The result of `work`, which is cancelled when the client hangs up first."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused(499, "The client hung up.")
    except QueueFull as full:
        wait = str(full.retry_after)
        raise Refused(
            429, f"The server is busy; try again in {wait} s.", code="queue_full", retry_after=wait
        ) from None
    except asyncio.CancelledError:  # its time to drain is over
        raise Refused(503, "The server ends; try again.", retry_after="5") from None
    finally:
        task.cancel()
        gone.cancel()
