"""Vectors kept on disk under a fingerprint of model, prefix, length and text: a stale one is never read."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.run import CourseError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def keys(model: SentenceTransformer, texts: Sequence[str], prefix: str) -> list[bytes]:
    """The fingerprint of every text: SHA-256 over the model, the prefix, the length limit and the text."""
    head = f"{model_digest(model)}\0{prefix}\0{model.max_seq_length}\0"
    return [hashlib.sha256((head + text).encode("utf8", "surrogatepass")).digest() for text in texts]


def model_digest(model: SentenceTransformer) -> str:
    """SHA-256 over a model's weights and the settings of its modules."""
    import torch

    sha = hashlib.sha256()
    for module in model:
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        sha.update(f"{type(module).__name__}{sorted(settings.items(), key=str)}".encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().flatten()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(flat.view(torch.uint8).numpy())
    return sha.hexdigest()


def open_store(folder: Path | None) -> sqlite3.Connection:
    """The store in a folder (made if need be); without a folder one that forgets everything."""
    if folder is None:
        return _with_table(sqlite3.connect(":memory:"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _with_table(sqlite3.connect(folder / "embeddings.sqlite", timeout=60))
    except (OSError, sqlite3.Error) as error:
        raise CourseError(
            f"The cache of vectors in {folder} cannot be used ({error}). Set COURSE_CACHE to a writable "
            f"folder, or delete embeddings.sqlite there."
        ) from error


def _with_table(store: sqlite3.Connection) -> sqlite3.Connection:
    store.execute("create table if not exists vectors (key blob primary key, vector blob) without rowid")
    return store


def read(store: sqlite3.Connection, key: bytes) -> np.ndarray | None:
    """A vector, float32 (d,); None if the store does not have it."""
    row = store.execute("select vector from vectors where key = ?", (key,)).fetchone()
    return None if row is None else np.frombuffer(row[0], dtype=np.float32)


def write(store: sqlite3.Connection, rows: Iterable[tuple[bytes, np.ndarray]]) -> None:
    """Keep vectors under their fingerprints."""
    blobs = [(key, vector.tobytes()) for key, vector in rows]
    with store:
        store.executemany("insert or replace into vectors values (?, ?)", blobs)
