#!/usr/bin/env bash
# vLLM on the exported checkpoint:  deploy/vllm.sh [RUN] [PORT]
# It adds no prompts: put those of embedding.json in front of the texts yourself. By itself it would round to 16 bits
# (VLLM_DTYPE=auto or float16: faster, and not the file that was measured).
set -euo pipefail
run=${1:-quickstart} port=${2:-8000}
model=$(realpath "runs/$run/05_export/portable")
exec vllm serve "$model" --runner pooling --served-model-name "${SERVED_NAME:-domain-embedder}" \
  --dtype "${VLLM_DTYPE:-float32}" --host 127.0.0.1 --port "$port"
