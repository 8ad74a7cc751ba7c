"""The folder that other servers load: text-embeddings-inference, vLLM, NIM, older sentence-transformers.

sentence-transformers ≥ 5.4 and transformers ≥ 5 write their settings in new files and under new names, which
servers built on earlier versions misread without a word. This folder says the same in the old names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from utils.export import pooling_mode
from utils.files import read_json
from utils.onnx_encoder import BATCH_ROWS, Card, read_card
from utils.run import expect, write_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
PORTABLE = {"Transformer", "Pooling", "Normalize"}
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def not_portable(model: SentenceTransformer) -> str:
    """Why no portable folder can be written for the model, in one sentence; empty if it can."""
    others = {type(module).__name__ for module in model} - PORTABLE
    named = ", ".join(sorted(others))
    return f"The portable folder cannot hold the model's {named}: use utils.serve." if others else ""


def write_portable(model: SentenceTransformer, fp32: Path, folder: Path) -> Path:
    """Write `folder`: a Hugging Face checkpoint (config.json, model.safetensors, tokenizer), the settings of
    sentence-transformers in their old names, and `onnx/model.onnx` from the exported folder `fp32`.

    Returns the folder. It can be mounted by text-embeddings-inference, vLLM and NIM, and loaded by
    `SentenceTransformer(folder)` and `SentenceTransformer(folder, backend="onnx")`. Raises CourseError for a
    model with other modules, such as Dense.
    """
    expect(not not_portable(model), not_portable(model))
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), create_model_card=False)
    card = read_card(fp32)
    (folder / "onnx").mkdir()
    for file in fp32.glob("model.onnx*"):
        shutil.copy(file, folder / "onnx" / file.name)
    _write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(MODULES)],
    )
    own = pooling_mode(model)
    flags = {flag: mode == own for mode, flag in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": card.dimensions, **flags, "include_prompt": True}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    short = {"max_seq_length": card.max_tokens, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", short)
    settings = read_json(folder / "config_sentence_transformers.json")
    settings |= {
        "prompts": {**card.prompts, "document": card.prompts["passage"]},
        "default_prompt_name": None,
    }
    _write_json(folder / "config_sentence_transformers.json", settings)
    tokenizer = read_json(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":  # a name that transformers 4 does not know
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer["model_max_length"] = card.max_tokens
    _write_json(folder / "tokenizer_config.json", tokenizer)
    config = in_old_names(read_json(folder / "config.json"))
    if card.matryoshka:  # vLLM takes `dimensions` of models that say so
        config["matryoshka_dimensions"] = sorted({*card.matryoshka, card.dimensions})
    _write_json(folder / "config.json", config)
    for file in folder.rglob("*.safetensors"):  # written for the owner alone; a container has another user
        file.chmod(0o644)
    return folder


def in_old_names(config: dict) -> dict:
    """A `config.json` of transformers 5 with the rotary settings under transformers 4's names beside its own.

    A reader that does not know `rope_parameters` takes its defaults without a word, and gives other vectors
    (vllm-project/vllm#42624). `pad_token_id` goes where it is null, which text-embeddings-inference up to 1.8
    does not read.
    """
    old = {key: value for key, value in config.items() if key != "pad_token_id" or value is not None}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        old["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            old["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    layers = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}  # ModernBERT
    old |= {name: rope[kind]["rope_theta"] for kind, name in layers.items() if kind in rope}
    return old


def tensorrt_missing() -> str:
    """Why no TensorRT engine can be built here, in one sentence; empty if it can."""
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU."
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no TensorRT (pip install onnxruntime-gpu tensorrt)."
    return ""


def tensorrt_provider(engine: Path, card: Card) -> list:
    """Providers for `OnnxEncoder`: an fp16 TensorRT engine for `BATCH_ROWS` texts of `max_tokens` at most.

    The engine is built when the session first loads, and kept in the folder `engine`.
    """
    shutil.rmtree(engine, ignore_errors=True)  # an earlier model's
    engine.mkdir(parents=True)
    inputs = ("input_ids", "attention_mask")
    sizes = {"min": (1, 3), "opt": (16, card.max_tokens // 2), "max": (BATCH_ROWS, card.max_tokens)}
    shapes = {
        f"trt_profile_{name}_shapes": ",".join(f"{i}:{rows}x{length}" for i in inputs)
        for name, (rows, length) in sizes.items()
    }
    kept = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(engine), "trt_fp16_enable": True}
    return [("TensorrtExecutionProvider", kept | shapes), "CUDAExecutionProvider", "CPUExecutionProvider"]


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
