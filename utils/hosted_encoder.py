"""A model behind somebody's OpenAI-compatible /v1/embeddings, as one more system to compare with."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import vector_cache
from utils.chat_hosts import HOSTED
from utils.llm import Provider, check_url, client, may_send, secret
from utils.replies import UNREADABLE
from utils.run import CourseError, expect

BATCH = 64  # texts of one request


class HostedEncoder:
    """`encode` of `utils.encoder` takes it in place of a loaded model."""

    def __init__(self, model: str, base_url: str, send_documents: bool = False) -> None:
        """model at base_url (…/v1). The key: NVIDIA_API_KEY or OPENAI_API_KEY for those hosts, for any other
        EMBEDDINGS_API_KEY. Raises CourseError for a host that is not loopback without `send_documents`."""
        expect(model, f"Which model at {base_url}? Give its name, as the host's /v1/models lists it.")
        check_url(base_url, "LARGER_URL", "EMBEDDINGS_API_KEY")
        may_send(base_url, send_documents)
        names = {url: name for name, url, _ in HOSTED}
        key = secret(names.get(base_url.rstrip("/"), "EMBEDDINGS_API_KEY"))
        self.provider = Provider("remote", model, base_url, "named", send_documents, key)
        self.with_kind: bool | None = (
            None  # unknown yet: NIM needs to be told query or passage; others refuse a field they do not know
        )

    def vectors(self, texts: Sequence[str], kind: str, cache: Path | None, progress: str) -> np.ndarray:
        """float32 (len(texts), d), each of length 1; those of blank texts, which hosts refuse, are zeros."""
        head = f"{self.provider.base_url}\0{self.provider.model}\0{kind}\0"
        keys = [hashlib.sha256((head + text).encode("utf8", "surrogatepass")).digest() for text in texts]
        found: dict[bytes, np.ndarray] = {}
        with (
            closing(vector_cache.open_store(cache)) as store,
            client(self.provider).with_options(max_retries=5) as api,
        ):
            missing = {}  # key → text
            for key, text in zip(keys, texts, strict=True):
                known = vector_cache.read(store, key)
                if known is not None:
                    found[key] = known
                elif text.strip():
                    missing[key] = text
            bar = tqdm(total=len(missing), desc=progress, unit="text", disable=not progress, file=sys.stdout)
            waiting = list(missing.items())
            for start in range(0, len(waiting), BATCH):
                part = waiting[start : start + BATCH]
                fresh = self._ask(api, [text for _, text in part], kind)
                rows = list(zip([key for key, _ in part], fresh, strict=True))
                vector_cache.write(store, rows)
                found |= dict(rows)
                bar.update(len(part))
            bar.close()
        width = len(next(iter(found.values()), []))
        blank = np.zeros(width, dtype=np.float32)
        return (
            np.stack([found.get(key, blank) for key in keys]) if texts else np.zeros((0, width), np.float32)
        )

    def _ask(self, api, texts: list[str], kind: str) -> np.ndarray:
        import openai

        extra = {} if self.with_kind is False else {"input_type": kind, "truncate": "END"}
        try:
            answer = api.embeddings.create(
                model=self.provider.model, input=texts, encoding_format="float", extra_body=extra
            )
        except openai.OpenAIError as error:
            if self.with_kind is None and getattr(error, "status_code", 0) in {400, 422}:
                self.with_kind = False  # it may be these fields: asked once more without them
                return self._ask(api, texts, kind)
            raise CourseError(
                f"{self.provider.model} at {self.provider.base_url} gave no vectors: "
                f"{self.provider.scrub(str(error))[:200]} Look at LARGER_MODEL, LARGER_URL and the key; what "
                f"has come so far is kept."
            ) from None
        self.with_kind = bool(extra)
        asked = f"{self.provider.model} at {self.provider.base_url}"
        try:
            rows = sorted(answer.data, key=lambda row: row.index)
            vectors = np.array([row.embedding for row in rows], np.float32)
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        except UNREADABLE as error:
            raise CourseError(
                f"{asked} answered what are no vectors of one length ({error}). Is it an embedding model?"
            ) from None
        expect(
            len(vectors) == len(texts) and np.isfinite(vectors).all() and (lengths > 0).all(),
            f"{asked} answered {len(vectors)} vectors for {len(texts)} texts, or some that are no "
            f"directions. Is it an embedding model?",
        )
        return vectors / lengths
