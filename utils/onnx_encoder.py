"""An exported folder and its encoder: onnxruntime and tokenizers only, no torch.

The folder stands alone: `model.onnx`, `tokenizer.json` and `embedding.json` (prompts, lengths, dimensions,
precision, digest).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.machine import cores
from utils.records import distinct
from utils.run import CourseError, digest, expect

INPUT_TYPES = ("query", "passage")
OUTPUTS = ("sentence_embedding", "last_hidden_state")
BATCH_ROWS = 64  # texts of one pass, at most: a TensorRT engine is built for so many


@dataclass(frozen=True)
class Card:
    """`embedding.json`: what a server must know about an exported model, beside its graph and tokenizer."""

    model: str  # the name it is served under
    precision: str
    dimensions: int
    max_tokens: int  # special tokens included
    prompts: dict[str, str]  # "query" and "passage": put in front of the text
    default_input_type: str  # what a request without `input_type` means
    pooling: str
    pad_id: int
    matryoshka: list[int] = field(default_factory=list)  # shorter lengths the model was trained for
    source: str = ""  # SHA-256 of the model folder it was exported from
    digest: str = ""  # of the graph and its weights


def read_card(folder: Path) -> Card:
    """`embedding.json` of an exported folder; a CourseError if it is none."""
    path = Path(folder) / "embedding.json"
    expect(
        all((path.parent / name).exists() for name in (path.name, "model.onnx", "tokenizer.json")),
        f"{folder} is not an exported model (embedding.json, model.onnx, tokenizer.json). "
        f"Give a folder such as runs/NAME/05_export/int8, which notebook 5 writes.",
    )
    try:
        return Card(**json.loads(path.read_text(encoding="utf8")))
    except (ValueError, TypeError) as error:
        raise CourseError(f"{path} is damaged ({error}). Copy the whole folder again.") from error


def graph_files(folder: Path) -> list[Path]:
    """`model.onnx`, and the file of weights beside it where they are too large for the graph's own (2 GB)."""
    return sorted(Path(folder).glob("model.onnx*"))


def graph_bytes(folder: Path) -> int:
    """The size of a graph with its weights."""
    return sum(path.stat().st_size for path in graph_files(folder))


def graph_digest(folder: Path) -> str:
    """SHA-256 of `model.onnx`; of the digests of all its files where the weights stand beside it."""
    files = [digest(path) for path in graph_files(folder)]
    return files[0] if len(files) == 1 else hashlib.sha256("".join(files).encode()).hexdigest()


