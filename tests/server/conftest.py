"""Fixtures of the server tests: one server process on loopback for all tests that do not harm it."""

import httpx
import openai
import pytest

from utils import serve
from utils.onnx_encoder import OnnxEncoder


@pytest.fixture(scope="session")
def server(exported, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "server.log"
    with serve.start(exported / "fp32", log, options=("--max-body-mb", "1")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def post(server):
    """post(body or bytes) → httpx.Response of /v1/embeddings."""
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as http:

        def send(body, **headers):
            given = {"content": body} if isinstance(body, bytes) else {"json": body}
            kind = {"content-type": "application/json"}
            return http.post("/v1/embeddings", **given, headers=kind | headers)

        yield send


@pytest.fixture(scope="session")
def encoder(exported):
    return OnnxEncoder(exported / "fp32")
