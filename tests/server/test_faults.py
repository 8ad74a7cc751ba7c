# python -m pytest tests/server/test_faults.py      (-m heavy: 1,000 vanishing clients)
"""What goes wrong in service: a killed server, a full queue, clients that vanish, crawl, or send rubbish.

Everything stays on loopback and is bounded in number and time.
"""

import asyncio
import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils import serve
from utils.api import _unless_gone
from utils.batching import FAILURES, Batcher, QueueFull
from utils.guard import Refused
from utils.run import CourseError

FUZZ_BODIES = int(os.environ.get("FUZZ_BODIES", "2000"))  # in the heavy tier
GOOD = {"model": "tiny", "input": ["a pump", "a valve"]}


def ask(server, body=GOOD, timeout=60):
    return httpx.post(f"{server.base_url}/embeddings", json=body, timeout=timeout, trust_env=False)


def metric(server, name):
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    return sum(float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if re.match(rf"{name}(\{{| )", x))


def memory_mb(server):
    return psutil.Process(server.process.pid).memory_info().rss / 2**20


def peak_mb(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10


def raw(server, data):
    """A connection of its own that has sent `data`."""
    port = int(server.url.rsplit(":", 1)[1])
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(data)
    return connection


def request_bytes(body, length=None):
    content = json.dumps(body).encode()
    head = ("POST /v1/embeddings HTTP/1.1", "Host: x", "Content-Type: application/json")
    return "\r\n".join((*head, f"Content-Length: {length or len(content)}", "", "")).encode() + content


@pytest.fixture
def own_server(exported, tmp_path):
    """A server that a test may harm."""
    with serve.start(exported / "fp32", tmp_path / "server.log") as running:
        yield running


@pytest.fixture
def strict_server(exported, tmp_path):
    """A server with little patience."""
    options = ("--header-seconds", "2", "--body-seconds", "2")
    with serve.start(exported / "fp32", tmp_path / "server.log", options=options) as running:
        yield running


# ---------------------------------------------------------------- its life


def test_after_kill_9_a_restart_takes_the_same_port_and_gives_the_same_vectors(own_server):
    before, url = ask(own_server).json()["data"], own_server.url
    own_server.process.kill()
    own_server.process.wait()
    with pytest.raises(httpx.TransportError):
        ask(own_server)
    own_server.launch()
    assert own_server.url == url
    assert ask(own_server).json()["data"] == before


def test_a_restart_is_not_mistaken_for_another_program_on_its_port(own_server):
    own_server.stop()
    log = own_server.log.with_name("other.log")
    other = serve.start(own_server.command[3], log, int(own_server.url.rsplit(":", 1)[1]))
    with other, pytest.raises(CourseError, match="cannot be used"):
        own_server.launch()
    assert not own_server.running()


def test_sigterm_answers_what_was_accepted_then_ends(own_server):
    body = {"model": "tiny", "input": ["the pump of the second line leaks again"] * 1500}
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, own_server, body) for _ in range(4)]
        while metric(own_server, "embeddings_queue_tokens") == 0 and not any(w.done() for w in waiting):
            time.sleep(0.01)
        own_server.process.terminate()
        answers = [w.result() for w in waiting]
    assert [len(a.json()["data"]) for a in answers] == [1500] * 4
    assert own_server.process.wait(30) is not None
    with pytest.raises(httpx.TransportError):
        ask(own_server)


# ---------------------------------------------------------------- load


def test_requests_of_several_clients_share_batches(server, encoder):
    rows, batches = (metric(server, f"embeddings_batch_rows_{end}") for end in ("sum", "count"))
    texts = [f"pump number {i} and its valve" for i in range(160)]
    with httpx.Client(trust_env=False, timeout=60) as client, ThreadPoolExecutor(16) as pool:
        url = f"{server.base_url}/embeddings"
        sent = list(pool.map(lambda t: client.post(url, json={"model": "tiny", "input": t}).json(), texts))
    got = np.array([answer["data"][0]["embedding"] for answer in sent])
    assert np.abs(got - encoder.encode(texts, "query")).max() < 1e-5
    rows = metric(server, "embeddings_batch_rows_sum") - rows
    assert rows == 160
    assert metric(server, "embeddings_batch_rows_count") - batches < 160


