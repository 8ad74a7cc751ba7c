"""How hosts differ: some only chat, some take no JSON schema, or not every field; learned from refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from utils.files import CourseError

HOSTED = (
    ("NVIDIA_API_KEY", "https://integrate.api.nvidia.com/v1", "nvidia/llama-3.3-nemotron-super-49b-v1.5"),
    ("OPENAI_API_KEY", "https://api.openai.com/v1", "gpt-5-mini"),
)
CONTINUE = "Continue the text. Answer with the rest of the last line alone.\n\n"
IN_WORDS = "\n\nAnswer with one JSON object of this JSON schema and with nothing else:\n"
ROOM_TO_THINK = 2000  # tokens above max_tokens in a chat that continues a text: the model may think first
OPTIONAL = ("logprobs", "max_tokens", "temperature", "top_p", "seed")  # left out where a host refuses them
REMEDY = {
    401: "The API key is wrong or missing: set LLM_API_KEY (or NVIDIA_API_KEY, OPENAI_API_KEY).",
    402: "The account has no balance: top it up, or choose another host or model.",
    403: "The API key may not use this model: check the key and LLM.",
    404: "There is no such model or path: check LLM and LLM_BASE_URL (it usually ends in /v1).",
    "empty": "The model writes nothing: set LLM to another one.",
    429: "The host keeps refusing for rate or quota: lower IN_FLIGHT or wait.",
}
REACH = "Is the server running, and LLM_BASE_URL right?"
FORMATS = ("json_schema", "json_object", "")  # how a JSON answer is asked for; without a schema: in words


class Dialect:
    """The form in which one host takes a request: `phrase` gives it, `learn` changes it after a refusal."""

    def __init__(self, remote: bool, base_url: str) -> None:
        self.remote = remote
        self.worked = False  # it has answered, in whatever form: model, path and key are right
        self.completes = False  # /completions has answered
        self.chats = base_url.rstrip("/") in {url for _, url, _ in HOSTED}
        self.refused: set[str] = set()
        self.format = 0  # in FORMATS
        self.formatted = False  # a request with a response_format has been answered in this form

    def phrase(self, asked: dict) -> dict:
        """The body to send for a body with a `prompt` (to be continued) or with `messages`."""
        if "messages" in asked:
            return self._formatted(self._without_refused(asked, asked.get("max_tokens", 0)))
        if "prompt" not in asked or not self.chats:
            return asked
        body = self._without_refused(asked, asked.get("max_tokens", -ROOM_TO_THINK) + ROOM_TO_THINK)
        body = {name: value for name, value in body.items() if name not in {"prompt", "stop"}}
        if "logprobs" in body:
            body["logprobs"] = True
        return body | {"messages": [{"role": "user", "content": CONTINUE + asked["prompt"]}]}

    def learn(self, asked: dict, sent: dict, status: int, message: str) -> bool:
        """Whether `phrase` now has another form for a request that the host refused in the form `sent`."""
        if not self.remote or not {"prompt", "messages"} & asked.keys():
            return False
        if "prompt" in sent:
            other = not self.completes and status in {400, 404, 405}
            self.chats = self.chats or other
            return other
        if self.phrase(asked) != sent:  # another request has taught it meanwhile
            return True
        named = {name for name in OPTIONAL if name in sent and re.search(rf"\b{name}\b", message)}
        if not named and status in {400, 422}:
            named = {"logprobs"} & sent.keys()
        if status in {400, 403, 422}:
            self.refused |= named
            return bool(named) or self._learn_format(sent, message)
        return status in {415, 501} and self._learn_format(sent, message)

    def answered(self, sent: dict) -> None:
        """Note that the host took this form."""
        self.worked = True
        if "prompt" in sent:
            self.completes, self.chats = True, False
        self.formatted = self.formatted or "response_format" in sent

    def _without_refused(self, asked: dict, max_tokens: int) -> dict:
        body = {name: value for name, value in asked.items() if name not in self.refused}
        body.pop("max_tokens", None)
        if max_tokens:
            body["max_completion_tokens" if "max_tokens" in self.refused else "max_tokens"] = max_tokens
        return body

    def _formatted(self, body: dict) -> dict:
        kind = FORMATS[self.format]
        if "response_format" not in body or kind == "json_schema":
            return body
        schema = body["response_format"]["json_schema"]["schema"]
        first, *rest = body["messages"]
        told = {**first, "content": first["content"] + IN_WORDS + json.dumps(schema, ensure_ascii=False)}
        body = body | {"messages": [told, *rest], "response_format": {"type": kind}}
        return body if kind else {name: value for name, value in body.items() if name != "response_format"}

    def _learn_format(self, sent: dict, message: str) -> bool:
        """A refusal that names the format counts always, another one until the first answer in this form."""
        if "response_format" not in sent:
            return False
        named = re.search(r"response_format|json_schema|json_object|schema|structured", message, re.I)
        if not named and self.formatted:
            return False
        self.format += 1
        self.formatted = False
        return True


def rest_of_line(reply: str, prompt: str) -> str:
    """A chat's reply as what continues `prompt`: its first line, without the line's start if repeated."""
    line = next((line.strip() for line in reply.split("\n") if line.strip()), "")
    return line.removeprefix(prompt.rpartition("\n")[2].strip()).strip()


def without_thoughts(text: str | None) -> str:
    """A reply without the thinking before it; a thought cut off in the middle leaves nothing."""
    return re.sub(r"^\s*<think>.*?(?:</think>\s*|\Z)", "", text or "", flags=re.S)


def continuing(api, dialect: Dialect, scrub: Callable[[str], str]):
    """A stand-in for `api.completions.create` of an openai client that chats where the host only chats.

    scrub: takes the key out of a message. Raises CourseError where the host does not answer.
    """
    import openai

    complete = api.completions.create

    def refusal(model: str, error: openai.APIError, remedy: str) -> CourseError:
        return CourseError(
            f"{model!r} at {api.base_url} gives no answer: {scrub(str(error))[:200]}. {remedy}"
        )

    def create(*, model: str, **asked):
        sent = dialect.phrase(asked)
        try:
            if "prompt" in sent:
                return complete(model=model, **sent)
            reply = api.chat.completions.create(model=model, **sent)
        except openai.APIStatusError as error:
            if dialect.learn(asked, sent, error.status_code, error.message):
                return create(model=model, **asked)
            raise refusal(model, error, REMEDY.get(error.status_code, REACH)) from None
        except openai.APIError as error:
            raise refusal(model, error, REACH) from None
        texts = [without_thoughts(choice.message.content) for choice in reply.choices]
        cut = [choice.finish_reason == "length" for choice in reply.choices]
        ends = ["length" if c and "\n" not in t.lstrip() else "stop" for c, t in zip(cut, texts, strict=True)]
        choices = [
            {"index": i, "text": rest_of_line(text, asked["prompt"]), "finish_reason": end}
            for i, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]
        shape = {"id": reply.id, "object": "text_completion", "created": reply.created, "model": model}
        return openai.types.Completion(**shape, choices=choices, usage=reply.usage)

    return create
