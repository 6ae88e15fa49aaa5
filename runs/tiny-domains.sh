#!/usr/bin/env bash
# The shipped domains, by the public command, each on a folder of drawn pictures and on the shipped base.
#
#   WORK=work/tiny bash runs/tiny-domains.sh            # faces: runs/tiny-face.json
#   WORK=work/tiny bash runs/tiny-domains.sh KIND       # any kind of the drawn world that has a runs/tiny-KIND.json
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=${WORK:-work/tiny}
BIN=${BIN:-.venv/bin}
[ $# -gt 0 ] || set -- face

for kind; do
  "$BIN/python" -m e4t.tiny.album "$WORK/$kind" train 8000 --kind "$kind"
  "$BIN/e4t" pretrain "$WORK/$kind" --domain "$kind" --base tiny --config "runs/tiny-$kind.json" \
    --output "$WORK/tiny-$kind"
  rm -rf "src/e4t/tiny/weights/tiny-$kind"
  cp -r "$WORK/tiny-$kind" "src/e4t/tiny/weights/tiny-$kind"
done
