# python -m pytest tests/server/test_llm_calls.py
"""Calls to an LLM that misbehaves: each is answered or listed, counted once, paid once, and ends in time."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from scripted_llm import FAULTS, ScriptedLLM, running

from utils import calls, chat_hosts, llm, questions
from utils.flight import Limits, Request
from utils.records import Chunk
from utils.run import ROOT, CourseError

KEY = "not-a-real-key-0123456789"
FAST = Limits(in_flight=8, timeout=20, backoff=0.01, price_in=1.0, price_out=2.0)


def provider(url, model="scripted", kind="remote"):
    return llm.Provider(kind, model, url, "test", key=KEY, identity=f"{model} at {url}")


def requests(count, **more):
    body = {"max_tokens": 40, "stop": ["\n"], "logprobs": 1, "seed": 13, **more}
    return [
        Request({"prompt": f"Passage: about thing-{i}", **body}, "Question", str(i)) for i in range(count)
    ]


def number(body):
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    return int(text.rsplit("-", 1)[1])


def limits(**changes):
    return Limits(**{**FAST.__dict__, **changes})


@pytest.fixture
def ledger(tmp_path):
    return calls.Ledger("test", tmp_path / "answers.sqlite")


def test_a_plan_counts_kinds_of_which_every_call_failed(ledger):
    later = time.time() + 1
    rows = [
        ("test", "k1", "artifacts", "m", later, 100, 0, 60.0, 0, "timed out"),
        ("test", "k2", "questions", "m", later, 10, 5, 2.0, 0, ""),
    ]
    ledger.db.executemany(f"insert into calls values ({', '.join('?' * 10)})", rows)
    plan = ledger.plan(2, Limits(in_flight=1)).set_index("tag")
    assert plan.calls.to_dict() == {"artifacts": 2, "questions": 2, "together": 4}
    assert plan.tokens_in["together"] == 220 and plan.minutes["together"] == 2.1


def test_a_damaged_file_of_answers_is_named(tmp_path):
    (tmp_path / "answers.sqlite").write_text("no database " * 100)
    with pytest.raises(CourseError, match=r"answers\.sqlite cannot be used.*Move the file away"):
        calls.Ledger("test", tmp_path / "answers.sqlite")


def paid(ledger):
    return ledger.frame().query("cached == 0 and error == ''")


def test_ten_percent_of_every_fault(ledger):
    """Of 60 requests, 6 meet each fault once, and one is refused for good."""

    def fault(path, body, nth):
        i = number(body)
        if i == 59:
            return "500"
        return FAULTS[i % 10] if nth == 0 and i % 10 < len(FAULTS) else ""

    script = ScriptedLLM(fault)
    with running(script) as url:
        asked = requests(60)
        answers = calls.ask(provider(url), asked, ledger, limits(timeout=4, in_flight=16))
    for i, answer in enumerate(answers[:59]):
        assert answer.texts == [f" What is said of thing-{i}?"] and not answer.error, (i, answer)
    assert "500" in answers[59].error and not answers[59].texts
    frame = ledger.frame()
    once = paid(ledger)
    assert len(once) == once.key.nunique() == 59
    assert (frame.error != "").sum() >= 36 + 6, "every failed attempt is in the ledger"
    (totals,) = ledger.summary(FAST)
    assert totals["requests"] == 60 and totals["paid_calls"] == 59
    assert totals["tokens_in"] == sum(a.tokens_in for a in answers) == 59 * 3
    assert totals["tokens_out"] == (59 + 6) * 5, "the six empty answers are billed too"
    assert totals["cost"] == pytest.approx((59 * 3 + (59 + 6) * 10) / 1e6)
    stored = ledger.db.execute("select count(*) from answers").fetchone()[0]
    assert stored == 59, "no error is kept as an answer"


def test_retry_after_is_obeyed_by_all_workers(ledger):
    """The host refuses everything for a second and asks for 1.5: only what was under way meets a refusal."""

    def fault(path, body, nth):
        if time.monotonic() - script.seen[0][0] > 1:
            return ""
        refused.append(number(body))
        return "429"

    refused, script = [], ScriptedLLM(fault, retry_after="1.5")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(12), ledger, limits(in_flight=4))
    assert not any(answer.error for answer in answers)
    assert 1 <= len(refused) == len(set(refused)) <= 4
    assert (ledger.frame().error.str.contains("429")).sum() == len(refused)


class PerWindow:
    """A fault: 429 for all but the first `most` requests of each window of `seconds`."""

    def __init__(self, most, seconds):
        self.most, self.seconds, self.began, self.count = most, seconds, 0.0, 0

    def __call__(self, path, body, nth):
        if time.monotonic() - self.began > self.seconds:
            self.began, self.count = time.monotonic(), 0
        self.count += 1
        return "429" if self.count > self.most else ""


@pytest.mark.parametrize(
    ("most", "seconds", "retry_after", "in_flight"),
    [(2, 0.1, "0.1", 16), (2, 0.1, "0.1", 32), (6, 0.8, "", 8), (3, 0.2, "0", 12)],
)
def test_a_host_that_takes_little_at_a_time_slows_the_run_down(ledger, most, seconds, retry_after, in_flight):
    script = ScriptedLLM(PerWindow(most, seconds), retry_after=retry_after)
    with running(script) as url:
        some = limits(in_flight=in_flight, backoff=0.1)
        answers = calls.ask(provider(url), requests(24), ledger, some)
    assert not [answer.error for answer in answers if answer.error]
    assert sum(script.answered.values()) == 24 and len(script.seen) <= 24 * 4


def test_one_text_that_is_always_refused_is_listed(ledger):
    script = ScriptedLLM(lambda path, body, nth: "429 too large" if number(body) == 3 else "")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(12), ledger, FAST)
    assert [i for i, answer in enumerate(answers) if answer.error] == [3] and "429" in answers[3].error
    assert len(script.seen) <= 11 + 24


def test_a_refused_document_is_listed_once_the_host_has_answered(ledger, tmp_path):
    """Also by a later run, in which it is the only one that is asked."""
    script = ScriptedLLM(lambda path, body, nth: "403 input flagged" if number(body) == 0 else "")
    script.seconds = 0.05  # the refusal comes no later than the answers
    with running(script) as url:
        for run in (ledger, calls.Ledger("again", tmp_path / "answers.sqlite")):
            answers = calls.ask(provider(url), requests(8), run, FAST)
            assert [i for i, answer in enumerate(answers) if answer.error] == [0]
            assert "flagged" in answers[0].error


def test_a_text_that_llama_cpp_cannot_replay_is_asked_once(ledger):
    """Its error is a 500, which others are asked again for, and which ends a run when many fail alike."""
    message = "500 got exception: Unexpected empty grammar stack after accepting piece: . (30)"
    script = ScriptedLLM(lambda path, body, nth: message if number(body) else "")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(20), ledger, FAST)
    assert not answers[0].error and all("grammar" in answer.error for answer in answers[1:])
    assert len(script.seen) == 20


def test_what_a_first_run_listed_does_not_end_the_next_one(ledger, tmp_path):
    """Twenty texts too long for the model, among thirty: later they alone are asked, one after the other."""
    script = ScriptedLLM(lambda path, body, nth: "400 too long" if number(body) % 3 else "")
    with running(script) as url:
        for run in (ledger, calls.Ledger("again", tmp_path / "answers.sqlite")):
            answers = calls.ask(provider(url), requests(30), run, limits(in_flight=1))
            assert sum("too long" in answer.error for answer in answers) == 20


def test_an_empty_answer_is_paid_too(ledger):
    """A thought that was cut off: the host bills it, so MAX_COST must see it."""
    script = ScriptedLLM(write=lambda text: "<think>Hm, let me see")
    with running(script) as url:
        costly = limits(in_flight=1, price_in=0, price_out=1e6, max_cost=19)
        answers = calls.ask(provider(url), requests(6), ledger, costly)
    assert len(script.seen) == 4 and "MAX_COST = 19 was reached" in answers[-1].error
    (totals,) = ledger.summary(costly)
    assert (totals["cost"], totals["tokens_out"], totals["paid_calls"]) == (20, 20, 0)
    assert ledger.spent.cost == 20


def test_minutes_end_also_a_call_that_hangs_and_a_pause(ledger):
    for fault in ("hang", "429"):
        script = ScriptedLLM(lambda path, body, nth, fault=fault: fault, retry_after="60")
        with running(script) as url:
            began = time.monotonic()
            some = limits(max_minutes=0.02 + ledger.spent.seconds / 60, in_flight=16)
            answers = calls.ask(provider(url), requests(16), ledger, some)
        assert time.monotonic() - began < 6, fault
        assert all(answer.error for answer in answers) and "MAX_MINUTES" in answers[-1].error


@pytest.mark.parametrize(
    ("status", "calls_at_most", "named"),
    [
        ("401", 8, r"API key is wrong or missing: set LLM_API_KEY"),
        ("402", 8, r"account has no balance"),
        ("403", 8, r"check the key and LLM"),
        ("429", 80, r"lower IN_FLIGHT or wait"),
        ("404 no such model", 16, r"check LLM and LLM_BASE_URL"),
        ("500", 40, r"LLM_BASE_URL right"),
        ("empty", 40, r"writes nothing: set LLM"),
    ],
)
def test_equal_failures_end_the_run_and_say_what_is_wrong(ledger, status, calls_at_most, named):
    fault = f"{status} key {KEY}" if status[:3].isdigit() else status
    script = ScriptedLLM(lambda path, body, nth: fault)
    with running(script) as url, pytest.raises(CourseError, match=named) as caught:
        calls.ask(provider(url, "wrong-model"), requests(60), ledger, FAST)
    text = str(caught.value)
    assert "'wrong-model'" in text and url in text and "run again" in text
    assert 1 <= len(script.seen) <= calls_at_most
    noted = ledger.frame()
    assert KEY not in text and not noted.astype(str).stack().str.contains(KEY).any()
    assert any(KEY in header for *_, header in script.seen), "the host itself does get the key"


def test_a_host_that_is_not_there_is_named(ledger):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with pytest.raises(CourseError, match="Is the server running, and LLM_BASE_URL right") as caught:
            calls.ask(provider(url), requests(20), ledger, FAST)
    assert url in str(caught.value)


def test_a_few_texts_that_no_model_answers_are_listed(ledger):
    script = ScriptedLLM(lambda path, body, nth: "empty")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(3), ledger, FAST)
    assert [answer.error for answer in answers] == ["empty answer"] * 3


def test_passages_that_got_no_candidate_are_listed(ledger):
    pieces = [Chunk(chunk_id=f"d{i}#0", doc_id=f"d{i}", text="") for i in range(20)]
    asked = [(piece, "Question") for piece in pieces]
    with running(ScriptedLLM()) as url:
        answers = calls.ask(provider(url), requests(20), ledger, limits(max_calls=5, in_flight=2))
    table = questions.candidates(asked, answers, "remote")
    lost = questions.unanswered(asked, answers)
    assert len(table) == 5 and len(lost) == 15
    assert {*table.doc_id} | {row["doc_id"] for row in lost} == {piece.doc_id for piece in pieces}
    assert {row["reason"] for row in lost} == {"Question: not answered: MAX_CALLS = 5 was reached"}


def test_limits_end_with_what_is_done(ledger, tmp_path):
    script = ScriptedLLM(lambda path, body, nth: "500" if number(body) % 5 == 0 and nth == 0 else "")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(40), ledger, limits(max_calls=10))
        assert len(script.seen) == 10, "a retry is a call too"
        done = [answer for answer in answers if not answer.error]
        assert len(done) == len(paid(ledger)) == sum(script.answered.values())
        left = [answer.error for answer in answers if answer.error and "HTTP 500" not in answer.error]
        assert done and set(left) == {"not answered: MAX_CALLS = 10 was reached"}
        calls.ask(provider(url), requests(40), ledger, limits(max_calls=10))
        assert len(script.seen) == 10, "the limit holds for all that a notebook asks, not for each time"
        again = calls.Ledger("again", tmp_path / "answers.sqlite")
        answers = calls.ask(provider(url), requests(40), again, limits(max_cost=1e-5, in_flight=1))
        assert len(script.seen) == 11 and "MAX_COST = 1e-05" in answers[-1].error


def test_minutes_end_with_what_is_done(ledger):
    script = ScriptedLLM(seconds=0.2)
    with running(script) as url:
        began = time.monotonic()
        answers = calls.ask(provider(url), requests(400), ledger, limits(max_minutes=0.02, in_flight=2))
        assert time.monotonic() - began < 30, "400 requests would take 40 s"
    done = [answer for answer in answers if not answer.error]
    assert len(done) < 400 and len(done) == len(paid(ledger))
    assert answers[-1].error == "not answered: MAX_MINUTES = 0.02 was reached"


def test_a_second_run_costs_nothing(ledger, tmp_path):
    script = ScriptedLLM()
    with running(script) as url:
        first = calls.ask(provider(url), requests(20), ledger, FAST)
        again = calls.Ledger("again", tmp_path / "answers.sqlite")
        second = calls.ask(provider(url), requests(20), again, FAST)
        assert len(script.seen) == 20
        calls.ask(provider(url), requests(1, seed=14), again, FAST)
        assert len(script.seen) == 21, "another seed is another answer"
        calls.ask(provider(url, "other"), requests(1), again, FAST)
        assert len(script.seen) == 22, "another model is another answer"
    assert [a.texts for a in first] == [a.texts for a in second] and all(a.cached for a in second)
    totals = next(row for row in again.summary(FAST) if row["model"] == "scripted")
    assert totals["cached_calls"] == 20 and totals["paid_calls"] == 1


def test_the_key_is_in_no_file(ledger, tmp_path):
    with running(ScriptedLLM(lambda path, body, nth: f"500 {KEY}" if nth == 0 else "")) as url:
        calls.ask(provider(url), requests(3), ledger, FAST)
    ledger.db.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


def test_an_interrupted_run_goes_on_without_paying_twice(ledger, monkeypatch):
    """The disk fails in the middle: what was noted is kept."""
    note, noted = ledger.note, []

    def failing(*arguments):
        if len(noted) == 12:
            raise CourseError("disk full")
        noted.append(note(*arguments))

    script = ScriptedLLM()
    with running(script) as url:
        monkeypatch.setattr(ledger, "note", failing)
        with pytest.raises(CourseError, match="disk full"):
            calls.ask(provider(url), requests(30), ledger, limits(in_flight=1))
        monkeypatch.undo()
        answers = calls.ask(provider(url), requests(30), ledger, FAST)
    assert not any(answer.error for answer in answers) and sum(answer.cached for answer in answers) == 12
    assert len(script.seen) == 31, "only the call in flight is asked again"


CHILD = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import test_llm_calls as t
ledger = t.calls.Ledger("killed", Path(sys.argv[1]))
t.calls.ask(t.provider(sys.argv[2]), t.requests(200), ledger, t.limits(in_flight=4))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_run_loses_at_most_the_calls_in_flight(tmp_path):
    path, here = tmp_path / "answers.sqlite", ROOT / "tests" / "server"
    script = ScriptedLLM(seconds=0.02)
    with running(script) as url:
        command = [sys.executable, "-c", CHILD, str(path), url, str(here)]
        child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        deadline = time.monotonic() + 120
        while sum(script.answered.values()) < 20 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        assert child.wait(30) == -signal.SIGKILL, "it should have been killed in the middle"
        ledger = calls.Ledger("killed", path)
        before = len(paid(ledger))
        assert 16 <= before < 200
        answers = calls.ask(provider(url), requests(200), ledger, FAST)
    assert [a.texts[0] for a in answers] == [f" What is said of thing-{i}?" for i in range(200)]
    assert sum(answer.cached for answer in answers) == before
    assert len(paid(ledger)) == 200 and paid(ledger).key.is_unique
    assert sum(script.asked.values()) <= 200 + 4


# ---------------------------------------------------------------- hosts that only chat


def chat_only(refuses="", status="404", others="400"):
    def fault(path, body, nth):
        if path == "/v1/completions":
            return f"{status} this is a chat model"
        return f"{others} {refuses} is not supported" if refuses in body else ""

    return fault


@pytest.mark.parametrize(("status", "refuses"), [("404", "logprobs"), ("405", "temperature"), ("400", "")])
def test_a_host_that_only_chats_gets_the_prompt_as_a_message(ledger, status, refuses):
    script = ScriptedLLM(
        chat_only(refuses or "no such field", status), write=lambda text: "\nQuestion: What is it?\nSure!"
    )
    asked = [
        Request({**r.body, "prompt": f"{r.body['prompt']}\nQuestion:", "temperature": 0.7}, r.tag)
        for r in requests(10)
    ]
    with running(script) as url:
        answers = calls.ask(provider(url), asked, ledger, limits(in_flight=2))
        seen = len(script.seen)
        calls.ask(provider(url), asked, ledger, FAST)
        assert len(script.seen) == seen, "the chat's answers are cached under the same requests"
    assert [answer.texts for answer in answers] == [["What is it?"]] * 10
    assert all(len(answer.tokens) == 1 for answer in answers)
    body = script.seen[-1][2]
    texts = [chat_hosts.CONTINUE + request.body["prompt"] for request in asked]
    asked_for = [[{"role": "user", "content": text}] for text in texts]
    assert body["messages"] in asked_for, "with two in flight, any of the last may come in last"
    assert not {"prompt", "stop", refuses} & body.keys() and body["max_tokens"] > 40
    assert script.paths()["/v1/completions"] <= 2 and len(paid(ledger)) == 10


def test_a_model_that_thinks_has_room_to(ledger):
    refuses = chat_only("max_tokens")
    script = ScriptedLLM(refuses, write=lambda text: "<think>\nHm.\n</think>\n\nWhat is it?")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(3), ledger, FAST)
    assert [answer.texts for answer in answers] == [["What is it?"]] * 3
    assert script.seen[-1][2]["max_completion_tokens"] > 1000


def test_a_wrong_model_is_still_named_after_the_chat(ledger):
    script = ScriptedLLM(lambda path, body, nth: "404 no such model")
    with running(script) as url, pytest.raises(CourseError, match="There is no such model or path"):
        calls.ask(provider(url), requests(5), ledger, limits(in_flight=1))
    assert [path for _, path, *_ in script.seen] == ["/v1/completions", "/v1/chat/completions"]


def test_one_refused_prompt_does_not_turn_completions_into_chats(ledger):
    script = ScriptedLLM(lambda path, body, nth: "400 too long" if number(body) == 3 else "")
    with running(script) as url:
        answers = calls.ask(provider(url), requests(6), ledger, limits(in_flight=1))
    assert [bool(answer.error) for answer in answers] == [False, False, False, True, False, False]
    assert set(script.paths()) == {"/v1/completions"}


def test_the_notebooks_own_call_is_continued_by_a_chat_too():
    script = ScriptedLLM(chat_only("logprobs", others="403"), write=lambda text: "What is it?\nMore")
    with running(script) as url:
        client = llm.client(provider(url))
        found = client.completions.create(model="scripted", prompt="Question:", n=2, logprobs=1, stop=["\n"])
    assert [choice.text for choice in found.choices] == ["What is it?"] * 2
    assert {choice.finish_reason for choice in found.choices} == {"stop"}
    assert script.paths() == {"/v1/completions": 1, "/v1/chat/completions": 2}


def test_a_server_that_completes_is_asked_for_completions():
    script = ScriptedLLM()
    with running(script) as url:
        found = llm.client(provider(url)).completions.create(model="scripted", prompt="of pumps", n=1)
    assert found.choices[0].text == " What is said of pumps?"
    assert script.paths() == {"/v1/completions": 1}


# ---------------------------------------------------------------- the embedded servers; the choice


def test_the_embedded_writer_repeats_itself_whatever_else_it_is_asked(tmp_path):
    """In another order, and when half of the answers are there already, as after a kill."""
    body = {"temperature": 0.7, "max_tokens": 12, "stop": ["\n"], "logprobs": 1, "seed": 13}
    manual = "Passage: A pump that was opened is filled, vented and turned by hand before it is started. " * 4
    prompts = [f"{manual}Pump P-{i} lifts {i} l.\n{cue}:" for i in range(4) for cue in ("Question", "Search")]
    asked = [Request({"prompt": p, **body, "n": 1 + (i < 2)}, "", str(i // 2)) for i, p in enumerate(prompts)]
    turned = [6, 7, 4, 5, 2, 3, 0, 1]
    writer = llm.connect("embedded")
    first = calls.ask(writer, asked, calls.Ledger("a", tmp_path / "a.sqlite"), FAST)
    again = calls.Ledger("b", tmp_path / "b.sqlite")
    calls.ask(writer, asked[5:], again, limits(in_flight=1))
    second = calls.ask(writer, [asked[i] for i in turned], again, FAST)
    assert json.dumps([first[i].tokens for i in turned]) == json.dumps([a.tokens for a in second])
    assert [len(answer.texts) for answer in first] == [2, 2, 1, 1, 1, 1, 1, 1]


def test_as_many_embedded_servers_as_cores_share_the_requests(ledger, monkeypatch):
    one, other, asked_for = ScriptedLLM(seconds=0.03), ScriptedLLM(seconds=0.03), []
    with running(one) as url, running(other) as another:

        @contextmanager
        def fleet(provider, servers, choices):
            asked_for.append((servers, choices))
            yield [url, another]

        monkeypatch.setattr(calls, "fleet", fleet)
        monkeypatch.setattr(llm, "cores", lambda: 2)
        answers = calls.ask(provider("", kind="embedded"), requests(24, n=3), ledger, limits(in_flight=16))
    assert asked_for == [(2, 3)] and one.peak == other.peak == 1
    assert all(len(answer.texts) == 3 for answer in answers)


def test_auto_takes_the_first_model_of_the_url_and_sends_it_no_other_hosts_key(monkeypatch):
    script = ScriptedLLM()
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    monkeypatch.delenv("LLM_API_KEY", raising=False)
    with running(script) as url:
        chosen = llm.connect("auto", url)
    assert (chosen.kind, chosen.model, chosen.base_url, chosen.key) == ("remote", "scripted", url, "")
    assert "LLM_BASE_URL" in chosen.reason and not any(KEY in header for *_, header in script.seen)


def test_the_notebooks_own_call_says_what_to_do_when_the_host_refuses():
    script = ScriptedLLM(lambda path, body, nth: f"401 wrong key {KEY}")
    with running(script) as url, pytest.raises(CourseError, match="set LLM_API_KEY") as caught:
        llm.client(provider(url)).completions.create(model="scripted", prompt="Question:")
    assert KEY not in str(caught.value)
    with pytest.raises(CourseError, match="Is the server running"):  # it has just ended
        llm.client(provider(url)).completions.create(model="scripted", prompt="Question:")


def test_a_web_page_instead_of_a_list_of_models_is_one_clear_sentence():
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>a chat in the browser</html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(CourseError, match="does not list its models"):
            llm.connect("auto", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_a_wrong_key_is_said_before_the_first_request(monkeypatch):
    monkeypatch.setenv("LLM_API_KEY", KEY)
    script = ScriptedLLM(lambda path, body, nth: f"401 wrong key {KEY}")
    with running(script) as url, pytest.raises(CourseError, match="and the key right") as caught:
        llm.connect("auto", url)
    assert url in str(caught.value) and KEY not in str(caught.value)