def test_a_full_queue_answers_429_with_retry_after_and_recovers(exported, tmp_path):
    options = ("--queue-tokens", "3000")
    body = {"model": "tiny", "input": ["the pump of the second line"] * 200}
    with serve.start(exported / "fp32", tmp_path / "log", options=options) as small:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: ask(small, body), range(72)))
        statuses = [a.status_code for a in answers]
        assert set(statuses) == {200, 429}
        refused = next(a for a in answers if a.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert ask(small).status_code == 200
        assert metric(small, "embeddings_queue_tokens") == 0


def test_a_small_request_does_not_wait_for_a_large_one(server):
    large = {"model": "tiny", "input": ["the pump of the second line leaks " * 5] * 2000}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, server, large)
        while metric(server, "embeddings_queue_tokens") == 0 and not waiting.done():
            time.sleep(0.005)
        assert ask(server, {"model": "tiny", "input": "a pump"}).status_code == 200
        assert not waiting.done()
        assert waiting.result().status_code == 200


# ---------------------------------------------------------------- clients that vanish or crawl


@pytest.mark.parametrize("clients", [60, pytest.param(1000, marks=pytest.mark.heavy)])
def test_clients_that_disconnect_half_way_harm_nobody(own_server, clients):
    before = memory_mb(own_server)
    full, half = request_bytes(GOOD), request_bytes(GOOD)[:-10]
    for i in range(clients):
        raw(own_server, (full, half, full[:20], b"")[i % 4]).close()
        if i % 20 == 0:
            assert ask(own_server).status_code == 200
    assert ask(own_server).status_code == 200
    assert metric(own_server, "embeddings_queue_tokens") == 0
    assert memory_mb(own_server) - before < 30


def test_crawling_clients_are_hung_up_on_and_others_do_not_notice(strict_server):
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nX-Slow: "
    crawling = [raw(strict_server, head) for _ in range(20)]
    slow_body = raw(strict_server, request_bytes(GOOD, length=10_000))
    kept = http.client.HTTPConnection(strict_server.url.removeprefix("http://"), timeout=30)
    started = time.monotonic()
    while time.monotonic() - started < 4:
        for connection in crawling:
            with contextlib.suppress(OSError):  # hung up on: what the test waits for
                connection.sendall(b"a")
        assert ask(strict_server).status_code == 200
        kept.request("POST", "/v1/embeddings", json.dumps(GOOD), {"Content-Type": "application/json"})
        answer = kept.getresponse()  # the same connection, idle between two requests: it has to stay open
        assert answer.status == 200 and answer.read()
        time.sleep(0.3)
    kept.close()
    assert b"408" in slow_body.recv(1000)
    for connection in crawling:
        connection.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        connection.close()


def test_a_huge_body_is_refused_without_being_kept(own_server):
    megabytes = 100  # the limit is 16
    before = memory_mb(own_server)
    answer = httpx.post(
        f"{own_server.base_url}/embeddings", content=b"[" * (megabytes * 2**20), timeout=60, trust_env=False
    )
    assert answer.status_code == 413
    assert memory_mb(own_server) - before < 60
    assert ask(own_server).status_code == 200


# ---------------------------------------------------------------- rubbish

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
wild_text = st.text(st.characters(codec=None, exclude_categories=()), min_size=0, max_size=200)
nearly_right = st.fixed_dictionaries(
    {"model": st.just("tiny"), "input": wild_text | st.lists(wild_text, max_size=4) | anything},
    optional={
        "encoding_format": st.sampled_from(["float", "base64", None]) | anything,
        "dimensions": st.sampled_from([16, 32]) | anything,
        "input_type": st.sampled_from(["query", "passage", None]) | anything,
        "truncate": st.sampled_from(["NONE", "END"]) | anything,
        "user": anything,
    },
)
bodies = (
    st.binary(max_size=200)
    | anything.map(lambda x: json.dumps(x).encode())
    | nearly_right.map(lambda x: json.dumps(x).encode())
)


