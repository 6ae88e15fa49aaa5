#!/usr/bin/env bash
# What face.sh, cat.sh and art.sh have in common: the paper's settings, 16 pictures a step, on one or several GPUs.
# Every step resumes: run the same command again. Options after the script's name go to 'e4t pretrain'.
set -euo pipefail
: "${DOMAIN:?run face.sh, cat.sh or art.sh}" "${STEPS:?}" "${PICTURES:?a folder, archive, dataset or shards}"
BASE=${BASE:-stable-diffusion-v1-5/stable-diffusion-v1-5}
OUTPUT=${OUTPUT:-domains/$DOMAIN}
GPUS=${GPUS:-1}
ACCUMULATION=${ACCUMULATION:-1}
if [ $((16 % (GPUS * ACCUMULATION))) -ne 0 ]; then
  echo "16 pictures cannot be shared out among $GPUS GPUs and $ACCUMULATION batches" >&2
  exit 2
fi
E4T=(e4t)
if [ "$GPUS" -gt 1 ]; then E4T=(torchrun --nproc-per-node "$GPUS" -m e4t.cli); fi
LOOK=()
if [ -n "${HELD_OUT:-}" ]; then LOOK=(--validation "$HELD_OUT"); fi

"${E4T[@]}" pretrain "$PICTURES" --domain "$DOMAIN" --base "$BASE" --output "$OUTPUT" --preset paper \
  --steps "$STEPS" --batch-size $((16 / GPUS / ACCUMULATION)) --accumulation "$ACCUMULATION" \
  --mixed-precision bf16 --workers 8 --keep-states 2 ${LOOK[@]+"${LOOK[@]}"} "$@"
