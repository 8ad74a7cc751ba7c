"""The questions of notebook 1 by NeMo Data Designer: chunks.jsonl in, a file for QA_PAIRS out.

python -m venv .venv-designer && .venv-designer/bin/pip install -r deploy/designer-requirements.txt
.venv-designer/bin/python deploy/designer_questions.py runs/NAME/01_generate_synthetic_data/chunks.jsonl \
    questions.jsonl --base-url http://127.0.0.1:8000/v1 --model MODEL

Its packages' versions are not the course's, so it has an environment of its own and imports nothing of the
course. A key for the endpoint stands in LLM_API_KEY. Its usage reports to NVIDIA are switched off here.
"""

import argparse
import importlib.metadata
import ipaddress
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

os.environ.setdefault("NEMO_TELEMETRY_ENABLED", "false")

import data_designer.config as dd
import pandas as pd
from data_designer.interface import DataDesigner
from pydantic import BaseModel, Field

PROMPT = """Write {{ count }} questions that people who work with these documents would ask, and that the
passage answers. Use the words of someone who has not seen the passage; a question must make sense without it.

Passage of "{{ title }}":
{{ text }}"""


class Pair(BaseModel):
    """One question, as the model has to return it."""

    question: str = Field(min_length=3, description="asks for something that the passage says")
    answer: str = Field(min_length=1, description="short and complete")
    quote: str = Field(
        min_length=1, description="the words of the passage that hold the answer, copied exactly"
    )
    query_type: Literal["structural", "contextual"]
    reasoning_type: Literal["factual", "relational", "inferential", "temporal", "procedural", "causal"]
    complexity: int = Field(ge=1, le=5)


class Pairs(BaseModel):
    """The questions of one passage."""

    pairs: list[Pair]


def main() -> int:
    """The command line; returns the exit code (0, or 2 for a problem the user can mend)."""
    args = _arguments()
    if not (args.send_documents or is_loopback(args.base_url)):
        print(
            f"The passages would be sent to {args.base_url}. Say --send-documents if they may.",
            file=sys.stderr,
        )
        return 2
    lines = args.chunks.read_text(encoding="utf8").splitlines()
    chunks = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
    chunks = chunks[chunks["text"].str.strip() != ""].head(args.passages or None).assign(count=args.count)
    with tempfile.TemporaryDirectory() as folder:
        table = design(chunks, args.base_url, args.model, args.in_flight, folder)
    rows, dropped = to_rows(
        table, f"data-designer {importlib.metadata.version('data-designer')}: {args.model}"
    )
    args.output.write_text(
        "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf8"
    )
    served = f"{len(table)} of {len(chunks)} passages"
    print(f"{len(rows)} questions of {served}; {dropped} dropped, their quote is not in the passage.")
    return 0


def design(chunks: pd.DataFrame, base_url: str, model: str, in_flight: int, folder: str) -> pd.DataFrame:
    """The chunks with a column `written`, {"pairs": […]}; passages that no answer fitted are left out."""
    key = "LLM_API_KEY" if os.environ.get("LLM_API_KEY") else "none"  # Data Designer looks the name up itself
    provider = dd.ModelProvider(name="endpoint", endpoint=base_url, provider_type="openai", api_key=key)
    settings = dd.ChatCompletionInferenceParams(temperature=0.7, max_parallel_requests=in_flight, timeout=120)
    writer = dd.ModelConfig(alias="writer", model=model, provider="endpoint", inference_parameters=settings)
    plan = dd.DataDesignerConfigBuilder(model_configs=[writer])
    plan.with_seed_dataset(dd.DataFrameSeedSource(df=chunks), sampling_strategy=dd.SamplingStrategy.ORDERED)
    plan.add_column(
        dd.LLMStructuredColumnConfig(name="written", model_alias="writer", prompt=PROMPT, output_format=Pairs)
    )
    designer = DataDesigner(artifact_path=folder, model_providers=[provider])
    return designer.create(plan, num_records=len(chunks), dataset_name="questions").load_dataset()


def to_rows(table: pd.DataFrame, generator: str) -> tuple[list[dict], int]:
    """Rows for QA_PAIRS, and how many were dropped because their quote does not stand in the passage."""
    rows, dropped = [], 0
    for chunk in table.to_dict("records"):
        for pair in chunk["written"]["pairs"]:
            if pair["quote"] not in chunk["text"]:
                dropped += 1
                continue
            own = {name: pair[name] for name in ("question", "answer", "query_type", "reasoning_type")}
            evidence = [{"doc_id": chunk["doc_id"], "quote": pair["quote"]}]
            about = {"chunk_ids": [chunk["chunk_id"]], "doc_id": chunk["doc_id"], "evidence": evidence}
            number = {"question_id": f"dd{len(rows) + 1:06d}", "complexity": int(pair["complexity"])}
            rows.append(number | own | about | {"hops": 1, "generator": generator})
    return rows, dropped


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chunks", type=Path, help="chunks.jsonl of notebook 1")
    parser.add_argument("output", type=Path, help="the file to write, for QA_PAIRS")
    parser.add_argument("--base-url", required=True, help="an OpenAI-compatible endpoint, ends in /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--count", type=int, default=2, help="questions a passage")
    parser.add_argument("--passages", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--in-flight", type=int, default=8, help="requests under way at once, at most")
    parser.add_argument("--send-documents", action="store_true", help="the passages may leave this machine")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
