"""Which LLM writes the questions, and the embedded one: weights fetched and checked, served on loopback.

python -m utils.llm fetch     fetches the embedded weights (make setup runs it); offline afterwards
"""

from __future__ import annotations

import gc
import ipaddress
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from utils.chat_hosts import HOSTED, Dialect, continuing
from utils.machine import cores
from utils.run import CourseError, digest, expect
from utils.weights import CONVERSION, embedded_adapter, embedded_weights, served_weights

SLOT_TOKENS = 1024  # context of one request to the embedded server


@dataclass(frozen=True)
class Provider:
    """Who answers. kind: embedded, ready-made or remote (any OpenAI-compatible URL, also on this machine)."""

    kind: str
    model: str
    base_url: str
    reason: str
    send_documents: bool = False
    key: str = field(default="", repr=False)
    identity: str = ""  # what the cache of answers goes by: model, URL, weights

    @property
    def leaves_the_machine(self) -> bool:
        """Whether a request goes to a host that is not loopback."""
        return self.kind == "remote" and not is_loopback(self.base_url)

    def scrub(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "***") if self.key else text


# ---------------------------------------------------------------- the choice


def connect(llm: str, base_url: str = "", send_documents: bool = False) -> Provider:
    """The provider that LLM names: auto, embedded, ready-made, or a model at LLM_BASE_URL.

    `auto` takes LLM_BASE_URL, else the host whose key is set, else the embedded writer; a remote host only
    with `send_documents`. Keys come from the environment or Colab's secrets alone.
    """
    expect(isinstance(llm, str) and llm, "LLM is empty. Give auto, embedded, ready-made or a model name.")
    if llm == "ready-made":
        return Provider("ready-made", "ready-made", "", "LLM = 'ready-made': questions written in advance")
    if llm == "embedded":
        return _embedded("LLM = 'embedded'")
    url, key, model, source = _endpoint(base_url)
    if llm != "auto":
        expect(
            url,
            f"LLM = {llm!r} needs a host: set LLM_BASE_URL (and the environment variable LLM_API_KEY if the "
            f"host asks for one), or NVIDIA_API_KEY, or OPENAI_API_KEY; or choose LLM = 'embedded'.",
        )
        may_send(url, send_documents)
        return _remote(url, key, llm, f"LLM names a model; its host comes from {source}", send_documents)
    if not url:
        return _embedded("LLM = 'auto': no LLM_BASE_URL and no API key is set")
    if not is_loopback(url) and not send_documents:
        return _embedded(f"LLM = 'auto': {source} was found and not used, as SEND_DOCUMENTS is False")
    model = model or _first_model(url, key)
    return _remote(url, key, model, f"LLM = 'auto': {source} was found", send_documents)


def judge_of(provider: Provider, model: str = "") -> Provider:
    """The provider that judges what `provider` writes: another model of the same host, or itself if empty."""
    identity = f"{model} at {provider.base_url}"
    return replace(provider, model=model, identity=identity) if model else provider


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine's loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def secret(name: str) -> str:
    """A key from the environment, or from Colab's secrets."""
    if os.environ.get(name):
        return os.environ[name]
    try:
        from google.colab import userdata

        return userdata.get(name)
    except Exception:  # not on Colab, or the secret is not there or not granted: there is no key
        return ""


def client(provider: Provider, base_url: str = "", asynchronous: bool = False, timeout: float = 120.0):
    """An `openai` client: no retries of its own, no redirects to other hosts, no proxy for loopback.

    The synchronous one continues a text (`completions.create`) also where the host only chats.
    """
    import httpx
    import openai

    url = base_url or provider.base_url
    kinds = (openai.AsyncOpenAI, httpx.AsyncClient) if asynchronous else (openai.OpenAI, httpx.Client)
    http = kinds[1](
        trust_env=not is_loopback(url),
        follow_redirects=False,
        timeout=timeout,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
    )
    api = kinds[0](base_url=url, api_key=provider.key or "none", max_retries=0, http_client=http)
    if not asynchronous and provider.kind == "remote":
        api.completions.create = continuing(api, Dialect(True, url), provider.scrub)
    return api


def _endpoint(base_url: str) -> tuple[str, str, str, str]:
    url = base_url or os.environ.get("LLM_BASE_URL", "")
    if url:
        check_url(url, "LLM_BASE_URL", "LLM_API_KEY")
        return url, secret("LLM_API_KEY"), "", "LLM_BASE_URL"
    for name, host, model in HOSTED:
        if secret(name):
            return host, secret(name), model, name
    return "", "", "", ""


