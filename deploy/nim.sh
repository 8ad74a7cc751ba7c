#!/usr/bin/env bash
# NVIDIA NeMo Retriever embedding NIM with the tuned checkpoint:  NGC_API_KEY=… deploy/nim.sh [RUN] [PORT]
# Only for a run whose BASE_MODEL is the model of the image: the architecture must be the same. NIM_IMAGE names it:
# llama-nemotron-embed-1b-v2 (the default) or nemotron-3-embed-1b. NIM puts the prompt of `input_type` in front.
# Images from 2.0 take the checkpoint folder (before 2.4 as NIM_MODEL_PATH); images before 2.0 take the ONNX file
# (NIM_CUSTOM_MODEL). From NVIDIA's documentation; no image has been tried.
set -euo pipefail
: "${NGC_API_KEY:?set NGC_API_KEY (docker login nvcr.io comes first)}"
run=${1:-quickstart} port=${2:-8000}
image=${NIM_IMAGE:-llama-nemotron-embed-1b-v2}
tag=${NIM_TAG:-2.4.0}
model=$(realpath "runs/$run/05_export/portable")
cache=${NIM_CACHE:-$HOME/.cache/nim}
mkdir -p "$cache"
case $tag in
  1.*) set -- -e NIM_CUSTOM_MODEL=/opt/custom-model -v "$model/onnx:/opt/custom-model:ro" ;;
  2.[0-3] | 2.[0-3].*) set -- -e NIM_MODEL_PATH=/opt/custom-model -v "$model:/opt/custom-model:ro" ;;
  *) set -- -e NIM_ENGINE_MODEL_PATH=/opt/custom-model -v "$model:/opt/custom-model:ro" ;;
esac
exec docker run --rm --gpus all -u "$(id -u)" --shm-size=16GB -p "127.0.0.1:$port:8000" -e NGC_API_KEY \
  -v "$cache:/opt/nim/.cache" "$@" "nvcr.io/nim/nvidia/$image:$tag"
