#!/usr/bin/env bash
# Art: 100,000 steps of 16 pictures at 512 pixels, the paper's settings, on one or several GPUs.
#
#   ART=photos/art bash runs/art.sh
#   GPUS=4 ART=photos/art bash runs/art.sh        # the same 16 pictures a step, four on each
#   ACCUMULATION=4 ART=photos/art bash runs/art.sh # four at a time, on a smaller card
#
# ART: a folder, an archive or shards with WikiArt (80,000 pictures). HELD_OUT: some
# pictures that are not among them, to look at while training.
#
# ESTIMATED, not measured: 14.5 hours and about 29 US dollars (at 2 an hour) on an A100 with 80 GB at 35 % of
# its 312 TFLOP/s, 34 GB of memory (docs/pretraining.md); half of that time on an H100, a share of it on several.
set -euo pipefail
export DOMAIN=art STEPS=${STEPS:-100000} PICTURES=${ART:?a folder, archive, dataset or shards of pictures}
exec bash "$(dirname "$0")/pretrain.sh" "$@"
