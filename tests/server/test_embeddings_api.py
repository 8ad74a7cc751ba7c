# python -m pytest tests/server/test_embeddings_api.py
"""The API as OpenAI's client uses it, its errors, keys and health: against a running server on loopback."""

import base64
import json
import os
import shutil
import signal
import socket

import httpx
import numpy as np
import openai
import pytest

from utils import serve
from utils.run import CourseError

TEXTS = ["a pump", "the valve leaks", "水泵", "😀"]


def rows(answer):
    return np.array([row.embedding for row in answer.data], dtype=np.float32)


# ---------------------------------------------------------------- what the client gets


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_a_list_of_texts_gives_the_encoders_vectors_in_order(client, encoder, encoding):
    options = {"encoding_format": encoding} if encoding else {}
    answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
    if encoding == "base64":
        got = np.array([np.frombuffer(base64.b64decode(row.embedding), "<f4") for row in answer.data])
    else:
        got = rows(answer)
    assert np.abs(got - encoder.encode(TEXTS, "query")).max() < 1e-5
    assert [row.index for row in answer.data] == [0, 1, 2, 3]


def test_one_text_and_its_usage(client, encoder):
    answer = client.embeddings.create(model="tiny", input="a pump", user="somebody")
    tokens = len(encoder.tokenize(["a pump"], "query")[0])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    assert (answer.object, answer.model, len(answer.data)) == ("list", "tiny", 1)


def test_an_answer_does_not_wait_for_an_acknowledgement(post):
    """A body held back until the client has acknowledged the head comes 40 ms late, every time."""
    took = [post({"model": "tiny", "input": "short"}).elapsed.total_seconds() for _ in range(15)]
    assert min(took[1:]) < 0.03


def test_token_lists_are_the_models_own_ids(client, encoder):
    ids = encoder.tokenizer.encode("the valve leaks").ids
    expected = encoder.encode(["the valve leaks"], "query")[0]
    assert np.abs(rows(client.embeddings.create(model="tiny", input=ids))[0] - expected).max() < 1e-5
    several = rows(client.embeddings.create(model="tiny", input=[ids, ids[1:-1]]))
    assert np.abs(several - expected).max() < 1e-5


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_three_ways_to_say_query_or_passage(client, encoder, kind):
    expected = encoder.encode(TEXTS, kind)
    field = client.embeddings.create(model="tiny", input=TEXTS, extra_body={"input_type": kind})
    name = client.embeddings.create(model=f"tiny-{kind}", input=TEXTS)
    assert np.abs(rows(field) - expected).max() < 1e-5
    assert np.abs(rows(name) - expected).max() < 1e-5
    default = rows(client.embeddings.create(model="tiny", input=TEXTS))
    assert (np.abs(default - expected).max() < 1e-5) == (kind == "query")