def identity(folder: Path, card: Card) -> str:
    """SHA-256 over all that shapes a vector: graph, weights, tokenizer, prompts, longest text, default."""
    shaping = [card.digest, digest(Path(folder) / "tokenizer.json"), card.prompts, card.max_tokens]
    text = json.dumps([*shaping, card.default_input_type], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class OnnxEncoder:
    """An exported model in one onnxruntime session: texts → token ids → unit vectors."""

    def __init__(
        self, folder: Path, threads: int = 0, verify: bool = True, providers: Sequence | None = None
    ) -> None:
        """threads: of one session; 0 leaves the choice to onnxruntime. verify: compare with the digest.

        providers: onnxruntime's, in order; None takes CUDA if it is there, else the CPU.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        started = time.perf_counter()
        folder = Path(folder)
        self.card = read_card(folder)
        found = graph_digest(folder) if verify else self.card.digest
        expect(
            found == self.card.digest,
            f"{folder / 'model.onnx'} (with its weights) has the digest {found}, but embedding.json says "
            f"{self.card.digest}: it was changed or damaged. Run notebooks/05_export.ipynb again.",
        )
        self.identity = identity(folder, self.card)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the CPU is shared
        try:
            self.session = onnxruntime.InferenceSession(
                folder / "model.onnx", options, providers=providers or _providers(onnxruntime)
            )
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # both libraries raise what they like
            raise CourseError(f"{folder} cannot be loaded ({error}). Copy the whole folder again.") from error
        on_gpu = self.session.get_providers()[0] != "CPUExecutionProvider"
        # Larger batches fall out of a processor's cache, smaller ones leave a GPU idle.
        self.batch_tokens = 16_384 if on_gpu else 256 * (threads or cores())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._prefix, self._suffix = self._special_tokens()
        self._prompts = {
            kind: self.tokenizer.encode(prompt, add_special_tokens=False).ids
            for kind, prompt in self.card.prompts.items()
        }
        self.load_seconds = time.perf_counter() - started

    def tokenize(self, texts: Sequence[str], kind: str) -> list[list[int]]:
        """Token ids of texts with the prompt of `kind` in front, special tokens included, not truncated.

        Of a text far beyond `max_tokens` only a start is read, with more than twice as many tokens.
        """
        prompt = self.card.prompts[kind]
        texts = [self._start(prompt + text) for text in texts]
        return [row.ids for row in self.tokenizer.encode_batch_fast(texts)]

    def wrap(self, ids: Sequence[int], kind: str) -> list[int]:
        """A caller's own token ids as `tokenize` would give them: prompt in front, special tokens once.

        Tokens at the border of prompt and text may merge, so ids that stand for a text are tokenised again.
        """
        bare = list(ids)
        if self._prefix and bare[: len(self._prefix)] == self._prefix:
            bare = bare[len(self._prefix) :]
        if self._suffix and bare[-len(self._suffix) :] == self._suffix:
            bare = bare[: -len(self._suffix)]
        if self._prompts[kind]:
            text = self.tokenizer.decode(bare)
            if self.tokenizer.encode(text, add_special_tokens=False).ids == bare:
                return self.tokenize([text], kind)[0]
        return [*self._prefix, *self._prompts[kind], *bare, *self._suffix]

    def truncate(self, ids: list[int]) -> list[int]:
        """Token ids cut to `max_tokens` at the end, closing special tokens kept."""
        limit = self.card.max_tokens
        if len(ids) <= limit:
            return ids
        return ids[: limit - len(self._suffix)] + self._suffix

    def run(self, rows: Sequence[list[int]]) -> np.ndarray:
        """One call of the session: token id lists → float32 (len(rows), d), each of length 1."""
        longest = max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))
        ids = np.full((len(rows), longest), self.card.pad_id, dtype=np.int64)  # (b, l)
        mask = np.zeros((len(rows), longest), dtype=np.int64)  # (b, l)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return self.session.run(OUTPUTS[:1], {"input_ids": ids, "attention_mask": mask})[0]

    def encode(self, texts: Sequence[str], kind: str, batch_tokens: int = 0) -> np.ndarray:
        """Vectors of texts, cut at `max_tokens`: float32 (len(texts), d); batches of similar length.

        batch_tokens: of one batch, padding included; 0: `self.batch_tokens`, which suits the device.
        """
        texts, places = distinct(texts)
        rows = [self.truncate(ids) for ids in self.tokenize(texts, kind)]
        vectors = np.zeros((len(rows), self.card.dimensions), dtype=np.float32)
        for chosen in batches([len(row) for row in rows], batch_tokens or self.batch_tokens):
            vectors[chosen] = self.run([rows[i] for i in chosen])
        return vectors[places] if len(places) > len(texts) else vectors

    def _start(self, text: str) -> str:
        size = max(2**16, 16 * self.card.max_tokens)  # characters
        while size < len(text) and len(self.tokenizer.encode(text[:size]).ids) <= 2 * self.card.max_tokens:
            size *= 2
        return text[:size]

    def _special_tokens(self) -> tuple[list[int], list[int]]:
        probe = self.tokenizer.encode("a")
        mask = probe.special_tokens_mask
        start = next((i for i, special in enumerate(mask) if not special), len(mask))
        end = next((i for i, special in enumerate(reversed(mask)) if not special), 0)
        return probe.ids[:start], probe.ids[len(mask) - end :]


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches, longest first: at most `BATCH_ROWS`, and `batch_tokens` after padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batch and (len(batch) + 1) * max(1, lengths[batch[0]]) > batch_tokens
        if full or len(batch) == BATCH_ROWS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _providers(onnxruntime) -> list[str]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    return [name for name in wanted if name in onnxruntime.get_available_providers()]