def throw_at(server, post, strategy, examples):
    """`examples` bodies: every answer is 200 or a 4xx in OpenAI's shape, and a good request stays good."""
    statuses = Counter()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(body):
        answer = post(body)
        statuses[answer.status_code] += 1
        assert answer.status_code in {200, 400, 404, 413}, (answer.status_code, body)
        assert answer.elapsed.total_seconds() < 10
        if answer.status_code == 200:
            vectors = [row["embedding"] for row in answer.json()["data"]]
            assert all(np.isfinite(v).all() for v in vectors if isinstance(v, list))
        else:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        if sum(statuses.values()) % 100 == 0:
            assert ask(server).json()["data"] == expected

    expected = ask(server).json()["data"]
    before = memory_mb(server)
    check()
    assert ask(server).json()["data"] == expected
    assert memory_mb(server) - before < 50
    return statuses


def from_the_openapi_page(server):
    """Bodies that schemathesis draws from the page, right and wrong ones; half of them name the model."""
    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")["/v1/embeddings"]["POST"]
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]
    cases = st.tuples(st.one_of(modes), st.booleans())
    return cases.map(lambda pair: _named(pair[0].body) if pair[1] else pair[0].body).map(_as_bytes)


def _named(body):
    return body | {"model": "tiny"} if isinstance(body, dict) else body


def _as_bytes(body):
    try:
        return json.dumps(body).encode()
    except TypeError:  # schemathesis' mark for no body at all
        return b""


