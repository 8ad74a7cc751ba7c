# python -m pytest tests/server/test_hosted_encoder.py
"""A larger model that somebody hosts, as one more system of notebook 4."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from utils import retrieval
from utils.run import CourseError

TEXTS = ["a pump leaks", "  ", "salt on the deck", "a pump leaks"]


@contextmanager
def host(answer):
    """A host whose `answer(body, nth request)` is (status, content); yields its URL and the bodies it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"authorization": self.headers["Authorization"]})
            status, content = answer(body, len(seen))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def rows(body, vector=(3.0, 4.0)):
    data = [{"index": i, "object": "embedding", "embedding": list(vector)} for i in range(len(body["input"]))]
    return {"object": "list", "data": data[::-1], "model": "big", "usage": {}}  # in no order


def refuse(text, status=400):
    return status, {"error": {"message": text}}


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_a_hosts_vectors_are_those_of_its_model(server, encoder, kind):
    found = retrieval.encode(retrieval.HostedEncoder("tiny", server.base_url), TEXTS, kind)
    assert found.dtype == np.float32 and not found[1].any(), "a blank text is not sent"
    assert np.allclose(found[[0, 2, 3]], encoder.encode([TEXTS[i] for i in (0, 2, 3)], kind), atol=1e-5)


def test_what_was_encoded_once_is_not_asked_again(tmp_path):
    with host(lambda body, nth: (200, rows(body))) as (url, seen):
        model = retrieval.HostedEncoder("big", url)
        first = retrieval.encode(model, TEXTS, "passage", cache=tmp_path)
        again = retrieval.encode(model, TEXTS, "passage", cache=tmp_path)
        assert [body["input"] for body in seen] == [["a pump leaks", "salt on the deck"]]
        assert np.array_equal(first, again) and np.allclose(first[0], [0.6, 0.8])
        retrieval.encode(model, TEXTS, "query", cache=tmp_path)
        assert [body["input_type"] for body in seen] == ["passage", "query"]


def test_a_host_that_knows_no_input_type_is_asked_without(tmp_path):
    answer = lambda body, nth: refuse("unknown input_type") if "input_type" in body else (200, rows(body))  # noqa: E731
    with host(answer) as (url, seen):
        model = retrieval.HostedEncoder("big", url)
        for kind in ("passage", "query"):
            retrieval.encode(model, TEXTS, kind)
    assert ["input_type" in body for body in seen] == [True, False, False]


def test_a_host_that_knows_the_input_type_keeps_it_when_it_refuses_a_text():
    with host(lambda body, nth: (200, rows(body)) if nth == 1 else refuse("too long")) as (url, seen):
        model = retrieval.HostedEncoder("big", url)
        retrieval.encode(model, TEXTS, "passage")
        with pytest.raises(CourseError, match="too long"):
            retrieval.encode(model, ["another"], "passage")
    assert all("input_type" in body for body in seen) and len(seen) == 2


def test_a_busy_host_is_asked_again_and_a_refusal_is_told_without_the_key(monkeypatch):
    monkeypatch.setenv("EMBEDDINGS_API_KEY", "very-secret")
    with host(lambda body, nth: refuse("slow down", 429) if nth < 3 else (200, rows(body))) as (url, seen):
        assert len(retrieval.encode(retrieval.HostedEncoder("big", url), TEXTS, "query")) == 4
        assert {body["authorization"] for body in seen} == {"Bearer very-secret"}
    with host(lambda body, nth: refuse("key very-secret is not known", 401)) as (url, _):
        with pytest.raises(CourseError, match=r"gave no vectors.*LARGER_URL") as caught:
            retrieval.encode(retrieval.HostedEncoder("big", url), TEXTS, "query")
        assert "very-secret" not in str(caught.value)


def test_documents_go_to_another_machine_only_when_allowed():
    with pytest.raises(CourseError, match="SEND_DOCUMENTS"):
        retrieval.HostedEncoder("big", "https://embeddings.example/v1")
    for url in ("embeddings.example", "http://127.0.0.1:80O0/v1", "http://[::1/v1"):
        with pytest.raises(CourseError, match=f"LARGER_URL = '{re.escape(url)}' is not a URL"):
            retrieval.HostedEncoder("big", url)
    with pytest.raises(CourseError, match="Give its name"):
        retrieval.HostedEncoder("", "http://127.0.0.1:1/v1")


def test_another_hosts_key_stays_here(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "for openai alone")
    with host(lambda body, nth: (200, rows(body))) as (url, seen):
        retrieval.encode(retrieval.HostedEncoder("big", url), TEXTS, "query")
    assert "openai" not in seen[0]["authorization"]


@pytest.mark.parametrize("wrong", ["no data", "unequal lengths", "an empty list", "numbers"])
def test_an_answer_that_holds_no_vectors_is_told(wrong):
    def answer(body, nth):
        reply = rows(body)
        if wrong == "no data":
            reply["data"] = None
        elif wrong == "an empty list":
            reply["data"] = []
        elif wrong == "numbers":
            reply["data"] = [row | {"embedding": 1.0} for row in reply["data"]]
        else:
            reply["data"][0]["embedding"] = [1.0]
        return 200, reply

    with host(answer) as (url, _), pytest.raises(CourseError, match=f"big at {url}.*embedding model"):
        retrieval.encode(retrieval.HostedEncoder("big", url), ["a pump", "a valve"], "query")


def test_vectors_without_a_direction_are_refused():
    nothing = host(lambda body, nth: (200, rows(body, (0.0, 0.0))))
    with nothing as (url, _), pytest.raises(CourseError, match="Is it an embedding model"):
        retrieval.encode(retrieval.HostedEncoder("big", url), TEXTS, "query")