def check_url(url: str, name: str, key: str) -> None:
    """Raise CourseError unless the setting `name` is a URL without a password; `key`: where that belongs."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        valid = False
    expect(valid, f"{name} = {url!r} is not a URL. Give one like http://127.0.0.1:8000/v1.")
    expect("@" not in parts.netloc, f"{name} holds a password. Set {key} instead.")


def may_send(url: str, send_documents: bool) -> None:
    """Raise CourseError unless documents may go to the URL's host."""
    expect(
        send_documents or is_loopback(url),
        f"The text of your documents would be sent to {urlsplit(url).hostname}. Set SEND_DOCUMENTS = True "
        f"if they may leave this machine, or choose a model on this machine, such as LLM = 'embedded'.",
    )


def _remote(url: str, key: str, model: str, reason: str, send_documents: bool) -> Provider:
    may_send(url, send_documents)
    return Provider("remote", model, url, reason, send_documents, key, f"{model} at {url}")


def _first_model(url: str, key: str) -> str:
    import openai

    provider = Provider("remote", "", url, "", key=key)
    try:
        found = [model.id for model in client(provider, timeout=20).models.list()]
    except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:  # not OpenAI's shape
        raise CourseError(
            f"{url} does not list its models ({provider.scrub(str(error))[:120]}). "
            f"Is the server running, and the key right? Or set LLM to a model's name."
        ) from None
    expect(found, f"{url} serves no model. Load one there, or set LLM to a model's name.")
    return found[0]


# ---------------------------------------------------------------- the embedded writer


def _embedded(reason: str) -> Provider:
    weights, adapter = embedded_weights(), embedded_adapter()
    name = "SmolLM2-135M" + (" + question-writer LoRA" if adapter else "")
    identity = f"{digest(weights)}{digest(adapter) if adapter else ''} conversion {CONVERSION}"
    return Provider("embedded", name, "", reason, identity=identity)


def at_a_time(provider: Provider, in_flight: int) -> int:
    """Requests at a time: `in_flight`, of the embedded writer at most one a core."""
    return min(in_flight, cores()) if provider.kind == "embedded" else in_flight


@contextmanager
def fleet(provider: Provider, servers: int, choices: int) -> Iterator[list[str]]:
    """The base URLs of that many embedded servers of one thread each, or the one URL of another provider.

    Requests that a server decodes together change each other's roundings, and with them what is sampled. On a
    server of its own a request gets the same answer each time, and two servers are no slower than one with
    two threads. choices: the largest n of a request.
    """
    if provider.kind != "embedded":
        yield [provider.base_url]
        return
    with ExitStack() as running:
        yield [running.enter_context(serving(provider, choices, threads=1)) for _ in range(servers)]


@contextmanager
def serving(
    provider: Provider, in_flight: int = 4, threads: int = 0, with_adapter: bool | Path = True
) -> Iterator[str]:
    """The base URL to talk to, while the block runs; the embedded server lives exactly that long.

    in_flight: answers decoded together (a context of SLOT_TOKENS each), no fewer than a request's n.
    threads: 0 takes all cores. with_adapter: False serves the bare base model, to see what the LoRA changes;
    a path, that adapter.gguf.
    """
    if provider.kind != "embedded":
        yield provider.base_url
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # else two busy programs starve each other's threads
    import xllamacpp

    try:
        named = with_adapter if isinstance(with_adapter, Path) else None
        adapter = embedded_adapter(named) if with_adapter else None
        server = xllamacpp.Server(_server_settings(in_flight, threads or cores(), adapter))
    except RuntimeError as error:
        raise CourseError(
            f"The embedded LLM server did not start ({error}). Is there about 0.5 GB of free memory?"
        ) from error
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server
        gc.collect()


def _server_settings(in_flight: int, threads: int, adapter: Path | None):
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(served_weights(adapter))
    settings.n_parallel = in_flight
    settings.n_ctx = in_flight * SLOT_TOKENS
    settings.port = 0  # a free one
    settings.verbosity = 0
    settings.cache_ram_mib = 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    return settings


if __name__ == "__main__":
    if sys.argv[1:] != ["fetch"]:
        sys.exit("usage: python -m utils.llm fetch")
    try:
        print(f"embedded weights: {served_weights(embedded_adapter())}")
    except CourseError as problem:
        sys.exit(str(problem))
