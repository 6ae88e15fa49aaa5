#!/usr/bin/env bash
# Faces: 30,000 steps of 16 pictures at 512 pixels, the paper's settings, on one or several GPUs.
#
#   FACES=photos/faces bash runs/face.sh
#   GPUS=4 FACES=photos/faces bash runs/face.sh        # the same 16 pictures a step, four on each
#   ACCUMULATION=4 FACES=photos/faces bash runs/face.sh # four at a time, on a smaller card
#
# FACES: a folder, an archive or shards with FFHQ and CelebA-HQ (100,000 pictures). HELD_OUT: some
# pictures that are not among them, to look at while training.
#
# ESTIMATED, not measured: 4.4 hours and about 9 US dollars (at 2 an hour) on an A100 with 80 GB at 35 % of
# its 312 TFLOP/s, 34 GB of memory (docs/pretraining.md); half of that time on an H100, a share of it on several.
set -euo pipefail
export DOMAIN=face STEPS=${STEPS:-30000} PICTURES=${FACES:?a folder, archive, dataset or shards of pictures}
exec bash "$(dirname "$0")/pretrain.sh" "$@"
