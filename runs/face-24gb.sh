#!/usr/bin/env bash
# A face domain on one card with 24 GB, overnight: pictures are cached first, so that training loads neither autoencoder
# nor image encoder; U-Net in bfloat16, optimiser in 8 bits, two batches of eight a step.
# Every step resumes: run the same command again. Needs the extra lab: pip install '.[lab]'.
#
#   FACES=photos/faces bash runs/face-24gb.sh
#   FACES=photos/faces bash runs/face-24gb.sh --batch-size 4 --accumulation 4 --gradient-checkpointing   # in 5.3 GB
#
# HELD_OUT_CACHE: a cache of pictures that are not among them, made by the same e4t cache; their loss is looked at.
#
# ESTIMATED, not measured: 13.5 GB of memory; 20,000 steps in 3.3 hours on an RTX 4090 and 7.6 on a 3090, at 35 % of
# their 165 and 71 TFLOP/s. Before that, once, the cache of 100,000 pictures: 1.6 hours on a 3090, while WORKERS threads
# share 1 to 2 hours of decoding, and 10.6 GB of disk. Costs the electricity. docs/pretraining.md says how these were
# reckoned.
set -euo pipefail
BASE=${BASE:-stable-diffusion-v1-5/stable-diffusion-v1-5}
CACHE=${CACHE:-caches/face}
OUTPUT=${OUTPUT:-domains/face-24gb}
STEPS=${STEPS:-20000}

if [ ! -f "$CACHE/index.json" ]; then
  e4t cache "${FACES:?a folder, archive, dataset or shards of pictures}" --base "$BASE" --output "$CACHE" \
    --resolution "${RESOLUTION:-512}" --views 1 --crop-scale 0.8 1.0 --dtype "${DTYPE:-float16}" \
    --workers "${WORKERS:-4}"
fi
LOOK=()
if [ -n "${HELD_OUT_CACHE:-}" ]; then LOOK=(--validation "$HELD_OUT_CACHE"); fi
e4t pretrain "$CACHE" --domain face --base "$BASE" --output "$OUTPUT" --steps "$STEPS" \
  --batch-size 8 --accumulation 2 --use-8bit-adam --mixed-precision bf16 --dtype bfloat16 --checkpoint-every 500 \
  ${LOOK[@]+"${LOOK[@]}"} "$@"
