#!/usr/bin/env bash
# The shipped face domain, by the public command, on a folder of drawn faces and the shipped base.
#
#   WORK=work/tiny bash runs/tiny-face.sh
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-work/tiny}
BIN=${BIN:-.venv/bin}

"$BIN/python" -m e4t.tiny.album "$WORK/faces" train 8000
"$BIN/e4t" pretrain "$WORK/faces" --domain face --base tiny --config runs/tiny-face.json --output "$WORK/tiny-face"
rm -rf src/e4t/tiny/weights/tiny-face
cp -r "$WORK/tiny-face" src/e4t/tiny/weights/tiny-face
