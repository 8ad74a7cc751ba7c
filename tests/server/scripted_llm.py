"""A scripted OpenAI-compatible server on loopback: answers like an LLM, and misbehaves when told to."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "dropped", "hang", "truncated", "empty")


class ScriptedLLM:
    """fault(path, body, nth): what goes wrong the nth time (from 0) that a text is asked; "" for nothing.

    A fault is one of FAULTS, or an HTTP status, or a status and its message ("400 no such thing").
    reply_to(body, nth): what is said, if it depends on more than the last text.
    `seen` holds (seconds, path, body, Authorization) of each request, `answered` counts answers by text.
    """

    def __init__(
        self, fault=lambda path, body, nth: "", retry_after="0", seconds=0.0, write=None, reply_to=None
    ):
        self.reply_to = reply_to
        self.fault, self.retry_after, self.seconds = fault, retry_after, seconds
        self.write = write or (lambda text: f" What is said of {text.split()[-1]}?")
        self.seen, self.asked, self.answered = [], Counter(), Counter()
        self.busy = self.peak = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def paths(self):
        return Counter(path for _, path, _, _ in self.seen)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.seen(None)
        fault = self.script.fault(self.path, {}, 0)
        if fault:
            return self.send(int(fault[:3]), {"error": {"message": fault[4:] or "no"}})
        return self.send(200, {"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    def do_POST(self):
        script = self.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with script.lock:
            nth = script.asked[text]
            script.asked[text] += 1
            script.busy += 1
            script.peak = max(script.peak, script.busy)
        self.seen(body)
        try:
            if script.seconds:
                time.sleep(script.seconds)
            fault = script.fault(self.path, body, nth)
        finally:
            with script.lock:
                script.busy -= 1
        self.misbehave(fault, body, text) if fault else self.answer(body, text)

    def misbehave(self, fault, body, text):
        if fault == "hang":
            self.script.closing.wait(60)
        if fault in {"hang", "dropped"}:
            self.close_connection = True
            return self.connection.shutdown(2)
        if fault == "truncated":
            return self.send(200, self.reply(body, text), cut=40)
        if fault == "empty":
            return self.send(200, self.reply(body, ""))
        retry = {"Retry-After": self.script.retry_after} if fault[:3] == "429" else {}
        return self.send(int(fault[:3]), {"error": {"message": fault[4:] or "no"}}, retry)

    def answer(self, body, text):
        with self.script.lock:
            self.script.answered[text] += 1
        self.send(200, self.reply(body, text))

    def reply(self, body, text):
        write, said = self.script.reply_to, ""
        if text:
            said = write(body, self.script.asked[text] - 1) if write else self.script.write(text)
        chat = "messages" in body
        rows = [{"token": said, "logprob": -1.0, "id": 7}] if body.get("logprobs") else []
        choice = {"finish_reason": "stop", "logprobs": {"content": rows} if rows else None}
        choice |= {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 5, "total_tokens": 5}
        choices = [choice | {"index": i} for i in range(body.get("n", 1))]
        kind = "chat.completion" if chat else "text_completion"
        return {
            "id": "1",
            "object": kind,
            "created": 0,
            "model": "scripted",
            "choices": choices,
            "usage": usage,
        }

    def send(self, status, content, headers=None, cut=0):
        data = json.dumps(content).encode()
        data = data[:-cut] if cut else data
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def seen(self, body):
        with self.script.lock:
            entry = (time.monotonic(), self.path, body, self.headers.get("Authorization", ""))
            self.script.seen.append(entry)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, *_):
        """A client that has gone is no news."""


@contextmanager
def running(script):
    """The base URL of a server that follows `script`, while the block runs."""
    server = Server(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        script.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