@pytest.mark.parametrize("share", [200, pytest.param(FUZZ_BODIES // 2, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("source", ["texts", "OpenAPI page"])
def test_rubbish_is_answered_in_openais_shape(server, post, source, share):
    """FUZZ_BODIES=50000 in the environment throws more of it."""
    strategy = bodies if source == "texts" else from_the_openapi_page(server)
    statuses = throw_at(server, post, strategy, share)
    assert {200, 400} <= set(statuses), statuses
    assert sum(statuses.values()) >= share


# ---------------------------------------------------------------- requests that cost more than they may


def test_a_faulty_list_and_an_endless_text_are_refused_at_once(own_server):
    before, started = peak_mb(own_server), time.monotonic()
    for wrong in ([1.5] * 3_000_000, "a " * 7_000_000, [[]] * 3_000_000, [[1]] * 4_000_000):
        assert ask(own_server, {"model": "tiny", "input": wrong}).status_code == 400
    hostile = b'{"input": "' + rb"\"" * 4_000_000  # a string that never ends: no search may begin anew in it
    assert (
        httpx.post(f"{own_server.base_url}/embeddings", content=hostile, trust_env=False).status_code == 400
    )
    endless = {"model": "tiny", "input": "a " * 7_000_000, "truncate": "END"}
    assert ask(own_server, endless).json()["usage"]["total_tokens"] == 64
    assert time.monotonic() - started < 30
    assert peak_mb(own_server) - before < 400


def test_a_batch_that_fails_is_a_500_and_the_next_is_served(encoder, monkeypatch):
    from starlette.testclient import TestClient

    from utils.api import create_app

    with TestClient(create_app(encoder), raise_server_exceptions=False) as client:
        for broken in (lambda rows: 1 / 0, lambda rows: np.full((len(rows), 32), np.nan), lambda rows: []):
            with monkeypatch.context() as patched:
                patched.setattr(encoder, "run", broken)
                answer = client.post("/v1/embeddings", json=GOOD)
            assert answer.status_code == 500
            assert answer.json()["error"]["type"] == "server_error"
            assert client.post("/v1/embeddings", json=GOOD).status_code == 200
        assert 'status="500"} 3.0' in client.get("/metrics").text


def test_an_encoder_that_fails_at_everything_is_not_ready_until_it_recovers(encoder, monkeypatch):
    from starlette.testclient import TestClient

    from utils.api import create_app

    with TestClient(create_app(encoder), raise_server_exceptions=False) as client:
        for broken in (lambda rows: 1 / 0, lambda rows: np.full((len(rows), 32), np.nan)):
            with monkeypatch.context() as patched:
                patched.setattr(encoder, "run", broken)
                for _ in range(5):
                    assert client.get("/v1/health/ready").status_code == 200
                    client.post("/v1/embeddings", json=GOOD)
                assert client.get("/v1/health/ready").status_code == 503
                assert client.get("/v1/health/live").status_code == 200
            assert client.post("/v1/embeddings", json=GOOD).status_code == 200
            assert client.get("/v1/health/ready").status_code == 200


def test_a_busy_server_whose_encoder_recovers_does_not_end(encoder, monkeypatch):
    """The queue is full when the encoder is asked whether it is still there."""
    ended, asked = [], []
    monkeypatch.setattr(serve.os, "_exit", ended.append)

    async def full(rows):
        asked.append(rows)
        raise QueueFull(1)

    async def watched():
        batcher = SimpleNamespace(sound=False, encoder=encoder, encode=full)
        watch = asyncio.create_task(
            serve._end_if_broken(SimpleNamespace(state=SimpleNamespace(batcher=batcher)), 0.01)
        )
        while len(asked) < 3:
            await asyncio.sleep(0.01)
        watch.cancel()

    asyncio.run(watched())
    assert not ended


@pytest.mark.parametrize("recovers", [True, False])
def test_a_server_whose_encoder_stays_broken_ends(encoder, monkeypatch, recovers):
    """So that systemd or Docker, which act on the end of a process, start it anew."""
    ended = []
    monkeypatch.setattr(serve.os, "_exit", ended.append)

    async def watched():
        batcher = Batcher(encoder, 1000, 1000)
        batcher.failures = FAILURES
        watch = asyncio.create_task(
            serve._end_if_broken(SimpleNamespace(state=SimpleNamespace(batcher=batcher)), 0.01)
        )
        with monkeypatch.context() as patched:
            if not recovers:
                patched.setattr(encoder, "run", lambda rows: 1 / 0)
            while not ended and not batcher.sound:
                await asyncio.sleep(0.01)
        watch.cancel()
        batcher.close()

    asyncio.run(watched())
    assert bool(ended) != recovers and set(ended) <= {1}


def test_a_row_that_fails_harms_no_other_request_of_its_batch(encoder, monkeypatch):
    run, begun, go = encoder.run, threading.Event(), threading.Event()

    def fails_at_666(rows):
        begun.set()
        go.wait(30)
        return run(rows) if not any(666 in row for row in rows) else 1 / 0

    async def together():
        batcher = Batcher(encoder, 1000, 10_000)
        jobs = [asyncio.create_task(batcher.encode([[1, 2, 3]]))]
        await asyncio.to_thread(begun.wait, 30)  # the others come while this one computes, and share a batch
        jobs += [asyncio.create_task(batcher.encode([row])) for row in ([4, 5, 6], [7, 666, 8], [9, 10, 11])]
        await asyncio.sleep(0.1)
        go.set()
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        batcher.close()
        return [isinstance(answer, Exception) for answer in answers]

    monkeypatch.setattr(encoder, "run", fails_at_666)
    assert asyncio.run(together()) == [False, False, True, False]


def test_a_request_that_cannot_be_drained_is_told_to_come_again():
    async def cut():
        never = asyncio.get_running_loop().create_future
        request = SimpleNamespace(receive=never)
        task = asyncio.create_task(_unless_gone(request, never()))
        await asyncio.sleep(0.01)
        task.cancel()  # as uvicorn does when its time to drain is over
        await task

    with pytest.raises(Refused) as refused:
        asyncio.run(cut())
    assert (refused.value.status, refused.value.headers) == (503, {"retry_after": "5"})
