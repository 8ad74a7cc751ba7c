#!/usr/bin/env bash
# NVIDIA NeMo Retriever embedding NIM with the tuned checkpoint:
#   NGC_API_KEY=… NIM_IMAGE=nemotron-3-embed-1b NIM_TAG=2.2.2 deploy/nim.sh [RUN] [PORT]
# Only for a run whose BASE_MODEL is the model of the image: the architecture must be the same. NIM puts the prompt of
# `input_type` in front. Images from 2.0 on take the checkpoint folder, from 2.4 as NIM_ENGINE_MODEL_PATH, before as
# NIM_MODEL_PATH (about 2.1 and 2.2 NVIDIA's sources disagree: if the image ends at once, try the other name in
# NIM_PATH_NAME). Images before 2.0, such as llama-nemotron-embed-1b-v2:1.13.0, want an ONNX file with names of NVIDIA's
# own, which its recipe exports and this course does not. From NVIDIA's documentation; no image has been tried.
set -euo pipefail
: "${NGC_API_KEY:?set NGC_API_KEY (docker login nvcr.io comes first)}"
run=${1:-quickstart} port=${2:-8000}
image=${NIM_IMAGE:?name the image of your base, such as nemotron-3-embed-1b}
tag=${NIM_TAG:?name its tag, such as 2.2.2}
model=$(realpath "runs/$run/05_export/portable")
cache=${NIM_CACHE:-$HOME/.cache/nim}
mkdir -p "$cache"
case $tag in
  1.*) echo "NIM $tag takes no checkpoint folder: choose a tag from 2.0 on." >&2 && exit 2 ;;
  2.[0-3] | 2.[0-3].*) variable=NIM_MODEL_PATH ;;
  *) variable=NIM_ENGINE_MODEL_PATH ;;
esac
set -- -e "${NIM_PATH_NAME:-$variable}=/opt/custom-model" -v "$model:/opt/custom-model:ro"
exec docker run --rm --gpus all -u "$(id -u)" --shm-size=16GB -p "127.0.0.1:$port:8000" -e NGC_API_KEY \
  -v "$cache:/opt/nim/.cache" "$@" "nvcr.io/nim/nvidia/$image:$tag"
