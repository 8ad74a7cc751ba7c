#!/usr/bin/env bash
# text-embeddings-inference on the exported checkpoint:  deploy/tei.sh [RUN] [PORT]
# Then: base_url http://127.0.0.1:PORT/v1. It adds no prompts: put those of embedding.json in front of
# questions and passages yourself.
set -euo pipefail
run=${1:-quickstart} port=${2:-8080}
model=$(realpath "runs/$run/05_export/portable")
image=${TEI_IMAGE:-ghcr.io/huggingface/text-embeddings-inference:cpu-1.9}
exec docker run --rm -p "127.0.0.1:$port:80" -v "$model:/model:ro" "$image" \
  --model-id /model --auto-truncate
