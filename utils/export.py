"""Export: a sentence-transformers model → ONNX, pooling and normalisation in the graph; fp32, fp16, int8."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from utils.onnx_encoder import INPUT_TYPES, OUTPUTS, Card, OnnxEncoder, graph_bytes, graph_digest, read_card
from utils.run import CourseError, expect, write_text

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

OPSET = 18
IN_ONE_FILE = 1.5e9  # bytes of weights; with more they stand beside the graph, whose file ends at 2 GB
PRECISIONS = ("fp32", "fp16", "int8")
INT8_METHODS = ("dynamic", "blocks", "static")


# ---------------------------------------------------------------- writing


def export_fp32(
    model: SentenceTransformer,
    folder: Path,
    name: str,
    source: str = "",
    default_input_type: str = "query",
    matryoshka: Sequence[int] = (),
) -> Path:
    """Export a model in fp32 to `folder`: dynamic batch and length, at most `model.max_seq_length` tokens.

    Outputs of the graph: `sentence_embedding` float32 (batch, d), pooled and of length 1, and
    `last_hidden_state` (batch, length, d) for servers that pool themselves.
    """
    import torch

    expect(
        getattr(model.tokenizer, "is_fast", False),
        f"The tokenizer of {name} has no tokenizer.json, which the exported folder needs. "
        f"Use a model with a fast tokenizer.",
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    graph = _graph(model)
    rows = model.tokenizer(["a first text", "another one that is longer"], padding=True, return_tensors="pt")
    axes = {0: "batch", 1: "length"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (rows["input_ids"], rows["attention_mask"]),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        )
    weights = sum(4 * p.numel() for p in model.parameters())
    program.save(str(folder / "model.onnx"), external_data=weights > IN_ONE_FILE)
    model.tokenizer.save_pretrained(folder)
    card = Card(
        model=name,
        precision="fp32",
        dimensions=model.get_embedding_dimension(),
        max_tokens=model.max_seq_length,
        prompts={kind: model.prompts.get(kind) or "" for kind in INPUT_TYPES},
        default_input_type=default_input_type,
        pooling=pooling_mode(model),
        pad_id=model.tokenizer.pad_token_id or 0,
        matryoshka=sorted(matryoshka),
        source=source,
    )
    return _write_card(folder, card)


def to_fp16(fp32: Path, folder: Path) -> Path:
    """The same graph with weights and arithmetic in half precision; the vectors are scaled again in fp32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    _copy_beside(fp32, folder)
    large = (
        graph_bytes(fp32) > IN_ONE_FILE
    )  # then the shapes cannot be inferred again; the export has written them
    graph = onnx.load(fp32 / "model.onnx")
    half = convert_float_to_float16(graph, keep_io_types=True, disable_shape_infer=large)
    name = OUTPUTS[0]
    last = next(node for node in half.graph.node if name in node.output)
    last.output[list(last.output).index(name)] = f"{name}_half"
    half.graph.node.append(onnx.helper.make_node("LpNormalization", [f"{name}_half"], [name], axis=1, p=2))
    onnx.save(half, folder / "model.onnx", save_as_external_data=large, location="model.onnx.data")
    return _write_card(folder, read_card(fp32), precision="fp16")


def to_int8(fp32: Path, folder: Path, method: str = "dynamic", texts: Sequence[str] = ()) -> Path:
    """The same graph with weights in int8.

    dynamic: one scale a column of weights, and one for all activations of a batch, found as they come.
    blocks: a scale for every 128 weights and activations of one row: closer, larger, less fast.
    static: the activations' scales are fixed beforehand on `texts` (calibration).
    """
    from onnxruntime import quantization

    expect(method in INT8_METHODS, f"INT8 = {method!r}: give one of {', '.join(INT8_METHODS)}.")
    expect(
        method != "static" or texts,
        "INT8 = 'static' needs texts to calibrate on. Pass some passages of the corpus.",
    )
    _copy_beside(fp32, folder)
    source, target = str(fp32 / "model.onnx"), str(folder / "model.onnx")
    large = graph_bytes(fp32) > IN_ONE_FILE
    columns = {"weight_type": quantization.QuantType.QInt8, "per_channel": True}
    columns["use_external_data_format"] = large
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # "please consider pre-processing": it changes nothing here
    try:
        if method == "dynamic":
            quantization.quantize_dynamic(source, target, **columns)
        elif method == "blocks":
            _quantise_blocks(source, target, large)
        else:
            only = {"op_types_to_quantize": ["MatMul"], "extra_options": {"MatMulConstBOnly": True}}
            quantization.quantize_static(source, target, _calibration(fp32, texts), **columns, **only)
    finally:
        root.setLevel(level)
    return _write_card(folder, read_card(fp32), precision="int8")


def _quantise_blocks(source: str, target: str, large: bool) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source), bits=8, block_size=128, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(target, use_external_data_format=large)


def _calibration(fp32: Path, texts: Sequence[str]):
    """onnxruntime's calibration reader: one text a call."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader

    encoder = OnnxEncoder(fp32)
    rows = iter([encoder.truncate(row) for row in encoder.tokenize(texts, "passage")])

    class Reader(CalibrationDataReader):
        def get_next(self):
            if (row := next(rows, None)) is None:
                return None
            ids = np.array([row], dtype=np.int64)
            return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return Reader()


def pooling_mode(model: SentenceTransformer) -> str:
    """How token vectors become one vector: "mean", "cls", "lasttoken", …"""
    for module in model:
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        if "pooling_mode" in settings:
            mode = settings["pooling_mode"]
            return mode if isinstance(mode, str) else "+".join(mode)
    raise CourseError("The model has no pooling module; export needs a sentence-transformers bi-encoder.")


def _graph(model: SentenceTransformer):
    """A torch module: ids and mask int64 (b, l) → unit vectors (b, d) and token vectors (b, l, d)."""
    import torch

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(model)

        def forward(self, input_ids, attention_mask):
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            for layer in self.layers:
                features = layer(features)
            vectors = torch.nn.functional.normalize(features["sentence_embedding"], p=2, dim=1)  # (b, d)
            return vectors, features["token_embeddings"]

    return Graph().float().cpu().eval()


def _copy_beside(source: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.onnx*", "embedding.json"))


def _write_card(folder: Path, card: Card, **changes: object) -> Path:
    values = asdict(card) | changes | {"digest": graph_digest(folder)}
    write_text(folder / "embedding.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return folder
