#!/usr/bin/env bash
# Cats: 60,000 steps of 16 pictures at 512 pixels, the paper's settings, on one or several GPUs.
#
#   CATS=photos/cats bash runs/cat.sh
#   GPUS=4 CATS=photos/cats bash runs/cat.sh        # the same 16 pictures a step, four on each
#   ACCUMULATION=4 CATS=photos/cats bash runs/cat.sh # four at a time, on a smaller card
#
# CATS: a folder, an archive or shards with LSUN-Cat (1.7 million pictures: use shards). HELD_OUT: some
# pictures that are not among them, to look at while training.
#
# ESTIMATED, not measured: 8.7 hours and about 17 US dollars (at 2 an hour) on an A100 with 80 GB at 35 % of
# its 312 TFLOP/s, 34 GB of memory (docs/pretraining.md); half of that time on an H100, a share of it on several.
set -euo pipefail
export DOMAIN=cat STEPS=${STEPS:-60000} PICTURES=${CATS:?a folder, archive, dataset or shards of pictures}
exec bash "$(dirname "$0")/pretrain.sh" "$@"