def test_dimensions_the_model_was_trained_for(client, encoder):
    got = rows(client.embeddings.create(model="tiny", input=TEXTS, dimensions=16))
    cut = encoder.encode(TEXTS, "query")[:, :16]
    assert got.shape == (4, 16)
    assert np.abs(got - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max() < 1e-5
    assert rows(client.embeddings.create(model="tiny", input="a", dimensions=32)).shape == (1, 32)


def test_long_texts_are_refused_unless_truncation_is_asked_for(client, encoder):
    long = "pump " * 500
    with pytest.raises(openai.BadRequestError, match="takes 64") as refused:
        client.embeddings.create(model="tiny", input=["a", long])
    assert refused.value.body["code"] == "context_length_exceeded"
    cut = client.embeddings.create(model="tiny", input=[long], extra_body={"truncate": "END"})
    assert cut.usage.total_tokens == 64
    assert np.abs(rows(cut) - encoder.encode([long], "query")).max() < 1e-5


def test_the_model_list_names_the_file_by_digest(client, encoder):
    (model,) = client.models.list()
    assert (model.id, model.digest, model.dimensions) == ("tiny", encoder.card.digest, 32)
    assert model.default_input_type == "query"
    assert client.models.retrieve("tiny").digest == encoder.card.digest
    assert model.identity == encoder.identity
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


# ---------------------------------------------------------------- what is refused, and how

BAD = {
    "unknown model": ({"model": "gpt", "input": "a"}, 404, "model"),
    "no model": ({"input": "a"}, 400, "model"),
    "no input": ({"model": "tiny"}, 400, "input"),
    "empty text": ({"model": "tiny", "input": ""}, 400, "input"),
    "empty list": ({"model": "tiny", "input": []}, 400, "input"),
    "empty text in a list": ({"model": "tiny", "input": ["a", ""]}, 400, "input"),
    "empty token list": ({"model": "tiny", "input": [[]]}, 400, "input"),
    "mixed list": ({"model": "tiny", "input": ["a", 1]}, 400, "input"),
    "numbers that are no ids": ({"model": "tiny", "input": [1.5]}, 400, "input"),
    "true is no token": ({"model": "tiny", "input": [True]}, 400, "input"),
    "unknown token id": ({"model": "tiny", "input": [10**9]}, 400, "input"),
    "negative token id": ({"model": "tiny", "input": [[-1]]}, 400, "input"),
    "huge token id": ({"model": "tiny", "input": [10**30]}, 400, "input"),
    "too many": ({"model": "tiny", "input": ["a"] * 2049}, 400, "input"),
    "null": ({"model": "tiny", "input": None}, 400, "input"),
    "dimensions not trained": ({"model": "tiny", "input": "a", "dimensions": 8}, 400, "dimensions"),
    "dimensions zero": ({"model": "tiny", "input": "a", "dimensions": 0}, 400, "dimensions"),
    "dimensions a word": ({"model": "tiny", "input": "a", "dimensions": "x"}, 400, "dimensions"),
    "encoding": ({"model": "tiny", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
    "input_type": ({"model": "tiny", "input": "a", "input_type": "doc"}, 400, "input_type"),
    "contradiction": ({"model": "tiny-query", "input": "a", "input_type": "passage"}, 400, "input_type"),
    "embedding_type": ({"model": "tiny", "input": "a", "embedding_type": "int8"}, 400, "embedding_type"),
    "truncate": ({"model": "tiny", "input": "a", "truncate": "MIDDLE"}, 400, "truncate"),
    "not JSON": (b"{", 400, None),
    "not UTF-8": (b'{"model": "tiny", "input": "\xff"}', 400, None),
    "half a surrogate pair": (b'{"model": "tiny", "input": "\\ud800"}', 400, "input"),
    "surrogate in the model": (b'{"model": "\\ud800", "input": "a"}', 404, "model"),
    "deeply nested": (b'{"model": "tiny", "input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, None),
    "a list": (b"[]", 400, None),
    "nothing": (b"", 400, None),
    "body too large": (b'{"model": "tiny", "input": "' + b"a" * 2**21 + b'"}', 413, None),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals_have_openais_shape(post, case):
    body, status, param = BAD[case]
    answer = post(body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param


def test_other_paths_and_methods_have_it_too(server):
    assert httpx.get(f"{server.url}/v1/nothing", trust_env=False).json()["error"]["message"]
    wrong = httpx.get(f"{server.url}/v1/embeddings", trust_env=False)
    assert wrong.status_code == 405
    assert wrong.json()["error"]["type"] == "invalid_request_error"


# ---------------------------------------------------------------- health, metrics, description


def test_health_metrics_and_openapi(server, post, encoder):
    for path in ("live", "ready"):
        assert httpx.get(f"{server.url}/v1/health/{path}", trust_env=False).status_code == 200
        assert httpx.head(f"{server.url}/v1/health/{path}", trust_env=False).status_code == 200

    def embedded():
        text = httpx.get(f"{server.url}/metrics", trust_env=False).text
        assert encoder.card.digest in text
        return float(next(x for x in text.splitlines() if x.startswith("embeddings_texts_total ")).split()[1])

    before = embedded()
    assert post({"model": "tiny", "input": ["a", "b", "c"]}).status_code == 200
    assert embedded() == before + 3
    schema = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    operations = [one["operationId"] for path in schema["paths"].values() for one in path.values()]
    assert len(set(operations)) == len(operations) >= 6, "each has a name of its own"
    fields = schema["components"]["schemas"]["EmbeddingRequest"]["properties"]
    assert {"input", "model", "dimensions", "encoding_format", "input_type", "truncate", "user"} <= set(
        fields
    )


# ---------------------------------------------------------------- keys


@pytest.fixture(scope="module")
def guarded(exported, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # of this server alone: others of the module ask for no key
        patch.setenv(serve.KEYS, "first-secret, second-secret")
        running = serve.start(exported / "fp32", tmp_path_factory.mktemp("keys") / "keys.log")
    with running:
        yield running


def test_keys_open_the_endpoints_and_are_never_logged(guarded):
    body = {"model": "tiny", "input": "a"}
    for key, status in (("first-secret", 200), ("second-secret", 200), ("second-secre", 401), ("x", 401)):
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{guarded.base_url}/embeddings", json=body, headers=headers, trust_env=False)
        assert answer.status_code == status, key
    assert httpx.get(f"{guarded.base_url}/models", trust_env=False).status_code == 401
    assert httpx.get(f"{guarded.base_url}/health/ready", trust_env=False).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=guarded.base_url, api_key="wrong").models.list()
    assert "secret" not in guarded.log.read_text()


def test_a_stranger_is_refused_before_his_body_is_read(guarded):
    answer = httpx.post(f"{guarded.base_url}/embeddings", content=b"{not json", trust_env=False)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_a_key_variable_without_a_key_opens_nothing():
    assert serve.read_keys(" a,b ,") == ("a", "b") and serve.read_keys("  ") == ()
    with pytest.raises(CourseError, match="EMBEDDING_API_KEYS is set and holds no key"):
        serve.read_keys(" , ,")


# ---------------------------------------------------------------- starting


def test_a_port_belongs_to_one_server_from_the_start():
    with serve._bind("127.0.0.1", 0) as first, pytest.raises(CourseError, match="cannot be used"):
        serve._bind("127.0.0.1", first.getsockname()[1])


def test_a_busy_port_is_named_with_the_remedy(server, exported, tmp_path):
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(CourseError, match=rf"127.0.0.1:{port} cannot be used .* choose another --port"):
        serve.start(exported / "fp32", tmp_path / "log", port=port)


def test_a_proxy_never_sees_the_texts_and_a_blank_key_variable_means_none(exported, tmp_path, monkeypatch):
    """Notebook 6's plain client behind a proxy, which is played by a port where nobody answers."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.setenv(serve.KEYS, " ")
    with serve.start(exported / "fp32", tmp_path / "log") as running:
        key = os.environ.get(serve.KEYS, "none").split(",")[0]
        client = openai.OpenAI(base_url=running.base_url, api_key=key, max_retries=0)
        assert len(rows(client.embeddings.create(model="tiny", input=TEXTS))) == len(TEXTS)
    assert os.environ["no_proxy"].startswith("intranet.example,")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(CourseError, match="notebook 5 writes"):
        serve.start(tmp_path, tmp_path / "log")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", None, "is not an exported model"),
        ("tokenizer.json", b"{half", "cannot be loaded"),
        ("embedding.json", b"{half", "is damaged"),
    ],
)
def test_a_folder_that_was_copied_in_part_is_told(exported, tmp_path, file, content, said):
    folder = shutil.copytree(exported / "fp32", tmp_path / "copy")
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    with pytest.raises(CourseError, match=said):
        serve.start(folder, tmp_path / "log")
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_method_that_is_not_allowed_names_those_that_are(server):
    answer = httpx.get(f"{server.base_url}/embeddings", trust_env=False)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


def test_ctrl_c_ends_the_server_without_a_traceback(exported, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    running = serve.start(exported / "fp32", tmp_path / "log")
    signal.signal(signal.SIGINT, before)
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 130 and "Traceback" not in (tmp_path / "log").read_text()


def test_the_url_of_an_ipv6_address_has_brackets_and_works(exported, tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serve.start(exported / "fp32", tmp_path / "log", options=("--host", "::1")) as running:
        assert running.base_url.startswith("http://[::1]:")
        assert httpx.get(f"{running.base_url}/models", trust_env=False).status_code == 200


def test_a_damaged_file_is_not_served(exported, tmp_path):
    folder = shutil.copytree(exported / "fp32", tmp_path / "copy")
    card = json.loads((folder / "embedding.json").read_text())
    (folder / "embedding.json").write_text(json.dumps(card | {"digest": "0" * 64}))
    with pytest.raises(CourseError, match="changed or damaged"):
        serve.start(folder, tmp_path / "log")
