#!/usr/bin/env bash
# vLLM on the exported checkpoint:  deploy/vllm.sh [RUN] [PORT]
# It adds no prompts: put those of embedding.json in front of the texts yourself.
set -euo pipefail
run=${1:-quickstart} port=${2:-8000}
model=$(realpath "runs/$run/05_export/portable")
exec vllm serve "$model" --runner pooling --served-model-name "${SERVED_NAME:-domain-embedder}" \
  --host 127.0.0.1 --port "$port"
